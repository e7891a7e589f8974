"""One render in the cluster, searched: several processes on one store, in every order that Hypothesis finds.

Each process is a real :class:`Cache`; only threads and time are the test's (:mod:`tests.model.turns`). Steps take no
time. Renders and pauses do, and time passes only when no process can go on. A process that is *killed* ends between
two of its steps and never releases its lease. A process that is *frozen* stands still while time passes for the
others, and goes on later without noticing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.model.turns import Actor, Killed, Stage
from wsgi_isr.cache import lease as leases
from wsgi_isr.cache import single_flight, tag_versions
from wsgi_isr.cache.entries import Entries
from wsgi_isr.cache.entry import Codec, Content, Entry
from wsgi_isr.cache.executor import Job
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.lease import BACKOFF_PAUSE, Lease, LeaseKeepAlive, Leases
from wsgi_isr.cache.local_cache import Local
from wsgi_isr.cache.lookup import RECHECK_PAUSE, Cache
from wsgi_isr.cache.regenerate import Regenerator
from wsgi_isr.cache.tag_versions import TagVersions
from wsgi_isr.cache.task import Failed, Limits, Passed, Product, Served, Task
from wsgi_isr.cache.verdict import Storable
from wsgi_isr.config.lifetime import Lifetime
from wsgi_isr.events import Events
from wsgi_isr.stores.base import Many, Store, Token, Versioned
from wsgi_isr.stores.memory import MemoryStore

T = TypeVar("T")

REVALIDATE = 5.0
LEASE = 10.0
WAIT = 60.0
TASK = Task("isr:site:p:page", '["/"]', "*", Limits(timeout=30.0, wait=WAIT, lease=LEASE))
#: No back-off is longer.
LONGEST_PAUSE = 1.25 * BACKOFF_PAUSE[1]


class SharedStore(Store):
    """The store as one process sees it: each verb is a point, and there is none after its death."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process

    def _do(self, call: Callable[[], T]) -> T:
        if not self.process.dead:
            self.world.stage.point()
        if self.process.dead:
            raise Killed
        return call()

    def get(self, key: str) -> bytes | None:
        return self._do(lambda: self.world.store.get(key))

    def get_many(self, keys: Sequence[str]) -> Many:
        return self._do(lambda: self.world.store.get_many(keys))

    def gets(self, key: str) -> Versioned | None:
        return self._do(lambda: self.world.store.gets(key))

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._do(lambda: self.world.store.set(key, value, ttl))

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        return self._do(lambda: self.world.wrote(key, value, self.world.store.add(key, value, ttl)))

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        return self._do(lambda: self.world.wrote(key, value, self.world.store.cas(key, value, token, ttl)))

    def delete(self, key: str) -> bool:
        return self._do(lambda: self.world.store.delete(key))

    def close(self) -> None:
        pass


class Background:
    """The pool of a process: each job is an actor."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process

    def submit(self, job: Job, urgent: bool = False, on_done: Any = None) -> bool:
        self.world.stage.spawn(self.process, lambda: self.process.cache._dispatcher._run(job))
        return True

    def write_off(self, thread: object) -> None:
        """An actor that hangs does not keep the others from running."""


class Process:
    """One process of the cluster."""

    def __init__(self, world: World) -> None:
        self.dead = False
        self.frozen = False
        self.stood_still = False
        self.keeping: Actor | None = None
        store = SharedStore(world, self)
        events = Events()
        keys = Keyspace("site")
        self.keep_alive = LeaseKeepAlive(world.clock, events)
        self.keep_alive._thread = object()  # type: ignore[assignment]  # the world looks after that
        tag_versions = TagVersions(store, keys.tag, keys.epoch, coherence=0.1, monotonic=world.clock)
        entries = Entries(store, Local(1 << 20), tag_versions, Codec(), events, world.clock, world.clock)
        regenerator = Regenerator(
            entries,
            Leases(store, Keyspace.lock, Keyspace.failures, events, self.keep_alive.let_go),
            self.keep_alive,
            lambda task: world.produce(self),
            lambda task: ["all"],
            uncacheable_ttl=60,
        )
        self.cache = Cache(entries, regenerator, threads=4, queue=64, pause=world.pause)
        dispatcher = self.cache._dispatcher
        dispatcher._threads = dispatcher._executor = Background(world, self)  # type: ignore[assignment]

    @property
    def due(self) -> float:
        """Return when its lease keep-alive is due."""
        watches = self.keep_alive._watches
        return watches[0].due if watches and self.keeping is None else float("inf")


class Render:
    """One run of the app."""

    def __init__(self, process: Process, began: float) -> None:
        self.process = process
        self.began = began
        self.ended: float | None = None

    @property
    def under_way(self) -> bool:
        return self.ended is None and not self.process.dead


class World:
    """The cluster, its store, its clock, and what must never happen."""

    def __init__(self, expire: float | None, leases_hold: bool) -> None:
        self.now = 1_000.0
        self.stage = Stage()
        self.store = MemoryStore(clock=self.clock)
        self.expire = expire
        #: No process renders without a lease: there is always an entry to serve during a back-off.
        self.leases_hold = leases_hold
        self.duration = 0.5
        self.failing = False
        self.renders: list[Render] = []
        self.stored: list[Entry] = []
        self.failed_at: list[float] = []
        self.answers: list[Any] = []
        self.problems: list[str] = []
        #: The time from which on a stale page can be rendered.
        self.free_at = 0.0
        #: The number of faults that may take a page out of a visitor's reach.
        self.upsets = 0
        self.processes: list[Process] = []

    def clock(self) -> float:
        return self.now

    # Steps of processes ----------------------------------------------------------------------------

    def produce(self, process: Process) -> Product:
        entry = self.entry()
        # A process that stood still for a while may have lost its lease without knowing, and may store at any
        # moment. No other process is excused.
        if not any(each.stood_still for each in self.processes):
            self.check(entry is None or self.age(entry) >= REVALIDATE, "a fresh page was rendered")
        if self.leases_hold and not process.stood_still:
            others = [render for render in self.renders if render.under_way and not render.process.stood_still]
            self.check(not others, "two rendered at the same time")
        if entry is not None and self.leases_hold and self.failed_at:
            self.check(self.now >= self.failed_at[-1] + BACKOFF_PAUSE[0], "nobody kept to the back-off")
        render = Render(process, self.now)
        self.renders.append(render)
        until, failing, number = self.now + self.duration, self.failing, len(self.renders)
        self.stage.wait(lambda: self.now >= until)
        render.ended = self.now
        if failing:
            self.failed_at.append(self.now)
            self.free_at = max(self.free_at, self.now + LONGEST_PAUSE)
            raise RuntimeError("database is away")
        content = Content("200 OK", (), f"v{number}".encode(), "tag")
        return Storable(content, Lifetime(REVALIDATE, self.expire))

    def pause(self, seconds: float) -> None:
        until = self.now + seconds
        self.stage.wait(lambda: self.now >= until)

    def wrote(self, key: str, value: bytes, done: bool) -> bool:
        if done and key == TASK.page:
            entry = Codec().unpack(value, TASK.text)
            if self.stored:
                self.check(entry.started >= self.stored[-1].started, "a late writer won")
            self.stored.append(entry)
        return done

    # Steps of visitors -----------------------------------------------------------------------------

    def visit(self, process: Process) -> Actor:
        entry = self.entry()
        servable = entry is not None and (entry.expire is None or self.age(entry) < entry.expire)
        upsets = self.upsets

        def ask() -> None:
            answer = process.cache.get(TASK)
            self.answers.append(answer)
            if self.upsets != upsets:
                return
            self.check(not (servable and actor.waited), "somebody waited who could have been served")
            if servable:
                self.check(isinstance(answer, Served), f"somebody who could have been served got {answer}")

        actor = self.stage.spawn(process, ask)
        return actor

    # Passing of time -------------------------------------------------------------------------------

    def ready(self) -> list[Actor]:
        return [actor for actor in self.stage.actors if actor.ready and not actor.owner.frozen]

    def settle(self) -> None:
        """Let every actor run as far as it gets without time passing."""
        while ready := self.ready():
            self.stage.turn(ready[0])

    def advance(self, seconds: float, settled: bool = True) -> None:
        """Let time pass in the steps of the lease keep-alives. ``settled``: then let every actor go on."""
        until = self.now + seconds
        while True:
            if self.now >= until and not settled:
                return
            self.settle()
            for process in self.processes:
                if process.due <= self.now and not process.frozen:
                    process.keeping = self.stage.spawn(process, lambda it=process: self.keep(it))  # type: ignore[misc]
            if self.ready():
                continue
            if self.now >= until:
                return
            due = min((process.due for process in self.processes if not process.frozen), default=until)
            # In between, at every tenth of a second, pauses and renders end.
            self.now = min(until, due, self.now + 0.1)

    def keep(self, process: Process) -> None:
        try:
            process.keep_alive.tick()
        finally:
            process.keeping = None

    def kill(self, which: int) -> None:
        process = self.processes[which]
        process.dead = True
        self.stage.kill(process)
        self.free_at = max(self.free_at, self.now + LEASE)
        self.processes[which] = Process(self)

    def evict(self) -> None:
        self.store.delete(TASK.page)
        self.stored.clear()  # a late writer loses only against an entry that is there
        self.upsets += 1

    def freeze(self, which: int, frozen: bool) -> None:
        process = self.processes[which]
        if frozen is process.frozen:
            return
        self.upsets += 1
        if frozen:
            process.stood_still = True
            self.free_at = max(self.free_at, self.now + LEASE)
        process.frozen = frozen

    # Invariants --------------------------------------------------------------------------------------

    def entry(self) -> Entry | None:
        data = self.store.get(TASK.page)
        return None if data is None else Codec().unpack(data, TASK.text)

    def age(self, entry: Entry) -> float:
        return self.now - entry.created

    @property
    def fresh(self) -> bool:
        entry = self.entry()
        return entry is not None and self.age(entry) < REVALIDATE

    @property
    def rendering(self) -> bool:
        return any(render.under_way for render in self.renders)

    def check(self, holds: bool, problem: str) -> None:
        # Noted, not raised: in a render it would be taken for the app's.
        if not holds:
            self.problems.append(f"{self.now}: {problem}")


class Cluster(RuleBasedStateMachine):
    """Visitors come, processes take steps, time passes."""

    EXPIRE: float | None = None
    #: Whether the first page is there before anything else happens.
    FILLED = True
    LEASES_HOLD = True

    def __init__(self) -> None:
        super().__init__()
        self.world = world = World(self.EXPIRE, self.LEASES_HOLD)
        fake = world.stage.threading(world.clock)
        self.patches = [
            mock.patch.object(module, "threading", fake) for module in (single_flight, leases, tag_versions)
        ]
        for patch in self.patches:
            patch.start()
        world.processes = [Process(world) for _ in range(3)]

    @initialize()
    def cache(self) -> None:
        if self.FILLED:
            self.world.visit(self.world.processes[0])
            self.world.advance(self.world.duration)
            assert self.world.fresh

    @rule(which=st.integers(0, 2))
    def visit(self, which: int) -> None:
        if len(self.world.stage.actors) < 12:
            self.world.visit(self.world.processes[which])

    @rule(turns=st.lists(st.integers(0, 5), min_size=1, max_size=20))
    def interleave(self, turns: list[int]) -> None:
        for which in turns:
            if ready := self.world.ready():
                self.world.stage.turn(ready[which % len(ready)])

    @rule(which=st.integers(0, 2), turns=st.lists(st.integers(0, 5), min_size=5, max_size=30))
    def visit_as_a_render_ends(self, which: int, turns: list[int]) -> None:
        self.world.settle()
        self.world.advance(self.world.duration, settled=False)
        self.world.visit(self.world.processes[which])
        self.interleave(turns)

    @rule(seconds=st.sampled_from([0.05, 0.5, 3.0, 5.0, 12.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.advance(seconds, settled=False)

    @rule(which=st.integers(0, 2))
    def a_visit_has_a_stale_page_rendered(self, which: int) -> None:
        """The page is rendered at once; at most one lease after a death; and after the back-off of a failure."""
        world = self.world
        # A process that has just read the entry does not read it again at once.
        world.advance(RECHECK_PAUSE)
        while world.now < world.free_at:
            world.advance(world.free_at - world.now)
        world.visit(world.processes[which])
        world.settle()
        assert world.fresh or world.rendering

    @rule(seconds=st.sampled_from([0.5, 4.0, 20.0]))
    def renders_take(self, seconds: float) -> None:
        self.world.duration = seconds

    @invariant()
    def nothing_forbidden_has_happened(self) -> None:
        assert self.world.problems == []

    def check_the_end(self) -> None:
        """Check that one more visit renews the page when all steps are done."""
        world = self.world
        world.failing = False
        world.duration = 0.5
        world.advance(2 * LEASE + LONGEST_PAUSE)
        for process in world.processes:
            world.visit(process)
        world.advance(1.0)
        assert world.fresh
        assert world.problems == []
        assert world.stage.actors == []

    def teardown(self) -> None:
        try:
            if not self.world.problems:
                self.check_the_end()
        finally:
            for process in self.world.processes:
                process.dead = True
                self.world.stage.kill(process)
            for patch in self.patches:
                patch.stop()


class Failing(Cluster):
    """Renders may fail; the last good page stays."""

    @rule(failing=st.booleans())
    def renders_fail(self, failing: bool) -> None:
        self.world.failing = failing

    @rule(which=st.integers(0, 2), seconds=st.sampled_from([0.2, 1.0]))
    def come_back_soon_after_a_failure(self, which: int, seconds: float) -> None:
        self.world.failing, self.world.duration = True, 0.5
        self.world.advance(REVALIDATE)
        self.world.visit(self.world.processes[0])
        self.world.advance(0.5 + seconds)
        self.world.visit(self.world.processes[which])


class Empty(Cluster):
    """No page at first, and one that expires: visitors wait, but each gets a page in the end."""

    EXPIRE = 2 * REVALIDATE
    FILLED = False

    @invariant()
    def everybody_gets_a_page(self) -> None:
        assert all(isinstance(answer, Served) for answer in self.world.answers)


class Dying(Cluster):
    """Processes are killed between any two of their steps, and others begin in their place."""

    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        self.world.kill(which)


class Freezing(Cluster):
    """One process stands still now and then, for longer than its leases, and goes on without noticing."""

    @rule()
    def freeze(self) -> None:
        self.world.freeze(0, frozen=True)

    @rule(seconds=st.sampled_from([0.5, LEASE + 1]), which=st.integers(1, 2))
    def freeze_in_the_middle_of_a_render(self, seconds: float, which: int) -> None:
        self.world.advance(REVALIDATE)
        self.world.visit(self.world.processes[0])
        self.world.settle()
        self.world.freeze(0, frozen=True)
        self.world.advance(seconds)
        self.world.visit(self.world.processes[which])

    @rule()
    def thaw(self) -> None:
        self.world.freeze(0, frozen=False)

    @rule(which=st.integers(1, 2))
    def a_visit_has_a_stale_page_rendered(self, which: int) -> None:
        """At most one lease after the freeze, if the process stays frozen."""
        if self.world.processes[0].frozen:
            super().a_visit_has_a_stale_page_rendered(which)

    def check_the_end(self) -> None:
        self.world.freeze(0, frozen=False)
        super().check_the_end()


class Everything(Cluster):
    """All faults together."""

    EXPIRE = 2 * REVALIDATE
    FILLED = False
    LEASES_HOLD = False

    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        self.world.kill(which)

    @rule(which=st.integers(0, 2), frozen=st.booleans())
    def freeze(self, which: int, frozen: bool) -> None:
        self.world.freeze(which, frozen)

    @rule(failing=st.booleans())
    def renders_fail(self, failing: bool) -> None:
        self.world.failing = failing

    @rule()
    def evict(self) -> None:
        self.world.evict()

    @invariant()
    def nobody_gets_an_error_of_ours(self) -> None:
        assert all(isinstance(answer, (Served, Passed, Failed)) for answer in self.world.answers)

    def a_visit_has_a_stale_page_rendered(self, which: int) -> None:
        """Not promised here: a frozen process may hold a lease, and go on renewing it when it thaws."""

    def check_the_end(self) -> None:
        for which in range(3):
            self.world.freeze(which, frozen=False)
        super().check_the_end()


SEARCH = settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Searches in which visitors wait take longer, because of many small pauses.
WAITING = settings(SEARCH, max_examples=20)

TestNoFault = Cluster.TestCase
TestFailingRenders = Failing.TestCase
TestEmptyStore = Empty.TestCase
TestDyingProcesses = Dying.TestCase
TestFreezingProcess = Freezing.TestCase
TestEverything = Everything.TestCase

TestNoFault.settings = SEARCH
TestFailingRenders.settings = SEARCH
TestEmptyStore.settings = WAITING
TestDyingProcesses.settings = SEARCH
TestFreezingProcess.settings = SEARCH
TestEverything.settings = WAITING


# The search itself: it finds what the protocol is there for -------------------------------------------------

QUICK = settings(SEARCH, max_examples=200, phases=[Phase.generate], database=None)


def no_lock(leases: Leases, page: str, ttl: float, owner: bytes = b"") -> Lease:
    return Lease(leases, page, ttl, owner)


def no_second_look(entries: Entries, task: Task) -> tuple[None, Token | None]:
    held = entries.store.gets(task.page)
    return None, held and held.token


def no_renewal(lease: Lease) -> bool:
    return True


@pytest.mark.parametrize(
    ("where", "name", "without"),
    [(Leases, "acquire", no_lock), (Entries, "gets", no_second_look), (Lease, "renew", no_renewal)],
    ids=["lock", "second look", "renewal"],
)
def test_each_part_of_the_protocol_is_needed(where: type, name: str, without: Callable[..., Any]) -> None:
    with mock.patch.object(where, name, without), pytest.raises(AssertionError):
        run_state_machine_as_test(Empty, settings=QUICK)
