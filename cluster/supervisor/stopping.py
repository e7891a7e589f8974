"""Signals that ask a process to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Signals that ask a process to end.
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked this process to end. Not an ``Exception``, so that no handler takes it for a failure."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` for SIGTERM, SIGINT and SIGHUP in the block, once, so that the end is not interrupted."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in ASKING:
            signal.signal(number, signal.SIG_IGN)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
