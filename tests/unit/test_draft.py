"""The cookie of draft mode: signed, expiring, worth nothing elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scripted import Clock
from wsgi_isr.errors import ConfigError
from wsgi_isr.pages.draft import COOKIE, MAX_COOKIES, Drafts, Visitor, answering, disable_draft, enable_draft, is_draft

SECRET = "a secret of some length"


def drafts(secret: str | None = SECRET, site: str = "site", clock: Clock | None = None) -> Drafts:
    return Drafts(secret, site, clock or Clock())


def request(cookie: str) -> dict[str, Any]:
    return {"HTTP_COOKIE": cookie}


def test_who_has_the_cookie_holds_it_until_it_expires() -> None:
    clock = Clock()
    mine = drafts(clock=clock)
    sent = request(f"a=b; {COOKIE}={mine.issue(60)}; c=d")
    assert mine.holds(sent)
    clock.advance(59)
    assert mine.holds(sent)
    clock.advance(1)
    assert not mine.holds(sent)


def test_one_of_two_cookies_of_that_name_is_enough() -> None:
    mine = drafts()
    assert mine.holds(request(f"{COOKIE}=old; {COOKIE}={mine.issue(60)}"))


def test_of_many_cookies_of_that_name_the_first_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, signers = drafts(), []
    make = mine._signer
    monkeypatch.setattr(mine, "_signer", lambda: signers.append(1) or make())
    assert not mine.holds(request("; ".join([f"{COOKIE}=forged"] * 400)))
    assert len(signers) == MAX_COOKIES


@pytest.mark.parametrize("other", [drafts("another secret"), drafts(site="another site")])
def test_a_cookie_of_another_secret_or_site_is_worth_nothing(other: Drafts) -> None:
    assert not drafts().holds(request(f"{COOKIE}={other.issue(60)}"))


def test_a_cookie_does_not_tell_the_secret_and_cannot_be_made_longer() -> None:
    clock = Clock()
    value = drafts(clock=clock).issue(60)
    assert SECRET not in value
    expires, _, signature = value.partition(".")
    assert int(expires) == clock.now + 60
    assert not drafts(clock=clock).holds(request(f"{COOKIE}={int(expires) + 1}.{signature}"))


@given(st.text(st.characters(codec="latin-1"), max_size=40))
def test_no_forged_cookie_is_taken(value: str) -> None:
    assert not drafts().holds(request(f"{COOKIE}={value}"))


def test_without_a_secret_there_is_no_draft_mode() -> None:
    none = drafts(None)
    assert not none.holds(request(f"{COOKIE}={drafts().issue(60)}"))
    with pytest.raises(ConfigError, match="WSGI_ISR_SECRET"):
        none.issue(60)


def test_outside_of_any_app_nobody_is_in_draft_mode() -> None:
    assert not is_draft()
    with answering(Visitor(drafts(), draft=True)):
        assert is_draft()
    assert not is_draft()


def test_outside_of_any_app_nobody_can_be_let_in_whatever_the_secret() -> None:
    headers: list[tuple[str, str]] = []
    with pytest.raises(ConfigError, match="a view"):
        enable_draft(headers)
    assert headers == []


@pytest.mark.parametrize("max_age", [0, -1, float("inf"), float("nan"), "3600", 0.5])
def test_a_cookie_that_nobody_could_keep_is_not_made(max_age: Any) -> None:
    headers: list[tuple[str, str]] = []
    with answering(Visitor(drafts())), pytest.raises(ConfigError, match="max_age"):
        enable_draft(headers, max_age=max_age)
    assert headers == []


def test_a_list_of_headers_will_do_as_a_response() -> None:
    headers: list[tuple[str, str]] = []
    disable_draft(headers)
    ((name, value),) = headers
    assert name == "Set-Cookie"
    assert value.startswith(f"{COOKIE}=;")
    assert "Max-Age=0" in value


def test_what_takes_no_cookie_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="set_cookie"):
        disable_draft("a page")


def test_over_tls_the_cookie_is_for_tls_alone() -> None:
    headers: list[tuple[str, str]] = []
    with answering(Visitor(drafts(), secure=True)):
        disable_draft(headers)
    assert "Secure" in headers[0][1]
    assert "HttpOnly" in headers[0][1]
