"""The folders of the sockets of renderer processes: one for each instance, in the temporary directory.

Its sockets lead to renderers (:mod:`wsgi_isr.cache.renderer_pool`), and to the recorder
(:mod:`wsgi_isr.observe.aggregate`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile

from ..cache.renderer_pool import LATER, URGENT
from ..observe.aggregate import COUNTS, NEW, TOTALS
from .worker import Sockets

#: Jobs that wait for a renderer, on each socket.
BACKLOG = 128

_log = logging.getLogger("wsgi_isr")


def make_folder(server: int) -> str:
    """Return the path of a new directory for sockets, which only this user may enter.

    The next server removes a directory whose master is gone.

    :param server: process id of the server's master.
    :raises OSError: there is no place for it.
    """
    parent = _parent()
    _sweep(parent)
    owner = f"{server}-{_started(server)}-{_namespace()}"
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{owner}-", dir=parent)


_PREFIX = "wsgi-isr-"
#: A directory's name: the process id of the master, its start time, and its namespace.
_NAME = re.compile(rf"{_PREFIX}([0-9]{{1,9}})-([0-9]+)-([0-9a-f]+)-[a-z0-9_]+")
#: The name of a socket until it listens.
_NEW = "new"
#: Bytes that the address of a socket may have: 108 with the zero at its end on Linux, 104 elsewhere (unix(7)).
_LONGEST_ADDRESS = 103
#: A directory with a short path.
_SHORT = "/tmp"
#: The most bytes that the names of a directory and a socket add to the address of the parent.
_LONGEST_NAME = len(f"/{_PREFIX}{1 << 22}-{1 << 32}-{1 << 32:x}-12345678/{URGENT}")


def _parent() -> str:
    """Return the parent of directories for sockets: the temporary directory, or ``/tmp`` if its path is too long."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) + _LONGEST_NAME <= _LONGEST_ADDRESS else _SHORT


def _started(pid: int) -> str:
    """Return the start of a process in ticks since boot (proc(5)), which makes a process id unique for ever.

    Empty where the process is gone, ``0`` where the time is unknown.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return "0" if _exists(pid) else ""
    except (OSError, IndexError):
        return "0"


def _exists(pid: int) -> bool:
    """Return whether a process with this id exists. The mount option ``hidepid`` hides none from kill(2)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process is another user's
        return True
    return True


def _namespace() -> str:
    """Return the namespace of this process's ids (pid_namespaces(7)): containers may share a temporary directory."""
    try:
        return f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        return "0"


def _sweep(parent: str) -> None:
    """Remove the directories of this user's servers that were killed with all their processes.

    Every user may write into ``parent``, so no name in it is an error.
    """
    try:
        for name in os.listdir(parent):
            if (match := _NAME.fullmatch(name)) and match[3] == _namespace():
                now = _started(int(match[1]))
                if not now or (now != match[2] and "0" not in (now, match[2])):
                    remove_folder(os.path.join(parent, name))
    except OSError as error:
        _log.debug("old folders of sockets are not looked for: %s", error)


def remove_folder(folder: str) -> None:
    """Remove a directory of sockets if this user owns it, and it contains only sockets.

    No link is followed and no tree removed: in a shared directory, any user may create such a name.
    """
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(opened).st_uid != os.geteuid():
                return
            for name in (URGENT, LATER, _NEW, COUNTS, TOTALS, *NEW):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=opened)
        finally:
            os.close(opened)
        os.rmdir(folder)
    except OSError as error:
        _log.debug("a folder of sockets stays: %s", error)


def open_sockets(folder: str) -> Sockets:
    """Return sockets that replace those in ``folder``, if any: new connections reach the new ones."""
    opened = []
    for name in (URGENT, LATER):
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{folder}/{_NEW}")
        listener.bind(f"{folder}/{_NEW}")
        listener.listen(BACKLOG)
        listener.setblocking(False)
        os.rename(f"{folder}/{_NEW}", f"{folder}/{name}")
        opened.append(listener)
    return Sockets(*opened)


def folders_here() -> list[str]:
    """Return the folders of the instances of this user on this machine whose recorder has started."""
    parent = _parent()
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return []
    found = [match for match in map(_NAME.fullmatch, names) if match and match[2] == _started(int(match[1]))]
    places = [os.path.join(parent, match[0]) for match in found]
    return [place for place in places if _is_own(place) and os.path.exists(f"{place}/{TOTALS}")]


def _is_own(folder: str) -> bool:
    try:
        return os.lstat(folder).st_uid == os.geteuid()
    except OSError:
        return False
