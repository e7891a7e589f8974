"""Faults of a cluster while it is read and invalidated.

A fault is a generator: it acts, and yields the seconds until it continues. Closed, it undoes its effects.
:attr:`Fault.enough` is the number of strikes that a history needs to count.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.chaos.history import Outage
from cluster.chaos.workload.site import ROWS, tag_of
from tests.live.support.server import Gunicorn
from tests.support.memcached import Memcached
from tests.support.redis import Redis
from wsgi_isr.cache.keyspace import Keyspace

#: Seconds for which a process may avoid a node that is back: the longest pause between two probes of
#: the breaker, with its jitter, and the probe.
UNNOTICED = 3.0


@dataclass
class Target:
    """The parts that a fault may strike, and a record of its strikes."""

    nodes: Sequence[Memcached | Redis]
    servers: Sequence[Gunicorn]
    struck: int = 0
    outages: list[Outage] = field(default_factory=list)

    @contextmanager
    def outage(self, node: Memcached | Redis) -> Iterator[None]:
        """Note in the block that ``node`` is unreachable. The outage ends when all processes have noticed its end."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.outages.append(Outage(node.name, began, time.monotonic() + UNNOTICED))
            self.struck += 1


Strikes = Callable[[Target], Iterator[float]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault, and the answers that it excuses.

    :param small: the nodes have little memory.
    :param outages: answers may be degraded while a node is unreachable.
    :param kills: connections may break.
    :param env: for the servers.
    :param kinds: the kinds of nodes that can have it.
    """

    name: str
    strikes: Strikes
    enough: int = 0
    small: bool = False
    outages: bool = False
    kills: bool = False
    kinds: Sequence[str] = ("memcached", "redis")


def nothing(_target: Target) -> Iterator[float]:
    """Do nothing."""
    while True:
        yield 1.0


def watch_evictions(target: Target) -> Iterator[float]:
    """Fill the nodes with small keys, and count how often a tag's key was found evicted.

    :mod:`cluster.chaos.workload.pressure` writes the small keys. A server of Redis spares tags, so keys of tags are
    removed there.

    ``me`` is the only command that looks up a key without keeping it alive (memcached, doc/protocol.txt, "Meta Debug").
    """
    tags = [Keyspace("default").tag(tag_of(row)) for row in ROWS]
    while isinstance(target.nodes[0], Redis):
        yield random.uniform(0.05, 0.15)
        key = f"wsgi_isr:{random.choice(tags)}"
        target.struck += sum(isinstance(node, Redis) and node.say("DEL", key) == b":1\r\n" for node in target.nodes)
    there: Mapping[str, bool] = {}
    while True:
        answers = [node.say(*(f"me {key}" for key in tags)) for node in target.nodes if isinstance(node, Memcached)]
        now = {key: any(a[n].startswith(b"ME ") for a in answers) for n, key in enumerate(tags)}
        target.struck += sum(there.get(key, False) and not now[key] for key in tags)
        there = now
        yield 0.1


def flush(target: Target) -> Iterator[float]:
    """Send ``flush_all`` at random moments, to one node or to all."""
    while True:
        yield random.expovariate(1 / 0.8)
        for node in random.choice([target.nodes, [random.choice(target.nodes)]]):
            node.flush()
            target.struck += 1


def restart(target: Target) -> Iterator[float]:
    """Kill a node and start it again, empty, after a while."""
    while True:
        yield random.uniform(1.5, 2.5)
        node = random.choice(target.nodes)
        with target.outage(node):
            node.kill()
            try:
                yield random.choice((0.0, 0.3))
            finally:
                node.start()


def restore(target: Target) -> Iterator[float]:
    """Kill a node, and start it again with a snapshot that lacks the writes of a second."""
    while True:
        yield random.uniform(0.5, 1.0)
        node = random.choice(target.nodes)
        assert isinstance(node, Redis)
        node.say("SAVE")
        yield 1.0
        with target.outage(node):
            node.restart_from_snapshot()


def pause(target: Target) -> Iterator[float]:
    """Pause each node in turn for 2 s."""
    while True:
        for node in random.sample(target.nodes, len(target.nodes)):
            yield 0.7
            with target.outage(node), node.paused():
                yield 2.0
            yield 2.5


def kill(target: Target) -> Iterator[float]:
    """Send SIGKILL to a worker or a renderer every second."""
    while True:
        yield 1.0
        server = random.choice(target.servers)
        if processes := [*server.workers(), *server.renderers()]:
            server.kill(random.choice(processes))
            target.struck += 1


FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("no fault", nothing),
        Fault("tags are evicted", watch_evictions, enough=20, small=True),
        Fault("nodes are flushed", flush, enough=8),
        Fault("nodes are restarted", restart, enough=3, outages=True),
        Fault("nodes restart from a snapshot", restore, enough=3, outages=True, kinds=("redis",)),
        Fault("nodes are paused", pause, enough=2, outages=True),
        Fault("workers are killed", kill, enough=5, kills=True),
    )
}
