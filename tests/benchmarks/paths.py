"""The ways of a request through ``ISR`` while its page is in L1. Each app of this module forces one way.

Where possible, a rule or a header chooses the way, as for users.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import brotli
import zstandard

from tests.benchmarks.apps import LIFETIME, PAGE, Site, bare, environ_of
from wsgi_isr import ISR
from wsgi_isr.stores import Store, open_store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

#: One way: the app, the request, and the value of ``X-ISR`` that proves the way.
Way = tuple["WSGIApplication", dict[str, Any], str]


def answer(app: WSGIApplication, environ: dict[str, Any]) -> tuple[str, dict[str, str], bytes]:
    """Return status, headers and body of one request."""
    head: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        head[:] = [status, dict(headers)]
        return lambda chunk: None

    body = app(environ.copy(), start_response)
    try:
        content = b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return head[0], head[1], content


_DECODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
}


def prove(app: WSGIApplication, environ: dict[str, Any], label: str) -> None:
    """Send one request, and check its answer.

    :raises AssertionError: the answer was not ``label`` (``""``: not by the cache), or not the page.
    """
    status, headers, body = answer(app, environ)
    if headers.get("X-ISR", "") != label:
        raise AssertionError(f"{environ['PATH_INFO']}: X-ISR is {headers.get('X-ISR')!r}, not {label!r}")
    whole = environ["REQUEST_METHOD"] != "HEAD" and not status.startswith("304")
    if (coded := headers.get("Content-Encoding")) is not None:
        body = _DECODERS[coded](body) if body else body
    if body != (PAGE if whole else b""):
        raise AssertionError(f"{environ['PATH_INFO']}: {len(body)} bytes with {status}, not the page")


def hit(app: WSGIApplication, slug: str, **options: Any) -> ISR:
    """Return ``ISR`` around ``app``, with the page in L1 and its prepared response, if there is one."""
    isr = ISR(app, store="memory://", **{"revalidate": LIFETIME, **options})
    for label in ("MISS", "HIT", "HIT"):
        prove(isr, environ_of(slug), label)
    return isr


def prepared() -> Way:
    """Return the hot path: a prepared response."""
    return hit(bare(Site()), "prepared"), environ_of("prepared"), "HIT"


def unprepared(patterns: int = 0) -> Way:
    """Return the plain path: match, key, lookup, headers. Pages of a rule with ``vary`` are never prepared."""
    rules = {f"/section{number}/<slug>": 60 for number in range(patterns - 1)}
    if patterns:
        rules["/blog/<slug>"] = LIFETIME
    isr = hit(bare(Site()), "unprepared", rules=rules, vary=["X-Variant"])
    return isr, environ_of("unprepared"), "HIT"


def ticking() -> Way:
    """Return a path whose clock moves by a second with each read: every prepared response is outdated.

    The clock stands still until the page is stored. A render reads the clock often, and would run into its timeout.
    """
    began = 1_700_000_000
    seconds = itertools.count(began)
    ticks = threading.Event()

    def clock() -> float:
        return float(next(seconds) if ticks.is_set() else began)

    isr = hit(bare(Site()), "ticking", revalidate=False, coherence=1e9, clock=clock)
    ticks.set()
    return isr, environ_of("ticking"), "HIT"


def asking() -> Way:
    """Return a path with a prepared response that reads the store's epochs for each request."""
    return hit(bare(Site()), "asking", coherence=0), environ_of("asking"), "HIT"


def with_header(name: str, value: str, label: str = "HIT") -> Way:
    """Return a path of a page that could be prepared. A header of the request prevents this."""
    isr = hit(bare(Site()), "header")
    return isr, environ_of("header", **{name: value}), label


def not_modified() -> Way:
    """Return a path of a conditional request: 304."""
    isr = hit(bare(Site()), "conditional")
    etag = answer(isr, environ_of("conditional"))[1]["ETag"]
    return isr, environ_of("conditional", HTTP_IF_NONE_MATCH=etag), "HIT"


@contextlib.contextmanager
def stale(url: str, rendered_here: bool) -> Iterator[Way]:
    """Yield a path with a stale page until the block ends: its one render waits at a gate.

    :param rendered_here: whether the answering process renders; else another one on the same store does.
    """
    ahead = [0.0]  # seconds, of the real clocks
    gate = threading.Event()
    at_the_gate = threading.Event()
    site = Site()
    page = bare(site)

    def gated(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if ahead[0]:
            at_the_gate.set()
            gate.wait()
        return page(environ, start_response)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        first = second = open_store(url.format(folder))
        if not rendered_here and not url.startswith("memory:"):
            second = open_store(url.format(folder))
        renders = _isr(gated, first, ahead)
        serves = renders if rendered_here else _isr(gated, second, ahead)
        stack.callback(lambda: [isr.close() for isr in {renders, serves}])
        stack.callback(gate.set)
        environ = environ_of("stale")
        prove(renders, environ, "MISS")
        prove(serves, environ, "HIT")
        ahead[0] = 61
        prove(renders, environ, "STALE")
        if not at_the_gate.wait(10):
            raise AssertionError("the stale page is not being rendered")
        prove(serves, environ, "STALE")
        yield serves, environ, "STALE"
        if site.renders["stale"] != 1:
            raise AssertionError("a second render got past the gate")


def _isr(app: WSGIApplication, store: Store, ahead: list[float]) -> ISR:
    def clock() -> float:
        return time.time() + ahead[0]

    def monotonic() -> float:
        return time.monotonic() + ahead[0]

    return ISR(app, revalidate=60, render_timeout=600, store=store, clock=clock, monotonic=monotonic)
