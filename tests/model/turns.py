"""Threads that take turns: one runs at a time, and a test decides which.

An actor is a thread that stops at each *point*: an operation on the shared store, a pause, a wait. It goes on when it
gets its turn. Between two points nothing else happens, so a list of turns fixes the interleaving. The same list gives
the same interleaving again. Time passes only when the test says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

#: Seconds of real time after which an actor that has its turn is said to be stuck.
STUCK = 20.0


class Killed(BaseException):
    """The exception that ends the threads of a killed process."""


class Actor:
    """One thread of one process."""

    def __init__(self, stage: Stage, owner: Any, call: Callable[[], object]) -> None:
        self.owner = owner
        self.killed = False
        self.done = False
        #: Whether it waits for time to pass or for another render.
        self.waited = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._until: Callable[[], bool] | None = None
        self._turn = threading.Semaphore(0)
        self._stage = stage
        self._call = call
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def ready(self) -> bool:
        """Return whether the actor could go on in a turn."""
        return not self.done and (self._until is None or self._until())

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self.killed:
                self.result = self._call()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.done = True
        self._stage._back.release()

    def _stop(self, until: Callable[[], bool] | None) -> None:
        self._until = until
        self._stage._back.release()
        self._turn.acquire()
        self._until = None
        if self.killed:
            raise Killed


class Stage:
    """All actors, and the one that has its turn."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self._current: Actor | None = None
        self._back = threading.Semaphore(0)

    def spawn(self, owner: Any, call: Callable[[], object]) -> Actor:
        """Return a new actor. It does nothing before its first turn."""
        actor = Actor(self, owner, call)
        self.actors.append(actor)
        return actor

    def turn(self, actor: Actor) -> None:
        """Let ``actor`` go on to its next point."""
        self._current = actor
        actor._turn.release()
        assert self._back.acquire(timeout=STUCK), "an actor waits for something that is not on the stage"
        self._current = None
        if actor.done:
            self.actors.remove(actor)
            if actor.error is not None:
                raise actor.error

    def kill(self, owner: Any) -> None:
        """End every actor of ``owner`` where it stands."""
        for actor in [each for each in self.actors if each.owner is owner]:
            actor.killed = True
            while not actor.done:
                self.turn(actor)

    # For actors. Another thread (the test itself) does not stop here.

    def point(self) -> None:
        """Stop, so that another actor may have its turn."""
        if self._current is not None:
            self._current._stop(None)

    def wait(self, until: Callable[[], bool], for_something: bool = True) -> None:
        """Stop until a condition holds."""
        actor = self._current
        if actor is None:
            assert until(), "the test itself cannot wait"
            return
        if not until():
            actor.waited = actor.waited or for_something
            actor._stop(until)

    def threading(self, clock: Callable[[], float]) -> Any:
        """Return the stand-in for the module ``threading`` in modules under test."""

        class Event:
            def __init__(self) -> None:
                self._set = False

            def is_set(self) -> bool:
                return self._set

            def set(self) -> None:
                self._set = True

            def wait(event, timeout: float | None = None) -> bool:
                deadline = float("inf") if timeout is None else clock() + timeout
                self.wait(lambda: event._set or clock() >= deadline)
                return event._set

        class Lock:
            """Reentrant, because nothing here depends on its not being so."""

            def __init__(self) -> None:
                self._holder: Any = None
                self._depth = 0

            def __enter__(lock) -> None:
                me = self._current
                if lock._depth and lock._holder is not me:
                    self.wait(lambda: not lock._depth, for_something=False)
                lock._holder, lock._depth = me, lock._depth + 1

            def __exit__(lock, *exc_info: object) -> None:
                lock._depth -= 1

        return SimpleNamespace(**{**vars(threading), "Event": Event, "Lock": Lock, "RLock": Lock})
