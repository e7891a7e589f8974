"""The pages: the popularity and the tags of each, and its stored entry.

A page is created at its first request, in the state that it would have if the load had always been there.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Sequence

from wsgi_isr.cache.entry import Content, Entry, TagSnapshot
from wsgi_isr.cache.keyspace import EVERYTHING, path_tag, prefix_tag, route_tag, stored_tag, tag_name
from wsgi_isr.cache.tag_versions import TagVersion, TagVersions

from .nodes import Nodes, Place, Tally
from .parameters import Parameters

PATTERN = "/p/<int:number>"
#: Creation time of a page without a stored entry.
ABSENT = float("nan")


def tag_key(tag: str) -> str:
    """Return the key of a tag: as :class:`wsgi_isr.cache.keyspace.Keyspace`, without the hash, which would cost more
    than all the rest. A ring shuffles plain names as well as hashes."""
    return "isr:sim:t:" + tag


def epoch_key(node: str) -> str:
    """Return the key of a node's epoch."""
    return "isr:sim:e:" + node


class Popularity:
    """Zipf's law: the page with number n, from 0, is asked for in proportion to 1 / (n + 1) ** exponent."""

    def __init__(self, pages: int, exponent: float) -> None:
        weights = [(number + 1) ** -exponent for number in range(pages)] if exponent else [1.0] * pages
        self._numbers = range(pages)
        self._sums = list(itertools.accumulate(weights))
        self._total = self._sums[-1]
        self._exponent = exponent

    def share(self, number: int) -> float:
        """Return the share of all requests that are for this page."""
        return float((number + 1) ** -self._exponent) / self._total

    def draw(self, rng: random.Random, count: int) -> Sequence[int]:
        """Draw the pages of ``count`` requests."""
        return rng.choices(self._numbers, cum_weights=self._sums, k=count)


class Page:
    """A page in the cluster, and its current window: from the moment at which a process finds that the page is not
    current, until a new one is stored.

    ``asked``: requests for it per second. ``herd``: the followed processes that found it so in this window.
    """

    __slots__ = (
        *("asked", "entry", "failed", "herd", "key", "noticed", "number", "place", "renders", "tag", "tags", "version"),
    )

    def __init__(self, number: int, tag: int, tags: tuple[str, ...], key: str, place: Place, asked: float) -> None:
        self.number = number
        self.tag = tag
        self.tags = tags
        self.key = key
        self.place = place
        self.asked = asked
        self.entry: Entry | None = None
        #: When the last failed render began.
        self.failed = float("-inf")
        self.version = 0
        self.noticed: float | None = None
        self.renders = 0
        self.herd: set[int] = set()


class Site:
    """All pages; each becomes one Python object at its first use."""

    def __init__(self, parameters: Parameters, nodes: Nodes, tag_versions: TagVersions, rng: random.Random) -> None:
        self._p = parameters
        self._nodes = nodes
        self.popularity = Popularity(parameters.pages, parameters.zipf)
        self._pages: dict[int, Page] = {}
        self._common = (EVERYTHING, route_tag(PATTERN), stored_tag(prefix_tag("/")), stored_tag(prefix_tag("/p")))
        # One body for all pages: L1 counts its bytes, and memory has it once.
        self._content = Content("200 OK", (("Content-Type", "text/html"),), bytes(parameters.page_bytes), "etag")
        # The initial versions of all shared tags; pages older than the simulation carry them.
        names = [*self._common, *(tag_name(str(number)) for number in range(parameters.tags))]
        tag_versions.prove(tag_versions.capture(names), names)  # mints them
        capture = tag_versions.capture(names)
        self._first = capture.known
        # With invalidations, the epochs have changed since nearly every page was rendered.
        self._epochs = () if parameters.invalidations else tuple((n, e) for n, e in capture.before.items() if e)
        self.created = array("d", [ABSENT]) * parameters.pages
        if not parameters.cold:
            for number in range(parameters.pages):
                self.created[number] = -self._age(rng, parameters.rate * self.popularity.share(number))

    def __getitem__(self, number: int) -> Page:
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = self._make(number)
        return page

    def made(self, number: int) -> Page | None:
        """Return the page if it was used before."""
        return self._pages.get(number)

    def tagged(self, tag: int) -> range:
        """Return the numbers of all pages with one tag: popular ones and others."""
        return range(tag, self._p.pages, self._p.tags)

    def entry(self, page: Page, started: float, created: float, snapshot: TagSnapshot) -> Entry:
        """Return the entry that a render of a page produces."""
        return Entry(page.key, self._content, started, created, self._p.revalidate, self._p.expire, snapshot)

    def _make(self, number: int) -> Page:
        path, tag = f"/p/{number}", number % self._p.tags
        own = map(stored_tag, (path_tag(path), prefix_tag(path)))
        tags = tuple(dict.fromkeys((*self._common, *own, tag_name(str(tag)))))
        key = f"isr:sim:p:{number}"
        # In the store, an entry is its body, its tags with their versions, and some names (wsgi_isr.cache.entry.pack).
        size = self._p.page_bytes + 200 + sum(len(name) + 40 for name in tags)
        page = Page(number, tag, tags, key, self._nodes.place(key, size), self._p.rate * self.popularity.share(number))
        created = self.created[number]
        if created == created:  # not ABSENT
            page.entry = self.entry(page, created - self._p.render, created, self._proof(tags))
        return page

    def _proof(self, tags: tuple[str, ...]) -> TagSnapshot:
        tally, self._nodes.tally = self._nodes.tally, Tally(len(self._nodes.nodes))
        stamped = []
        for tag in tags:
            tag_version = self._first.get(tag)
            if tag_version is None:  # the tag of its path, which is not invalidated here
                value = TagVersion.fresh(tag)
                self._nodes.add(tag_key(tag), value)
                tag_version = self._first[tag] = value.nonces
            stamped.append((tag, tag_version))
        self._nodes.tally = tally
        return TagSnapshot(tuple(stamped), self._epochs)

    def _age(self, rng: random.Random, asked: float) -> float:
        """Return the age of a page at a random moment in a steady state: young for ``revalidate``, then stale until its
        next request."""
        if self._p.revalidate is None:
            return rng.uniform(0.0, 3600.0)
        stale = 1 / asked + self._p.render
        if rng.random() * (self._p.revalidate + stale) < self._p.revalidate:
            return rng.uniform(0.0, self._p.revalidate)
        return self._p.revalidate + rng.expovariate(asked)
