"""To be asked to end, by a signal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What asks somebody to end.
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody asked us to end. Not an ``Exception``: nothing on the way may take it for a failure."""


@contextmanager
def stoppable() -> Iterator[None]:
    """In the block SIGTERM, SIGINT and SIGHUP raise :class:`Stopped`, once: a second one must not interrupt the end."""

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
