"""Records of the apps that use a store, in the store itself.

An invalidation with the wrong store, namespace or spelling of a node succeeds, and reaches no page. Two apps with the
same namespace and host serve each other's pages. No process sees either error by itself, so each app leaves a record.

The records only lead to warnings. The background writes them. A lost record does no harm, and no decision uses one.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from ..config.origin import MAX_HOST, MAX_URL, Site
from ..errors import StoreError, listed
from ..stores.base import Store
from .entry import Codec
from .keyspace import Keyspace, route_tag

_log = logging.getLogger("wsgi_isr")

#: The most apps, rules, mounts and namespaces; the most characters of a name and a pattern, and the most nodes. A
#: longer pattern is stored as a digest.
MAX_APPS, MAX_RULES, MAX_MOUNTS, MAX_NAMESPACES = 16, 256, 16, 64
MAX_NAME, MAX_PATTERN, MAX_NODES = 200, 80, 64
#: The number of copies on a store of several nodes. A job that spells the nodes differently may look for a key on the
#: wrong node. With two nodes, it misses all copies in 1 of 65,536 cases.
COPIES = 16
#: Seconds between two looks at the records; between two renewals of the own record; and after the last renewal, until
#: an app counts as gone.
LOOK_PAUSE, RENEW_PAUSE, GONE_AFTER = 60.0, 600.0, 3600.0
#: The most names in a warning.
_SHOWN = 8


class AppRecord(NamedTuple):
    """The record of one app.

    :param rules: the patterns of its rules.
    :param is_complete: whether ``rules`` has all of them.
    :param nodes: the names of the store's nodes, as the app spells them.
    :param mounts: the hosts and mount points at which the app has served pages.
    :param since: the time of its first page in seconds of Unix time.
    :param last: the time of the last renewal in seconds of Unix time.
    :param cdn: the CDN that the app purges; empty for none. Its credentials are never stored.
    """

    name: str
    rules: tuple[str, ...]
    is_complete: bool
    nodes: tuple[str, ...]
    mounts: tuple[tuple[str, str], ...]
    since: float
    last: float
    cdn: str = ""


class Apps(NamedTuple):
    """The apps of a namespace, and the namespaces of the store."""

    records: tuple[AppRecord, ...]
    namespaces: tuple[str, ...]


class Registry:
    """The records of one namespace.

    :param signing_key: the option ``signing_key``.
    """

    def __init__(self, store: Store, namespace: str, signing_key: str | None = None) -> None:
        names, copies = Keyspace(namespace), range(COPIES if store.remote else 1)
        self._store = store
        self._namespace = namespace
        self._codec, self._common = Codec(signing_key, namespace), Codec(signing_key)
        self._keys = [names.apps(copy) for copy in copies]
        self._index = [Keyspace.namespaces(copy) for copy in copies]

    def apps(self) -> Apps | None:
        """Return the records; ``None`` where there may be more: a node is unreachable, or a record unreadable."""
        found = self._store.get_many([*self._keys, *self._index])
        records = self._records(found.values)
        unread = any(key in found.values or self._store.is_displaced(key) for key in self._keys)
        if not records and (found.unreachable or unread):
            return None
        return Apps(tuple(records), tuple(self._namespaces(found.values)))

    def is_signed(self) -> bool:
        """Return whether an app has signed its record, and this process has no key."""
        for data in self._store.get_many(self._keys).values.values():
            try:
                parts = msgpack.unpackb(self._codec.beneath_signature(data), use_list=False)
                if any(_record(part) is not None for part in parts[:MAX_APPS]):
                    return True
            except Exception:  # msgpack raises half a dozen kinds
                continue
        return False

    def write(self, record: AppRecord, known: Apps) -> None:
        """Write ``record`` in place of the app's old one. Best effort.

        If two processes write at the same time, one record is overwritten. Its process writes again at its next look.

        :param known: the records of a moment ago.
        """
        others = [other for other in known.records if other.name != record.name][: MAX_APPS - 1]
        self._set(self._keys, self._codec.seal(msgpack.packb([record, *others]), "apps"))
        if self._namespace not in known.namespaces and len(known.namespaces) < MAX_NAMESPACES:
            packed = msgpack.packb([*known.namespaces, self._namespace])
            self._set(self._index, self._common.seal(packed, "apps"))

    def _set(self, keys: Iterable[str], value: bytes) -> None:
        for key in keys:
            try:
                self._store.set(key, value)
            except StoreError:
                continue

    def _records(self, values: dict[str, bytes]) -> list[AppRecord]:
        newest: dict[str, AppRecord] = {}
        for key in self._keys:
            for record in self._read(self._codec, values.get(key), _record):
                if record.name not in newest or newest[record.name].last < record.last:
                    newest[record.name] = record
        return list(newest.values())

    def _namespaces(self, values: dict[str, bytes]) -> list[str]:
        every = [name for key in self._index for name in self._read(self._common, values.get(key), _name)]
        return list(dict.fromkeys(every))[:MAX_NAMESPACES]

    @staticmethod
    def _read(codec: Codec, data: bytes | None, parse: Callable[[Any], Any]) -> list[Any]:
        """Return the well-formed parts of ``data``: another program may have written it."""
        if data is None:
            return []
        try:
            parts = msgpack.unpackb(codec.unseal(data, "apps"), use_list=False)
            return [part for part in map(parse, parts[:MAX_NAMESPACES]) if part is not None]
        except Exception:  # msgpack raises half a dozen kinds
            return []


def _name(name: Any) -> str | None:
    return name if type(name) is str and len(name) <= MAX_NAME else None


def _record(fields: Any) -> AppRecord | None:
    record = AppRecord(*fields)
    texts = (record.name, *record.rules, *record.nodes, record.cdn)
    good = all(type(text) is str and len(text) <= MAX_NAME for text in texts)
    good = good and len(record.rules) <= MAX_RULES and len(record.nodes) <= MAX_NODES
    good = good and len(record.mounts) <= MAX_MOUNTS and all(_is_mount(mount) for mount in record.mounts)
    good = good and type(record.since) is type(record.last) is float
    return record if good else None


def _is_mount(mount: Any) -> bool:
    host, script = mount
    return type(host) is type(script) is str and len(host) <= MAX_HOST and len(script) <= MAX_URL


def kept_pattern(pattern: str) -> str:
    """Return the form of a rule's pattern in a record."""
    if len(pattern) <= MAX_PATTERN:
        return pattern
    return f"#{hashlib.blake2b(pattern.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


# The record of an app in a process --------------------------------------------------------------------


def in_thread(target: Callable[[], None]) -> bool:
    """Run ``target`` in a daemon thread; return whether the thread has started."""
    try:
        threading.Thread(target=target, name="wsgi-isr-apps", daemon=True).start()
    except RuntimeError:  # no more threads, or the interpreter is shutting down
        return False
    return True


class Presence:
    """The record of an app in a process: write it, and warn of another app with the same namespace and host.

    :param name: tells the app from others; the same for all of its releases, rules and processes.
    :param patterns: the patterns of its rules.
    :param clock: Unix time in seconds.
    :param monotonic: monotonic seconds.
    :param cdn: the CDN that the app purges; empty for none.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        namespace: str,
        name: str,
        patterns: Iterable[str],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        cdn: str = "",
    ) -> None:
        rules = sorted(kept_pattern(pattern) for pattern in patterns)
        is_complete, nodes = len(rules) <= MAX_RULES, store.nodes[:MAX_NODES]
        self._own = AppRecord(name[:MAX_NAME], tuple(rules[:MAX_RULES]), is_complete, nodes, (), 0.0, 0.0, cdn)
        self._registry = registry
        self._location = store.location
        self._namespace = namespace
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._mounts: dict[tuple[str, str], None] = {}
        self._due = float("-inf")
        self._looking = False
        self._is_closed = False
        self._changed = threading.Condition(self._lock)
        self._warned: set[str] = set()

    def served(self, site: Site) -> None:
        """Note that a client got a page of ``site``.

        Look at the records in the background, at most every :data:`LOOK_PAUSE` seconds.
        """
        mount = (site.host, site.script)
        if mount in self._mounts and self._monotonic() < self._due:
            return
        with self._lock:
            if mount not in self._mounts:
                if len(self._mounts) >= MAX_MOUNTS:  # clients can invent hosts
                    return
                self._mounts[mount] = None
            elif self._monotonic() < self._due:
                return
            self._due = self._monotonic() + LOOK_PAUSE
            if self._looking or self._is_closed:
                return
            self._looking = True
        if not in_thread(self._look):
            self._end_look()

    def close(self, timeout: float) -> None:
        """Start no more looks, and wait up to ``timeout`` seconds for the look in progress.

        Files of the store may be gone afterwards.
        """
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._looking, timeout)

    def came(self, site: Site) -> None:
        """Note at once that pages of ``site`` are rendered without a request, by a command, say."""
        self._mounts[(site.host, site.script)] = None
        self.look_quietly()

    def _end_look(self) -> None:
        with self._changed:
            self._looking = False
            self._changed.notify_all()

    def _look(self) -> None:
        while True:
            seen = len(self._mounts)
            self.look_quietly()
            with self._lock:
                if seen == len(self._mounts) or self._is_closed:
                    self._end_look()
                    return

    def look_quietly(self) -> None:
        """Look at the records, and only log an error: the records lead to nothing but warnings."""
        try:
            self.look()
        except Exception as error:
            _log.debug("the records of apps cannot be looked at: %r", error)

    def look(self) -> None:
        """Renew the record where it is due, and warn of other apps with the same namespace and host.

        :raises StoreError: the store is unreachable.
        """
        known = self._registry.apps()
        if known is None:
            return
        now = self._clock()
        mounts = list(self._mounts)
        held = next((record for record in known.records if record.name == self._own.name), None)
        if held is None or now - held.last > RENEW_PAUSE or not {*mounts} <= {*held.mounts} or self._own.since == 0.0:
            since = held.since if held is not None else now
            every = dict.fromkeys([*mounts, *(held.mounts if held is not None else ())])
            self._own = self._own._replace(mounts=tuple(every)[:MAX_MOUNTS], since=since, last=now)
            self._registry.write(self._own, known)
        for other in known.records:
            shared = [mount for mount in mounts if mount in other.mounts]
            is_known = other.name == self._own.name or other.name in self._warned
            if shared and not is_known and now - other.last < GONE_AFTER:
                self._warned.add(other.name)
                host, script = shared[0]
                _log.warning(
                    "two apps keep their pages of %s in the namespace %r of %s, and serve each other's: %s and %s. "
                    'Give each its own: namespace="shop", say (WSGI_ISR_NAMESPACE)',
                    ascii(host + script),
                    self._namespace,
                    self._location,
                    *sorted((ascii(self._own.name), ascii(other.name))),
                )


# Warnings about an invalidation -------------------------------------------------------------------------


class Advice(NamedTuple):
    """A warning about an invalidation.

    :param is_quiet: the situation is usual, and no warning in a log.
    """

    text: str
    is_quiet: bool = False


def advice(
    names: Sequence[str],
    absent: Sequence[str],
    apps: Apps | None,
    store: Store,
    namespace: str,
    is_own: bool,
) -> Iterator[Advice]:
    """Yield reasons why an invalidation may have reached no page, and what to write.

    :param names: the stored names.
    :param absent: the tags among them that did not exist.
    :param apps: the apps that have used the namespace; ``None`` where they are unknown, or need no warning.
    :param is_own: an app of this process has the store and the namespace.
    """
    if apps is not None and not apps.records:
        # The first start of an app may invalidate a tag before the first request.
        yield Advice(_unused(apps, store, namespace), is_quiet=is_own and not store.relative)
        return
    if apps is not None:
        yield from _other_nodes(apps, store)
        yield from _unknown_routes(apps, names)
    if absent:
        # No page has carried the tag of a new post yet, unlike the tag of its list.
        yield Advice(f"no stored page has carried {_shown(absent)} yet", is_quiet=len(absent) < len(names))


def unpurged(apps: Apps | None, has_edges: bool) -> Iterator[Advice]:
    """Yield a warning where an app has a CDN that this process cannot purge.

    :param has_edges: this process purges a CDN.
    """
    if has_edges or apps is None:
        return
    for record in apps.records:
        if record.cdn:
            yield Advice(
                f"{record.name!a} is behind the CDN {record.cdn!a}, which this process cannot purge: it keeps "
                f"old pages for their lifetime; set WSGI_ISR_CDN={record.cdn} and the other WSGI_ISR_CDN_... "
                "as the app has them"
            )


def _unused(apps: Apps, store: Store, namespace: str) -> str:
    others = [name for name in apps.namespaces if name != namespace]
    if others:
        more = f"; there is also: {_shown(others[1:])}" if len(others) > 1 else ""
        write = f"write namespace={others[0]!a} (WSGI_ISR_NAMESPACE, --namespace){more}"
        return f"no app has used the namespace {namespace!r} of {store.location} yet: {write}"
    write = "name the store that the app uses"
    if store.relative:
        write += f", absolutely ({store.scheme}:////path): a relative path counts from the current folder"
    return f"no app has used {store.location} yet: {write}"


def _other_nodes(apps: Apps, store: Store) -> Iterator[Advice]:
    if any({*record.nodes} == {*store.nodes[:MAX_NODES]} for record in apps.records):
        return
    app = apps.records[0]
    write = f"{store.scheme}://{','.join(app.nodes)}"
    yield Advice(
        f"{app.name!a} spells the nodes of the store {_shown(app.nodes)}, and not {_shown(store.nodes)}: keys go by "
        f"these names, so the app does not see the invalidation; write store={write!a}"
    )


def _unknown_routes(apps: Apps, names: Sequence[str]) -> Iterator[Advice]:
    from difflib import get_close_matches  # rarely needed, and a millisecond of each start

    if not all(record.is_complete for record in apps.records):
        return
    known = {pattern for record in apps.records for pattern in record.rules}
    prefix = route_tag("")
    for name in names:
        pattern = name.removeprefix(prefix)
        if not name.startswith(prefix) or kept_pattern(pattern) in known:
            continue
        near = get_close_matches(pattern, known, n=1)
        write = f"did you mean {near[0]!a}?" if near else f"there is: {_shown(sorted(known))}"
        yield Advice(f"no rule of the app has the pattern {pattern!a}: {write}")


def _shown(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return f"{listed(every[:_SHOWN])}{more}"
