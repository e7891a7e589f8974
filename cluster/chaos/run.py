"""Run a cluster under faults drawn from a seed, with readers and admins all the while, and check its history.

The check judges answers to visitors through the balancer: no answer is older than an acknowledged invalidation allows,
and none is a 5xx, except the balancer's own while no instance lives.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CannotStart, ClusterError
from ..load import plot, renders
from ..load.generator import CUT, Samples
from ..load.renders import Render
from ..load.report import Spell, buckets
from ..load.request import fetch
from ..supervisor.state import Directory
from ..supervisor.supervise import Cluster
from ..supervisor.topology import Topology
from . import schedule
from .history import Figures, Read, Violation, figures
from .nemesis import ALL_START, Nemesis
from .observers import HOST, PATIENCE_WITH_NODES, SLOW, WAIT, Observers
from .schedule import Strike
from .workload.site import PAGES, Database
from .workload.tethered import FROM_OUTSIDE

CACHED_SITE = "cluster.chaos.workload.cached_site:application"
#: Seconds for every page to be current again after the last fault.
PATIENCE = 20.0
CURRENT = f"every page is current after {PATIENCE:g} s of quiet"


@dataclass(frozen=True)
class Outcome:
    """The result of a run. Times are those of ``time.monotonic``."""

    strikes: Sequence[Strike]
    #: Kinds that did not strike, for want of time or of an optional library; and kinds that failed for any other
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
    #: Seconds in which no answer was excused.
    calm: float

    @property
    def excused(self) -> int:
        """Return the number of 5xx of the balancer while no instance lived."""
        return sum(read.status >= 500 for read in self.reads) - sum(v.read.status >= 500 for v in self.violations)

    def as_json(self) -> dict[str, Any]:
        """Return the result for JSON."""
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
            f"{self.figures}; {len(self.renders)} renders; {self.excused} requests while no instance lived",
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
        """Render the plot."""
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
    """Run the experiment. Call it in a thread that outlives it; it ends early where a promise was broken.

    :raises ClusterError: a part failed, or too little happened.
    """
    _leave_outside()
    chance = random.Random(seed)
    # Half of all runs check for invalidations at each request, half serve copies unchecked for a tenth of a second.
    coherence = chance.choice((0.0, 0.1))
    site = directory.path / "site"

    def create() -> None:
        site.mkdir()
        Database(site).create()

    with Cluster(_topology(site, coherence), directory, prepare=create) as cluster:
        names = [node.name for node in cluster.nodes], [instance.name for instance in cluster.instances]
        strikes = schedule.draw(seed, seconds, *names)
        say(f"seed {seed}, {seconds:g} s, coherence {coherence:g} s: {len(strikes)} faults")
        for strike in strikes:
            say(f"  {strike}")
        observers = Observers(cluster, site, coherence)
        began = time.monotonic()
        with observers:
            nemesis = Nemesis(cluster, observers, strikes, say)
            try:
                nemesis.run(seconds)
            finally:
                nemesis.stop()
        if nemesis.left:
            nemesis.skipped.append(f"{nemesis.left} that had not struck yet")
        ended = time.monotonic()
        nemesis.skipped += never_struck(strikes, nemesis.done, nemesis.lasted - nemesis.late)
        if not observers.violations() and not nemesis.violations:
            nemesis.violations += in_the_end(cluster, Database(site), nemesis, observers.reads)
        reads, invalidations = observers.reads, observers.invalidations
        violations = [*nemesis.violations, *observers.violations()]
        return Outcome(
            strikes,
            nemesis.skipped,
            nemesis.failed,
            violations,
            _enough(figures(reads, invalidations), violations),
            began,
            ended,
            reads,
            [render for render in renders.read(directory.renders) if began <= render.ended <= ended],
            sorted(nemesis.done, key=lambda spell: spell.began),
            seed,
            coherence,
            sum(until - since for since, until in observers.watchdog.stood_still),
            calm(observers.circumstances().disturbed, began, ended),
        )


def never_struck(strikes: Sequence[Strike], done: Sequence[Spell], lasted: float) -> list[str]:
    """Return the kinds that were due within ``lasted`` seconds and did not strike."""
    due = dict.fromkeys(strike.fault for strike in strikes if strike.at < lasted)
    return [f"{kind} never struck, though its time came" for kind in due if kind not in {spell.fault for spell in done}]


def calm(disturbed: Sequence[tuple[float, float]], began: float, ended: float) -> float:
    """Return the seconds from ``began`` to ``ended`` that are in none of the disturbed spells."""
    quiet, at = 0.0, began
    for since, until in sorted(disturbed):
        quiet += max(0.0, min(since, ended) - at)
        at = max(at, min(until, ended))
    return quiet + max(0.0, ended - at)


def _leave_outside() -> None:
    """Remove environment variables that would change the experiment."""
    for name in [name for name in os.environ if name.startswith(FROM_OUTSIDE) and name != "CLUSTER_IMPORT"]:
        del os.environ[name]


def _topology(site: Path, coherence: float) -> Topology:
    return Topology(
        app=CACHED_SITE,
        network=True,
        # Little memory, and all small items in one slab class, whose least recently used item is evicted next.
        megabytes=2,
        node_arguments=("-n", "512"),
        store_options=f"timeout={PATIENCE_WITH_NODES:g}&connect_timeout={PATIENCE_WITH_NODES:g}",
        env={
            "CLUSTER_DIRECTORY": str(site),
            "CLUSTER_SLOW": str(SLOW),
            "WSGI_ISR_JOURNAL": str(site / "journal"),
            "WSGI_ISR_COHERENCE": f"{coherence:g}",
            # Killed processes leave their locks behind.
            "WSGI_ISR_RENDER_TIMEOUT": "3",
            "WSGI_ISR_LOCK_TIMEOUT": f"{WAIT:g}",
        },
        preload=True,
        # Longer than a request that meets one lost node after the other, and shorter than the longest hang.
        read_timeout=4.0,
    )


def _enough(counted: Figures, violations: Sequence[Violation]) -> Figures:
    """Return the counts. A history without hits or changes would prove nothing, unless it shows a violation.

    :raises ClusterError: too little happened.
    """
    if violations:
        return counted
    if not counted.labels.get("HIT") or not counted.invalidations or not counted.soon:
        raise ClusterError(f"too little happened to say anything: {counted}")
    return counted


def in_the_end(cluster: Cluster, database: Database, nemesis: Nemesis, reads: list[Read]) -> list[Violation]:
    """Return violations after the last fault: a part that does not run, or a page that an instance does not bring up to
    the last commit.

    :param reads: gets the reads of this check.
    """
    quiet = time.monotonic()
    try:
        nemesis.wait_until_all_run()
    except CannotStart as error:
        return [Violation.of(ALL_START, quiet, time.monotonic(), str(error))]
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
                    reason = (
                        f"{path} of {instance.name}: {answer.status} {read.label} {dict(read.versions)}, not {current}"
                    )
                    return [Violation.of(CURRENT, began, read.end, reason)]
                time.sleep(0.05)
    return []
