"""A Fresh hit that asks memcached or Redis for invalidations each time (``coherence=0``), against one bare ``get``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.benchmarks import paths
from tests.benchmarks.apps import LIFETIME, Site, bare, environ_of
from tests.benchmarks.measure import CPU, PASSING, Batch, interleaved, noise, noise_note, plain, wsgi
from tests.benchmarks.nodes import client, redis_client, redis_running, running, url_of
from tests.benchmarks.report import Budget, Report, Table, ratio
from wsgi_isr import ISR, invalidate
from wsgi_isr.stores.nodes.wire import DEFAULTS

if TYPE_CHECKING:
    from tests.support.memcached import Memcached
    from tests.support.redis import Redis

#: Rounds.
FULL, QUICK = 150, 4
NOISE = "noise"
SLUG = "coherence"
PATH = f"/blog/{SLUG}"
#: A key as long as that of an epoch.
KEY = "bench:" + "k" * 28
REFERENCE = "one bare get of 8 bytes"
TIMEOUTS = "the same, with our timeouts"
THREE_GETS = "three bare gets, one from each node"
ASKING = "hit, coherence=0, 1 node"
ASKING_3 = "hit, coherence=0, 3 nodes"
REDIS_GET = "one bare get of 8 bytes, Redis"
ASKING_REDIS = "hit, coherence=0, 1 Redis server"
USUALLY = "hit, coherence=0.1, 1 node"
USUALLY_3 = "hit, coherence=0.1, 3 nodes"


def run(rounds: int) -> Report:
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(running(3))
        redis = stack.enter_context(redis_running())
        hits = {
            ASKING: _Hit(nodes[:1], 0),
            ASKING_REDIS: _Hit([redis], 0),
            ASKING_3: _Hit(nodes, 0),
            USUALLY: _Hit(nodes[:1], 0.1),
            USUALLY_3: _Hit(nodes, 0.1),
        }
        for hit in hits.values():
            stack.callback(hit.isr.close)
            hit.check_questions()
        bares = [stack.enter_context(client(node)) for node in nodes]
        patient = stack.enter_context(client(nodes[0], DEFAULTS.timeout))
        for each in (*bares, patient):
            each.set(KEY, b"8 bytes.", noreply=False)
        plain_redis = stack.enter_context(redis_client(redis))
        plain_redis.set(KEY, b"8 bytes.")
        gets = [partial(each.get, KEY) for each in bares]
        calls: dict[str, Callable[[], object]] = {
            REFERENCE: gets[0],
            TIMEOUTS: partial(patient.get, KEY),
            REDIS_GET: partial(plain_redis.get, KEY),
            THREE_GETS: lambda: [get() for get in gets],
        }
        for call in calls.values():
            if call() not in (b"8 bytes.", [b"8 bytes."] * 3):
                raise AssertionError("a bare get does not get its 8 bytes")

        def contestants(clock: Callable[[], float]) -> dict[str, Batch]:
            batches = {label: plain(call, clock) for label, call in calls.items()}
            return {**batches, **{label: wsgi(hit.isr, hit.environ, clock) for label, hit in hits.items()}}

        *passing, noisy = interleaved({**contestants(PASSING), NOISE: noise()}, rounds)
        cpu = interleaved(contestants(CPU), rounds // 4)
        for hit in hits.values():
            hit.check_questions()
            hit.check_news()

    title = "a Fresh hit on memcached, page of 20 KB in L1, one process"
    table = Table(title, "us that pass per request", passing, REFERENCE)
    of_cpu = Table("the same, without what the node does", "us of CPU per request", cpu, REFERENCE)
    by_label = table.row
    return Report(
        [table, of_cpu],
        [Budget("bare gets for a hit with coherence=0", ratio(by_label(ASKING), by_label(REFERENCE)), 1.5)],
        [
            f"three nodes: {ratio(by_label(ASKING_3), by_label(THREE_GETS)):.2f} times three bare gets",
            f"Redis: {ratio(by_label(ASKING_REDIS), by_label(REDIS_GET)):.2f} times a bare get by redis-py",
            "before and after: each hit with coherence=0 was one `get` to each node, and the one after an "
            "invalidation by another client was none",
            noise_note(noisy),
        ],
    )


class _Hit:
    """A page in L1, in front of ``nodes``."""

    def __init__(self, nodes: list[Memcached] | list[Redis], coherence: float) -> None:
        self._nodes = nodes
        self._coherence = coherence
        # One node serves several contestants: a namespace keeps them apart.
        self._namespace = f"{len(nodes)} nodes, {coherence}"
        self.environ: dict[str, Any] = environ_of(SLUG)
        self.isr = ISR(
            bare(Site()), store=url_of(nodes), revalidate=LIFETIME, coherence=coherence, namespace=self._namespace
        )
        self.isr._engine.presence = None  # background requests, made once a minute, are not counted here
        for label in ("MISS", "HIT", "HIT"):
            paths.prove(self.isr, self.environ, label)

    def check_questions(self, requests: int = 100) -> None:
        """Check that the cache asks once for each request with ``coherence=0``, and not otherwise.

        :raises AssertionError: another number of keys was asked for, so the figures are wrong.
        """
        before = [_gets_of(node) for node in self._nodes]
        began = time.monotonic()
        for _ in range(requests):
            paths.prove(self.isr, self.environ, "HIT")
        took = time.monotonic() - began
        asked = [_gets_of(node) - count for node, count in zip(self._nodes, before, strict=True)]
        # A poll asks each node for its epoch, and for the switch.
        most = requests if self._coherence == 0 else 2 * (1 + took / self._coherence)
        least = requests if self._coherence == 0 else 0
        if not all(least <= count <= most for count in asked):
            raise AssertionError(f"coherence={self._coherence:g}: {asked} keys were asked for in {requests} requests")

    def check_news(self) -> None:
        """Check that another client's invalidation reaches the first request after ``coherence``.

        :raises AssertionError: the invalidation does not reach the request.
        """
        invalidate(paths=[PATH], store=url_of(self._nodes), namespace=self._namespace)
        time.sleep(self._coherence)
        paths.prove(self.isr, self.environ, "EXPIRED")


def _gets_of(node: Memcached | Redis) -> int:
    """Return how many keys were asked for at a node."""
    return node.keys_read() if node.role == "redis" else int(node.stats()["cmd_get"])  # type: ignore[union-attr]
