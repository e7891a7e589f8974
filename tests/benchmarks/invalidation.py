"""One invalidation of a tag that 1,000,000 pages carry, against one of a tag that a single page carries.

The pages are variants (``?page=N``) of one page that ISR rendered and stored. The package's own codec writes them into
one memcached. Only the writing goes past the store, in bulk: rendering a million pages would take too long.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks.apps import LIFETIME, environ_of
from tests.benchmarks.measure import PASSING, interleaved, noise, noise_note, plain
from tests.benchmarks.nodes import client, running, url_of
from tests.benchmarks.paths import answer
from tests.benchmarks.report import Budget, CannotRun, Report, Table, ratio
from wsgi_isr import ISR, Rule
from wsgi_isr.cache.entry import Codec, Content, Entry
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.pages.request_key import PageKey
from wsgi_isr.stores.memcached.chunks import pack

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

    from tests.support.memcached import Memcached

CODEC = Codec()


class Size(NamedTuple):
    """The extent: pages with the tag, MiB for them in memcached (they need less), sampled pages, and rounds.

    The sampled pages are visited before and after.
    """

    pages: int = 1_000_000
    megabytes: int = 2048
    sample: int = 300
    rounds: int = 150


FULL, QUICK = Size(), Size(pages=1000, megabytes=64, sample=30, rounds=2)
#: Seconds after which writing the pages is given up.
PATIENCE = 90
#: Pages in one write.
AT_ONCE = 1000
NOISE = "noise"
FEW = "1 page has the tag"
HOST = "www.example.com"
NAMESPACE = "catalogue"
TAGGED, UNTAGGED = "/blog/tagged", "/blog/untagged"
TAG = "goods"
RULES = {
    TAGGED: Rule(revalidate=LIFETIME, query=("page",), tags=[TAG]),
    UNTAGGED: Rule(revalidate=LIFETIME, query=("page",)),
}


def run(size: Size) -> Report:
    pages, megabytes, sample, rounds = size
    many_have_it = f"{pages:,} pages have the tag"
    if _available() < megabytes:
        raise CannotRun(f"{pages:,} pages need a machine with {megabytes} MiB of free memory")
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(running(2, megabytes))
        # The third has the same store as the second, and none of its pages in L1.
        few, many, reader = (_isr([node]) for node in (*nodes, nodes[1]))
        for isr in (few, many, reader):
            stack.callback(isr.close)
        _expect("MISS", few, TAGGED, [0])
        _expect("MISS", many, TAGGED, [0])
        began = time.monotonic()
        _fill(nodes[1], many, pages)
        took = time.monotonic() - began
        stats = nodes[1].stats()
        items = int(stats["curr_items"])
        if int(stats["evictions"]) or items < pages:
            raise AssertionError(f"{items} items and {stats['evictions']} evictions: these are not {pages} pages")

        seen = [0, pages - 1, *random.Random(20).sample(range(1, pages - 1), sample - 2)]
        others = sorted({(number + 1) % pages for number in seen} - set(seen))
        _expect("HIT", reader, TAGGED, seen)
        for label in ("MISS", "HIT"):
            _expect(label, reader, UNTAGGED, seen)

        batches = {
            FEW: plain(partial(few.invalidate, [TAG]), PASSING),
            many_have_it: plain(partial(many.invalidate, [TAG]), PASSING),
        }
        *rows, noisy = interleaved({**batches, NOISE: noise()}, rounds)

        time.sleep(reader.configuration.settings.coherence)
        for label in ("EXPIRED", "HIT"):  # only these pages are rendered again; later they are hits
            _expect(label, reader, TAGGED, seen)
        _expect("EXPIRED", reader, TAGGED, others)
        _expect("HIT", reader, UNTAGGED, seen)

    table = Table("one invalidation, memcached", "us that pass", rows, FEW)
    return Report(
        [table],
        [Budget("times one with 1 page", ratio(table.row(many_have_it), table.row(FEW)), 1.2)],
        [
            f"filled in {took:.0f} s with {items:,} items of {int(stats['bytes']) / items:.0f} bytes; none was evicted",
            f"visited: {len(seen)} pages that were hits before it are rendered anew after it, and so are {len(others)} "
            f"that nobody had asked for; {len(seen)} without the tag are hits as before",
            noise_note(noisy),
        ],
    )


def _app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [_body(environ["QUERY_STRING"].removeprefix("page="))]


def _body(number: int | str) -> bytes:
    return f"page {number}".encode()


def _isr(nodes: list[Memcached]) -> ISR:
    # No release, so that the key of a page is known here.
    return ISR(_app, RULES, store=url_of(nodes), namespace=NAMESPACE, release=None)


def _expect(label: str, isr: ISR, path: str, numbers: Iterable[int]) -> None:
    """Visit pages, and check each answer.

    :raises AssertionError: an answer has another label than ``label``, or another body.
    """
    for number in numbers:
        environ = environ_of(path.rpartition("/")[2], QUERY_STRING=f"page={number}")
        status, headers, body = answer(isr, environ)
        if (status, headers.get("X-ISR"), body) != ("200 OK", label, _body(number)):
            raise AssertionError(f"{path}?page={number}: {status}, {body!r}, {headers.get('X-ISR')} and not {label}")


# A million pages -----------------------------------------------------------------------------------


def _fill(node: Memcached, isr: ISR, pages: int) -> None:
    """Write all pages but the first. The first one is stored, and is their pattern, tag versions included."""
    space = Keyspace(NAMESPACE)
    text = _key_text(0)
    data = isr._store.get(space.page(text))
    if data is None:
        raise AssertionError("the page that ISR has just stored is not where its key says")
    items = _items(CODEC.unpack(data, text), space, pages)
    deadline = time.monotonic() + PATIENCE
    done = 1
    with client(node, timeout=PATIENCE) as connection:
        while batch := dict(islice(items, AT_ONCE)):
            connection.set_many(batch, noreply=True)
            done += len(batch)
            if time.monotonic() > deadline:
                raise CannotRun(f"only {done:,} pages were written in {PATIENCE} s; repeat when nothing else runs")
        connection.version()  # the answers come in order: all entries are written by now


def _items(first: Entry, space: Keyspace, pages: int) -> Iterator[tuple[str, bytes]]:
    """Yield the other pages as the store writes them: key and bytes."""
    content, times = first.content, (first.started, first.created, first.revalidate, first.expire)
    assert isinstance(content, Content)
    for number in range(1, pages):
        body = _body(number)
        etag = hashlib.blake2b(body, digest_size=len(content.etag) // 2).hexdigest()
        text = _key_text(number)
        entry = Entry(text, Content(content.status, content.headers, body, etag), *times, first.snapshot)
        yield space.page(text), pack(CODEC.pack(entry))


def _key_text(number: int) -> str:
    return PageKey("http", HOST, "", TAGGED, (("page", str(number)),)).text


def _available() -> float:
    """Return the available MiB; infinity where the system does not say."""
    try:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found[1]) / 1024 if found else float("inf")
