"""Programs for the explorer made of the real code: ``Cache``, ``TagVersions``, ``Leases`` and the codec.

The parts are put together as in a process of a cluster. Only time, randomness and the thread of the lease keep-alive
are replaced.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.model import gate as words
from tests.model.explorer import System
from tests.model.gate import Gate, Program
from tests.model.protocol import PAGE, epoch_key, on_two_nodes, tag_key
from tests.model.protocol import show as show_model
from wsgi_isr.cache.entries import Entries
from wsgi_isr.cache.entry import Codec, Content, Entry, HitForMiss, Value
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.lease import LeaseKeepAlive, Leases
from wsgi_isr.cache.local_cache import CachedEntry, Local
from wsgi_isr.cache.lookup import Cache
from wsgi_isr.cache.regenerate import Regenerator
from wsgi_isr.cache.tag_versions import Mode, TagVersions
from wsgi_isr.cache.task import Answer, Attempt, Limits, Passed, Product, Regenerated, Served, Task
from wsgi_isr.cache.verdict import CacheDirectives, Failure, Storable
from wsgi_isr.config.lifetime import Lifetime
from wsgi_isr.errors import InvalidationError
from wsgi_isr.events import Event, Events, InternalError
from wsgi_isr.stores.base import Store

DATA = "isr:model:d:data"
TASK = Task(PAGE, '["page"]', "*", Limits(timeout=30.0, wait=0.0, lease=10.0))
DATA_TASK = TASK._replace(page=DATA, text='["data"]', data=True)

_SERVED = {
    "HIT": words.FRESH,
    "MISS": words.FRESH,
    "EXPIRED": words.FRESH,
    "STALE": words.STALE,
    "STALE-IF-ERROR": words.RETAINED,
    "DEGRADED": words.UNPROVEN,
}


class TimedRegenerator(Regenerator):
    """The renders of a process whose pages do not age. Only renders read the time, to compare it with each other."""

    time: Callable[[], float]

    def _render(self, *arguments: Any, **options: Any) -> Any:
        still, self._entries.clock = self._entries.clock, self.time
        try:
            return super()._render(*arguments, **options)
        finally:
            self._entries.clock = still


class Parts:
    """The parts of a process, unchanged. A variant that leaves a rule out replaces some."""

    tag_versions: type[TagVersions] = TagVersions
    entries: type[Entries] = Entries
    regenerator: type[TimedRegenerator] = TimedRegenerator
    control_keys_move = False

    def store(self, gate: Gate) -> Store:
        return gate


class Process:
    """One process, with an L1 of its own.

    ``late`` are tags that turn up in a render. Every render fails if ``fails``, and is a 404 without ``mints``. The
    clock is ``skew`` ahead of the world's.
    """

    def __init__(
        self,
        gate: Gate,
        parts: Parts,
        known: Sequence[str] = (),
        late: Sequence[str] = (),
        *,
        fails: bool = False,
        uses_data: bool = False,
        mints: bool = True,
        skew: float = 0.0,
        coherence: float = 0.0,
    ) -> None:
        self._gate = gate
        self._late = tuple(late)
        self._fails = fails
        self._uses_data = uses_data
        self._keep = None if mints else 70.0
        self._polls = coherence > 0
        self.now = 0.0
        self.troubles: list[Event] = []
        events = Events(self._hear)
        store = parts.store(gate)
        self.tag_versions = parts.tag_versions(
            store, tag_key, epoch_key, coherence=coherence, monotonic=lambda: self.now
        )
        keep_alive = LeaseKeepAlive(lambda: self.now, events)
        keep_alive._thread = threading.current_thread()  # so that the visit begins no render
        leases = Leases(store, Keyspace.lock, Keyspace.failures, events, keep_alive.let_go)
        entries = parts.entries(
            store, Local(1 << 20), self.tag_versions, Codec(), events, lambda: 0.0, lambda: self.now
        )
        self.regenerator = parts.regenerator(
            entries,
            leases,
            keep_alive,
            self._produce,
            lambda task: (known[:1] or ("a",)) if task.data else known,
            uncacheable_ttl=60.0,
        )
        self.regenerator.time = lambda: gate.time() + skew
        # The pool accepts no job: renders are programs of their own.
        self.cache = Cache(entries, self.regenerator, threads=0, queue=0)

    def _hear(self, event: Event) -> None:
        if isinstance(event, InternalError):
            self.troubles.append(event)

    def _produce(self, task: Task) -> Product:
        if self._fails:
            return Failure("status-500")
        if task.data:
            return Storable(Value(str(self._gate.read()).encode()), Lifetime(None, None))
        asked = CacheDirectives()
        version = self._gate.read()
        if self._uses_data:
            answer = self.cache.get(DATA_TASK, only_fresh=True)
            if isinstance(answer, Served):
                asked.use(answer.cached.entry, 0.0)
                version = min(version, _version(answer.cached.entry))
        body = str(version)
        content = Content("200 OK", (), body.encode(), body)
        return Storable(
            content,
            Lifetime(None, None),
            self._keep,
            self._late,
            tuple(asked.carried.items()),
            is_negative=self._keep is not None,
        )

    def only_look(self) -> None:
        """Render nothing from now on: a visitor gets the same as after a failed render."""

        def obtain(task: Task, old: CachedEntry | None, *_: Any, **__: Any) -> Answer:
            return Served(old, "STALE-IF-ERROR") if old is not None else Passed("lock-timeout")

        self.cache._load = obtain  # type: ignore[method-assign]

    def visit(self) -> None:
        """Serve the page to a visitor."""
        answer: Answer = self.cache.get(TASK)
        assert not self.troubles, self.troubles
        if isinstance(answer, Served):
            self._gate.serve(_SERVED[answer.label], _version(answer.cached.entry))

    def render(self) -> None:
        """Render the page, if it is due. The data that it uses is in this process already."""
        if self._uses_data and self._polls:
            self.cache.get(DATA_TASK)
        self.regenerator.regenerate(TASK, Attempt())
        assert not self.troubles, self.troubles


def _version(entry: Entry) -> int:
    content = entry.content
    assert not isinstance(content, HitForMiss)
    return int(content.data if isinstance(content, Value) else content.body)


# Programs ----------------------------------------------------------------------------------------------


class Maker(NamedTuple):
    """Makes a program of given parts. ``renders``: whether it takes the lock of the page."""

    run: Callable[[Parts, Gate], None]
    renders: bool = False

    def of(self, parts: Parts) -> Program:
        def program(gate: Gate) -> None:
            # Random bytes: the same each time the program is run again, and in no other program.
            urandom, os.urandom = os.urandom, gate.urandom
            try:
                self.run(parts, gate)
            finally:
                os.urandom = urandom

        return program


def invalidator(*tags: str, mode: str = "expire", attempts: int = 1) -> Maker:
    """Commit new data, then invalidate ``tags``: up to ``attempts`` times, until a tag is delivered."""

    def run(parts: Parts, gate: Gate) -> None:
        version = gate.commit()
        tag_versions = parts.tag_versions(parts.store(gate), tag_key, epoch_key, coherence=0.0, monotonic=lambda: 0.0)
        if any(set(tags) - set(tag_versions.invalidate(tags, Mode(mode))) for _ in range(attempts)):
            gate.acknowledge(mode, version)

    return Maker(run)


def bystander(*tags: str) -> Maker:
    """Invalidate tags of other pages."""

    def run(parts: Parts, gate: Gate) -> None:
        tag_versions = parts.tag_versions(parts.store(gate), tag_key, epoch_key, coherence=0.0, monotonic=lambda: 0.0)
        tag_versions.invalidate(tags, Mode.EXPIRE)

    return Maker(run)


def renderer(known: Sequence[str] = (), late: Sequence[str] = (), **options: Any) -> Maker:
    """Render in the background: acquire the lease, look again, render, store, release."""

    def run(parts: Parts, gate: Gate) -> None:
        Process(gate, parts, known, late, **options).render()

    return Maker(run, renders=True)


def invalidated_since_failure(*tags: str, mode: str = "expire", **options: Any) -> Maker:
    """Render the page, then commit new data and invalidate ``tags``, as a setup."""

    def run(parts: Parts, gate: Gate) -> None:
        process = Process(gate, parts, tags, **options)
        process.render()
        version = gate.commit()
        assert not process.tag_versions.invalidate(tags, Mode(mode))
        gate.acknowledge(mode, version)

    return Maker(run, renders=True)


def refresher(*tags: str, **options: Any) -> Maker:
    """Commit new data, then refresh the page. After that no older page is served as fresh."""

    def run(parts: Parts, gate: Gate) -> None:
        process = Process(gate, parts, tags, **options)
        version = gate.commit()
        try:
            outcome = process.cache.refresh(TASK, tags[0])
        except InvalidationError:
            return
        assert not process.troubles, process.troubles
        if isinstance(outcome, Regenerated):
            gate.acknowledge("stale", version)

    return Maker(run, renders=True)


def committer() -> Maker:
    """Commit new data and invalidate nothing."""

    def run(parts: Parts, gate: Gate) -> None:
        gate.commit()

    return Maker(run)


def visitors(count: int, known: Sequence[str] = (), late: Sequence[str] = (), polls: int = 1, **options: Any) -> Maker:
    """Serve visitors of one process, one after the other. A visit renders where it has to.

    For ``polls`` see :func:`reader`.
    """

    def run(parts: Parts, gate: Gate) -> None:
        process = Process(gate, parts, known, late, coherence=0.0 if polls == 1 else 1.0, **options)
        for visit in range(count):
            if visit % polls == 0:
                process.now += 1.0
                gate.begin()
            process.visit()

    return Maker(run, renders=True)


def own_invalidator(*tags: str) -> Maker:
    """Serve two visitors in a process that polls; commit and invalidate between them.

    The second visitor must get the new data, however short the time since the poll.
    """

    def run(parts: Parts, gate: Gate) -> None:
        process = Process(gate, parts, coherence=1.0)
        process.only_look()
        gate.begin()
        process.visit()
        version = gate.commit()
        assert not process.tag_versions.invalidate(tags, Mode.EXPIRE)
        gate.acknowledge("expire", version)
        gate.begin()
        process.visit()

    return Maker(run)


def reader(visits: int = 1, polls: int = 1) -> Maker:
    """Serve visitors of one process from its entries, without renders.

    The epochs are read at every visit, or at every ``polls``-th. An answer must include all that was acknowledged
    before the last read.
    """

    def run(parts: Parts, gate: Gate) -> None:
        process = Process(gate, parts, coherence=0.0 if polls == 1 else 1.0)
        process.only_look()
        for visit in range(visits):
            if visit % polls == 0:
                process.now += 1.0
                gate.begin()
            process.visit()

    return Maker(run)


def system(
    programs: Mapping[str, Maker], parts: Parts | None = None, setup: Maker | None = None, **options: Any
) -> System:
    """Return the system of the programs, made of these parts."""
    parts = parts or Parts()
    if options.get("nodes"):
        options.setdefault("home", on_two_nodes)
    alone = sum(maker.renders for maker in programs.values()) <= 1
    private = {Keyspace.failures(PAGE), Keyspace.failures(DATA)}
    if alone:
        private |= {Keyspace.lock(PAGE), Keyspace.lock(DATA), DATA}
    made = {name: maker.of(parts) for name, maker in programs.items()}
    first = None if setup is None else setup.of(parts)
    fixed: dict[str, Any] = {
        "control_keys_move": parts.control_keys_move,
        "private": private.__contains__,
        "show": show,
    }
    return System(made, first, **fixed, **options)


@functools.lru_cache(maxsize=1024)
def show(key: str, value: Any) -> str:
    """Return a key or a value as text for traces."""
    if key == "key":
        for stem, name in ((PAGE, "page"), (DATA, "data")):
            if value.startswith(stem):
                suffix = str(value).removeprefix(stem).replace(":", "'s ")
                return name + suffix
        return show_model(key, value)
    if not isinstance(value, bytes):
        return "missing" if value is None else str(value)
    if key in (PAGE, DATA):
        entry = Codec().unpack(value, (TASK if key == PAGE else DATA_TASK).text, key == DATA)
        tag_versions = ", ".join(
            f"{tag}={show('', tag_version) or 'invalid'}" for tag, tag_version in entry.snapshot.tags
        )
        valid_at = ", ".join(f"{node}={show('', nonce)}" for node, nonce in entry.snapshot.valid_at)
        return f"v{_version(entry)} [{tag_versions}; valid at {valid_at or 'none'}]"
    text = value.decode()
    return "/".join(text[place : place + 12].rstrip("_") for place in range(0, min(len(text), 36), 12))
