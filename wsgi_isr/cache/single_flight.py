"""Single flight: one render of a page at a time in a process; later callers join it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_led: ContextVar[tuple[Flight[Any], ...]] = ContextVar("wsgi_isr_flights", default=())


def led() -> tuple[Flight[Any], ...]:
    """Return the flights whose renders have called this function, the outermost first."""
    return _led.get()


@contextmanager
def leading(*flights: Flight[Any]) -> Iterator[None]:
    """Add ``flights`` to those that the current context leads, for the duration of the block."""
    token = _led.set((*_led.get(), *flights))
    try:
        yield
    finally:
        _led.reset(token)


class Flight(Generic[T]):
    """A render in progress in this process, and its outcome."""

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
        """Claim the render, and return whether this call is the first.

        A client that cannot wait may claim a flight that is queued for a thread. The thread then skips the flight.
        """
        with self._flights._lock:
            first, self._claimed = not self._claimed and not self._done.is_set(), True
            return first

    def set_result(self, outcome: T) -> bool:
        """Set the outcome, and wake all waiting threads. Return ``False``, and do nothing, after the first call."""
        with self._flights._lock:
            if self._done.is_set():
                return False
            self._outcome = outcome
            if self._flights._flying.get(self._key) is self:
                del self._flights._flying[self._key]
            self._done.set()
            return True

    def send(self) -> None:
        """Note that another process has taken the render. A client that cannot wait may still :meth:`claim` it."""
        self._sent = True

    @property
    def begun(self) -> bool:
        """Return whether the render has begun: it may have read data from before the caller arrived."""
        return self._claimed or self._sent

    @property
    def is_led_here(self) -> bool:
        """Return whether this render is calling: waiting for the flight would be a deadlock."""
        return self in _led.get() and not self.done

    @property
    def done(self) -> bool:
        """Return whether there is an outcome."""
        return self._done.is_set()

    def wait(self, timeout: float) -> T | None:
        """Return the outcome; ``None`` where it takes longer than ``timeout`` seconds."""
        return self._outcome if self._done.wait(timeout) else None


class Flights(Generic[T]):
    """The flights of a process, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: dict[str, Flight[T]] = {}
        #: The number of the latest flight.
        self.latest = 0

    def join_or_create(self, key: str, instead_of: Flight[T] | None = None) -> tuple[Flight[T], bool]:
        """Return the flight of ``key``, and whether the caller leads it.

        The leader makes sure that the flight is claimed and its outcome is set.

        :param instead_of: a flight that is too old to join; it keeps its followers.
        """
        with self._lock:
            flight = self._flying.get(key)
            if flight is not None and flight is not instead_of:
                return flight, False
            self.latest += 1
            flight = self._flying[key] = Flight(self, key, self.latest)
            return flight, True

    def get(self, key: str) -> Flight[T] | None:
        """Return the flight of ``key`` that is in progress; ``None`` without one."""
        return self._flying.get(key)

    def __len__(self) -> int:
        return len(self._flying)
