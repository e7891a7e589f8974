"""Web cache deception: a victim asks for a private page at a URL that looks like a file, and a stranger asks next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.attacks.support.attack import Attack, dice, scaled
from tests.attacks.support.reflecting import Visit, everything, trusting
from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ
from wsgi_isr import Rule

PATHS = [
    *(
        "/account/x.css",
        "/account;x.css",
        "/account%2fx.css",
        "/account%2f..%2fstatic",
        "/account%2f..%2fstatic%2fx.css",
    ),
    *("/account%00.css", "/account%0a.css", "/account%0d%0ax.css", "/account%09.css", "/account%20", "/account%ff.css"),
    *(
        "//account",
        "/account//",
        "///account//x.css",
        "/./account",
        "/account/.",
        "/account/./x.css",
        "/account/..;/x.css",
    ),
    *(
        "/static/../account",
        "/static/..%2faccount",
        "/static/%2e%2e/account",
        "/static/..;/account",
        "/static/.%2e/account",
    ),
    *("/account/../static/x.js", "/account/%2e%2e/static/x.js", "/static/%2e%2e%2faccount%3fx.css", "/static//account"),
    *(
        "/account.css",
        "/account.",
        "/account..",
        "/account/%2e",
        "/account%2ecss",
        "/account%252ecss",
        "/account%252fx.css",
    ),
    *("/account%252e%252e/static", "/account%3f.css", "/account%23.css", "/account%3bx.css", "/account%5c..%5cx.css"),
    *(
        "/account;jsessionid=1/x.png",
        "/account;a=b;c=d",
        "/account~x.css",
        "/account$x.css",
        "/account!x.css",
        "/account,x.css",
    ),
    *("/%61ccount", "/ACCOUNT", "/Account/x.css", "/account/robots.txt", "/account/favicon.ico", "/account/x.css/"),
    *(
        "/account/index.html/x.css",
        "/static/x.css/account",
        "/static/account",
        "/robots.txt",
        "/favicon.ico",
        "/account",
    ),
    *(
        "/account?x.css",
        "/account/x.css?x=1",
        "/account/x.css?utm_source=1",
        "/account/x.css?page=1",
        "/account?",
        "/account/",
    ),
    *(
        "/" + "a" * 3000 + "/account.css",
        "/account/" + "x/" * 29 + "x.css",
        "/account%C3%A9.css",
        "/account%E2%80%A6.css",
    ),
]
#: Pieces of random paths.
PIECES = [
    "/",
    "account",
    "static",
    "x.css",
    ";",
    "%2f",
    "%2e",
    "..",
    ".",
    "%00",
    "%3f",
    "%5c",
    "//",
    "?",
    ".js",
    "%25",
    "%C3%A9",
]

#: The victim's requests. Each has a secret, which the app shows.
VICTIMS: dict[str, dict[str, Any]] = {
    "cookie": {"cookie": "session=alice-7f3a"},
    "one of many cookies": {"cookie": "_ga=1; lang=de; session=alice-7f3a; theme=dark"},
    "authorization": {"headers": {"Authorization": "alice-7f3a"}},
    "the server": {"extra": {"REMOTE_USER": "alice-7f3a"}},
}
SECRET = "alice-7f3a"

#: Headers of the app for caches, some of them wrong.
HONESTY: dict[str, list[tuple[str, str]]] = {
    "says that it looks at cookies": [("Vary", "Cookie")],
    "says that it is private": [("Cache-Control", "private, max-age=60")],
    "says nothing": [],
    "says that it may be cached": [("Cache-Control", "public, max-age=600, s-maxage=600")],
    "says that it is a file": [("Cache-Control", "public, max-age=31536000, immutable"), ("Content-Type", "text/css")],
}
RULES: dict[str, dict[str, Any]] = {
    "every page": {"revalidate": 60},
    "pages that the app asks for": {},
    "files forever, accounts never": {
        "rules": {"/static/<path:file>": False, "/account": 0, "/account/<path:rest>": 0},
        "revalidate": 60,
    },
    "a cookie in the key": {"rules": {"/<path:rest>": Rule(revalidate=60, cookies=["session"], query=["page"])}},
}


def account(headers: list[tuple[str, str]]) -> Callable[..., Iterable[bytes]]:
    """Return an app that shows the visitor's account at every path."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        known = [environ.get(name) for name in ("HTTP_COOKIE", "HTTP_AUTHORIZATION", "REMOTE_USER")]
        body = f"account of {', '.join(filter(None, known)) or 'nobody'}"
        start_response(
            "200 OK", [*headers, *([] if ("Content-Type", "text/css") in headers else [("Content-Type", "text/html")])]
        )
        return [body.encode()]

    return app


def paths() -> Iterator[str]:
    """Yield the fixed paths, then random ones."""
    yield from PATHS
    chance = dice("deception")
    for _ in range(scaled(20)):
        yield "/" + "".join(chance.choices(PIECES, k=chance.randrange(2, 10)))


def deceive(visit: Visit, attack: Attack) -> None:
    """Ask for each path as each victim, and then as a stranger, twice."""
    for path in paths():
        for (name, victim), _ in itertools.product(VICTIMS.items(), range(2)):
            visit(path, **victim)
            for method in ("GET", "HEAD"):
                seen = visit(path, method=method)
                attack.check(SECRET not in everything(seen), f"{path}, known by {name}:\n{everything(seen)}")


@pytest.mark.parametrize("rules", RULES)
def test_a_stranger_never_gets_the_page_of_a_victim(make_site: MakeSite, attack: Attack, rules: str) -> None:
    for headers in HONESTY.values():
        options = dict(RULES[rules])
        site = make_site(options.pop("rules", None), app=account(headers), watcher="nobody", **options)
        deceive(site.visit, attack)
    attack.over("visits after a victim")


def test_the_attack_finds_out_a_cache_that_keeps_what_looks_like_a_file() -> None:
    attack = Attack(lambda line: None)
    deceive(trusting(account([])), attack)
    assert len(attack.leaks) == attack.tried
