"""Floods of random requests: memory and threads are bounded, and visited pages stay hits."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.support.attack import Attack, dice, scaled
from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Environ
from tests.behaviour.visitor import Clock
from tests.support.memcached import Memcached
from wsgi_isr.cache.keyspace import SLOTS
from wsgi_isr.stores.memory import MemoryStore

LOCAL_BYTES = 512 * 1024
STORE_BYTES = 2 * 1024 * 1024
#: Visited pages, and the number of random requests between two visits.
VISITED = [f"/visited/{number}" for number in range(10)]
EVERY = 20
#: Threads that a site may begin: background renders, and the lease keep-alive.
THREADS = 8


def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer every path with a page, an error, a redirect or a cookie, as the path says."""
    path = environ["PATH_INFO"]
    status, headers = "200 OK", [HTML]
    if "missing" in path:
        status = "404 Not Found"
    elif "broken" in path:
        status = "500 Internal Server Error"
    elif "moved" in path:
        status, headers = "301 Moved Permanently", [*headers, ("Location", "/")]
    elif "own" in path:
        headers = [*headers, ("Set-Cookie", "session=1")]
    elif "asking" in path:
        headers = [*headers, ("Cache-Control", "s-maxage=60")]
    elif "tagged" in path:
        headers = [*headers, ("Cache-Tag", path.replace("/", ","))]
    start_response(status, headers)
    return [b"<p>%s</p>" % path.encode("latin-1")[:100] * 20]


def name(chance: random.Random) -> str:
    return f"{chance.getrandbits(64):x}"


FLOODS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "pages": lambda chance: {"path": f"/{name(chance)}"},
    "pages of 31 segments": lambda chance: {"path": "/" + "/".join(name(chance)[:6] for _ in range(31))},
    "pages that are not there": lambda chance: {"path": f"/missing/{name(chance)}"},
    "pages that fail": lambda chance: {"path": f"/broken/{name(chance)}"},
    "pages that may not be kept": lambda chance: {"path": f"/own/{name(chance)}"},
    "pages with tags": lambda chance: {"path": f"/tagged/{name(chance)}/{name(chance)}/{name(chance)}"},
    "pages that the app asks for": lambda chance: {"path": f"/asking/{name(chance)}"},
    "redirects": lambda chance: {"path": f"/moved/{name(chance)}"},
    "queries": lambda chance: {"path": f"{chance.choice(VISITED)}?{name(chance)}={name(chance)}"},
    "campaigns": lambda chance: {"path": f"{chance.choice(VISITED)}?utm_{name(chance)}={name(chance)}"},
    "hosts": lambda chance: {"path": chance.choice(VISITED), "host": f"{name(chance)}.example"},
    "mount points": lambda chance: {"path": chance.choice(VISITED), "script_name": f"/{name(chance)}"},
    "cookies": lambda chance: {"path": chance.choice(VISITED), "cookie": f"_ga={name(chance)}; {name(chance)}=1"},
    "headers": lambda chance: {
        "path": chance.choice(VISITED),
        "headers": {"Accept-Encoding": f"{name(chance)}, gzip;q=0.{chance.randrange(9)}", "X-" + name(chance): "x"},
    },
    "writes": lambda chance: {"path": f"/{name(chance)}", "method": "POST"},
    "long paths": lambda chance: {"path": "/" + name(chance) * chance.randrange(1, 500)},
}


def check(site: Any, threads: int, attack: Attack, flood: str) -> None:
    """Check the bounds of memory, threads and the store."""
    local = site.isr._live.local
    attack.check(local.bytes <= LOCAL_BYTES, f"{flood}: L1 has {local.bytes} bytes of {LOCAL_BYTES}")
    attack.check(
        len(local.fingerprints) <= 4 * len(local),
        f"{flood}: {len(local.fingerprints)} requests lead to {len(local)} pages",
    )
    store = site.store
    attack.check(store.size <= STORE_BYTES, f"{flood}: the store has {store.size} bytes of {STORE_BYTES}")
    attack.check(len(site.isr._pages.sites.known()) <= 16, f"{flood}: {len(site.isr._pages.sites.known())} sites")
    running = [thread.name for thread in threading.enumerate()]
    attack.check(len(running) <= threads + THREADS, f"{flood}: threads {running}")


@pytest.mark.parametrize("options", [{"revalidate": 600}, {"revalidate": 600, "other_query": "key"}, {}], ids=str)
def test_no_flood_is_felt_by_those_who_visit_pages(
    make_site: MakeSite, clock: Clock, attack: Attack, options: dict[str, Any]
) -> None:
    for flood, request_of in FLOODS.items():
        threads, chance = threading.active_count(), dice(f"flood of {flood}")
        store = MemoryStore(STORE_BYTES, clock=clock)
        site = make_site({"/visited/<number>": False}, app=app, local_cache_bytes=LOCAL_BYTES, store=store, **options)
        for page in VISITED:
            site.visit(page)
        for number in range(scaled(200)):
            clock.advance(0.01)
            site.visit(**request_of(chance))
            if number % EVERY == 0:
                for page in VISITED:
                    seen = site.visit(page)
                    attack.check(seen.label == "HIT", f"{flood}: {page} is {seen.label}, {seen.cache_status}")
                site.events.clear()
        site.settle()
        check(site, threads, attack, flood)
    attack.over(f"checks in {scaled(200) * len(FLOODS):,} requests")


# Floods, an invalidation, and a backend that fails ---------------------------------------------------------------


@pytest.fixture(scope="module")
def node() -> Iterator[Memcached]:
    """Yield a node with little memory."""
    node = Memcached(megabytes=NODE_MEGABYTES)
    yield node
    node.stop()


#: Small stores, and slots in proportion. A key for each path and prefix of some hundred URLs would fill them.
SMALL_BYTES, NODE_MEGABYTES, SMALLER = 3 * 1024 * 1024, 6, 64
DEEP = {
    "pages that are not there": "/missing/",
    "pages": "/",
    "redirects": "/moved/",
    "pages that may not be kept": "/own/",
}


@pytest.mark.parametrize("kind", ["memory", "sqlite", "memcached"])
@pytest.mark.parametrize("flood", DEEP)
def test_no_flood_takes_the_last_good_pages_away(
    make_site: MakeSite,
    attack: Attack,
    tmp_path: Path,
    node: Memcached,
    kind: str,
    flood: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The flood: deep random URLs, an anonymous POST, which changes the epochs, and a backend that is down."""
    for what, slots in SLOTS.items():
        monkeypatch.setitem(SLOTS, what, slots[: len(slots) // SMALLER])
    chance, is_down = dice(f"{flood} and a POST"), threading.Event()

    def failing_app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if is_down.is_set():
            start_response("500 Internal Server Error", [HTML])
            return [b"down"]
        return app(environ, start_response)

    urls = {
        "memory": f"memory://?max_bytes={SMALL_BYTES}",
        "sqlite": f"sqlite:///{tmp_path}/store.db?max_bytes={SMALL_BYTES}",
        "memcached": f"memcached://{node.address}",
    }
    site = make_site(app=failing_app, revalidate=3600, store=urls[kind], namespace=f"{flood} {kind}")
    visited = [f"/visited/{number}" for number in range(50)]
    for page in visited:
        site.visit(page)
    for number in range(scaled(400)):
        site.visit(DEEP[flood] + "/".join(name(chance) for _ in range(30 - DEEP[flood].count("/"))))
        if number % 200 == 0:
            site.clock.advance(1)
            for page in visited:
                site.visit(page)
    site.visit("/contact", method="POST")
    site.clock.advance(1)
    for page in visited:
        attack.check(site.visit(page).label == "HIT", f"{page} is rendered again")
    is_down.set()
    site.visit("/contact", method="POST")
    site.clock.advance(4000)
    for page in visited:
        attack.check(site.visit(page).code == 200, f"{page} is lost")
    attack.over(f"visits after {scaled(400):,} deep URLs")
