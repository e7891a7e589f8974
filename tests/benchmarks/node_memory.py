"""Bytes of a memcached node for each page, beyond the page, and control keys after random URLs."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks.apps import LIFETIME, environ_of
from tests.benchmarks.nodes import running, url_of
from tests.benchmarks.paths import answer
from tests.benchmarks.report import Budget, Report, Row, Table
from tests.support.memcached import Memcached
from wsgi_isr import ISR, Rule
from wsgi_isr.stores.base import route

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


class Size(NamedTuple):
    """The numbers of stored pages and of random URLs.

    :param pages: distinct pages.
    :param urls: random URLs, after which the control keys are counted.
    """

    pages: int = 5000
    urls: tuple[int, int] = (1000, 10_000)


FULL, QUICK = Size(), Size(pages=100, urls=(10, 40))
#: Bytes of a page, too few to be compressed, so that one variant is stored.
SMALL = 200
SEGMENTS = 31
#: Bytes that a page may take beyond its own.
OVERHEAD = 1500
MEGABYTES = 1024
MISSING, DEEP = "404s", f"200s of {SEGMENTS} segments"
#: The planes of keys (``wsgi_isr.cache.keyspace.Keyspace``). All but pages are control keys.
PAGE = "p"


def run(size: Size) -> Report:
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(running(3, MEGABYTES))
        pages, missing, deep = (_Site(stack, node) for node in nodes)
        held = pages.held()
        pages.visit(f"page-{number}" for number in range(size.pages))
        overhead = (pages.held() - held) / size.pages - SMALL
        kinds = pages.kinds()
        pages.check(size.pages)

        dice, left = random.Random(20), []
        for label, site, urls in ((MISSING, missing, _missing(dice)), (DEEP, deep, _deep(dice))):
            for before, after in zip((0, *size.urls), size.urls, strict=False):
                site.visit(islice(urls, after - before))
                left.append(Row(f"{after:,} {label}", [site.control_keys()]))
    row = Row(f"{size.pages:,} pages of {SMALL} bytes", [overhead])
    planes = ", ".join(f"{count / size.pages:.2f} of plane {plane!r}" for plane, count in sorted(kinds.items()))
    return Report(
        [
            Table(
                "a memcached node, with 1 explicit tag for all pages",
                "bytes for a page, beyond its own",
                [row],
                row.label,
                0,
            ),
            Table("after random URLs", "control keys on the node", left, left[0].label, 0),
        ],
        [Budget("bytes for a page, beyond its own", overhead, OVERHEAD)],
        [f"items on the node for each page: {planes}"],
    )


class _Site:
    """A site on a node of its own."""

    def __init__(self, stack: contextlib.ExitStack, node: Memcached) -> None:
        self._node = node
        # Entries in L1 would hide whether a page is on the node.
        self._isr = ISR(
            _app,
            {"/<path:page>": Rule(revalidate=LIFETIME, tags=["shared"])},
            store=url_of([node]),
            local_cache_bytes=1,
        )
        stack.callback(self._isr.close)

    def visit(self, paths: Iterable[str], label: str = "MISS") -> None:
        """Ask for pages.

        :raises AssertionError: an answer is not ``label``.
        """
        for path in paths:
            _, headers, _ = answer(self._isr, environ_of(path))
            if headers.get("X-ISR") != label:
                raise AssertionError(f"{path}: {headers.get('X-ISR')}, not {label}")

    def check(self, pages: int) -> None:
        """Check that the node holds all pages.

        :raises AssertionError: a page is missing.
        """
        self.visit((f"page-{number}" for number in range(0, pages, max(1, pages // 100))), "HIT")
        if int(self._node.stats()["evictions"]):
            raise AssertionError("pages were evicted, so the node does not hold what it should")

    def held(self) -> int:
        """Return the bytes of all items as the node counts them, with keys and headers."""
        return int(self._node.stats()["bytes"])

    def kinds(self) -> Counter[str]:
        """Return the number of items by the plane of their keys."""
        return Counter(route(key).text.split(":")[2] for key in self._node.contents())

    def control_keys(self) -> int:
        """Return the number of items that are no pages."""
        kinds = self.kinds()
        return kinds.total() - kinds[PAGE]


def _missing(dice: random.Random) -> Iterator[str]:
    while True:
        yield f"missing-{dice.getrandbits(64):x}"


def _deep(dice: random.Random) -> Iterator[str]:
    while True:
        yield "/".join(f"{dice.getrandbits(32):x}" for _ in range(SEGMENTS - 1))  # below /blog


def _app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"].removeprefix("/blog/")
    start_response("404 Not Found" if path.startswith("missing-") else "200 OK", [("Content-Type", "text/plain")])
    return [f"{path[:SMALL]:{SMALL}}".encode()]
