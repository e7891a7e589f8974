"""Polling with a deadline, in place of a sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds that a step may take which an idle machine finishes in a tenth of the time.
PATIENCE = 20.0


def until(found: Callable[[], T | None], what: str, timeout: float = PATIENCE, every: float = 0.02) -> T:
    """Return the first result of ``found`` that is true.

    :param what: names the result in the error.
    :param timeout: seconds.
    :param every: seconds between two calls.
    :raises AssertionError: there was none in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        if result := found():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(every)
