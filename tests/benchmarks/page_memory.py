"""Bytes of memory that a page takes in L1: counted by Python, and by L1's own books, which its limit is compared with.

A page is HTML of random words, so that it is compressed as text of a site is. Browsers with each coding ask for it, so
that L1 holds every coding and a prepared response for each.
"""

from __future__ import annotations

import gc
import random
import tempfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks.apps import LIFETIME, environ_of
from tests.benchmarks.paths import answer
from tests.benchmarks.report import Budget, Report, Row, Table
from wsgi_isr import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


class Size(NamedTuple):
    """The lengths of pages in bytes, and the bytes of all pages of one length."""

    lengths: tuple[int, ...] = (200, 2_000, 20_000, 200_000)
    total: int = 1_000_000


FULL, QUICK = Size(), Size((2_000, 20_000), 100_000)
#: The numbers of pages of one length.
FEWEST, MOST = 5, 100
ENCODINGS = ("gzip, deflate, br, zstd", "gzip, deflate, br", "gzip", "identity")
ENOUGH = 1 << 30
#: The words of a text, as many as a page of a site has, and the seed of all pages.
WORDS, SEED = 4000, 20
COUNTED, BOOKED = "counted by Python", "L1's own books"


def run(size: Size) -> Report:
    counted, booked = zip(
        *(_weigh(length, max(FEWEST, min(MOST, size.total // length))) for length in size.lengths), strict=True
    )
    lengths = [float(length) for length in size.lengths]
    rows = [
        Row(f"{word}, page of {length:,} bytes", [figure])
        for length, *figures in zip(size.lengths, counted, booked, strict=True)
        for word, figure in zip((COUNTED, BOOKED), figures, strict=True)
    ]
    share = max(real / book for real, book in zip(counted, booked, strict=True))
    return Report(
        [Table("a page in L1, with three codings", "bytes of memory", rows, rows[0].label, 0)],
        [Budget("of L1's own books, the memory that Python counts", share, 1)],
        series={
            "bytes of a page in L1": {
                COUNTED: list(zip(lengths, counted, strict=True)),
                BOOKED: list(zip(lengths, booked, strict=True)),
            }
        },
    )


def _weigh(length: int, pages: int) -> tuple[float, float]:
    """Return the bytes of a page in L1, as Python counts them and as L1 books them."""
    dice = random.Random(SEED)
    words = [f"{dice.getrandbits(40):x}"[: dice.randrange(2, 10)] for _ in range(WORDS)]

    def site(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        text = " ".join(dice.choices(words, k=length // 4))[: length - 7]
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [f"<p>{text}</p>".encode()]

    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{Path(folder)}/pages.db"
        isr = ISR(site, revalidate=LIFETIME, store=store, local_cache_bytes=ENOUGH)
        try:
            _visit(isr, ["warm"])
            local = isr._live.local
            gc.collect()
            tracemalloc.start()
            before = local.bytes
            _visit(isr, [f"page-{number}" for number in range(pages)])
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
            booked = local.bytes - before
        finally:
            tracemalloc.stop()
            isr.close()
    return taken / pages, booked / pages


def _visit(isr: ISR, slugs: list[str]) -> None:
    """Ask for each page in each coding, twice. :raises AssertionError: the second answer is no hit."""
    for slug in slugs:
        for encoding in ENCODINGS:
            for _ in range(2):
                _, headers, _ = answer(isr, environ_of(slug, HTTP_ACCEPT_ENCODING=encoding))
            if headers["X-ISR"] != "HIT":
                raise AssertionError(f"{slug}, {encoding}: {headers['X-ISR']}, not HIT")
