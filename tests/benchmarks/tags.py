"""The cost of a page's tags: round trips to memcached, counted on the wire, and the time of a check."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.parts.proxy import Proxy
from tests.benchmarks import paths
from tests.benchmarks.apps import LIFETIME, Site, bare, environ_of
from tests.benchmarks.measure import PASSING, Batch, interleaved, noise, noise_note
from tests.benchmarks.nodes import running, url_of
from tests.benchmarks.report import Budget, Report, Table
from tests.support.round_trips import Wires
from wsgi_isr import ISR, Rule
from wsgi_isr.cache.keyspace import Keyspace

if TYPE_CHECKING:
    from tests.support.memcached import Memcached

NODES = 3
TAGS = 100
#: The tags of every page at this depth: all pages, its rule, its path, the prefixes /, /blog and its own.
IMPLICIT = 6
NOISE = "noise"
SLUG = "tags"


class Size(NamedTuple):
    """The number of counted requests, and of timed rounds."""

    requests: int = 20
    rounds: int = 100


FULL, QUICK = Size(), Size(requests=3, rounds=2)

#: The `get`s of one request by node, in order, with a letter for each key: an epoch, a tag, a page.
Asked = list[list[str]]


def run(size: Size) -> Report:
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(running(NODES))
        proxies = [Proxy(node.port) for node in nodes]
        for proxy in proxies:
            stack.callback(proxy.refuse)
        # The clock stands still: a prepared response is checked once more than one whose second is over.
        asking, polling = (_Page(proxies, TAGS, coherence, clock=lambda: 1_700_000_000.0) for coherence in (0, 3600))
        timed = [_Page(nodes[:count], tags) for count in (1, NODES) for tags in (0, TAGS)]
        for page in (asking, polling, *timed):
            stack.callback(page.isr.close)

        wires = Wires(proxies)
        checked = asking.count(wires, size.requests, elsewhere=True)
        quiet = asking.count(wires, size.requests, elsewhere=False)
        polled = polling.count(wires, size.requests, elsewhere=False)
        tags = sum(planes.count("t") for node in checked for planes in node)
        if tags != IMPLICIT + TAGS:
            raise AssertionError(f"{tags} tags were asked for, so this is no check of {IMPLICIT} and {TAGS}")

        batches: dict[str, Batch] = {}
        for page in timed:
            batches[f"{page.label}, quiet"] = page.batch(elsewhere=False)
            batches[f"{page.label}, checked"] = page.batch(elsewhere=True)
        *rows, noisy = interleaved({**batches, NOISE: noise()}, size.rounds)
        for page in timed:
            page.prove("HIT")

    return Report(
        [Table("a Fresh hit from L1, coherence=0, memcached", "us that pass per request", rows, rows[0].label)],
        [
            Budget(f"round trips to a node to check {tags} tags", _beyond_epochs(checked), 1),
            Budget("round trips to a node on a quiet site, beyond the epoch", max(map(len, quiet)) - 1, 0),
            Budget("round trips on a quiet site, within coherence", sum(map(len, polled)), 0),
        ],
        [
            f"each `get` of one request on the wire, node by node, with its keys (the same {size.requests} times):",
            f"  a quiet site, within coherence:          {_text(polled)}",
            f"  a quiet site, coherence=0:               {_text(quiet)}",
            f"  other pages were invalidated elsewhere:  {_text(checked)}",
            noise_note(noisy),
        ],
    )


class _Page:
    """A page in L1, with so many tags of its own, in front of ``nodes``."""

    def __init__(
        self,
        nodes: Sequence[Memcached | Proxy],
        tags: int,
        coherence: float = 0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.label = f"{IMPLICIT + tags} tags on {len(nodes)} node{'s' * (len(nodes) > 1)}"
        namespace = f"{self.label}, {coherence}, {nodes[0].name}"  # the contestants share only the nodes
        rule = Rule(revalidate=LIFETIME, tags=[f"tag {number}" for number in range(tags)])
        rules, url = {"/blog/<slug>": rule}, url_of(nodes)
        self.isr = ISR(bare(Site()), rules, store=url, namespace=namespace, coherence=coherence, clock=clock)
        self._environ = environ_of(SLUG)
        self._epochs = [Keyspace(namespace).epoch(node) for node in self.isr._store.nodes]
        self.isr._engine.presence = None  # background requests, made once a minute, are not counted here
        for label in ("MISS", "HIT", "HIT"):
            self.prove(label)

    def prove(self, label: str) -> None:
        """Send one request, and check its answer.

        :raises AssertionError: the answer is not ``label``, or not the page.
        """
        paths.prove(self.isr, self._environ, label)

    def count(self, wires: Wires, requests: int, elsewhere: bool) -> Asked:
        """Return the keys that each of some requests asked for.

        :param elsewhere: invalidate pages that have none of its tags, on every node, before each request.
        :raises AssertionError: requests differ, or use another verb than `get`.
        """
        every = []
        for _ in range(requests):
            if elsewhere:
                self._disturb()
            wires.trips()
            self.prove("HIT")
            trips = wires.trips().values()
            if any(trip.verb != "get" for node in trips for trip in node):
                raise AssertionError(f"a hit should only read: {trips}")
            every.append([[trip.planes for trip in node] for node in trips])
        if any(asked != every[0] for asked in every):
            raise AssertionError(f"not every request asked the same: {every}")
        return every[0]

    def batch(self, elsewhere: bool) -> Batch:
        """Return a batch of requests, in the time that passes, without the time of invalidations elsewhere."""

        def batch(count: int) -> float:
            took = 0.0
            for _ in range(count):
                if elsewhere:
                    self._disturb()
                environ = self._environ.copy()
                began = PASSING()
                for _ in self.isr(environ, _start_response):
                    pass
                took += PASSING() - began
            return took

        return batch

    def _disturb(self) -> None:
        """Set the epochs, as an invalidation does first, and last, on a node."""
        for key in self._epochs:
            self.isr._store.set(key, os.urandom(12))


def _start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
    """Ignore status and headers."""


def _beyond_epochs(asked: Asked) -> int:
    """Return the highest number of round trips to one node for other keys than epochs."""
    return max(sum(planes != "e" for planes in node) for node in asked)


def _text(asked: Asked) -> str:
    names = {"e": "epoch", "t": "tag", "p": "page"}

    def text(planes: str) -> str:
        return f"{len(planes)} {names[planes[0]]}{'s' * (len(planes) > 1)}"

    return "; ".join(" + ".join(map(text, node)) or "none" for node in asked)
