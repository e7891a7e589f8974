"""Add up the counts of all processes of an instance, over two sockets beside those of its renderers.

Each process sends what it has counted since its last report (:mod:`.reporter`) as datagrams. One process of the
instance, the *recorder* (:mod:`wsgi_isr.renderers.recorder`), adds them up, and outlives the senders. It answers each
connection to the other socket with the totals. Without the hooks of a server there is no recorder: the totals are those
of this process.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgpack

from ..stores.base import Store
from .counts import counts_of_process
from .history import History, Record
from .totals import Totals, merged

__all__ = ["Record", "Report", "Sums", "ask", "history_of", "is_of_instance", "send", "totals_of_instance"]

#: The names of the two sockets in their folder.
COUNTS, TOTALS = "counts", "totals"
#: Their names until both are complete.
NEW = ("new-counts", "new-totals")
#: The folder of the sockets; ``None`` without a recorder. A master sets it before processes are forked.
folder: str | None = None
#: The most bytes of a report, and of the totals.
MAX_REPORT, MAX_TOTALS = 128 * 1024, 64 * 1024 * 1024
#: Seconds after which a process without a report counts as gone: its values of the moment no longer count.
SILENCE = 5.0
#: The first part of a message: another version of this package may send during an upgrade.
_VERSION = 1


class Report(NamedTuple):
    """The counts of one app in one process since its last report.

    :param app: the digest of the app.
    :param sender: tells the process from others. (Process ids are used again.)
    :param is_first: whether it has the values of the moment.
    :param is_last: the process ends.
    """

    app: bytes
    sender: bytes
    is_first: bool
    is_last: bool
    totals: Totals

    def encode(self) -> bytes:
        """Return the report as a message."""
        fields = (_VERSION, self.app, self.sender, self.is_first, self.is_last, self.totals.encode())
        packed: bytes = msgpack.packb(fields)
        return packed

    @classmethod
    def decode(cls, message: bytes) -> Report:
        """Return the report in a message.

        :raises ValueError: the message is of another version.
        """
        try:
            version, app, sender, is_first, is_last, totals = msgpack.unpackb(message, use_list=False)
        except Exception as error:  # msgpack raises half a dozen kinds; a wrong shape raises more
            raise ValueError(f"this is no report: {type(error).__name__}") from error
        if version != _VERSION or type(app) is not bytes or type(sender) is not bytes:
            raise ValueError("a report of another version")
        return cls(app, sender, bool(is_first), bool(is_last), Totals.decode(totals))


class Sums:
    """The sums of reports, by app.

    :param monotonic: monotonic seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._counts: dict[bytes, Totals] = {}
        #: By app and sender: the time of the last report, and the values of the moment in it.
        self._moments: dict[tuple[bytes, bytes], tuple[float, Totals]] = {}

    def add(self, report: Report) -> None:
        """Add a report."""
        self._counts[report.app] = self._counts.get(report.app, Totals()).merge(report.totals.counts())
        key = report.app, report.sender
        if report.is_last:
            self._moments.pop(key, None)
        elif report.is_first:
            self._moments[key] = self._monotonic(), Totals.combine(Totals(), report.totals)

    def of(self, app: bytes) -> Totals:
        """Return the totals of an app."""
        now = self._monotonic()
        self._moments = {key: held for key, held in self._moments.items() if now - held[0] < SILENCE}
        moment = merged(held for (of, _), (_, held) in self._moments.items() if of == app)
        return Totals.combine(self._counts.get(app, Totals()), moment)

    def all(self) -> Totals:
        """Return the totals of all apps."""
        return merged(self.of(app) for app in {*self._counts, *(app for app, _ in self._moments)})


def send(sender: socket.socket, place: str, report: Report) -> bool:
    """Send a report; return whether it was sent. Never wait.

    :param sender: a socket that does not block.
    :param place: the folder of the sockets.
    """
    message = report.encode()
    if len(message) > MAX_REPORT:
        return False
    try:
        sender.sendto(message, f"{place}/{COUNTS}")
    except OSError:  # no recorder, or no room in its queue
        return False
    return True


def is_of_instance() -> bool:
    """Return whether :func:`totals_of_instance` asks a recorder. Otherwise the totals are those of this process."""
    return recorded_at() is not None


def recorded_at() -> str | None:
    """Return the folder of the sockets of a recorder; ``None`` without one.

    It starts a moment after the workers, and only for apps whose pages renderers may render.
    """
    return folder if folder is not None and os.path.exists(f"{folder}/{COUNTS}") else None


def totals_of_instance(timeout: float = 0.25) -> Totals:
    """Return the totals of all processes of this instance; of this process alone without the hooks of a server.

    The counts of other processes are a second old at most. If the recorder does not answer within ``timeout`` seconds,
    the totals are those of this process.
    """
    if folder is not None:
        try:
            return ask(folder, timeout)
        except (OSError, ValueError):
            pass
    return merged(counts.totals() for counts in counts_of_process())


def ask(place: str, timeout: float = 0.25) -> Totals:
    """Return the totals of the instance whose sockets are in a folder.

    :raises OSError: the recorder does not answer within ``timeout`` seconds.
    :raises ValueError: it has another version.
    """
    deadline = time.monotonic() + timeout
    parts, size = [], 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(f"{place}/{TOTALS}")
        while part := connection.recv(65536):
            parts.append(part)
            size += len(part)
            if size > MAX_TOTALS or (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError("the totals do not end")
            connection.settimeout(left)
    return Totals.decode(b"".join(parts))


def history_of(
    store: Store, namespace: str, minutes: int, signing_key: str | None = None, clock: Callable[[], float] = time.time
) -> list[Record]:
    """Return the records of the last ``minutes`` of all instances of a namespace, in order.

    :param signing_key: the option ``signing_key`` of the app, which seals the records.
    :raises StoreError: the store is unreachable.
    """
    return History(store, namespace, signing_key, clock).records(minutes)


def parts_of(app: bytes, sender: bytes, totals: Totals, is_last: bool) -> Iterable[Report]:
    """Return the reports of totals. Each has room in a datagram."""
    for number, part in enumerate(totals.parts()):
        yield Report(app, sender, number == 0, is_last, part)
