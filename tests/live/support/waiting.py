"""Polling with a deadline: what takes the place of a sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds that anything may take which a machine under load does in a tenth of that.
PATIENCE = 20.0


def until(found: Callable[[], T | None], what: str, timeout: float = PATIENCE, every: float = 0.02) -> T:
    """The first result of ``found`` that is true.

    :param what: names it in the error. :param timeout: seconds; :param every: seconds between two looks.
    :raises AssertionError: there was none in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        if result := found():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(every)
