"""``sqlite:///relative/path.db``, ``sqlite:////absolute/path.db``: one machine, many processes.

The file, and what stands in for it once it cannot be used (read-only, disk full, damaged): the memory
of this process. Pages are still served and rendered, one warning says what to do, and it stays so until
the process is restarted: memory only, and no way back, since the file has not seen what was written and
invalidated meanwhile, so that reading it again would bring old pages back as fresh ones.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...errors import ConfigError, StoreUnavailable
from ..base import Many, Store, Token, Versioned, route
from ..files import check_link
from ..fork_hooks import ForkAware, watch
from ..memory import MAX_BYTES, SMALLEST, MemoryStore
from ..urls import parse_store_url
from .connections import FileBroken, NotOurs
from .table import SQLiteTable

_log = logging.getLogger("wsgi_isr.store")

_Answer = TypeVar("_Answer")

_MAX_BYTES = 512 * 1024 * 1024
_TIMEOUT = 1.0


class SQLiteStore(ForkAware, Store):
    """Bytes in an SQLite file, shared by every process that opens it, and there after a restart.

    :param path: of the file; made, with its directories, by the first verb, for this user only. A relative
        one counts from the current directory of this moment.
    :param max_bytes: of the file, at least 64 KiB; beyond it, what was not used for longest goes. (Its
        write-ahead log comes on top, mostly 4 MB.) One value may take a quarter of it, and at most
        :attr:`Store.max_value`.
    :param timeout: seconds to wait for another process's write;
        :class:`~wsgi_isr.errors.StoreUnavailable` after that.
    :param clock: wall time in seconds, the same in every process.
    :raises ConfigError: a path where there can never be such a file.

    A file that cannot be used otherwise is announced once, as a warning of the logger
    ``wsgi_isr.store``, and no verb raises for it.
    """

    scheme = "sqlite"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = _MAX_BYTES,
        timeout: float = _TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < SMALLEST:
            raise ConfigError("store", f"max_bytes={max_bytes} is too small", f"write {SMALLEST} or more")
        if not timeout > 0:
            raise ConfigError("store", f"timeout={timeout} is not above 0", f"write {_TIMEOUT}, say")
        self.path = os.path.abspath(path)
        self.relative = not os.path.isabs(path)
        _refuse_impossible(self.path)
        self._clock = clock
        self._lock = threading.Lock()
        self._memory: MemoryStore | None = None
        self._table = SQLiteTable(self.path, max_bytes, timeout, clock)
        self.max_value = self._table.max_value
        watch(self)
        try:
            # Only a look. The first verb makes the file: this process may be root's, and change its user before that.
            self._table.look()
        except NotOurs as broken:
            raise ConfigError("store", f"{self.path}: {broken.problem}", broken.remedy) from broken
        except FileBroken as broken:
            self._degrade(broken)

    @classmethod
    def from_url(cls, url: str) -> SQLiteStore:
        """``sqlite:///path[?max_bytes=N&timeout=SECONDS]``."""
        parts = parse_store_url(url, options=("max_bytes", "timeout"))
        if parts.host:
            remedy = "three slashes before a relative path, four before an absolute one"
            raise ConfigError("store", f"{parts.host!r} in the sqlite URL is in the place of a host", remedy)
        path = parts.path[1:]
        if not path or path.endswith("/"):
            raise ConfigError("store", "the sqlite URL names no file", "write sqlite:///path/to/file.db")
        if path == ":memory:":
            raise ConfigError("store", "sqlite:///:memory: cannot be shared", "write memory://")
        return cls(path, max_bytes=parts.whole("max_bytes", _MAX_BYTES), timeout=parts.seconds("timeout", _TIMEOUT))

    @property
    def places(self) -> tuple[str, ...]:
        return (self.location,)

    @property
    def location(self) -> str:
        return f"sqlite:///{self.path}"

    def get(self, key: str) -> bytes | None:
        return self._ask(key, lambda store: store.get(key))

    def get_many(self, keys: Sequence[str]) -> Many:
        if self._memory is None:
            try:
                return self._table.get_many(keys)
            except FileBroken as broken:
                self._degrade(broken)
        assert self._memory is not None
        found = self._memory.get_many([key for key in keys if not route(key).control])
        return Many(found.values, {key: self._cut_off() for key in keys if route(key).control})

    def gets(self, key: str) -> Versioned | None:
        return self._ask(key, lambda store: store.gets(key))

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._ask(key, lambda store: store.set(key, value, ttl))

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        return self._ask(key, lambda store: store.add(key, value, ttl))

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        return self._ask(key, lambda store: store.cas(key, value, token, ttl))

    def delete(self, key: str) -> bool:
        return self._ask(key, lambda store: store.delete(key))

    def close(self) -> None:
        self._table.close()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    def _ask(self, key: str, verb: Callable[[Store], _Answer]) -> _Answer:
        """The file's answer, or the memory's once the file is broken.

        Control keys are unreachable then: an invalidation that only this process would see must not be
        acknowledged, and what others invalidate does not come here any more.
        """
        memory = self._memory
        if memory is None:
            try:
                return verb(self._table)
            except FileBroken as broken:
                memory = self._degrade(broken)
        if route(key).control:
            raise self._cut_off()
        return verb(memory)

    def _cut_off(self) -> StoreUnavailable:
        return StoreUnavailable(self.path, "the file cannot be used; see the warning in the log")

    def _degrade(self, broken: FileBroken) -> MemoryStore:
        with self._lock:
            if self._memory is not None:  # another thread was faster, and has warned
                return self._memory
            memory = MemoryStore(min(self._table.max_bytes, MAX_BYTES), clock=self._clock)
            self.max_value = memory.max_value
            self._memory = memory
        self._table.close()
        _log.warning(
            "%s: %s. Pages are kept in the memory of this process instead, shared with no other and out of reach of "
            "invalidations, until it is restarted. To repair: %sdelete the file (with -wal and -shm; it misses what "
            "was invalidated meanwhile), and restart every process that uses it",
            self.path,
            broken.problem,
            broken.remedy and f"{broken.remedy}, ",
        )
        return memory


def _refuse_impossible(path: str) -> None:
    """:raises ConfigError: where no file can be, whatever the operator does to disk and permissions; or root would
    follow a link of another user."""
    try:
        check_link(path)
    except OSError as error:
        remedy = "name the file that it leads to, or run this as the user of the app"
        raise ConfigError("store", f"{path} is {error.strerror}", remedy) from error
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, PermissionError):
        return  # to be made; or to be found out when it is opened
    except NotADirectoryError:
        raise ConfigError("store", f"{path}: a part of this path is a file", "name a directory") from None
    except (OSError, ValueError) as error:
        raise ConfigError("store", f"{path!r} is no possible path: {error}", "name a file") from None
    if stat.S_ISDIR(mode):
        raise ConfigError("store", f"{path} is a directory", f"name a file in it, such as {path}/store.db")
    if not stat.S_ISREG(mode):
        raise ConfigError("store", f"{path} is not a regular file", "name a file that does not exist yet")
