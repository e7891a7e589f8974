"""Parameter cloaking, GETs with a body, and odd methods: no stranger gets the page of an attacker's request."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.attacks.support.attack import Attack, dice, scaled
from tests.attacks.support.reflecting import Visit, everything, lasting, reflecting, trusting
from tests.behaviour.conftest import MakeSite
from wsgi_isr import Rule

MARK = "attacker7f3a"

#: The attacker wants the stranger to get `{}`.
QUERIES = [
    *("page=1&page={}", "page={}&page=1", "page=1;page={}", "page=1;{}", "page={}", "{}", "{}=1", "=page&={}"),
    *("utm_source=x;page={}", "utm_content=x;page={}&page=1", "utm_x=1;a={}", "page=1&utm_x=1;a={}", "gclid=1&page={}"),
    *("utm_source={}", "utm_source={}&utm_medium=%26page%3D2", "fbclid={}", "utm_source=1&utm_source={}", "_ga={}"),
    *("page=1%26page={}", "page=1%3Bpage={}", "page=1%26page%3D{}", "page%3D{}", "page=1%26", "page=1%23{}"),
    *("%70age={}", "pa%67e={}&page=1", "%2570age={}", "page%00={}", "page%20={}", "+page={}", "page+={}", "page%0a={}"),
    *("page[]={}", "page[0]={}", "page%5B%5D={}", "page.x={}", "page:int={}", "PAGE={}", "Page={}", "p%41ge={}"),
    *(
        "page=1&&page={}",
        "&page={}",
        "?page={}",
        "page=1?page={}",
        "page=1#page={}",
        "page=1&amp;page={}",
        "page==1={}",
    ),
    *(
        "page={}%00",
        "page=%00{}",
        "page=1%0d%0aX-Evil:%20{}",
        "page=1%u0026page={}",
        "page=1%C0%A6page={}",
        "page=%FF{}",
    ),
    *("page=\xff{}", "p\xc3\xa1ge={}", "p%EF%BD%81ge={}", "page=1%E2%80%A8{}", "page=1 {}", "page=1\t{}", "page=1|{}"),
    *("_method=POST&page={}", "callback={}", "format={}", "lang={}", "host={}", "page=1&x={}", "x={}&page=1"),
    *("x=" + "a" * 4000 + "&page={}", "page=1&" * 300 + "page={}", "&" * 500 + "page={}", ";" * 500 + "page={}"),
]
#: Queries of strangers.
ASKED = ["", "?page=1", "?page=2", "?page=1&page=2", "?utm_source=x", "?page=1&utm_source=x", "?page=", "?"]

RULES: dict[str, Rule] = {
    "one declared, others bypass": Rule(revalidate=60, query=["page"]),
    "one declared, others ignored": Rule(revalidate=60, query=["page"], other_query="ignore"),
    "all in the key": Rule(revalidate=60, other_query="key"),
    "none declared": Rule(revalidate=60),
}
#: Pieces of random queries.
PIECES = [
    "page",
    "=",
    "1",
    "&",
    ";",
    "{}",
    "%26",
    "%3B",
    "%3D",
    "%70age",
    "utm_x",
    "+",
    "%00",
    "[]",
    "?",
    "#",
    "x",
    "\xff",
]


def queries() -> Iterator[str]:
    """Yield the fixed queries, then random ones."""
    chance = dice("cloaking")
    some = ["".join(chance.choices(PIECES, k=chance.randrange(2, 12))) for _ in range(scaled(60))]
    for query in [*QUERIES, *some]:
        yield query.replace("{}", MARK)


def cloak(visit: Visit, untouched: Visit, attack: Attack) -> None:
    """Ask for a page with each query, as an attacker, and then without it, as strangers."""
    for number, query in enumerate(queries()):
        for _ in range(2):
            visit(f"/{number}", extra={"QUERY_STRING": query})
        for asked in ASKED:
            seen, expected = visit(f"/{number}{asked}"), untouched(f"/{number}{asked}")
            held = lasting(seen)[1:] == lasting(expected)[1:] and MARK not in everything(seen)
            attack.check(held, f"{query!r}, then {asked!r}\n{everything(seen)}\n{everything(expected)}")


@pytest.mark.parametrize("kind", RULES)
def test_no_parameter_is_cloaked(make_site: MakeSite, attack: Attack, kind: str) -> None:
    site, untouched = (make_site({"/<page>": RULES[kind]}, app=reflecting, watcher="nobody") for _ in range(2))
    cloak(site.visit, untouched.visit, attack)
    attack.over("queries")


def test_the_attack_finds_out_a_cache_that_ignores_queries() -> None:
    attack = Attack(lambda line: None)
    cloak(trusting(reflecting), trusting(reflecting), attack)
    assert len(attack.leaks) > 0.9 * attack.tried


FORM = f"page={MARK}&_method=DELETE".encode()
FAT: list[dict[str, Any]] = [
    {"body": FORM},
    {"body": FORM, "extra": {"CONTENT_TYPE": "application/json"}},
    {"body": FORM, "extra": {"CONTENT_TYPE": "multipart/form-data; boundary=x"}},
    {"body": FORM, "extra": {"CONTENT_LENGTH": "0"}},
    {"body": FORM, "extra": {"CONTENT_LENGTH": "5"}},
    {"body": FORM, "extra": {"CONTENT_LENGTH": "-1"}},
    {"body": FORM, "extra": {"CONTENT_LENGTH": "99999999"}},
    {"body": FORM, "extra": {"CONTENT_LENGTH": ""}},
    {"body": FORM, "extra": {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}},
    {"body": FORM, "headers": {"X-HTTP-Method-Override": "POST"}},
    {"body": FORM, "headers": {"Expect": "100-continue"}},
    {"body": MARK.encode() * 4000},
]
#: Methods: GET and HEAD are for the cache, the others are for the app.
METHODS = [
    *("GET", "HEAD", "get", "Get", "GET ", " GET", "GE\tT", "HEAD ", "head", "", "POST", "PUT", "PATCH", "DELETE"),
    *("OPTIONS", "TRACE", "CONNECT", "PURGE", "BAN", "QUERY", "PROPFIND", "SEARCH", "DEBUG", "\xff", "GET,HEAD", MARK),
]


def test_no_body_and_no_method_of_an_attacker_stays_behind(make_site: MakeSite, attack: Attack) -> None:
    rules = {"/a/<path:page>": Rule(revalidate=60, query=["page"])}
    site, untouched = (make_site(rules, app=reflecting, watcher="nobody", revalidate=60) for _ in range(2))
    every = itertools.product(enumerate(METHODS), ("/a", "/b"), enumerate(FAT), ("", "?page=1"))
    for (method_number, method), place, (number, fat), asked in every:
        path = f"{place}/{method_number}/{number}{asked}"
        request = {**fat, "extra": {**fat.get("extra", {}), "REQUEST_METHOD": method}}
        site.visit(path, exact_length=False, **request)
        for stranger in ("GET", "HEAD", "GET"):
            seen, expected = (each.visit(path, method=stranger) for each in (site, untouched))
            held = lasting(seen) == lasting(expected) and MARK not in everything(seen)
            attack.check(held, f"{method!r} {fat}\n{everything(seen)}\n{everything(expected)}")
    attack.over("requests with a body")
