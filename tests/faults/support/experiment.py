"""Make a history: three gunicorn instances of two workers, two nodes, readers and admins, and a fault."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cluster.chaos.history import Circumstances, Figures, Invalidation, Read, Violation, check, figures
from cluster.chaos.workload.site import PAGES, ROWS, Database, tag_of
from cluster.chaos.workload.tethered import Tethered
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import SITE, Answer, ask
from tests.live.support.waiting import until
from tests.support.memcached import Memcached
from tests.support.redis import Redis
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.stores import open_store

from .faults import Fault, Target

CACHED_SITE = "cluster.chaos.workload.cached_site:application"
#: Visitors, and the longest pause of each; admins, and the mean of their pauses, in seconds.
READERS, READERS_PAUSE, ADMINS, ADMINS_PAUSE = 24, 0.01, 2, 0.12
#: Seconds that a render takes at most.
SLOW = 0.3
#: Small keys for each node in a second, where eviction is wanted.
PRESSURE = 10_000


@dataclass(frozen=True)
class Plan:
    """The size of a history: until there are so many of each, but no longer than ``seconds``."""

    reads: int
    invalidations: int
    seconds: float = 60.0
    #: Whether a history goes on after a violation.
    to_the_end: bool = True


@dataclass(frozen=True)
class Outcome:
    """The result of an experiment."""

    violations: Sequence[Violation]
    figures: Figures
    struck: int
    #: Lines of the servers' logs that no fault excuses.
    complaints: Sequence[str]

    def __str__(self) -> str:
        return f"{self.figures}; struck {self.struck} times; {len(self.violations)} violations"


def run(
    directory: Path, fault: Fault, coherence: float, plan: Plan, broken: str = "", kind: str = "memcached"
) -> Outcome:
    """Run the experiment. Call it in the main thread.

    :param broken: the rule of the protocol that every process breaks (:mod:`.broken`).
    :param kind: the kind of the nodes, ``memcached`` or ``redis``.
    :raises AssertionError: there was too little of something in time.
    """
    Database(directory).create()
    with ExitStack() as stack:
        # `-n 512`: all small items are in one slab class, whose least recently used item is evicted next.
        arguments = ("-n", "512") if fault.small else ()
        nodes: list[Memcached | Redis] = []
        for _ in range(2):
            nodes.append(Redis(64) if kind == "redis" else Memcached(2 if fault.small else 64, arguments))
            stack.callback(nodes[-1].kill)
        env = _environment(directory, nodes, fault, coherence, broken)
        servers = [
            stack.enter_context(Gunicorn(directory / f"server{n}.log", env, CACHED_SITE, preload=True))
            for n in range(3)
        ]
        if fault.small and kind == "memcached":
            filling = {"CLUSTER_NODES": ",".join(str(node.port) for node in nodes), "CLUSTER_RATE": str(PRESSURE)}
            stack.enter_context(Tethered("pressure", "cluster.chaos.workload.pressure", directory, filling, bytes))
        target = Target(nodes, servers)
        reads, invalidations = _watch(directory, fault, target, env, plan, coherence)
        if not broken:
            reads += _in_the_end(directory, servers)
            assert [server.stop() for server in servers] == [0, 0, 0]
        complaints = [line for server in servers for line in _complaints(server, fault)]
    violations = check(reads, invalidations, _circumstances(fault, target, coherence))
    return Outcome(violations, figures(reads, invalidations), target.struck, complaints)


def url_of(nodes: Sequence[Memcached | Redis]) -> str:
    """Return the URL of the store on ``nodes``, without options."""
    return f"{nodes[0].role}://{','.join(node.name for node in nodes)}"


def _environment(
    directory: Path, nodes: Sequence[Memcached | Redis], fault: Fault, coherence: float, broken: str
) -> dict[str, str]:
    # Without outages, no node may be taken for unreachable because the machine is busy.
    patience = "timeout=0.5&connect_timeout=0.5" if fault.outages else "timeout=5&connect_timeout=5&deadline=10"
    env = {
        "CLUSTER_DIRECTORY": str(directory),
        "CLUSTER_SLOW": str(SLOW),
        "WSGI_ISR_STORE": f"{url_of(nodes)}?{patience}",
        "WSGI_ISR_COHERENCE": f"{coherence:g}",
        "WSGI_ISR_JOURNAL": str(directory / "journal"),
    }
    if fault.kills or fault.outages:  # killed processes, and processes without their node, leave locks behind
        env |= {"WSGI_ISR_RENDER_TIMEOUT": "3", "WSGI_ISR_LOCK_TIMEOUT": "0.4"}
    if broken:
        env |= {"CLUSTER_IMPORT": "tests.faults.support.switched_off", "FAULTS_BREAK": broken}
    return env


def _watch(
    directory: Path, fault: Fault, target: Target, env: dict[str, str], plan: Plan, coherence: float
) -> tuple[list[Read], list[Invalidation]]:
    visiting = {
        "CLUSTER_PORTS": ",".join(str(server.port) for server in target.servers),
        "CLUSTER_HOST": SITE,
        "CLUSTER_READERS": str(READERS),
        "CLUSTER_PAUSE": str(READERS_PAUSE),
    }
    administering = {**env, "CLUSTER_PAUSE": str(ADMINS_PAUSE)}
    with ExitStack() as stack:
        readers = Tethered("readers", "cluster.chaos.workload.readers", directory, visiting, Read.parse)
        stack.enter_context(readers)
        admins = [
            Tethered(f"admin{n}", "cluster.chaos.workload.admin", directory, administering, Invalidation.parse)
            for n in range(ADMINS)
        ]
        with ExitStack() as inner:
            for admin in admins:
                inner.enter_context(admin)
            _strike(fault, target, plan, coherence, readers, admins)
        time.sleep(0.5)  # readers must also see the last acknowledged invalidation
    return readers.lines, [invalidation for admin in admins for invalidation in admin.lines]


def _strike(
    fault: Fault,
    target: Target,
    plan: Plan,
    coherence: float,
    readers: Tethered[Read],
    admins: Sequence[Tethered[Invalidation]],
) -> None:
    deadline = time.monotonic() + plan.seconds
    looked = time.monotonic()
    strikes = fault.strikes(target)
    due = time.monotonic() + next(strikes)
    try:
        while True:
            time.sleep(0.05)
            while due <= time.monotonic():
                due = time.monotonic() + next(strikes)
            readers.look()
            for admin in admins:
                admin.look()
            invalidations = [invalidation for admin in admins for invalidation in admin.lines]
            done = (len(readers.lines), len(invalidations), target.struck)
            if all(n >= enough for n, enough in zip(done, (plan.reads, plan.invalidations, fault.enough), strict=True)):
                return
            if not plan.to_the_end and time.monotonic() - looked > 1.0:
                looked = time.monotonic()
                if check(readers.lines, invalidations, _circumstances(fault, target, coherence)):
                    return
            assert time.monotonic() < deadline, f"only {done[0]} reads, {done[1]} invalidations, {done[2]} strikes"
    finally:
        _close(strikes)


def _close(strikes: Iterator[float]) -> None:
    strikes.close()  # type: ignore[attr-defined]


def _circumstances(fault: Fault, target: Target, coherence: float) -> Circumstances:
    store = open_store(url_of(target.nodes))
    node_of = {row: store.node_of(Keyspace("default").tag(tag_of(row))) for row in ROWS}
    store.close()
    return Circumstances(coherence, target.outages, node_of, fault.kills or fault.outages, fault.kills)


def _in_the_end(directory: Path, servers: Sequence[Gunicorn]) -> list[Read]:
    """Wait until every page of every server shows the last commit; return these reads."""
    database, reads = Database(directory), []

    def current(server: Gunicorn, path: str) -> bool:
        read = _as_read(ask(server.port, path), path)
        reads.append(read)
        return read.status == 200 and all(version == database.read(row) for row, version in read.versions.items())

    for server in servers:
        for path in PAGES:
            until(lambda s=server, p=path: current(s, p), f"the newest {path}")  # type: ignore[misc]
    return reads


def _as_read(answer: Answer, path: str) -> Read:
    page = answer.page if answer.status == 200 else {}
    return Read(
        answer.began,
        answer.ended,
        answer.status,
        answer.verdict,
        path,
        answer.port,
        page.get("path", ""),
        page.get("versions", {}),
        answer.error,
    )


def _complaints(server: Gunicorn, fault: Fault) -> list[str]:
    """Return the log lines that no fault excuses, such as exceptions."""
    complaints = server.complaints()
    return [line for line in complaints if "Traceback" in line] if fault.enough else complaints
