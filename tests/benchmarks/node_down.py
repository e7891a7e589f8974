"""Latency and errors that visitors get while a memcached node is dead or hangs, and the invalidations that it misses.

The cluster is started as by ``python -m cluster``, under a load that never pauses: hot pages that are due again every
two seconds, and a few new ones. In each round another node is killed, and the next one hangs. There is quiet before
both, so that the compared figures are a few seconds apart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.chaos import faults
from cluster.errors import CannotStart
from cluster.load import generator as load
from cluster.load.generator import Samples
from cluster.load.request import fetch
from cluster.parts.memcached import Node
from cluster.supervisor.state import Directory
from cluster.supervisor.supervise import Cluster
from cluster.supervisor.topology import Topology
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table
from tests.support.numbered import APP, KEPT, RARE, RENEWED, Numbered, tag, version_of
from wsgi_isr import InvalidationError, invalidate, replay
from wsgi_isr.cache.invalidation import tag_names
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.stores import open_store
from wsgi_isr.stores.nodes.wire import DEFAULTS


class Size(NamedTuple):
    """The parts of the cluster, and the extent of the measurement.

    :param rounds: in each of them one node is killed, and another one hangs.
    :param measured: seconds of measurement.
    :param felt: seconds after a fault that are not measured.
    :param noticed: seconds until every process has noticed that a node is back.
    """

    nodes: int = 3
    instances: int = 2
    workers: int = 2
    rounds: int = 3
    measured: float = 2.5
    felt: float = 1.0
    noticed: float = 3.0


FULL = Size()
QUICK = Size(nodes=2, instances=1, workers=1, rounds=1, measured=0.3, felt=0.5, noticed=0.7)
#: Seconds for which a process may serve an L1 entry without asking, and some for a busy machine.
COHERENCE = 0.1 + 0.2
CONNECTIONS, RATE = 16, 300.0
#: The number of hot pages, and the part of all requests that is for a new page.
HOT, NEW = 20, 0.005
SLOW, REVALIDATE = 0.03, 2.0
HEALTHY, DEAD, HANGING = "all nodes are there", "a node is dead", "a node hangs"


class Spell(NamedTuple):
    """A time of one round during which the state named by its label held."""

    what: str
    round: int
    began: float
    ended: float


def run(size: Size) -> Report:
    if sys.platform != "linux":
        raise CannotRun("needs Linux: that is what cluster/ runs on")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        site = Numbered(Path(name), SLOW, REVALIDATE)
        topology = Topology(size.nodes, size.instances, size.workers, APP, env=site.env)
        try:
            cluster = stack.enter_context(Cluster(topology, Directory(Path(name, "cluster"))))
        except CannotStart as error:
            raise CannotRun(str(error)) from None
        return _run(size, cluster, Invalidations(cluster, site, Path(name, "journal")))


def _run(size: Size, cluster: Cluster, said: Invalidations) -> Report:
    # Warnings of our own invalidations about the faulty nodes are expected.
    logging.getLogger("wsgi_isr").addHandler(logging.NullHandler())
    spells: list[Spell] = []
    with _visited(cluster.balancer.port) as visits:
        time.sleep(size.noticed)
        for number in range(size.rounds):
            for what, strike, mend in (
                (DEAD, faults.kill, faults.restart),
                (HANGING, faults.pause, faults.resume),
            ):
                # The two faults hit different nodes in a round, and all nodes in the end.
                node = cluster.nodes[(number + (what is HANGING)) % size.nodes]
                spells.append(_spell(HEALTHY, number, size.measured))
                strike(cluster, node.name)
                struck = time.monotonic()
                said.miss(node)
                time.sleep(max(0.0, struck + size.felt - time.monotonic()))
                spells.append(_spell(what, number, size.measured))
                mend(cluster, node.name)
                time.sleep(size.noticed)
                said.make_up()
    assert visits, "nobody came"
    if said.refused != 2 * size.rounds:
        raise AssertionError(f"{said.refused} invalidations were refused, not {2 * size.rounds}: no node was away")
    return _report(size, visits[0], spells, said)


def _spell(what: str, number: int, seconds: float) -> Spell:
    began = time.monotonic()
    time.sleep(seconds)
    return Spell(what, number, began, time.monotonic())


@contextlib.contextmanager
def _visited(port: int) -> Iterator[list[Samples]]:
    """Send visitors during the block. The list gets their answers after it."""
    hot = [RENEWED % number for number in range(HOT)]
    new = [RARE % number for number in range(1000)]
    weights = [(1 - NEW) / len(hot)] * len(hot) + [NEW / len(new)] * len(new)
    over, seen = threading.Event(), []

    def visit() -> None:
        seen.append(
            load.run(
                port,
                hot + new,
                seconds=3600,
                connections=CONNECTIONS,
                rate=RATE,
                weights=weights,
                meanwhile=lambda: not over.is_set(),
            )
        )

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


class Invalidations:
    """Invalidations of two tags at a time. The node of the first tag is unreachable.

    Counted are invalidations that were refused by name, and those that were replayed.
    """

    def __init__(self, cluster: Cluster, site: Numbered, journal: Path) -> None:
        self._site = site
        self._store = cluster.store
        self._journal = journal
        self._port = cluster.balancer.port
        with contextlib.closing(open_store(cluster.store)) as store:
            key = Keyspace("default").tag
            self._node_of = {row: store.node_of(key(tag_names(tags=[tag(row)])[0])) for row in range(200)}
        self._rows = iter(self._node_of)
        self._missed: list[int] = []
        self.refused = self.made_up = self.lost = 0

    def miss(self, node: Node) -> None:
        """Invalidate a row of the node and a row of another node, together."""
        there = next(row for row in self._rows if self._node_of[row] == node.address)
        elsewhere = next(row for row in self._rows if self._node_of[row] != node.address)
        for row in (there, elsewhere):
            self._version(row)  # the page is stored
            self._site.commit(row)
        try:
            tags = [tag(there), tag(elsewhere)]
            invalidate(tags=tags, store=self._store, journal=str(self._journal)).raise_for_pending()
        except InvalidationError as error:
            is_said = list(error.undelivered) == [f"tag:{tag(there)}"] and node.address in str(error)
            self.refused += is_said
            self.lost += not is_said
        else:
            self.lost += 1
        time.sleep(COHERENCE)
        self.lost += self._version(elsewhere) != 2
        self._missed.append(there)

    def make_up(self) -> None:
        """Replay, since the node is back. Count the invalidations that are delivered, and those that are lost."""
        missed, self._missed = self._missed, []
        delivered = replay(store=self._store, journal=str(self._journal))
        time.sleep(COHERENCE)
        for row in missed:
            is_made_up = f"tag:{tag(row)}" in delivered and self._version(row) == 2
            self.made_up += is_made_up
            self.lost += not is_made_up

    def _version(self, row: int) -> int:
        answer = fetch(self._port, KEPT % row)
        assert answer.status == 200, answer
        return version_of(answer.body)


def _report(size: Size, samples: Samples, spells: list[Spell], said: Invalidations) -> Report:
    waits: dict[str, list[list[float]]] = {what: [[] for _ in range(size.rounds)] for what in (HEALTHY, DEAD, HANGING)}
    for at, seconds in zip(samples.at, samples.seconds, strict=True):
        for spell in spells:
            if spell.began <= at - seconds < spell.ended:
                waits[spell.what][spell.round].append(seconds * 1000)
    report = Report()
    for share, who in ((0.5, "half of all visitors wait"), (0.99, "the slowest hundredth waits")):
        rows = [Row(what, [sorted(some)[int(share * len(some))] for some in each]) for what, each in waits.items()]
        report.tables.append(Table(f"how long {who}, from {size.felt:g} s after the fault on", "ms", rows, HEALTHY))
    late = report.tables[-1]
    for what in (DEAD, HANGING):
        times = late.compare(late.row(what), late.row(HEALTHY))
        report.budgets.append(Budget(f"{what}: times the 99th percentile without", times, 2))
    report.budgets.append(Budget("visitors who got no answer, or 5xx", sum(samples.errors.values()), 0))
    report.budgets.append(Budget("invalidations lost, of those that a node was away for", said.lost, 0))
    slow = sum(seconds >= DEFAULTS.timeout for seconds in samples.seconds)
    late_slow = sum(wait >= DEFAULTS.timeout * 1000 for each in waits.values() for some in each for wait in some)
    verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in load.counts(samples.verdict, samples.verdicts).items())
    report.notes += [
        f"{len(samples):,} requests, {RATE:g} in a second, by {CONNECTIONS} connections: {verdicts}",
        f"{slow} of them took longer than a node may take ({DEFAULTS.timeout:g} s), {late_slow} of these while "
        f"measured; the longest {max(samples.seconds):.2f} s",
        f"{said.refused} invalidations were refused by name, and {said.made_up} of them made up for by a replay",
        *(f"{times} times: {error}" for error, times in samples.errors.items()),
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
    ]
    return report
