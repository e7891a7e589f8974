"""The checks of ``wsgi-isr doctor``: each is one function that yields findings."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from ..cache.app_records import GONE_AFTER, Registry
from ..cache.journal import journal_for
from ..config.settings import Config
from ..errors import ConfigError, StoreError, StoreUnavailable, ValueTooLarge
from ..stores.base import NodeReport, Store

#: Seconds by which clocks may differ. The age of a page is the difference between two clocks.
MAX_SKEW = 2.0
#: Evictions in an hour above which a node is too small.
MAX_EVICTIONS = 100
#: The part of a node's connections that the workers may take at most.
CONNECTION_SHARE = 0.9
#: A page larger than an item of memcached by default: it is split.
PROBE_BYTES = 1_500_000
#: The file systems on which SQLite's locks do not hold.
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse"})
#: A requirement in the metadata of this package: the name, the lowest version, and the marker.
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?>=([0-9.]+)(.*)")
#: The extras that an app in production may use.
EXTRAS = ("gunicorn", "gevent", "brotli", "zstd", "requests")
#: The lowest SQLite: upserts (3.24) and ``json_each`` are used.
MIN_SQLITE = (3, 24)


class Finding(NamedTuple):
    """The result of one check.

    :param write: the line to write; empty where nothing is wrong.
    """

    check: str
    ok: bool
    result: str
    write: str = ""


class Subject(NamedTuple):
    """The set-up that is checked.

    :param workers: the number of processes that serve, on all machines.
    :param reports: the reports of the nodes that make one, by name.
    """

    config: Config
    store: Store
    workers: int
    reports: dict[str, NodeReport]


Check = Callable[[Subject], Iterator[Finding]]


def versions(subject: Subject) -> Iterator[Finding]:
    """Check the versions of Python, SQLite and packages."""
    found = [f"Python {sys.version.split()[0]}", f"SQLite {sqlite3.sqlite_version}", f"wsgi_isr {_version('wsgi_isr')}"]
    if sqlite3.sqlite_version_info < MIN_SQLITE and subject.store.scheme == "sqlite":
        lowest = ".".join(map(str, MIN_SQLITE))
        yield Finding(
            "versions", False, f"SQLite {sqlite3.sqlite_version} is older than {lowest}", "store=memcached://..."
        )
        return
    for name, lowest, is_needed in requirements():
        given = _version(name)
        if given is None and not is_needed:
            continue
        if given is None or _numbers(given) < _numbers(lowest):
            problem = f"{name} is not installed" if given is None else f"{name} {given} is older than {lowest}"
            yield Finding("versions", False, problem, f"pip install --upgrade '{name}>={lowest}'")
            return
        found.append(f"{name} {given}")
    found += [f"{node}: {report.version}" for node, report in subject.reports.items() if report.version]
    yield Finding("versions", True, ", ".join(dict.fromkeys(found)))


def requirements() -> Iterator[tuple[str, str, bool]]:
    """Yield the packages that this one needs or can use: the name, the lowest version, whether it is needed."""
    for text in requires("wsgi_isr") or ():
        if (parts := _REQUIREMENT.match(text)) is None:
            continue
        name, lowest, marker = parts.groups()
        if "extra" not in marker or any(re.search(rf"extra == .{extra}.", marker) for extra in EXTRAS):
            yield name, lowest, not marker.strip()


def kind_of_store(subject: Subject) -> Iterator[Finding]:
    """Check that the store keeps pages, and that all workers see them."""
    store = subject.store
    if not store.keeps:
        yield Finding(
            "sharing", False, f"{store.location} keeps nothing: no page is cached", "WSGI_ISR_STORE=sqlite:///store.db"
        )
    elif not store.shared and subject.workers > 1:
        problem = f"{store.location} is seen by one process, and there are {subject.workers} workers"
        yield Finding("sharing", False, problem, "WSGI_ISR_STORE=sqlite:////var/lib/myapp/store.db")
    elif store.relative:
        problem = f"{store.location} counts from the current directory: a job in another one uses another store"
        yield Finding("sharing", False, problem, f"WSGI_ISR_STORE=sqlite:///{getattr(store, 'path', '/path/store.db')}")
    else:
        yield Finding("sharing", True, f"{store.location} is {'shared' if store.shared else 'of this process alone'}")


def development(subject: Subject) -> Iterator[Finding]:
    """Check that development mode does not turn the cache off."""
    if subject.config.settings.development == "bypass":
        problem = 'development="bypass": no page is cached'
        yield Finding("development", False, problem, "WSGI_ISR_DEVELOPMENT=auto")


def nodes(subject: Subject) -> Iterator[Finding]:
    """Check that each node can be reached."""
    keys = {node: f"isr0:doctor:e:{node}" for node in subject.store.nodes}
    found = subject.store.get_many(list(keys.values()))
    away = {node: found.unreachable[key] for node, key in keys.items() if key in found.unreachable}
    for error in away.values():
        yield Finding("nodes", False, f"cannot be reached: {error}", _remedy_for(subject, error.node))
    if not away:
        yield Finding("nodes", True, f"{len(keys)} of {len(keys)} answer")


def _remedy_for(subject: Subject, node: str) -> str:
    if subject.store.remote:
        host, _, port = node.rpartition(":")
        return f"nc -vz {host} {port}, then start it, or remove it from store="
    return f"make {os.path.dirname(node) or node} a directory that this user can write to, with all files in it"


def promises(subject: Subject) -> Iterator[Finding]:
    """Check, under random keys, each promise of a store that the package relies on."""
    store, unique = subject.store, os.urandom(8).hex()
    key, tag = f"isr0:doctor:p:{unique}", f"isr0:doctor:t:{unique}"
    other = "use another store: it breaks the contract of wsgi_isr.testing"
    try:
        granted = [store.add(key, b"one", 60), store.add(key, b"two", 60)]
        owners = "one of two owners gets it" if granted[1] is False else "two owners get it"
        yield _finding("a lock", granted == [True, False], owners, other)
        held = store.gets(key)
        kept = held is not None and held.value == b"one"
        yield _finding("values", kept, "are kept unchanged" if kept else "are not kept, so nothing is cached", other)
        if held is not None:
            swaps = [store.cas(key, b"three", held.token, 60), store.cas(key, b"four", held.token, 60)]
            yield _finding("late writers", swaps == [True, False], "lose" if swaps[1] is False else "win", other)
        store.delete(key)
        store.set(tag, b"tag", 60)
        reached = store.get(tag) == b"tag"
        yield _finding("invalidations", reached, "are kept" if reached else "are not kept", other)
        store.delete(tag)
    except StoreError as error:
        node = getattr(error, "node", subject.store.location)
        yield Finding("store", False, f"cannot be reached: {error}", _remedy_for(subject, node))


def item_size(subject: Subject) -> Iterator[Finding]:
    """Check that the store takes pages as large as the rules allow."""
    store, policies = subject.store, subject.config.rules.policies.values()
    largest = max(policy.max_body for policy in policies)
    if largest > store.max_value:
        problem = f"max_body={largest:,} allows larger pages than the {store.max_value:,} bytes that the store takes"
        yield Finding(
            "item size", False, problem, f"max_body={store.max_value // 2}, or a larger max_bytes= of the store"
        )
        return
    key, size = f"isr0:doctor:p:{os.urandom(8).hex()}", min(PROBE_BYTES, largest, store.max_value)
    value = os.urandom(1024) * (size // 1024)
    try:
        store.set(key, value, 60)
        is_kept = store.get(key) == value
        store.delete(key)
    except StoreUnavailable as error:
        yield Finding("item size", False, f"a page of {size:,} bytes is not taken: {error}", "see the findings above")
        return
    except ValueTooLarge as error:
        yield Finding("item size", False, f"a page of {size:,} bytes is refused: {error}", "memcached -I 8m")
        return
    remedy = "memcached -m 1024 (more memory), or a smaller max_body="
    yield _finding("item size", is_kept, f"a page of {size:,} bytes is {'kept' if is_kept else 'lost at once'}", remedy)


def memory(subject: Subject) -> Iterator[Finding]:
    """Check the settings of the nodes that decide what a full node evicts."""
    for problem in subject.store.problems():
        yield Finding("memory", False, problem, "the line above, in the configuration of the node")


def evictions(subject: Subject) -> Iterator[Finding]:
    """Check that the nodes have memory enough."""
    for node, report in subject.reports.items():
        an_hour = report.evictions / max(report.uptime / 3600, 1.0)
        if an_hour > MAX_EVICTIONS:
            megabytes = max(64, 2 * report.memory // 2**20)
            problem = f"{node} evicts {an_hour:,.0f} values an hour: its memory is too small"
            yield Finding("evictions", False, problem, f"memcached -m {megabytes}")
        else:
            yield Finding("evictions", True, f"{node}: {report.evictions:,} since its start")


def connections(subject: Subject) -> Iterator[Finding]:
    """Check that the workers cannot use up the connections of a node."""
    for node, report in subject.reports.items():
        wanted = report.pool * subject.workers
        if report.max_connections and wanted > CONNECTION_SHARE * report.max_connections:
            problem = (
                f"{node} takes {report.max_connections} connections; {subject.workers} workers may open "
                f"{report.pool} each"
            )
            fitting = max(1, int(CONNECTION_SHARE * report.max_connections / subject.workers))
            yield Finding("connections", False, problem, f"memcached -c {2 * wanted}, or ?pool={fitting} in store=")
        else:
            most = f"{wanted} of {report.max_connections} for {subject.workers} worker(s)"
            yield Finding("connections", True, f"{node}: at most {most}")


def clocks(subject: Subject) -> Iterator[Finding]:
    """Check that the clocks of this machine, the nodes and the apps agree."""
    skews = {node: report.ahead for node, report in subject.reports.items()}
    apps = _registry(subject).apps() if subject.store.keeps else None
    for record in apps.records if apps is not None else ():
        skews[f"the app {record.name}"] = max(0.0, record.last - time.time())
    if (path := getattr(subject.store, "path", None)) is not None and os.path.exists(path):
        skews[path] = max(0.0, os.stat(path).st_mtime - time.time())
    wrong = {name: ahead for name, ahead in skews.items() if abs(ahead) > MAX_SKEW}
    for name, ahead in wrong.items():
        problem = f"{name} is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
        yield Finding(
            "clocks", False, f"{problem}: ages and lifetimes are wrong by as much", "timedatectl set-ntp true"
        )
    if not wrong:
        yield Finding("clocks", True, f"{len(skews)} compared with this machine's")


def permissions(subject: Subject) -> Iterator[Finding]:
    """Check who may read and write the file of the store, and its file system."""
    path = getattr(subject.store, "path", None)
    if path is None:
        return
    folder = os.path.dirname(path)
    for place, forbidden in ((folder, stat.S_IWOTH), (path, stat.S_IWOTH | stat.S_IROTH)):
        try:
            found = os.stat(place)
        except OSError:
            continue  # the check of the nodes says so
        is_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & forbidden and not is_sticky:
            verb = "write" if found.st_mode & stat.S_IWOTH else "read"
            problem = f"every user of the machine may {verb} {place}"
            yield Finding("permissions", False, problem, f"chmod o-rwx {place}")
            return
    if (kind := file_system(folder)) in NETWORK:
        problem = f"{folder} is on {kind}, where the locks of SQLite do not hold"
        yield Finding("permissions", False, problem, "WSGI_ISR_STORE=memcached://host:11211, or a local disk")
        return
    yield Finding("permissions", True, f"{path} is this user's")


def file_system(folder: str, mounts: str = "/proc/mounts") -> str:
    """Return the kind of the file system that a folder is on; empty where that is not known."""
    best, kind = "", ""
    try:
        with open(mounts, encoding="utf-8", errors="replace") as file:
            for line in file:
                _, place, of_place, *_ = line.split(" ")
                place = place.replace("\\040", " ")
                if (folder + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best):
                    best, kind = place, of_place
    except (OSError, ValueError):
        return ""
    return kind


def journal(subject: Subject) -> Iterator[Finding]:
    """Check that the journal can be written, and that no invalidation waits in it."""
    settings = subject.config.settings
    try:
        kept = journal_for(settings.journal, subject.store, subject.config.folder, may_create=False)
        if kept is not None:
            kept.check()
    except ConfigError as error:
        yield Finding("journal", False, error.problem, error.remedy)
        return
    if kept is None:
        if subject.store.remote and settings.journal is False:
            problem = "there is none: an invalidation that a node misses raises InvalidationError"
            yield Finding("journal", True, problem, "WSGI_ISR_JOURNAL=/var/lib/myapp/journal")
        return
    waiting = 0 if kept.is_empty() else len(kept.lines(settings.namespace, subject.store.places))
    result = f"{waiting} invalidations wait in {kept.path}" if waiting else f"{kept.path}: nothing waits"
    yield _finding("journal", not waiting, result, "wsgi-isr replay")


def neighbours(subject: Subject) -> Iterator[Finding]:
    """Check that no two apps serve each other's pages."""
    namespace = subject.config.settings.namespace
    apps = _registry(subject).apps() if subject.store.keeps else None
    if apps is None:
        return
    alive = [record for record in apps.records if time.time() - record.last < GONE_AFTER]
    for number, one in enumerate(alive):
        for other in alive[number + 1 :]:
            if shared := {*one.mounts} & {*other.mounts}:
                host = "".join(min(shared))
                problem = f"{one.name} and {other.name} serve each other's pages of {host} in {namespace!r}"
                yield Finding("namespace", False, problem, "WSGI_ISR_NAMESPACE=shop, a name for each app")
                return
    yield Finding("namespace", True, f"{namespace!r}, with {len(alive)} app(s) in the last hour")


def signing(subject: Subject) -> Iterator[Finding]:
    """Say how entries on other machines are protected."""
    if subject.store.remote and subject.config.settings.signing_key is None:
        result = "none: a program that can write to the nodes can forge pages"
        yield Finding(
            "signing key",
            True,
            result,
            'WSGI_ISR_SIGNING_KEY=$(python -c "import secrets; print(secrets.token_urlsafe())")',
        )


CHECKS: tuple[Check, ...] = (
    versions,
    development,
    kind_of_store,
    nodes,
    promises,
    item_size,
    memory,
    evictions,
    connections,
    clocks,
    permissions,
    journal,
    neighbours,
    signing,
)


def _finding(check: str, ok: bool, result: str, write: str) -> Finding:
    return Finding(check, ok, result, "" if ok else write)


def _registry(subject: Subject) -> Registry:
    settings = subject.config.settings
    return Registry(subject.store, settings.namespace, settings.signing_key)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
