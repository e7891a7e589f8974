"""Draft mode is for editors: forged, replayed and absurd cookies open nothing, and cost the cache nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from itsdangerous import Signer

from tests.attacks.support.attack import Attack, dice, scaled
from tests.attacks.support.reflecting import everything
from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import is_draft
from wsgi_isr.pages.draft import COOKIE, Drafts

SECRET = "a secret of some length"
DRAFT, PUBLISHED = b"what is not published yet", b"what is published"
NOW = 1_700_000_000


def show(environ: Environ) -> bytes:
    return DRAFT if is_draft() else PUBLISHED


def signed(text: str, secret: str = SECRET, **how: Any) -> str:
    return str(Signer(secret, **how).sign(text).decode())


def decoded(signature: str) -> bytes:
    return base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))


def forged(genuine: str) -> Iterator[str]:
    """Yield values that an attacker can make without the secret.

    ``genuine`` is one that was good once: it has expired.
    """
    expires, _, signature = genuine.partition(".")
    later = [str(int(expires) + step) for step in (1, 60, 3600, 10**6, 10**9)]
    odd = [
        "",
        "0",
        "-1",
        "inf",
        "nan",
        "1e99",
        "9" * 5000,
        "٩٩٩٩٩٩٩٩٩٩",
        " 9999999999 ",
        "0x7fffffff",
        "9_999_999_999",
        "true",
    ]
    yield from (f"{each}.{signature}" for each in [*later, *odd])
    yield from (
        "",
        ".",
        "..",
        f"{expires}.",
        f".{signature}",
        expires,
        signature,
        f"{genuine}.{signature}",
        f"{later[3]}.{genuine}",
    )
    # Keys that an app may have by mistake, other algorithms, other purposes of the same secret.
    for text in later:
        for secret in (
            "",
            "secret",
            "dev",
            "changeme",
            "None",
            SECRET[:-1],
            SECRET.upper(),
            f"wsgi_isr.draft:{SECRET}",
        ):
            yield signed(
                text, secret, salt="wsgi_isr.draft:default", key_derivation="hmac", digest_method=hashlib.sha256
            )
        for salt in (
            "itsdangerous.Signer",
            "cookie-session",
            "wsgi_isr.draft",
            "wsgi_isr.draft:",
            "wsgi_isr.draft:other",
        ):
            for digest in (hashlib.sha1, hashlib.sha256):
                for derivation in ("hmac", "concat", "django-concat", "none"):
                    yield signed(text, salt=salt, key_derivation=derivation, digest_method=digest)
        plain_hash = hashlib.sha256(f"{SECRET}{text}".encode()).digest()
        yield f"{text}.{base64.urlsafe_b64encode(plain_hash).decode().rstrip('=')}"
    # Cookies of other sites, and of another secret.
    for secret, site in ((SECRET + "!", "default"), (SECRET, "other"), (SECRET, ""), (SECRET, "default ")):
        yield Drafts(secret, site, lambda: NOW + 10**6).issue(3600)


def damaged(good: str) -> Iterator[str]:
    """Yield a valid cookie with a letter changed, left out or doubled."""
    chance = dice("drafts")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/% \xe9"
    expires, _, signature = good.partition(".")
    for _ in range(scaled(300)):
        place, letter = chance.randrange(len(good)), chance.choice(letters)
        changed = chance.choice(
            [
                good[:place] + letter + good[place + 1 :],
                good[:place] + good[place + 1 :],
                good[: place + 1] + good[place:],
            ]
        )
        text, _, sign = changed.partition(".")
        # The last letter of base64 has unused bits, and spaces around a value are no part of it.
        try:
            is_same = text == expires and decoded(sign.strip()) == decoded(signature)
        except ValueError:
            is_same = False
        if not is_same:
            yield changed


def wrapped(value: str) -> Iterator[str]:
    """Yield cookie headers with an invalid value in them."""
    yield f"{COOKIE}={value}"
    yield f'{COOKIE}="{value}"'
    yield f"{COOKIE}=x; {COOKIE}={value}; {COOKIE}="
    yield f"{COOKIE.upper()}={value}; {COOKIE} ={value}; {COOKIE}={value},{COOKIE}={value}"


@pytest.fixture
def site(make_site: MakeSite, origin: Origin) -> Site:
    origin.on("/a", answer(show))
    site = make_site(revalidate=60, secret=SECRET, watcher="nobody")
    assert site.visit("/a").body == PUBLISHED
    return site


def test_no_cookie_that_was_not_issued_here_opens_drafts(
    site: Site, origin: Origin, clock: Clock, attack: Attack
) -> None:
    drafts = site.isr._engine.drafts
    once = drafts.issue(30)
    assert site.visit("/a", cookie=f"{COOKIE}={once}").body == DRAFT, "a genuine cookie opens nothing: no attack"
    clock.advance(30)
    good = drafts.issue(10**7)
    asked = origin.calls["/a"]
    for value in [once, *forged(once), *damaged(good)]:
        for cookie in wrapped(value):
            seen = site.visit("/a", cookie=cookie)
            held = (seen.body, seen.label) == (PUBLISHED, "HIT")
            attack.check(held, f"{cookie}\n{everything(seen)}")
    attack.over("cookies")
    assert origin.calls["/a"] == asked, "a forged cookie makes the app render"


def test_nothing_that_an_editor_sees_is_left_for_a_stranger(
    site: Site, origin: Origin, clock: Clock, attack: Attack
) -> None:
    cookie = f"{COOKIE}={site.isr._engine.drafts.issue(10**7)}"
    chance = dice("editors")
    paths = [f"/{number}" for number in range(10)]
    for path in paths:
        origin.on(path, answer(show, *([("Cache-Control", "public, s-maxage=600")] if chance.random() < 0.5 else [])))
    for _ in range(scaled(600)):
        clock.advance(chance.choice([0, 1, 61]))
        path, method = chance.choice(paths), chance.choice(["GET", "HEAD"])
        seen = site.visit(path, method=method, cookie=cookie)
        assert seen.body == (DRAFT if method == "GET" else seen.body)
        seen = site.visit_and_settle(path)
        attack.check(seen.body == PUBLISHED, everything(seen))
    attack.over("visits after an editor")


def test_no_bomb_of_headers_is_felt(site: Site, origin: Origin, attack: Attack) -> None:
    local = site.isr._live.local
    held, asked = local.bytes, origin.calls["/a"]
    big = 1_000_000
    bombs: list[dict[str, Any]] = [
        {"cookie": f"{COOKIE}=" + "x" * big},
        {"cookie": f"{COOKIE}=" + "." * big},
        {"cookie": f"{COOKIE}=" + "9" * big + "." + "A" * 43},
        {"cookie": ";".join(f"{COOKIE}={number}.A" for number in range(5000))},
        {"cookie": f'{COOKIE}="' + "\\377" * (big // 4)},
        {"cookie": f"{COOKIE}=" + "\xff" * big},
        {"cookie": "_ga=1;" * 50_000},
        {"cookie": "=" * big},
        {"cookie": ";" * big},
        {"headers": {f"X-Header-{number}": "x" * 100 for number in range(5000)}},
        {"headers": {"X-" + "a" * 100_000: "x"}},
        *({"headers": {name: "," * big}} for name in ("Accept", "Accept-Encoding", "Accept-Language", "If-None-Match")),
        *(
            {"headers": {name: '"' * big}}
            for name in ("If-None-Match", "Range", "If-Range", "Cache-Control", "Forwarded")
        ),
        {"headers": {"Range": "bytes=" + "0-0," * 200_000}},
        {"headers": {"User-Agent": "x" * big}},
    ]
    for bomb in bombs:
        seen = site.visit("/a", **bomb)
        attack.check(seen.code in (200, 206, 304, 416) and DRAFT not in seen.body, str(bomb)[:100])
        seen = site.visit("/a")
        attack.check((seen.body, seen.label) == (PUBLISHED, "HIT"), f"after {str(bomb)[:100]}\n{everything(seen)}")
    attack.over("bombs")
    # The plain request may have left a probe.
    assert local.bytes < held + 10_000
    assert origin.calls["/a"] == asked
