"""The store of one machine and many processes: ``sqlite:///relative/path.db``, ``sqlite:////absolute/path.db``.

If the file cannot be used (read-only, disk full, damaged), the memory of this process replaces it. Pages are still
served and rendered, and one warning says what to do. The process uses memory until it is restarted. It never returns to
the file: the file lacks the writes and invalidations of the meantime, so old pages would come back as fresh ones.
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
from ..base import Many, Observer, Store, Token, Versioned, route
from ..files import check_link
from ..fork_hooks import ForkAware, watch
from ..memory import MAX_BYTES, SMALLEST, MemoryStore
from ..urls import parse_store_url
from .connections import FileBroken, ForeignDatabase
from .table import SQLiteTable

_log = logging.getLogger("wsgi_isr.store")

_Answer = TypeVar("_Answer")

_MAX_BYTES = 512 * 1024 * 1024
_TIMEOUT = 1.0


class SQLiteStore(ForkAware, Store):
    """Bytes in an SQLite file, shared by all processes that open the file. Values survive a restart.

    :param path: the path of the file. The first verb creates the file and its directories, for this user only. A
        relative path counts from the current directory at construction.
    :param max_bytes: the maximum size of the file, at least 64 KiB. Above it, the least recently used entries are
        evicted. The write-ahead log takes about 4 MB more. One value takes at most a quarter of ``max_bytes``, and at
        most :attr:`Store.max_value`.
    :param timeout: the maximum wait for the writes of other processes, in seconds. After it, verbs raise
        :class:`~wsgi_isr.errors.StoreUnavailable`.
    :param clock: wall time in seconds, the same in every process.
    :raises ConfigError: no file can be at this path, or the file belongs to another program.

    For any other file that cannot be used, the logger ``wsgi_isr.store`` gets one warning, and no verb raises.
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
            raise ConfigError("store", f"max_bytes={max_bytes} is too small", f"write max_bytes={SMALLEST} or more")
        if not timeout > 0:
            raise ConfigError("store", f"timeout={timeout} is not above 0", f"write seconds, like {_TIMEOUT:g}")
        self.path = os.path.abspath(path)
        self.relative = not os.path.isabs(path)
        _check_path(self.path)
        self._clock = clock
        self._lock = threading.Lock()
        self._memory: MemoryStore | None = None
        self._observer: Observer | None = None
        self._table = SQLiteTable(self.path, max_bytes, timeout, clock)
        self.max_value = self._table.max_value
        watch(self)
        try:
            # The first verb, not this check, creates the file: until then, root may change the user of the process.
            self._table.check()
        except ForeignDatabase as broken:
            raise ConfigError("store", f"{self.path}: {broken.problem}", broken.remedy) from broken
        except FileBroken as broken:
            self._degrade(broken)

    @classmethod
    def from_url(cls, url: str) -> SQLiteStore:
        """Return the store for ``sqlite:///path[?max_bytes=N&timeout=SECONDS]``.

        :raises ConfigError: the URL is wrong, or no file can be at its path.
        """
        parts = parse_store_url(url, options=("max_bytes", "timeout"))
        if parts.host:
            remedy = "write three slashes before a relative path, four before an absolute one"
            raise ConfigError("store", f"{parts.host!r} stands where sqlite:// has no host", remedy)
        path = parts.path[1:]
        if not path or path.endswith("/"):
            raise ConfigError(
                "store", f"the sqlite URL has the path {path!r}, and no file", "write sqlite:///path/to/file.db"
            )
        if path == ":memory:":
            raise ConfigError("store", "no other process can share sqlite:///:memory:", "write memory://")
        return cls(path, max_bytes=parts.integer("max_bytes", _MAX_BYTES), timeout=parts.seconds("timeout", _TIMEOUT))

    @property
    def places(self) -> tuple[str, ...]:
        return (self.location,)

    @property
    def location(self) -> str:
        return f"sqlite:///{self.path}"

    def get(self, key: str) -> bytes | None:
        return self._run("get", key, lambda store: store.get(key))

    def get_many(self, keys: Sequence[str]) -> Many:
        began = time.perf_counter()
        found = self._get_many(keys)
        if self._observer is not None:
            self._observer(self.nodes[0], "get_many", time.perf_counter() - began, not found.unreachable)
        return found

    def _get_many(self, keys: Sequence[str]) -> Many:
        if self._memory is None:
            try:
                return self._table.get_many(keys)
            except FileBroken as broken:
                self._degrade(broken)
        assert self._memory is not None
        found = self._memory.get_many([key for key in keys if not route(key).control])
        return Many(found.values, {key: self._unreachable() for key in keys if route(key).control})

    def gets(self, key: str) -> Versioned | None:
        return self._run("gets", key, lambda store: store.gets(key))

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._run("set", key, lambda store: store.set(key, value, ttl))

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        return self._run("add", key, lambda store: store.add(key, value, ttl))

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        return self._run("cas", key, lambda store: store.cas(key, value, token, ttl))

    def delete(self, key: str) -> bool:
        return self._run("delete", key, lambda store: store.delete(key))

    def close(self) -> None:
        self._table.close()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    @property
    def down(self) -> tuple[str, ...]:
        return () if self._memory is None else self.nodes

    def observe(self, observer: Observer) -> None:
        self._observer = observer

    def _run(self, name: str, key: str, verb: Callable[[Store], _Answer]) -> _Answer:
        """Return the result of :meth:`_use`, and tell the observer how long it took."""
        if self._observer is None:
            return self._use(key, verb)
        began, is_answered = time.perf_counter(), False
        try:
            result = self._use(key, verb)
            is_answered = True
            return result
        finally:
            self._observer(self.nodes[0], name, time.perf_counter() - began, is_answered)

    def _use(self, key: str, verb: Callable[[Store], _Answer]) -> _Answer:
        """Return the result of ``verb`` from the file, or from the memory if the file cannot be used.

        Control keys are unreachable in the memory. No invalidation may be acknowledged that only this process sees.
        Invalidations of other processes do not arrive.
        """
        memory = self._memory
        if memory is None:
            try:
                return verb(self._table)
            except FileBroken as broken:
                memory = self._degrade(broken)
        if route(key).control:
            raise self._unreachable()
        return verb(memory)

    def _unreachable(self) -> StoreUnavailable:
        return StoreUnavailable(self.path, "the file cannot be used; see the warning in the log")

    def _degrade(self, broken: FileBroken) -> MemoryStore:
        with self._lock:
            if self._memory is not None:  # another thread was faster, and logged the warning
                return self._memory
            memory = MemoryStore(min(self._table.max_bytes, MAX_BYTES), clock=self._clock)
            self.max_value = memory.max_value
            self._memory = memory
        self._table.close()
        _log.warning(
            "%s: %s. Until it is restarted, this process keeps pages in its memory. No other process shares them, and "
            "no invalidation reaches them. To repair: %sdelete the file with its -wal and -shm, because it lacks the "
            "invalidations of the meantime; then restart every process that uses it",
            self.path,
            broken.problem,
            broken.remedy and f"{broken.remedy}, ",
        )
        return memory


def _check_path(path: str) -> None:
    """Check that a file can be at this path.

    :raises ConfigError: no file can be there, or root would follow a link of another user.
    """
    try:
        check_link(path)
    except OSError as error:
        remedy = "write the path that the link leads to, or run this as the user of the app"
        raise ConfigError("store", f"{path} is {error.strerror}", remedy) from error
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, PermissionError):
        return  # the file is missing, or opening it will report the error
    except NotADirectoryError:
        raise ConfigError("store", f"{path}: a part of this path is a file", "write another path") from None
    except (OSError, ValueError) as error:
        raise ConfigError("store", f"{path!r} is no possible path: {error}", "write another path") from None
    if stat.S_ISDIR(mode):
        raise ConfigError("store", f"{path} is a directory", f"write the path of a file in it, such as {path}/store.db")
    if not stat.S_ISREG(mode):
        raise ConfigError("store", f"{path} is not a regular file", "write the path of a file that does not exist yet")
