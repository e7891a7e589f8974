"""Memory under random URLs: L1 within its byte limit by an independent count, and a process that does not grow."""

from __future__ import annotations

import gc
import logging
import os
import random
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks import paths
from tests.benchmarks.apps import environ_of
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table
from wsgi_isr import ISR
from wsgi_isr.cache.entry import Entry

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


class Size(NamedTuple):
    """The number of requests, and of those between two measurements of the process."""

    requests: int = 120_000
    stride: int = 1000


FULL, QUICK = Size(), Size(requests=2000, stride=20)
#: Small, so that L1 and the store are full, and evict, long before the first half is over.
LOCAL_BYTES = 512 * 1024
STORE = "memory://?max_bytes=1048576"
MIB = 1024 * 1024
#: MiB between the medians of the two quarters, half of all requests apart: 35 bytes for each request. Holes in
#: CPython's arenas take up to one.
GROWTH = 2
STATM = Path("/proc/self/statm")


def run(size: Size) -> Report:
    requests, stride = size
    if not STATM.exists():
        raise CannotRun("the memory of a process is read from /proc: run this on Linux")
    log = logging.getLogger("wsgi_isr")
    log.addHandler(logging.NullHandler())  # failed renders belong to the benchmark, their tracebacks do not
    log.propagate = False
    dice = random.Random(20)
    listed = ISR(_site, revalidate=60, local_cache_bytes=LOCAL_BYTES, store=STORE)
    unlisted = ISR(_site, local_cache_bytes=LOCAL_BYTES, store=STORE)  # a page is stored only where the app asks for it
    resident, counted, booked = [], [], 0
    seen: dict[str, int] = {}
    for turn in range(1, requests + 1):
        # A fifth goes to the app that asks for storage. Its record of requests is full in the first quarter.
        isr, environ = (unlisted, _asking(dice, requests)) if turn % 5 == 0 else (listed, _any(dice))
        label = paths.answer(isr, environ)[1].get("X-ISR", "none")
        seen[label] = seen.get(label, 0) + 1
        booked = max(booked, _l1(isr).bytes)
        if turn % stride == 0:
            resident.append(_resident() / MIB)
        if turn % (requests // 10) == 0:
            counted += [_weigh(_l1(each)) for each in (listed, unlisted)]
    for isr in (listed, unlisted):
        isr.close()
    for needed in ("HIT", "MISS", "BYPASS"):
        if not seen.get(needed):
            raise AssertionError(f"no request was a {needed}, so this says nothing")
    # The first quarter fills the caches.
    quarter = len(resident) // 4
    first, second = resident[quarter : 2 * quarter], resident[3 * quarter :]
    growth = statistics.median(second) - statistics.median(first)
    rows = [Row("second quarter", first), Row("last quarter", second[: len(first)])]
    table = Table(f"resident memory over {requests:,} requests", "MiB", rows, "second quarter")
    words = ", ".join(f"{label} {count:,}" for label, count in sorted(seen.items()))
    return Report(
        [table],
        [
            Budget("L1's own books, of its limit", booked / LOCAL_BYTES, 1),
            Budget("L1 counted object by object, of its limit", max(counted) / LOCAL_BYTES, 1),
            Budget("MiB more in the last quarter than in the second", growth, GROWTH),
        ],
        [f"answers: {words}"],
    )


def _asking(dice: random.Random, requests: int) -> dict[str, Any]:
    """Return a request for a page that the app asks to store. Each page is asked for about twice."""
    return environ_of(f"asking-{dice.randrange(requests // 10):x}")


def _any(dice: random.Random) -> dict[str, Any]:
    """Return a request: for one of a few popular pages, for a page that is asked for once, or a hostile one."""
    kind = dice.random()
    if kind < 0.2:
        return environ_of(f"known-{dice.randrange(50)}")
    name = f"{dice.getrandbits(64):x}"
    if kind < 0.4:
        return environ_of(name)
    if kind < 0.6:
        return environ_of(f"missing-{name}")
    if kind < 0.7:
        return environ_of(f"private-{name}")
    if kind < 0.72:
        return environ_of(f"broken-{name}")
    if kind < 0.8:
        return environ_of("known-1", QUERY_STRING=f"q={name}")
    if kind < 0.85:
        return environ_of(f"known-{dice.randrange(50)}", QUERY_STRING=f"utm_source={name}")
    if kind < 0.9:
        return environ_of("known-3", HTTP_HOST=f"{name}.example.com")
    if kind < 0.95:
        return environ_of("known-4", HTTP_COOKIE=f"_ga={name}; session={name}")
    return environ_of(f"{name}/" * dice.randrange(1, 300))


def _site(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    slug = environ["PATH_INFO"].removeprefix("/blog/")
    status, headers = "200 OK", [("Content-Type", "text/html; charset=utf-8")]
    if slug.startswith("missing-"):
        status = "404 Not Found"
    elif slug.startswith("broken-"):
        status = "503 Service Unavailable"
    elif slug.startswith("private-"):
        headers.append(("Set-Cookie", "session=1"))
    elif slug.startswith("asking-"):
        headers.append(("Cache-Control", "s-maxage=60"))
    start_response(status, headers)
    return [b"<p>%s</p>" % slug.encode("latin-1") * 20]


def _l1(isr: ISR) -> Any:
    assert isr._live is not None
    return isr._live.local


def _weigh(local: Any) -> int:
    """Return the bytes of all objects that L1 holds, each once, independently of L1's own sum."""
    seen: set[int] = set()
    total = 0
    # Objects shared with the program, or with CPython's own tables, would be there without L1.
    waiting: list[Any] = [local._entries, local.fingerprints]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, int, bool, type(None))):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        if isinstance(thing, Entry) or not isinstance(thing, (str, bytes, float)):
            waiting += gc.get_referents(thing)
    return total


def _resident() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
