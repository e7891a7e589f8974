"""A page that is in memcached or Redis and not in L1, against one bare ``get`` of the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.benchmarks import paths
from tests.benchmarks.apps import LIFETIME, Site, bare, environ_of
from tests.benchmarks.measure import CPU, PASSING, Batch, interleaved, noise, noise_note, plain, wsgi
from tests.benchmarks.nodes import client, redis_client, redis_running, running, url_of
from tests.benchmarks.report import Budget, Report, Table, ratio
from wsgi_isr import ISR
from wsgi_isr.stores import Store
from wsgi_isr.stores.memory import MemoryStore

if TYPE_CHECKING:
    from tests.support.memcached import Memcached

#: Rounds.
FULL, QUICK = 150, 4
NOISE = "noise"
SLUG = "fetched"
REFERENCE = "one bare get of the same bytes"
FETCHED = "page from memcached, epochs polled"
ASKING = "page from memcached, coherence=0"
REDIS_GET = "one bare get of the same bytes, Redis"
FROM_REDIS = "page from Redis, epochs polled"
IN_MEMORY = "page from memory://, epochs polled"


def run(rounds: int) -> Report:
    with contextlib.ExitStack() as stack:
        (node,) = nodes = stack.enter_context(running(1))
        redis = stack.enter_context(redis_running())
        pages = {
            FETCHED: _Page(url_of(nodes), 0.5),
            ASKING: _Page(url_of(nodes), 0),
            FROM_REDIS: _Page(url_of([redis]), 0.5),
            IN_MEMORY: _Page(MemoryStore(), 0.5),
        }
        for page in pages.values():
            stack.callback(page.isr.close)
        one = stack.enter_context(client(node))
        bare_get = _bare_get(one, pages[FETCHED])
        plain_redis = stack.enter_context(redis_client(redis))
        redis_get = partial(plain_redis.get, f"wsgi_isr:{pages[FROM_REDIS].key}")
        if len(redis_get() or b"") < 20_000:
            raise AssertionError("Redis has no page")
        asked = _round_trips(node, pages[FETCHED]), _round_trips(node, pages[ASKING])

        def contestants(clock: Callable[[], float]) -> dict[str, Batch]:
            batches = {REFERENCE: plain(bare_get, clock), REDIS_GET: plain(redis_get, clock)}
            return {**batches, **{label: wsgi(page.isr, page.environ, clock) for label, page in pages.items()}}

        *passing, noisy = interleaved({**contestants(PASSING), NOISE: noise()}, rounds)
        cpu = interleaved(contestants(CPU), rounds // 4)
    table = Table(
        "a Fresh hit that is not in L1, page of 20 KB, one node", "us that pass per request", passing, REFERENCE
    )
    of_cpu = Table("the same, without what the node does", "us of CPU per request", cpu, REFERENCE)
    by_label = table.row
    return Report(
        [table, of_cpu],
        [
            Budget("bare gets for a page that is not in L1", ratio(by_label(FETCHED), by_label(REFERENCE)), 2.5),
            Budget("commands to the node for it", asked[0], 1),
            Budget("the same with coherence=0", asked[1], 1),
        ],
        [
            f"Redis: {ratio(by_label(FROM_REDIS), by_label(REDIS_GET)):.2f} times a bare get by redis-py",
            noise_note(noisy),
        ],
    )


class _Page:
    """A page that is never in L1, in front of a store."""

    def __init__(self, store: str | Store, coherence: float) -> None:
        self.environ: dict[str, Any] = environ_of(SLUG)
        self.isr = ISR(
            bare(Site()),
            store=store,
            revalidate=LIFETIME,
            coherence=coherence,
            namespace=f"fetched-{coherence:g}",
            local_cache_bytes=1,
        )
        self.isr._engine.presence = None  # background requests, made once a minute, are not counted here
        for label in ("MISS", "HIT", "HIT"):
            paths.prove(self.isr, self.environ, label)

    @property
    def key(self) -> str:
        return self.isr._pages.at(self.environ["PATH_INFO"]).task.page


def _bare_get(one: Any, page: _Page) -> Callable[[], object]:
    """Return a ``get`` of the bytes that the page has in the node."""
    key = page.isr._store.physical(page.key) if hasattr(page.isr._store, "physical") else page.key
    stored = one.get(key)
    if stored is None or len(stored) < 20_000:
        raise AssertionError(f"the node has no page at {key!r}")
    return lambda: one.get(key)


def _round_trips(node: Memcached, page: _Page, requests: int = 100) -> float:
    """Return the commands per request that reach the node."""
    before = node.stats()
    for _ in range(requests):
        paths.prove(page.isr, page.environ, "HIT")
    after = node.stats()
    return (int(after["cmd_get"]) - int(before["cmd_get"])) / requests
