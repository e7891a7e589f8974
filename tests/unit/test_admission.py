"""The two decisions: the verdict on a cache entry now, and the admission of an answer to the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsgi_isr.cache.entry import Content, Entry, HitForMiss
from wsgi_isr.cache.verdict import (
    CacheDirectives,
    Expired,
    Failure,
    Fresh,
    Missing,
    Stale,
    Storable,
    Uncacheable,
    Validity,
    Verdict,
    judge,
)
from wsgi_isr.config.lifetime import Lifetime
from wsgi_isr.config.policy import Policy
from wsgi_isr.config.rule_set import RuleSet
from wsgi_isr.config.rules import Rule
from wsgi_isr.pages.admission import admit, refuse
from wsgi_isr.pages.response_headers import ASK_EACH_TIME

PAGE = Content("200 OK", (), b"", "")


def entry(
    revalidate: float | None, expire: float | None, content: Content | HitForMiss = PAGE, created: float = 100
) -> Entry:
    return Entry("[]", content, created - 1, created, revalidate, expire)


# judge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revalidate", "expire", "now", "verdict"),
    [
        (10, 30, 100, Fresh),
        (10, 30, 109.999, Fresh),
        (10, 30, 110, Stale),
        (10, 30, 129.999, Stale),
        (10, 30, 130, Expired),
        (10, 30, 1e12, Expired),
        (10, None, 1e12, Stale),
        (10, 10, 109.999, Fresh),
        (10, 10, 110, Expired),
        (None, None, 1e12, Fresh),
        (10, 30, 50, Fresh),
        (0, 0, 100, Expired),
    ],
)
def test_a_page_is_fresh_then_stale_then_expired(revalidate: Any, expire: Any, now: float, verdict: type) -> None:
    held = entry(revalidate, expire)
    assert judge(held, Validity.VALID, now) == verdict(held)
    assert judge(held, Validity.UNKNOWN, now) == verdict(held)


@pytest.mark.parametrize(("now", "due"), [(50, False), (100, False), (159.9, False), (160, True), (1e12, True)])
def test_a_refused_page_stays_uncacheable_and_is_due_for_another_try_after_its_time(now: float, due: bool) -> None:
    assert judge(entry(60, None, HitForMiss("set-cookie")), Validity.VALID, now) == Uncacheable("set-cookie", due=due)


def test_nothing_is_missing() -> None:
    for validity in Validity:
        assert judge(None, validity, 100) == Missing()


@pytest.mark.parametrize(
    ("validity", "age", "verdict"),
    [
        (Validity.STALE, 0, Stale),
        (Validity.STALE, 20, Stale),
        (Validity.STALE, 30, Expired),
        (Validity.EXPIRED, 0, Expired),
        (Validity.EXPIRED, 20, Expired),
        (Validity.EXPIRED, 30, Expired),
    ],
)
def test_a_page_that_was_invalidated_is_no_fresher_than_that(validity: Validity, age: int, verdict: type) -> None:
    held = entry(10, 30)
    assert judge(held, validity, 100 + age) == verdict(held)


@pytest.mark.parametrize("age", [0, 20, 30])
def test_a_page_that_was_purged_is_not_there(age: int) -> None:
    assert judge(entry(10, 30), Validity.PURGED, 100 + age) == Missing()


@pytest.mark.parametrize(
    ("validity", "verdict"),
    [
        (Validity.VALID, Uncacheable("private", due=False)),
        (Validity.UNKNOWN, Uncacheable("private", due=False)),
        (Validity.STALE, Uncacheable("private", due=True)),
        (Validity.EXPIRED, Missing()),
        (Validity.PURGED, Missing()),
    ],
)
def test_an_invalidation_is_a_reason_to_try_a_refused_page_again(validity: Validity, verdict: Verdict) -> None:
    assert judge(entry(60, None, HitForMiss("private")), validity, 100) == verdict


ORDER: dict[type, int] = {Fresh: 0, Stale: 1, Expired: 2, Missing: 3}
SECONDS = st.floats(0, 1e10)


def rank(verdict: Verdict) -> int:
    return int(verdict.due) if isinstance(verdict, Uncacheable) else ORDER[type(verdict)]


@given(
    st.none() | SECONDS,
    st.none() | SECONDS,
    SECONDS,
    SECONDS,
    SECONDS,
    st.sampled_from([PAGE, HitForMiss("private")]),
    st.lists(st.sampled_from(Validity), min_size=2, max_size=2).map(sorted),
)
def test_a_verdict_never_gets_fresher_with_time_or_invalidations(
    revalidate: Any, expire: Any, created: float, now: float, later: float, content: Any, validities: list[Validity]
) -> None:
    held = entry(revalidate, expire, content, created)
    now, later = sorted([now, later])
    first, second = judge(held, validities[0], now), judge(held, validities[1], later)
    assert rank(first) <= rank(second)


@given(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS)
@example(60, 600, 100, 30, 7200, 130)
def test_a_shorter_lifetime_never_makes_a_page_fresher(
    revalidate: float, expire: float, created: float, lower: float, more: float, now: float
) -> None:
    lifetime = Lifetime(revalidate, expire)
    lowest = lifetime.lowest(lower, more)
    long = entry(lifetime.revalidate, lifetime.expire, created=created)
    short = entry(lowest.revalidate, lowest.expire, created=created)
    assert rank(judge(long, Validity.VALID, now)) <= rank(judge(short, Validity.VALID, now))


@given(SECONDS, SECONDS, st.none() | SECONDS, st.none() | SECONDS)
def test_the_lowest_of_two_lifetimes_in_order_is_in_order(one: float, other: float, e1: Any, e2: Any) -> None:
    first = Lifetime(one, None if e1 is None else one + e1)
    lowest = first.lowest(other, None if e2 is None else other + e2)
    assert lowest.revalidate is not None
    assert lowest.expire is None or lowest.expire >= lowest.revalidate


# admit ------------------------------------------------------------------------------------------------


def policy(**options: Any) -> Policy:
    return RuleSet({"/": Rule(**{"revalidate": 60, **options})}, Rule()).policies["/"]


NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def unlisted() -> Policy:
    return RuleSet({}, Rule()).policies["*"]


def verdict(status: str = "200 OK", *headers: tuple[str, str], body: bytes = b"hello", **options: Any) -> Any:
    return admit(status, headers, body, policy(**options), now=NOW)


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        ("200 OK", [("Set-Cookie", "a=b")], "set-cookie"),
        ("404 Not Found", [("set-cookie", "a=b")], "set-cookie"),
        ("302 Found", [("SET-COOKIE", "a=b")], "set-cookie"),
        ("200 OK", [("Cache-Control", "private")], "private"),
        ("200 OK", [("Cache-Control", "max-age=60, Private")], "private"),
        ("200 OK", [("Cache-Control", 'private="x-name"')], "private"),
        ("200 OK", [("Cache-Control", 'private ="x-name"')], "private"),
        ("200 OK", [("Cache-Control", "no-store")], "no-store"),
        ("200 OK", [("Cache-Control", "s-maxage=60"), ("cache-control", "NO-STORE")], "no-store"),
        ("200 OK", [("Cache-Control", "private, no-store")], "no-store"),
        ("200 OK", [("Cache-Control", "no-cache")], "no-cache"),
        ("200 OK", [("CDN-Cache-Control", "no-store")], "no-store"),
        ("200 OK", [("CDN-Cache-Control", "private")], "private"),
        ("200 OK", [("Vary", "*")], "vary-any"),
        ("200 OK", [("Vary", "User-Agent")], "vary-user-agent"),
        ("200 OK", [("Vary", "Accept-Encoding, Accept")], "vary-accept"),
        ("200 OK", [("Vary", "Cookie"), ("vary", "Origin")], "vary-origin"),
        ("201 Created", [], "status-201"),
        ("206 Partial Content", [], "status-206"),
        ("302 Found", [("Location", "/")], "status-302"),
        ("304 Not Modified", [], "status-304"),
        ("401 Unauthorized", [], "status-401"),
        ("100 Continue", [], "status-100"),
        ("200 OK", [("Content-Type", "text/event-stream; charset=utf-8")], "event-stream"),
        ("200 OK", [("Cache-Control", "s-maxage=0")], "revalidate-0"),
    ],
)
def test_an_answer_that_may_not_be_shared_is_refused_with_the_reason(status: str, headers: Any, reason: str) -> None:
    assert verdict(status, *headers) == HitForMiss(reason)


def test_an_answer_above_max_body_is_refused_by_its_head() -> None:
    assert refuse(200, [("Content-Length", "101")], policy(max_body=100)) == "max-body"
    assert refuse(200, [("Content-Length", "100")], policy(max_body=100)) == ""


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Vary", "Accept-Encoding")],
        [("Vary", "cookie, accept-encoding")],
        [("Vary", "")],
        [("Cache-Control", "public, max-age=60")],
        [("Cache-Control", 'community="private no-store"')],
        [("Content-Length", "5")],
        [("Content-Length", " 5 ")],
        [("X-Private", "private")],
    ],
)
def test_an_answer_without_such_signs_is_stored_for_the_time_of_its_rule(headers: Any) -> None:
    admitted = verdict("200 OK", *headers)
    assert isinstance(admitted, Storable)
    assert (admitted.lifetime, admitted.keep) == (Lifetime(60, None), None)


def test_a_header_that_the_rule_declares_may_stand_in_vary() -> None:
    assert isinstance(verdict("200 OK", ("Vary", "ACCEPT-language"), vary=["Accept-Language"]), Storable)


@pytest.mark.parametrize(
    ("vary", "reads"), [("Cookie", True), ("Accept-Encoding, COOKIE", True), ("Accept-Encoding", False), ("", False)]
)
def test_an_answer_that_varies_on_cookies_is_stored_as_the_page_of_those_without(vary: str, reads: bool) -> None:
    admitted = verdict("200 OK", ("Vary", vary))
    assert isinstance(admitted, Storable)
    assert isinstance(admitted.content, Content)
    assert admitted.content.reads_cookies is reads


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "599 X", "429 Too Many"])
def test_a_failure_is_never_stored_but_can_be_shown(status: str) -> None:
    failed = verdict(status, ("Retry-After", "3"), ("Cache-Control", "no-store"), body=b"sorry")
    assert failed == Failure(
        "status-" + status[:3], Content(status, (("Retry-After", "3"), ("Cache-Control", "no-store")), b"sorry", "")
    )


def test_a_failure_that_sets_a_cookie_is_not_even_shown_to_others() -> None:
    assert verdict("500 Oops", ("Set-Cookie", "a=b")) == Failure("status-500", None)


@pytest.mark.parametrize("length", ["4", "6", "0", "", "five", "-5", "5, 5", "\xb2"])
def test_an_answer_of_another_length_than_it_says_is_a_failed_render(length: str) -> None:
    assert verdict("200 OK", ("Content-Length", length)) == Failure("content-length")


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone"])
@pytest.mark.parametrize(("revalidate", "lives"), [(60, 10), (3, 3), (False, 10)])
def test_a_page_that_is_not_there_lives_shortly_and_has_no_grace(status: str, revalidate: Any, lives: int) -> None:
    admitted = verdict(status, revalidate=revalidate)
    assert isinstance(admitted, Storable)
    assert admitted.lifetime == Lifetime(lives, 10)
    assert admitted.keep == 70
    held = entry(admitted.lifetime.revalidate, admitted.lifetime.expire)
    assert isinstance(judge(held, Validity.VALID, 110), Expired)


def test_where_what_is_not_there_lives_for_no_time_it_is_not_stored() -> None:
    assert isinstance(verdict("404 Not Found", negative_ttl=0), HitForMiss)


def test_a_redirect_is_kept_with_its_target() -> None:
    admitted = verdict("301 Moved Permanently", ("Location", "/there"), body=b"")
    assert isinstance(admitted, Storable)
    headers = (("Location", "/there"), ("Cache-Control", ASK_EACH_TIME))
    assert admitted.content == Content("301 Moved Permanently", headers, b"", admitted.content.etag)  # type: ignore[union-attr]


def test_headers_of_the_moment_and_of_the_connection_are_not_stored() -> None:
    admitted = verdict(
        "200 OK",
        ("Date", "x"),
        ("ETag", '"old"'),
        ("Content-Type", "text/html"),
        ("Age", "5"),
        ("Connection", "close"),
        ("Content-Length", "5"),
        ("Cache-Control", "s-maxage=60"),
        ("X-ISR", "HIT"),
        ("X-Request-ID", "1"),
        ("CDN-Cache-Control", "max-age=60"),
        ("Cache-Status", "x"),
        ("Link", "<a>"),
        ("Link", "<b>"),
        ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("Transfer-Encoding", "chunked"),
    )
    assert isinstance(admitted, Storable)
    assert isinstance(admitted.content, Content)
    names = ["Content-Type", "Link", "Link", "Last-Modified", "Cache-Control"]
    assert [name for name, _ in admitted.content.headers] == names
    assert dict(admitted.content.headers)["Cache-Control"] == ASK_EACH_TIME


def test_the_etag_is_that_of_the_body() -> None:
    tags: dict[bytes, str] = {}
    for body in (b"one", b"two", b"one"):
        admitted = verdict(body=body)
        assert isinstance(admitted, Storable)
        assert isinstance(admitted.content, Content)
        assert tags.setdefault(body, admitted.content.etag) == admitted.content.etag
    assert len(set(tags.values())) == 2


# Lifetimes by headers of the app ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ([], None),
        ([("Cache-Control", "s-maxage=60")], Lifetime(60, None)),
        ([("Cache-Control", "public, S-MaxAge=60, stale-while-revalidate=600")], Lifetime(60, 660)),
        ([("Cache-Control", 's-maxage="60"')], Lifetime(60, None)),
        ([("Cache-Control", "s-maxage=60, stale-while-revalidate=0")], Lifetime(60, 60)),
        ([("Cache-Control", "public"), ("Cache-Control", "s-maxage=60")], Lifetime(60, None)),
        ([("CDN-Cache-Control", "max-age=30"), ("Cache-Control", "s-maxage=60")], Lifetime(30, None)),
        ([("CDN-Cache-Control", "s-maxage=20, max-age=30")], Lifetime(20, None)),
        ([("CDN-Cache-Control", "public"), ("Cache-Control", "s-maxage=60")], Lifetime(60, None)),
        ([("Cache-Control", "s-maxage=99999999999999999999")], Lifetime(2**31, None)),
        ([("Cache-Control", "s-maxage=0000000000000060")], Lifetime(60, None)),
        ([("CDN-Cache-Control", "max-age=30"), ("Cache-Control", "private")], Lifetime(30, None)),
        ([("Cache-Control", "s-maxage=-1")], None),
        ([("Cache-Control", "s-maxage=1.5")], None),
        ([("Cache-Control", "s-maxage")], None),
        ([("Cache-Control", "s-maxage=\xb2")], None),
        # Without a directive for shared caches, the one for all caches holds (RFC 9111, 4.2.1).
        ([("Cache-Control", "s-maxage=soon, max-age=60")], Lifetime(60, None)),
        ([("Cache-Control", "max-age=60")], Lifetime(60, None)),
        ([("Cache-Control", "max-age=60, stale-while-revalidate=30")], Lifetime(60, 90)),
        ([("Cache-Control", "max-age=60, must-revalidate")], Lifetime(60, 60)),
        ([("Cache-Control", "max-age=60"), ("Age", "20")], Lifetime(40, None)),
        ([("Cache-Control", "max-age=60"), ("Expires", "Thu, 01 Jan 1970 00:00:00 GMT")], Lifetime(60, None)),
        ([("Expires", "Tue, 14 Nov 2023 22:14:20 GMT")], Lifetime(60, None)),
        (
            [("Expires", "Tue, 14 Nov 2023 22:14:20 GMT"), ("Date", "Tue, 14 Nov 2023 22:13:50 GMT")],
            Lifetime(30, None),
        ),
        ([("Cache-Control", "public")], None),
        ([("Last-Modified", "Tue, 14 Nov 2000 22:14:20 GMT")], None),
    ],
)
def test_a_page_without_a_rule_is_stored_for_as_long_as_its_headers_say(headers: Any, asked: Lifetime | None) -> None:
    admitted = admit("200 OK", headers, b"", unlisted(), now=NOW)
    if asked is None:
        assert admitted == HitForMiss("not-asked")
    else:
        assert isinstance(admitted, Storable)
        assert admitted.lifetime == asked


@pytest.mark.parametrize(
    "headers",
    [
        [("Cache-Control", "s-maxage=0, max-age=60")],
        [("Cache-Control", "max-age=0")],
        [("Cache-Control", "max-age=20"), ("Age", "30")],
        [("Expires", "0")],
        [("Expires", "Tue, 14 Nov 2023 22:13:19 GMT")],
    ],
)
def test_a_page_whose_headers_say_that_it_is_over_is_not_stored(headers: Any) -> None:
    assert admit("200 OK", headers, b"", unlisted(), now=NOW) == HitForMiss("revalidate-0")


@pytest.mark.parametrize("header", [("Cache-Control", "max-age=5"), ("Expires", "Tue, 14 Nov 2023 22:13:25 GMT")])
def test_a_rule_is_not_shortened_by_what_speaks_to_browsers(header: tuple[str, str]) -> None:
    admitted = admit("200 OK", [header], b"", policy(revalidate=60), now=NOW)
    assert isinstance(admitted, Storable)
    assert admitted.lifetime == Lifetime(60, None)


@pytest.mark.parametrize(
    ("rule", "header", "lifetime"),
    [
        ({"revalidate": 60}, "s-maxage=10", Lifetime(10, None)),
        ({"revalidate": 60}, "s-maxage=600", Lifetime(60, None)),
        ({"revalidate": 60, "expire": 90}, "s-maxage=10, stale-while-revalidate=10", Lifetime(10, 20)),
        ({"revalidate": 60, "expire": 90}, "s-maxage=10, stale-while-revalidate=1000", Lifetime(10, 90)),
        ({"revalidate": False}, "s-maxage=10", Lifetime(10, None)),
    ],
)
def test_of_rule_and_app_the_lower_counts(rule: Any, header: str, lifetime: Lifetime) -> None:
    admitted = verdict("200 OK", ("Cache-Control", header), **rule)
    assert isinstance(admitted, Storable)
    assert admitted.lifetime == lifetime


def test_a_rule_that_only_says_when_pages_expire_limits_what_the_app_asks_for() -> None:
    rules = RuleSet({"/": Rule(expire=90)}, Rule())
    admitted = admit("200 OK", [("Cache-Control", "s-maxage=10")], b"", rules.policies["/"], now=NOW)
    assert isinstance(admitted, Storable)
    assert admitted.lifetime == Lifetime(10, 90)


HEADER = st.tuples(
    st.sampled_from(
        ["Cache-Control", "CDN-Cache-Control", "Vary", "Content-Length", "Content-Type", "Set-Cookie", "X"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
    | st.sampled_from(["private", "no-store", "s-maxage=1", "*", ",,", "=", "s-maxage==", '"']),
)


@given(st.integers(100, 599), st.lists(HEADER, max_size=4), st.binary(max_size=8), st.booleans())
def test_whatever_an_app_answers_the_decision_is_made(code: int, headers: Any, body: bytes, listed: bool) -> None:
    decision = admit(f"{code} X", headers, body, policy() if listed else unlisted(), now=NOW)
    names = {name.lower() for name, _ in headers}
    if isinstance(decision, Storable):
        assert "set-cookie" not in names
        assert code in {200, 203, 301, 308, 404, 410}
        assert decision.lifetime.revalidate is None or decision.lifetime.revalidate > 0
        # The decision by the head alone agrees with the final one.
        assert refuse(code, headers, policy()) == ""
    else:
        assert decision.reason


def test_a_head_is_refused_for_the_same_reason_as_the_whole() -> None:
    for headers in ([("Set-Cookie", "a")], [("Vary", "*")], [("Cache-Control", "private")]):
        assert HitForMiss(refuse(200, headers, policy())) == verdict("200 OK", *headers)


def test_a_failure_is_not_refused_by_its_head() -> None:
    assert refuse(500, [("Set-Cookie", "a")], policy()) == ""


def beside(monkeypatch: pytest.MonkeyPatch, owner: Any, step: str, other: Callable[[], object]) -> None:
    """Run ``other`` in another thread in the middle of the next ``step``, as far as locks let it."""
    plain = getattr(owner, step)

    def interrupted(self: Any, *arguments: Any) -> Any:
        found = plain(self, *arguments)
        monkeypatch.setattr(owner, step, plain)
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        thread.join(0.1)
        return found

    monkeypatch.setattr(owner, step, interrupted)


def test_of_two_lifetimes_that_threads_of_one_page_say_at_once_the_lower_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = CacheDirectives()
    over = threading.Event()
    beside(monkeypatch, Lifetime, "lowest", lambda: (asked.limit(5, 9), over.set()))
    asked.limit(60, 600)
    assert over.wait(20)
    assert asked.lifetime == Lifetime(5, 9)


def test_two_stamps_of_one_tag_that_threads_of_one_page_bring_at_once_prove_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Carried(dict[str, bytes]):
        def get(self, tag: str, otherwise: Any = None) -> Any:
            return super().get(tag, otherwise)

    asked, over = CacheDirectives(carried=Carried()), threading.Event()
    beside(monkeypatch, Carried, "get", lambda: (asked.take_over(CacheDirectives(), {"x": b"old"}), over.set()))
    asked.take_over(CacheDirectives(), {"x": b"new"})
    assert over.wait(20)
    assert asked.carried == {"x": b""}


@pytest.mark.parametrize("field", ["no_store", "failed"])
def test_what_one_thread_of_a_page_says_another_does_not_take_back(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    class Inner(CacheDirectives):
        pass

    inner, asked = Inner(), CacheDirectives()
    said: Any = True if field == "no_store" else "fetch-error"

    def slow(inner: Any) -> Any:
        setattr(asked, field, said)  # another thread, just now
        return "" if field == "failed" else False

    monkeypatch.setattr(Inner, field, property(slow))
    asked.take_over(inner, {})
    assert getattr(asked, field) == said
