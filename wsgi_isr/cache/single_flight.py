"""Single flight: in one process, one render of a page at a time; later callers join it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_led: ContextVar[tuple[Flight[Any], ...]] = ContextVar("wsgi_isr_flights", default=())


def led() -> tuple[Flight[Any], ...]:
    """Return the flights whose renders have called this, the outermost first."""
    return _led.get()


@contextmanager
def leading(*flights: Flight[Any]) -> Iterator[None]:
    """In here ``flights`` are led, besides those that are already."""
    token = _led.set((*_led.get(), *flights))
    try:
        yield
    finally:
        _led.reset(token)


class Flight(Generic[T]):
    """A render that is under way in this process, and its outcome once it has one."""

    def __init__(self, flights: Flights[T], key: str, number: int) -> None:
        #: Flights made later have higher numbers.
        self.number = number
        self._flights = flights
        self._key = key
        self._done = threading.Event()
        self._outcome: T | None = None
        self._claimed = False
        self._sent = False

    def claim(self) -> bool:
        """Begin it. Only the first call gets ``True``: a flight that waits for a thread may be begun by a
        visitor who cannot wait, and is not begun again by that thread."""
        with self._flights._lock:
            first, self._claimed = not self._claimed and not self._done.is_set(), True
            return first

    def land(self, outcome: T) -> bool:
        """Hand ``outcome`` to everybody who waits. Only the first call counts; ``False`` for the others."""
        with self._flights._lock:
            if self._done.is_set():
                return False
            self._outcome = outcome
            if self._flights._flying.get(self._key) is self:
                del self._flights._flying[self._key]
            self._done.set()
            return True

    def send(self) -> None:
        """Another process has taken it. A visitor of this one who cannot wait may still :meth:`claim` it."""
        self._sent = True

    @property
    def begun(self) -> bool:
        """Whether somebody is at it: what they read may be older than whoever asks."""
        return self._claimed or self._sent

    @property
    def is_led_here(self) -> bool:
        """Return whether the caller is called by this very render, and would wait for itself."""
        return self in _led.get() and not self.done

    @property
    def done(self) -> bool:
        """Whether there is an outcome."""
        return self._done.is_set()

    def wait(self, timeout: float) -> T | None:
        """The outcome, or ``None`` where it takes longer than ``timeout`` seconds."""
        return self._outcome if self._done.wait(timeout) else None


class Flights(Generic[T]):
    """The flights of a process, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: dict[str, Flight[T]] = {}
        #: The number of the latest one.
        self.latest = 0

    def board(self, key: str, instead_of: Flight[T] | None = None) -> tuple[Flight[T], bool]:
        """The flight of ``key``, and whether the caller made it, and must see to it that somebody claims and
        lands it. ``instead_of`` is one that will not do, and is left to those who are on it."""
        with self._lock:
            flight = self._flying.get(key)
            if flight is not None and flight is not instead_of:
                return flight, False
            self.latest += 1
            flight = self._flying[key] = Flight(self, key, self.latest)
            return flight, True

    def get(self, key: str) -> Flight[T] | None:
        """The flight of ``key`` that is under way, if there is one."""
        return self._flying.get(key)

    def __len__(self) -> int:
        return len(self._flying)
