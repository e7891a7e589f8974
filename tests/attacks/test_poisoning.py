"""Cache poisoning: no page of a stranger holds any data that an attacker has sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.attacks.support.attack import Attack, dice, scaled
from tests.attacks.support.reflecting import Visit, everything, lasting, reflecting, settled, trusting
from tests.behaviour.conftest import MakeSite
from tests.behaviour.visitor import Clock
from wsgi_isr import Rule

MARK = "attacker-7f3a"

HEADERS = [
    *("X-Forwarded-Host", "X-Forwarded-Scheme", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix"),
    *("X-Forwarded-For", "X-Forwarded-Server", "X-Forwarded-Path", "X-Forwarded-SSL", "Forwarded", "X-Forwarded"),
    *("X-Host", "X-HTTP-Host-Override", "X-Original-Host", "X-Original-URL", "X-Rewrite-URL", "X-Backend-Host"),
    *("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Script-Name", "Front-End-Https"),
    *("Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Accept-Datetime", "Origin", "Referer"),
    *("User-Agent", "Via", "True-Client-IP", "CF-Connecting-IP", "X-Real-IP", "Client-IP", "X-Client-IP", "From"),
    *("Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"),
    *("Cache-Control", "Pragma", "Cookie", "Transfer-Encoding", "TE", "Trailer", "Expect", "Connection"),
    *("Content-Type", "Content-Language", "Content-Encoding", "Proxy", "Proxy-Authorization", "X-Requested-With"),
    *("X-Wap-Profile", "Save-Data", "Sec-Fetch-Dest", "Sec-CH-UA", "DPR", "Viewport-Width", "Purpose", "Early-Data"),
    *("Cache-Tag", "Surrogate-Capability", "Surrogate-Key", "CDN-Loop", "X-ISR", "Cache-Status", "X-Accel-Expires"),
    *("Max-Forwards", "HX-Request", "X-CSRF-Token", "X-WSGI-ISR", "Upgrade-Insecure-Requests"),
]
#: Variables in which a server describes the client, and others of middleware.
VARIABLES = [
    *("REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT", "REMOTE_IDENT", "SSL_CLIENT_S_DN", "SSL_CLIENT_CERT", "RAW_URI"),
    *("REQUEST_URI", "UNENCODED_URL", "PATH_TRANSLATED", "CONTENT_TYPE", "GATEWAY_INTERFACE", "SERVER_SOFTWARE"),
    *("SERVER_PROTOCOL", "SERVER_NAME", "SERVER_PORT", "REMOTE_USER", "AUTH_TYPE", "HTTP_X_A_B", "werkzeug.request"),
    *("beaker.session", "flask.session", "wsgi.user", "proxy.forwarded", "PATH_INFO_ORIGINAL", "SCRIPT_URL"),
]
VALUES = [
    MARK,
    f"{MARK}.example:8443",
    f"/{MARK}/../admin?{MARK}=1",
    f'"{MARK}", {MARK};q=1, *;q=0',
    f"http://{MARK}.example/<script>",
]
#: Values that apps and caches may obey.
MEANT = {
    "X-Forwarded-Proto": ["https"],
    "X-Forwarded-Scheme": ["nothttps"],
    "X-HTTP-Method-Override": ["POST", "PURGE", "HEAD"],
    "Accept-Encoding": ["gzip", "br", "identity;q=0", "*;q=0"],
    "Range": ["bytes=0-3", "bytes=5-1", "bytes=0-0,-1"],
    "Content-Type": ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"],
    "Transfer-Encoding": ["chunked", "gzip, chunked"],
    "Expect": ["100-continue"],
    "Cache-Control": ["no-cache", "no-store", "max-age=0", "only-if-cached"],
    "If-None-Match": ["*"],
    "Connection": ["close, X-Forwarded-Host", "Cookie"],
}

SITES: dict[str, dict[str, Any]] = {
    "every page": {"revalidate": 60},
    "pages that the app asks for": {},
    "a rule that declares": {
        "rules": {"/<path:rest>": Rule(revalidate=60, query=["page"], vary=["Accept-Language"], cookies=["lang"])}
    },
    "one canonical URL": {"revalidate": 60, "canonical_url": "https://www.example.org"},
    "other queries are ignored": {"revalidate": 60, "other_query": "ignore"},
}


def environ_name(name: str) -> str:
    name = name.upper().replace("-", "_")
    return name if name == "CONTENT_TYPE" else f"HTTP_{name}"


def attempts() -> Iterator[tuple[str, str]]:
    """Yield every header and variable, as WSGI names it, with every value, and in a longer run with random ones."""
    names = [*map(environ_name, HEADERS), *VARIABLES]
    meant = {environ_name(name): values for name, values in MEANT.items()}
    for name in names:
        for value in [*VALUES, *meant.get(name, ())]:
            yield name, value
    chance = dice("poisoning")
    for _ in range(scaled(1) - 1):
        for name in names:
            yield name, MARK + "".join(chr(chance.choice([*range(33, 127), *range(160, 256)])) for _ in range(12))


def poison(visit: Visit, untouched: Visit, later: Callable[[], None], attack: Attack) -> None:
    """Ask for new and for stale pages as an attacker, and then for the same as a stranger."""
    every = [(f"/{number}", name, value) for number, (name, value) in enumerate(attempts())]
    expected = {path: lasting(settled(untouched, path)) for path, _, _ in every}
    stored = 0
    for is_due in (False, True):
        if is_due:
            later()
        for path, name, value in every:
            for method in ("GET", "HEAD", "GET"):
                visit(path, method=method, extra={name: value})
        for path, name, value in every:
            seen = first = visit(path)
            if first.label == "BYPASS":  # the attacker's request bypassed the cache, and left nothing
                seen = settled(visit, path)
            stored += seen.label in ("HIT", "STALE")
            held = lasting(seen) == expected[path] and MARK not in everything(first) + everything(seen)
            attack.check(held, f"{name}: {value}\n{everything(seen)}\n{expected[path]}")
    assert stored > len(every), f"{stored} of {2 * len(every)} answers came from the cache: nothing was attacked"


@pytest.mark.parametrize("kind", SITES)
def test_no_header_of_an_attacker_stays_behind(make_site: MakeSite, clock: Clock, attack: Attack, kind: str) -> None:
    options = {"watcher": "nobody", "app": reflecting, **SITES[kind]}
    rules = options.pop("rules", None)
    site, untouched = (make_site(rules, **options) for _ in range(2))

    def later() -> None:
        clock.advance(61)

    def visit(path: str, **request: Any) -> Any:
        seen = site.visit(path, **request)
        site.settle()
        return seen

    poison(visit, untouched.visit, later, attack)
    attack.over("headers and variables")


def test_the_attack_finds_out_a_cache_that_trusts_its_visitors() -> None:
    attack = Attack(lambda line: None)
    poison(trusting(reflecting), trusting(reflecting), lambda: None, attack)
    assert len(attack.leaks) == attack.tried
