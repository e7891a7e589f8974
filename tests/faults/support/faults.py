"""What is done to a cluster while it is read and invalidated.

A fault is a generator: it does something, and yields the seconds until it is to go on. Closed, it puts right what
it did. :attr:`Fault.enough` is how often it has to have struck for a history to count.
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
from wsgi_isr.cache.keyspace import Keyspace

#: Seconds for which a process may leave a node alone that is back: the longest pause between two probes of
#: the breaker, with its jitter, and the probe.
UNNOTICED = 3.0


@dataclass
class Target:
    """What there is to strike, and what was struck."""

    nodes: Sequence[Memcached]
    servers: Sequence[Gunicorn]
    struck: int = 0
    outages: list[Outage] = field(default_factory=list)

    @contextmanager
    def outage(self, node: Memcached) -> Iterator[None]:
        """In the block, ``node`` cannot be reached; some time later everybody has noticed that it can."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.outages.append(Outage(node.name, began, time.monotonic() + UNNOTICED))
            self.struck += 1


Strikes = Callable[[Target], Iterator[float]]


@dataclass(frozen=True)
class Fault:
    """A way to strike, and what a history under it may hold.

    :param small: the nodes have little memory. :param outages: answers may be degraded while a node is away.
    :param kills: connections may break. :param env: for the servers. :param filled: with small keys.
    """

    name: str
    strikes: Strikes
    enough: int = 0
    small: bool = False
    outages: bool = False
    kills: bool = False


def nothing(_target: Target) -> Iterator[float]:
    """No fault."""
    while True:
        yield 1.0


def watch_evictions(target: Target) -> Iterator[float]:
    """Small keys press upon the nodes (:mod:`.pressure`); counts how often a tag's key was found to be gone.

    ``me`` is the one way to ask that does not keep a key alive (memcached, doc/protocol.txt, "Meta Debug").
    """
    tags = [Keyspace("default").tag(tag_of(row)) for row in ROWS]
    there: Mapping[str, bool] = {}
    while True:
        answers = [node.say(*(f"me {key}" for key in tags)) for node in target.nodes]
        now = {key: any(a[n].startswith(b"ME ") for a in answers) for n, key in enumerate(tags)}
        target.struck += sum(there.get(key, False) and not now[key] for key in tags)
        there = now
        yield 0.1


def flush(target: Target) -> Iterator[float]:
    """``flush_all`` at random moments, on one node or on all."""
    while True:
        yield random.expovariate(1 / 0.8)
        for node in random.choice([target.nodes, [random.choice(target.nodes)]]):
            node.flush()
            target.struck += 1


def restart(target: Target) -> Iterator[float]:
    """A node is killed, and starts again, empty, after a while."""
    while True:
        yield random.uniform(1.5, 2.5)
        node = random.choice(target.nodes)
        with target.outage(node):
            node.kill()
            try:
                yield random.choice((0.0, 0.3))
            finally:
                node.start()


def pause(target: Target) -> Iterator[float]:
    """Each node in turn hangs for 2 s."""
    while True:
        for node in random.sample(target.nodes, len(target.nodes)):
            yield 0.7
            with target.outage(node), node.paused():
                yield 2.0
            yield 2.5


def kill(target: Target) -> Iterator[float]:
    """Every second a worker or a renderer gets SIGKILL."""
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
        Fault("nodes are paused", pause, enough=2, outages=True),
        Fault("workers are killed", kill, enough=5, kills=True),
    )
}
