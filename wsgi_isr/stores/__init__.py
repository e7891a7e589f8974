"""Stores keep bytes by key. All stores have one contract (:mod:`.base`), and are opened by URL.

| URL | module | shared by |
| --- | --- | --- |
| ``memcached://host[:port],host...[?timeout=S&...]`` | :mod:`.memcached` | the cluster |
| ``memory://[?max_bytes=N]`` | :mod:`.memory` | the threads of one process |
| ``redis://[user:password@]host[:port],host.../database`` | :mod:`.redis` | the cluster |
| ``sqlite:///path[?max_bytes=N&timeout=S]`` | :mod:`.sqlite` | one machine, across restarts |
| ``null://`` | :mod:`.null` | no process, because nothing is stored |

``valkey://`` is another name of ``redis://``. ``rediss://`` and ``valkeys://`` mean TLS.

Other distributions add a scheme by an entry point of the group ``wsgi_isr.stores``. The name of the entry point is the
scheme. Its object is a callable from the URL to a :class:`~wsgi_isr.stores.base.Store`. Each store must pass the suite
in :mod:`wsgi_isr.testing`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..errors import ConfigError
from .base import Store
from .urls import scheme_of, suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Store", "open_store"]

GROUP = "wsgi_isr.stores"

#: From scheme to module and class. A module is imported when a URL has its scheme: sqlite3 only for SQLite.
BUILT_IN = {
    "memcached": ("memcached.store", "MemcachedStore"),
    "memory": ("memory", "MemoryStore"),
    "null": ("null", "NullStore"),
    "redis": ("redis.store", "RedisStore"),
    "rediss": ("redis.store", "RedisStore"),
    "sqlite": ("sqlite.store", "SQLiteStore"),
    "valkey": ("redis.store", "RedisStore"),
    "valkeys": ("redis.store", "RedisStore"),
}


def open_store(url: str, *, option: str = "store") -> Store:
    """Return the store for a URL.

    :param option: the option or environment variable that errors name.
    :raises ConfigError: the scheme or a URL option is unknown, or the store cannot be opened.
    """
    try:
        scheme = scheme_of(url)
        return _factory(scheme)(url) if scheme in BUILT_IN else _open_foreign(scheme, url)
    except ConfigError as error:
        if error.option != "store":
            raise
        raise ConfigError(option, error.problem, error.remedy) from error.__cause__


def _factory(scheme: str) -> Callable[[str], Store]:
    module, name = BUILT_IN[scheme]
    try:
        found = import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        raise ConfigError(
            "store", f"{scheme}:// needs redis-py, which is not installed", "pip install 'wsgi_isr[redis]'"
        ) from error
    return cast("Callable[[str], Store]", getattr(found, name).from_url)


def _open_foreign(scheme: str, url: str) -> Store:
    from importlib.metadata import entry_points  # slow to import

    # A distribution is found twice if sys.path leads to it twice.
    found = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    points = [point for point in found.values() if point.name == scheme]
    if not points:
        known = sorted({*BUILT_IN, *(name for name, _ in found)})
        raise ConfigError("store", f"no store has the scheme {scheme}://", suggest(scheme, known))
    if len(points) > 1:
        owners = " and ".join(_owner(point) for point in points)
        raise ConfigError("store", f"{owners} both have the scheme {scheme}://", "uninstall one of them")
    point = points[0]
    try:
        store = point.load()(url)
    except ConfigError:
        raise
    except Exception as error:
        problem = f"{_owner(point)} cannot open {scheme}://: {type(error).__name__}: {error}"
        raise ConfigError("store", problem, "write the URL as the documentation of that distribution says") from error
    if not isinstance(store, Store):
        problem = f"{_owner(point)} returned a {type(store).__name__} for {scheme}://"
        raise ConfigError("store", problem, "it must return a wsgi_isr.stores.base.Store")
    return store


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'an entry point'} ({point.value})"
