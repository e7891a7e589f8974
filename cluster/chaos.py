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
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsgi_isr.keys import Keyspace
from wsgi_isr.stores import open_store

from . import faults, plot, renders, schedule
from .errors import ClusterError
from .history import Circumstances, Figures, Invalidation, Outage, Read, Violation, check, figures
from .load import CUT, Samples
from .renders import Render
from .report import Spell, buckets, spells
from .request import fetch
from .schedule import Strike
from .state import Directory
from .supervise import Cluster, Topology
from .workload.site import PAGES, ROWS, Database, tag_of
from .workload.tethered import FROM_OUTSIDE, Tethered

#: What visitors call the site.
HOST = "chaos.test"
SERVED = "cluster.workload.served:application"
#: Visitors, and the longest pause that each makes; admins, and the mean of their pauses; and how long a render takes at
#: most. In seconds.
READERS, READERS_PAUSE, ADMINS, ADMINS_PAUSE, SLOW = 16, 0.02, 2, 0.15, 0.25
#: Seconds for which a process may leave a node alone that is back: the longest pause between two probes of the breaker,
#: with its jitter, and the probe.
UNNOTICED = 3.0
#: Seconds for everything to be current again when all is quiet.
PATIENCE = 20.0


@dataclass(frozen=True)
class Outcome:
    """What came of it. Times are those of ``time.monotonic``."""

    strikes: Sequence[Strike]
    skipped: Sequence[str]
    violations: Sequence[Violation]
    figures: Figures
    began: float
    ended: float
    reads: Sequence[Read]
    renders: Sequence[Render]
    spells: Sequence[Spell]
    seed: int
    coherence: float

    @property
    def excused(self) -> int:
        """5xx of the balancer while no instance lived."""
        return sum(read.status >= 500 for read in self.reads) - sum(v.promise == "no 5xx" for v in self.violations)

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
            "reads": self.figures.reads,
            "verdicts": dict(self.figures.labels),
            "soon_after_an_invalidation": self.figures.soon,
            "invalidations": self.figures.invalidations,
            "invalidation_errors": self.figures.refused,
            "nobody_there": self.excused,
            "renders": len(self.renders),
            "violations": [str(violation) for violation in self.violations],
        }

    def __str__(self) -> str:
        kinds = Counter(violation.promise for violation in self.violations)
        lines = [
            f"{self.figures}; {len(self.renders)} renders; {self.excused} times nobody was there to serve",
            *(f"skipped: {reason}" for reason in self.skipped),
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
                striker.mend()
        ended = time.monotonic()
        if not history.violations():
            history.reads += _in_the_end(cluster, site)
        reads, invalidations = history.reads, history.invalidations
        return Outcome(
            strikes,
            striker.skipped,
            history.violations(),
            _enough(figures(reads, invalidations)),
            began,
            ended,
            reads,
            [render for render in renders.read(directory.renders) if began <= render.ended <= ended],
            spells(directory.noted(), began, ended),
            seed,
            coherence,
        )


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
        store_options="timeout=0.5&connect_timeout=0.5",
        env={
            "CLUSTER_DIRECTORY": str(site),
            "CLUSTER_SLOW": str(SLOW),
            "WSGI_ISR_COHERENCE": f"{coherence:g}",
            # Locks are left behind by whoever is killed.
            "WSGI_ISR_TIMEOUT": "3",
            "WSGI_ISR_WAIT": "0.4",
        },
        preload=True,
        read_timeout=2.0,
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
        self.dark: list[tuple[float, float]] = []
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
        return check(self.reads, self.invalidations, self._circumstances())

    def shows_a_violation(self) -> bool:
        """Whether what was read since the last time does."""
        self.look()
        new, self._checked = self.reads[self._checked :], len(self.reads)
        return bool(check(new, self.invalidations, self._circumstances()))

    def _circumstances(self) -> Circumstances:
        return Circumstances(self._coherence, self.outages, self._node_of, renders_fail=True, dark=self.dark)

    def away(self, *addresses: str) -> Callable[[], None]:
        """From now on these cannot be reached, until what this returns is called; some time later everybody has
        noticed that they can."""
        going = [Outage(address, time.monotonic(), math.inf) for address in addresses]
        self.outages += going

        def back() -> None:
            for outage in going:
                self.outages.remove(outage)
                self.outages.append(replace(outage, end=time.monotonic() + UNNOTICED))

        return back


@dataclass(order=True)
class _Step:
    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


class _Striker:
    """Carries out a schedule, each step at its time or as soon as the one before is done."""

    def __init__(
        self, cluster: Cluster, history: _History, strikes: Sequence[Strike], say: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._history = history
        self._say = say
        self._numbers = itertools.count()
        self._began = time.monotonic()
        self.skipped: list[str] = []
        self._steps: list[_Step] = []
        for strike in strikes:
            self._at(self._began + strike.at, lambda strike=strike: self._strike(strike))  # type: ignore[misc]
        self._mends: list[Callable[[], None]] = []
        self._releases = itertools.count(1)

    def run(self, seconds: float) -> None:
        """Until that many seconds are over, or a promise was broken."""
        looked = time.monotonic()
        while (now := time.monotonic()) < self._began + seconds:
            if self._steps and self._steps[0].at <= now:
                heapq.heappop(self._steps).act()
                continue
            if now - looked > 1.0:
                if self._history.shows_a_violation():
                    return
                looked = time.monotonic()
            time.sleep(0.02)

    def mend(self) -> None:
        """Undo what still lasts."""
        while self._mends:
            self._mends[-1]()

    def _at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._steps, _Step(moment, next(self._numbers), act))

    def _strike(self, strike: Strike) -> None:
        self._say(f"  {time.monotonic() - self._began:6.1f} s  {strike.fault} {strike.part}")
        try:
            mend = getattr(self, "_" + strike.fault.replace(" ", "_"))(strike.part, strike.amount)
        except ClusterError as error:
            self.skipped.append(f"{strike.fault} {strike.part}: {error}")
            return
        if mend is not None:

            def once() -> None:
                if once in self._mends:
                    self._mends.remove(once)
                    mend()

            self._mends.append(once)
            self._at(self._began + strike.ends, once)

    def _do(self, name: str, **arguments: object) -> None:
        faults.strike(self._cluster, name, **arguments)

    # One method for each kind of schedule.FAULTS; what it returns undoes it ----------------------------

    def _kill_worker(self, part: str, _amount: float) -> None:
        self._do("kill_worker", instance=part)

    def _kill(self, part: str, _amount: float) -> Callable[[], None]:
        self._do("kill", part=part)
        return lambda: self._do("restart", part=part)

    def _hang(self, part: str, _amount: float) -> Callable[[], None]:
        # To one that hung, what it waited for seems to have taken all that time: it may take any node for gone.
        back = self._history.away(*(link.address for link in self._cluster.links))
        self._do("pause", part=part)

        def mend() -> None:
            self._do("resume", part=part)
            back()

        return mend

    def _clock(self, part: str, amount: float) -> Callable[[], None]:
        self._do("shift_clock", instance=part, seconds=amount)
        return lambda: self._do("shift_clock", instance=part, seconds=0.0)

    def _roll(self, _part: str, _amount: float) -> None:
        self._do("roll", release=f"release-{next(self._releases)}")

    def _blackout(self, _part: str, _amount: float) -> Callable[[], None]:
        began = time.monotonic()
        self._history.dark.append((began, math.inf))
        for instance in self._cluster.instances:
            self._do("kill", part=instance.name)

        def mend() -> None:
            for instance in self._cluster.instances:
                self._do("restart", part=instance.name)
                if instance is self._cluster.instances[0]:
                    self._history.dark[-1] = (began, time.monotonic())

        return mend

    def _kill_node(self, part: str, _amount: float) -> Callable[[], None]:
        return self._node_away("kill", "restart", part)

    def _hang_node(self, part: str, _amount: float) -> Callable[[], None]:
        return self._node_away("pause", "resume", part)

    def _node_away(self, what: str, mend: str, part: str, name: str = "part") -> Callable[[], None]:
        back = self._history.away(self._cluster.link(part).address)
        self._do(what, **{name: part})

        def undo() -> None:
            self._do(mend, **{name: part})
            back()

        return undo

    def _flush(self, part: str, _amount: float) -> None:
        self._do("flush", node=part)

    def _cut_off(self, part: str, _amount: float) -> Callable[[], None]:
        return self._node_away("cut", "heal", part, "node")

    def _dead_cable(self, part: str, _amount: float) -> Callable[[], None]:
        return self._node_away("swallow", "heal", part, "node")

    def _slow_network(self, part: str, amount: float) -> Callable[[], None]:
        # So slow that a node is taken for gone it may be on a busy machine.
        back = self._history.away(self._cluster.link(part).address)
        self._do("slow", node=part, seconds=amount)

        def mend() -> None:
            self._do("heal", node=part)
            back()

        return mend

    def _pressure(self, _part: str, _amount: float) -> Callable[[], None]:
        self._do("press")
        return lambda: self._do("relieve")

    def _reload(self, _part: str, _amount: float) -> None:
        self._do("reload")


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
