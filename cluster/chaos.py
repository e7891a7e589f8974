"""A whole cluster under faults drawn from a seed, read and invalidated all the while, and its history checked.

What is checked is what visitors see through the balancer: no answer is older than an acknowledged invalidation allows,
and none is a 5xx, except the balancer's own while no instance lives.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsgi_isr.keys import Keyspace
from wsgi_isr.stores import open_store

from . import faults, plot, renders, schedule
from .errors import CannotStart, ClusterError, NotHere
from .history import Circumstances, Figures, Invalidation, Outage, Read, Violation, check, figures, refused
from .load import CUT, Samples
from .network import Link
from .parts import Part
from .renders import Render
from .report import Spell, buckets
from .request import fetch
from .schedule import Strike
from .state import Directory
from .supervise import Cluster
from .topology import Topology
from .workload.site import PAGES, ROWS, RULES, Database, tag_of
from .workload.tethered import FROM_OUTSIDE, Tethered

#: What visitors call the site.
HOST = "chaos.test"
SERVED = "cluster.workload.served:application"
#: Visitors, and the longest pause that each makes; admins, and the mean of their pauses; and how long a render takes at
#: most. In seconds.
READERS, READERS_PAUSE, ADMINS, ADMINS_PAUSE, SLOW = 16, 0.02, 2, 0.15, 0.25
#: Seconds for which a process may leave a node alone that is back: a probe of the breaker that was under way, the
#: longest pause between two, with its jitter, the next probe, and a second for a machine that has too much to do.
UNNOTICED = 4.5
#: Seconds that a visitor waits for a page.
WAIT = 0.4
#: Seconds until there is a new page everywhere: somebody asks, waits for a render that began too early, and for one
#: that did not; and a second for a machine that has too much to do.
RENEWED = WAIT + 2 * SLOW + 1.0
#: Seconds for which a render is lost after whoever did it was killed or hung: until its lock lapses, and one tries.
LOST = 6.0
#: What may lose renders, and for how many seconds after its end; nodes that are away do, too.
LOSES = {
    **dict.fromkeys(("kill worker", "kill renderer", "kill", "hang", "clock", "roll", "blackout"), LOST),
    **dict.fromkeys(("flush", "pressure"), 1.0),
}
ALL_START = "every part starts again"
#: Seconds that a part may take to start.
STARTS = 30.0
#: Seconds that an instance waits for a node.
PATIENCE_WITH_NODES = 0.5
#: Seconds for everything to be current again when all is quiet.
PATIENCE = 20.0


@dataclass(frozen=True)
class Outcome:
    """What came of it. Times are those of ``time.monotonic``."""

    strikes: Sequence[Strike]
    #: What of it was not done, for want of time or of something that this machine does not have; and for any other
    #: reason, which is an error.
    skipped: Sequence[str]
    failed: Sequence[str]
    violations: Sequence[Violation]
    figures: Figures
    began: float
    ended: float
    reads: Sequence[Read]
    renders: Sequence[Render]
    spells: Sequence[Spell]
    seed: int
    coherence: float
    #: Seconds.
    stood_still: float
    #: Seconds in which nothing was excused.
    calm: float

    @property
    def excused(self) -> int:
        """5xx of the balancer while no instance lived."""
        return sum(read.status >= 500 for read in self.reads) - sum(v.read.status >= 500 for v in self.violations)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "seed": self.seed,
            "coherence": self.coherence,
            "seconds": round(self.ended - self.began, 3),
            "schedule": [
                {"at": s.at, "fault": s.fault, "part": s.part, "lasts": s.lasts, "amount": s.amount}
                for s in self.strikes
            ],
            "skipped": list(self.skipped),
            "failed": list(self.failed),
            "calm": round(self.calm, 3),
            "reads": self.figures.reads,
            "verdicts": dict(self.figures.labels),
            "soon_after_an_invalidation": self.figures.soon,
            "invalidations": self.figures.invalidations,
            "invalidation_errors": self.figures.refused,
            "nobody_there": self.excused,
            "renders": len(self.renders),
            "machine_stood_still": round(self.stood_still, 3),
            "violations": [str(violation) for violation in self.violations],
        }

    def __str__(self) -> str:
        kinds = Counter(violation.promise for violation in self.violations)
        lines = [
            f"{self.figures}; {len(self.renders)} renders; {self.excused} times nobody was there to serve",
            *([f"the machine stood still for {self.stood_still:.1f} s in all"] if self.stood_still else []),
            f"nothing was excused for {self.calm:.1f} of {self.ended - self.began:.1f} s",
            *(f"skipped: {reason}" for reason in self.skipped),
            *(f"failed: {reason}" for reason in self.failed),
            f"{len(self.violations)} violations" + (":" if kinds else ""),
            *(f"    {count} times: {promise}" for promise, count in kinds.most_common()),
            *(f"    {violation}" for violation in self.violations[:20]),
        ]
        return "\n".join(lines)

    def svg(self) -> str:
        """The plot."""
        samples = Samples(PAGES, self.began, self.ended)
        paths = {path: number for number, path in enumerate(PAGES)}
        for read in sorted(self.reads, key=lambda read: read.end):
            label = read.label or (CUT if read.status == 0 else "no X-ISR")
            samples.add(read.end, read.end - read.start, paths[read.path], read.status, label.encode(), b"")
        notes = [
            f"{self.figures.reads:,} reads, {self.figures.invalidations:,} invalidations acknowledged, "
            f"{len(self.strikes)} faults, {len(self.violations)} violations"
        ]
        return plot.Plot(
            f"chaos, seed {self.seed}",
            notes,
            self.began,
            self.ended,
            buckets(samples, max(0.1, round((self.ended - self.began) / 120, 1))),
            self.spells,
            self.renders,
            [(violation.read.end, str(violation)) for violation in self.violations],
        ).svg()


def run(directory: Directory, seed: int, seconds: float, say: Callable[[str], None]) -> Outcome:
    """Do it. To be called in a thread that outlives it; it ends early where a promise was broken.

    :raises ClusterError: it could not be done, or too little happened.
    """
    _leave_outside()
    chance = random.Random(seed)
    # Half of all runs ask for invalidations each time, half serve copies for a tenth of a second.
    coherence = chance.choice((0.0, 0.1))
    site = directory.path / "site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    Database(site).create()
    with Cluster(_topology(site, coherence), directory) as cluster:
        names = [node.name for node in cluster.nodes], [instance.name for instance in cluster.instances]
        strikes = schedule.draw(seed, seconds, *names)
        say(f"seed {seed}, {seconds:g} s, coherence {coherence:g} s: {len(strikes)} faults")
        for strike in strikes:
            say(f"  {strike}")
        history = _History(cluster, site, coherence)
        began = time.monotonic()
        with history:
            striker = _Striker(cluster, history, strikes, say)
            try:
                striker.run(seconds)
            finally:
                striker.stop()
        if striker.left:
            striker.skipped.append(f"{striker.left} that had not struck yet")
        ended = time.monotonic()
        striker.skipped += never_struck(strikes, striker.done, striker.lasted - striker.late)
        if not history.violations() and not striker.violations:
            striker.wait_until_all_run()
            history.reads += _in_the_end(cluster, site)
        reads, invalidations = history.reads, history.invalidations
        return Outcome(
            strikes,
            striker.skipped,
            striker.failed,
            [*striker.violations, *history.violations()],
            _enough(figures(reads, invalidations)),
            began,
            ended,
            reads,
            [render for render in renders.read(directory.renders) if began <= render.ended <= ended],
            sorted(striker.done, key=lambda spell: spell.began),
            seed,
            coherence,
            sum(until - since for since, until in history.watchdog.stood_still),
            calm(history.circumstances().disturbed, began, ended),
        )


def never_struck(strikes: Sequence[Strike], done: Sequence[Spell], lasted: float) -> list[str]:
    """The kinds that did not strike within so many seconds although they were to."""
    due = dict.fromkeys(strike.fault for strike in strikes if strike.at < lasted)
    return [f"{kind} never struck, though its time came" for kind in due if kind not in {spell.what for spell in done}]


def calm(disturbed: Sequence[tuple[float, float]], began: float, ended: float) -> float:
    """The seconds between that are in none of those spells."""
    quiet, at = 0.0, began
    for since, until in sorted(disturbed):
        quiet += max(0.0, min(since, ended) - at)
        at = max(at, min(until, ended))
    return quiet + max(0.0, ended - at)


def _leave_outside() -> None:
    """Variables that would make it another experiment."""
    for name in [name for name in os.environ if name.startswith(FROM_OUTSIDE) and name != "CLUSTER_IMPORT"]:
        del os.environ[name]


def _topology(site: Path, coherence: float) -> Topology:
    return Topology(
        app=SERVED,
        network=True,
        # Little memory, and everything small in one slab class, whose least recently used item is the next to go.
        megabytes=2,
        node_arguments=("-n", "512"),
        store_options=f"timeout={PATIENCE_WITH_NODES:g}&connect_timeout={PATIENCE_WITH_NODES:g}",
        env={
            "CLUSTER_DIRECTORY": str(site),
            "CLUSTER_SLOW": str(SLOW),
            "WSGI_ISR_COHERENCE": f"{coherence:g}",
            # Locks are left behind by whoever is killed.
            "WSGI_ISR_TIMEOUT": "3",
            "WSGI_ISR_WAIT": f"{WAIT:g}",
        },
        preload=True,
        # Longer than somebody may take who meets one lost node after the other, and shorter than the longest hang.
        read_timeout=4.0,
    )


def _enough(counted: Figures) -> Figures:
    """:raises ClusterError: a history in which nothing was cached, or nothing changed, would prove nothing."""
    if not counted.labels.get("HIT") or not counted.invalidations or not counted.soon:
        raise ClusterError(f"too little happened to say anything: {counted}")
    return counted


class _History:
    """Readers and admins, and what went on meanwhile that excuses something."""

    def __init__(self, cluster: Cluster, site: Path, coherence: float) -> None:
        self._cluster = cluster
        self._coherence = coherence
        self.reads: list[Read] = []
        self.invalidations: list[Invalidation] = []
        self.outages: list[Outage] = []
        self.watchdog = _Watchdog(PATIENCE_WITH_NODES / 2)
        self.dark: list[tuple[float, float]] = []
        #: When renders may have been lost, by the number of the strike.
        self.losses: dict[int, tuple[float, float]] = {}
        self._checked = 0
        self._stack = ExitStack()
        store = open_store(cluster.store)
        self._node_of = {row: store.node_of(Keyspace("default").tag(tag_of(row))) for row in ROWS}
        store.close()
        broken = {"CLUSTER_IMPORT": os.environ["CLUSTER_IMPORT"]} if "CLUSTER_IMPORT" in os.environ else {}
        visiting = {
            "CLUSTER_PORTS": str(cluster.balancer.port),
            "CLUSTER_HOST": HOST,
            "CLUSTER_READERS": str(READERS),
            "CLUSTER_PAUSE": str(READERS_PAUSE),
        }
        administering = {
            **broken,
            "CLUSTER_DIRECTORY": str(site),
            "CLUSTER_PAUSE": str(ADMINS_PAUSE),
            "WSGI_ISR_STORE": cluster.store,
        }
        self._readers = Tethered("readers", "cluster.workload.readers", site, visiting, Read.parse)
        self._admins = [
            Tethered(f"admin{number}", "cluster.workload.admin", site, administering, Invalidation.parse)
            for number in range(ADMINS)
        ]

    def __enter__(self) -> _History:
        with ExitStack() as stack:
            stack.enter_context(self.watchdog)
            stack.enter_context(self._readers)
            stack.callback(time.sleep, 0.5)  # what was acknowledged last is to be read, too
            for admin in self._admins:
                stack.enter_context(admin)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is None:
            self.look()

    def look(self) -> None:
        """Read on."""
        self._readers.look()
        for admin in self._admins:
            admin.look()
        self.reads = self._readers.lines
        self.invalidations = [invalidation for admin in self._admins for invalidation in admin.lines]

    def violations(self) -> list[Violation]:
        """Of everything so far."""
        circumstances = self.circumstances()
        found = check(self.reads, self.invalidations, circumstances)
        return [*found, *refused(self.invalidations, circumstances)]

    def shows_a_violation(self) -> bool:
        """Whether what was read since the last time does."""
        self.look()
        new, self._checked = self.reads[self._checked :], len(self.reads)
        circumstances = self.circumstances()
        return bool(check(new, self.invalidations, circumstances) or refused(self.invalidations, circumstances))

    def circumstances(self) -> Circumstances:
        """What excuses something, so far."""
        stalls = [
            Outage(link.address, began, ended + UNNOTICED)
            for began, ended in self.watchdog.stood_still
            for link in self._cluster.links
        ]
        outages = [*self.outages, *stalls]
        away = [(outage.start, outage.end) for outage in outages]
        return Circumstances(
            self._coherence,
            outages,
            self._node_of,
            # A visitor's own lost patience is one such failure; RENEWED says for how long.
            renders_fail=True,
            dark=self.dark,
            patience=RENEWED,
            disturbed=[*away, *self.losses.values()],
            lifetimes={path: float(rule.revalidate) for path, rule in RULES.items() if rule.revalidate},
        )

    @contextmanager
    def away(self, *links: Link, port: int = 0) -> Iterator[None]:
        """In the block the nodes behind these cannot be reached; some time later everybody has noticed that they
        can. ``port``: of the only instance that this is so for."""
        going = [Outage(link.address, time.monotonic(), math.inf, port) for link in links]
        self.outages += going
        try:
            yield
        finally:
            for outage in going:
                self.outages.remove(outage)
                self.outages.append(replace(outage, end=time.monotonic() + UNNOTICED))

    @contextmanager
    def darkness(self) -> Iterator[None]:
        """In the block no instance lives."""
        began = time.monotonic()
        self.dark.append((began, math.inf))
        try:
            yield
        finally:
            self.dark[-1] = (began, time.monotonic())


#: What a strike does: acts, and yields the seconds until it is to go on. Closed, it undoes what it did.
Acting = Generator[float, None, None]


@dataclass(order=True)
class _Step:
    at: float
    number: int
    strike: Strike = field(compare=False)
    acting: Acting | None = field(compare=False, default=None)
    began: float = field(compare=False, default=0.0)


class _Striker:
    """Carries out a schedule, several strikes at a time, in one thread: parts are its children, and die with it."""

    def __init__(
        self, cluster: Cluster, history: _History, strikes: Sequence[Strike], say: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._instances = [instance.name for instance in cluster.instances]
        self._history = history
        self._say = say
        self._began = time.monotonic()
        self._steps = [_Step(self._began + strike.at, number, strike) for number, strike in enumerate(strikes)]
        heapq.heapify(self._steps)
        self._busy: list[str] = []
        self._releases = itertools.count(1)
        self.skipped: list[str] = []
        self.failed: list[str] = []
        self.violations: list[Violation] = []
        #: Seconds.
        self.lasted = 0.0
        self._after_quiet = schedule.after_quiet(strikes)
        #: Seconds by which strikes are late, so that all has been quiet before them.
        self.late = 0.0
        #: How many had not struck yet when it ended.
        self.left = 0
        #: What was done, and when: on a busy machine not quite what was drawn.
        self.done: list[Spell] = []

    def run(self, seconds: float) -> None:
        """Until that many seconds are over, or a promise was broken."""
        looked = time.monotonic()
        while (now := time.monotonic()) < self._began + seconds:
            if self._steps and self._steps[0].at <= now:
                self._go_on(heapq.heappop(self._steps))
            elif now - looked > 1.0:
                if self.violations or self._history.shows_a_violation():
                    return
                looked = time.monotonic()
            else:
                time.sleep(0.01)

    def stop(self) -> None:
        """Undo what still lasts."""
        self.lasted = time.monotonic() - self._began
        while self._steps:
            step = self._steps.pop()
            if step.acting is not None:
                step.acting.close()
                self._finish(step)
            else:
                self.left += 1

    def wait_until_all_run(self) -> None:
        """After :meth:`stop`. :raises CannotStart: a part does not."""
        for part in self._cluster.parts:
            if part.leader is None:
                part.launch()
            part.wait_until_ready()

    def _go_on(self, step: _Step) -> None:
        strike = step.strike
        if step.acting is None:
            if step.number in self._after_quiet and (wait := self._until_quiet_enough()) > 0:
                self.late += wait
                later = [step, *(other for other in self._steps if other.acting is None)]
                for other in later:
                    other.at += wait
                self._steps.append(step)
                heapq.heapify(self._steps)
                return
            if not schedule.may_strike(strike.fault, strike.part, self._busy, self._instances):
                step.at = time.monotonic() + 0.1  # what struck it before is not over yet
                heapq.heappush(self._steps, step)
                return
            step.began = time.monotonic()
            self._say(f"  {step.began - self._began:6.1f} s  {strike.fault} {strike.part}")
            if strike.fault in LOSES:
                self._history.losses[step.number] = (step.began, math.inf)
            step.acting = getattr(self, "_" + strike.fault.replace(" ", "_"))(strike)
            self._busy += schedule.targets(strike, self._instances)
        assert step.acting is not None
        try:
            step.at = time.monotonic() + next(step.acting)
        except StopIteration:
            self._finish(step)
        except ClusterError as error:
            self._finish(step, done=False)
            said = f"{strike.fault} {strike.part}: {error}"
            if isinstance(error, CannotStart):
                self.violations.append(Violation.of(ALL_START, step.began, time.monotonic(), said))
            else:
                (self.skipped if isinstance(error, NotHere) else self.failed).append(said)
        else:
            heapq.heappush(self._steps, step)

    def _until_quiet_enough(self) -> float:
        """Seconds for which nothing may strike yet: what struck before may have taken longer than was drawn."""
        if self._busy:
            return 0.1
        return max((spell.ended for spell in self.done), default=-math.inf) + schedule.QUIET_BETWEEN - time.monotonic()

    def _finish(self, step: _Step, done: bool = True) -> None:
        strike, now = step.strike, time.monotonic()
        if done:
            self.done.append(Spell(strike.fault, strike.part, step.began, now))
        if strike.fault in LOSES:
            # To others, the pages of an instance whose clock is fast are fresh for so much longer.
            wrong = abs(strike.amount) if strike.fault == "clock" else 0.0
            self._history.losses[step.number] = (step.began, now + LOSES[strike.fault] + wrong)
        for part in schedule.targets(step.strike, self._instances):
            self._busy.remove(part)

    # One method for each kind of schedule.FAULTS -------------------------------------------------------

    def _kill_worker(self, strike: Strike) -> Acting:
        yield from _once_there(lambda: faults.kill_worker(self._cluster, strike.part))
        # With a worker less it is not the one that is left alone.
        yield from _until_started(self._cluster.instance(strike.part))

    def _kill_renderer(self, strike: Strike) -> Acting:
        yield from _once_there(lambda: faults.kill_renderer(self._cluster, strike.part))

    def _kill(self, strike: Strike) -> Acting:
        instance = self._cluster.instance(strike.part)
        instance.kill()
        try:
            yield strike.lasts
        finally:
            instance.launch()
        yield from _until_started(instance)

    def _hang(self, strike: Strike) -> Acting:
        # To one that hung, what it waited for seems to have taken all that time: it may take any node for gone.
        instance = self._cluster.instance(strike.part)
        with self._history.away(*self._cluster.links, port=instance.port), instance.paused():
            yield strike.lasts

    def _clock(self, strike: Strike) -> Acting:
        instance = self._cluster.instance(strike.part)
        faults.set_clock(instance, strike.amount)
        try:
            yield from _restart(instance)
            yield strike.lasts
        finally:
            faults.set_clock(instance, 0.0)
        yield from _restart(instance)

    def _roll(self, _strike: Strike) -> Acting:
        release = f"release-{next(self._releases)}"
        for instance in self._cluster.instances:
            faults.set_release(instance, release)
            yield from _restart(instance)

    def _blackout(self, strike: Strike) -> Acting:
        with self._history.darkness():
            for instance in self._cluster.instances:
                instance.kill()
            try:
                yield strike.lasts
            except GeneratorExit:
                self._cluster.instances[0].start()  # or it would go on being dark when nobody expects it
                raise
            for instance in self._cluster.instances:
                instance.launch()
            yield from _until_started(self._cluster.instances[0])
        for instance in self._cluster.instances[1:]:
            yield from _until_started(instance)

    def _kill_node(self, strike: Strike) -> Acting:
        node = self._cluster.node(strike.part)
        with self._history.away(self._cluster.link(strike.part)):
            node.kill()
            try:
                yield strike.lasts
            finally:
                node.launch()
            yield from _until_started(node)

    def _hang_node(self, strike: Strike) -> Acting:
        with self._history.away(self._cluster.link(strike.part)), self._cluster.node(strike.part).paused():
            yield strike.lasts

    def _flush(self, strike: Strike) -> Acting:
        self._cluster.node(strike.part).flush()
        yield 0.0

    def _cut_off(self, strike: Strike) -> Acting:
        link = self._cluster.link(strike.part)
        with self._history.away(link), link.healed():
            link.cut()
            yield strike.lasts

    def _dead_cable(self, strike: Strike) -> Acting:
        link = self._cluster.link(strike.part)
        with self._history.away(link), link.healed():
            link.swallow()
            yield strike.lasts

    def _slow_network(self, strike: Strike) -> Acting:
        link = self._cluster.link(strike.part)
        # On a busy machine it may be so slow that the node is taken for gone.
        with self._history.away(link), link.healed():
            link.slow(strike.amount)
            yield strike.lasts

    def _pressure(self, strike: Strike) -> Acting:
        faults.press(self._cluster)
        try:
            yield strike.lasts
        finally:
            faults.relieve(self._cluster)

    def _reload(self, _strike: Strike) -> Acting:
        self._cluster.balancer.reload()
        yield 0.0


def _restart(part: Part) -> Acting:
    part.ask_to_stop()
    deadline = time.monotonic() + part.stop_patience
    try:
        while part.exit_code() is None and time.monotonic() < deadline:
            yield 0.02
    finally:
        part.kill()
    part.launch()
    yield from _until_started(part)


def _until_started(part: Part) -> Acting:
    deadline = time.monotonic() + STARTS
    while not part.has_started():
        if time.monotonic() > deadline:
            raise CannotStart(f"{part.name} is not there after {STARTS:g} s")
        yield 0.02


def _once_there(strike: Callable[[], object]) -> Acting:
    """Strike what an instance may have none of at this moment, because the last one was killed just now."""
    deadline = time.monotonic() + STARTS / 2
    while True:
        try:
            strike()
            return
        except ClusterError:
            if time.monotonic() > deadline:
                raise
        yield 0.05


class _Watchdog:
    """Notes when the machine stood still, or was so busy that it comes to the same: nobody could be reached then."""

    def __init__(self, tolerated: float) -> None:
        self._tolerated = tolerated
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.stood_still: list[tuple[float, float]] = []

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.02):
            now = time.monotonic()
            if now - last > self._tolerated:
                self.stood_still.append((last, now))
            last = now


def _in_the_end(cluster: Cluster, site: Path) -> list[Read]:
    """When all is quiet, every page of every instance comes to show what was committed last.

    :raises ClusterError: one does not.
    """
    database, reads = Database(site), []
    for instance in cluster.instances:
        for path in PAGES:
            deadline = time.monotonic() + PATIENCE
            while True:
                began = time.monotonic()
                answer = fetch(instance.port, path, host=HOST)
                read = Read.of(
                    began, time.monotonic(), answer.status, answer["X-ISR"], path, instance.port, answer.body
                )
                reads.append(read)
                current = {row: database.read(row) for row in read.versions}
                if read.status == 200 and read.versions == current:
                    break
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{path} of {instance.name} is not current after {PATIENCE:g} s of quiet: "
                        f"{answer.status} {read.label} {dict(read.versions)}, and not {current}"
                    )
                time.sleep(0.05)
    return reads
