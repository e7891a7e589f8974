"""Header fields of an app that a stored page keeps, and those that are sent to browsers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsgi_isr.pages.response_headers import (
    ASK_EACH_TIME,
    OF_ONE_ANSWER,
    ask_each_time,
    for_browsers,
    is_for_caches,
    is_for_shared_caches,
    is_of_one_answer,
    kept,
    strong_etag,
)

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "headers.md"
FUTURE = "Thu, 01 Dec 2094 16:00:00 GMT"

# Cache-Control ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "max-age=300",
        "public, max-age=31536000, immutable",
        "max-age=5, stale-while-revalidate=600, stale-if-error=86400",
        "max-age=0",
        "max-age=60, must-revalidate, no-transform",
        "MAX-AGE=60, Public",
        'max-age=60, community="a, b"',
        "max-age=60, unknown, other=1",
        # CDN-Cache-Control may let this cache store such an answer (RFC 9213, 2.2).
        "no-store",
        "private, no-cache",
    ],
)
def test_words_to_browsers_go_to_browsers_as_they_are(said: str) -> None:
    assert for_browsers(said) == said


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", ASK_EACH_TIME),
        ("s-maxage=60", ASK_EACH_TIME),
        ("s-maxage=60, stale-while-revalidate=600", ASK_EACH_TIME),
        ("s-maxage=60, stale-if-error=600", ASK_EACH_TIME),
        ("proxy-revalidate", ASK_EACH_TIME),
        ("immutable", ASK_EACH_TIME),
        ("must-revalidate", ASK_EACH_TIME),
        ("public", f"public, {ASK_EACH_TIME}"),
        ("no-transform", f"no-transform, {ASK_EACH_TIME}"),
        ("public, must-revalidate, no-transform", f"public, no-transform, {ASK_EACH_TIME}"),
        ("private", f"private, {ASK_EACH_TIME}"),
        ('community="a, b"', f'community="a, b", {ASK_EACH_TIME}'),
        ("public, max-age=5, s-maxage=60, proxy-revalidate", "public, max-age=5"),
        ("S-MaxAge=60, max-age=5", "max-age=5"),
        ('s-maxage="60", max-age=5', "max-age=5"),
    ],
)
def test_without_a_lifetime_for_browsers_they_ask_each_time(said: str, told: str) -> None:
    assert for_browsers(said) == told


@pytest.mark.parametrize(
    "said",
    ["max-age", "max-age=", "max-age=x", "max-age=-1", 'max-age="60"', "max-age=1.5", "max-age=\xb2", "=60", '"'],
)
def test_a_lifetime_that_browsers_would_read_differently_is_none(said: str) -> None:
    assert for_browsers(said) == ASK_EACH_TIME
    assert for_browsers(f"{said}, max-age=5") in ("max-age=5", ASK_EACH_TIME)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", ""),
        ("public", "public"),
        ("s-maxage=60", ""),
        ("must-revalidate", "must-revalidate"),
        ("max-age=5", "max-age=5"),
        ("stale-while-revalidate=60", "stale-while-revalidate=60"),
    ],
)
def test_expires_is_a_lifetime_for_browsers(said: str, told: str) -> None:
    assert for_browsers(said, expires=True) == told


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30)
SAID = st.lists(
    st.sampled_from(["public", "max-age=5", "s-maxage=60", "immutable", 'x="a,b"', '"', "\\", "=", "no-store"]) | TEXT
).map(", ".join)


@given(SAID, st.booleans())
@example('x="s-maxage=60, max-age=5', False)
def test_whatever_an_app_says_shared_caches_are_told_nothing(said: str, expires: bool) -> None:
    told = for_browsers(said, expires)
    assert for_browsers(told, expires) == told
    names = [part.strip().partition("=")[0].strip().lower() for part in told.split(",")]
    if '"' not in told:
        assert not {"s-maxage", "proxy-revalidate"} & set(names)
    assert expires or {"max-age", "no-store", "no-cache"} & set(names)


@given(SAID)
def test_an_old_page_has_no_lifetime_whatever_its_app_says(said: str) -> None:
    (_, told), *others = reversed(
        ask_each_time([("Expires", FUTURE), ("Cache-Control", for_browsers(said)), ("X", "y")])
    )
    assert others == [("X", "y")]
    assert told.endswith(ASK_EACH_TIME)
    assert told.count("max-age=") == 1 or '"' in told
    assert "immutable" not in told.split(", ")


@pytest.mark.parametrize(
    ("fresh", "old"),
    [
        ([("Expires", FUTURE)], [("Cache-Control", ASK_EACH_TIME)]),
        ([("Cache-Control", "public, max-age=60, immutable")], [("Cache-Control", f"public, {ASK_EACH_TIME}")]),
        ([("Cache-Control", "no-transform, max-age=60")], [("Cache-Control", f"no-transform, {ASK_EACH_TIME}")]),
        ([("Cache-Control", ASK_EACH_TIME)], [("Cache-Control", ASK_EACH_TIME)]),
    ],
)
def test_an_old_page_loses_its_lifetime_and_nothing_else(
    fresh: list[tuple[str, str]], old: list[tuple[str, str]]
) -> None:
    assert ask_each_time(fresh) == old


# The fields of a page -------------------------------------------------------------------------------------


def test_a_page_keeps_the_fields_that_are_true_of_it_in_their_order() -> None:
    headers = [
        ("Content-Type", "text/html"),
        ("cache-control", "public"),
        ("Link", "<a>"),
        ("Expires", FUTURE),
        ("Link", "<b>"),
        ("Cache-Control", "max-age=5, s-maxage=60"),
        ("NEL", "{}"),
        ("Report-To", "{}"),
        ("Last-Modified", FUTURE),
    ]
    assert kept(headers) == [
        *(("Content-Type", "text/html"), ("Link", "<a>"), ("Expires", FUTURE), ("Link", "<b>"), ("NEL", "{}")),
        *(("Report-To", "{}"), ("Last-Modified", FUTURE), ("Cache-Control", "public, max-age=5")),
    ]


@pytest.mark.parametrize("value", ["0", "-1", "", "tomorrow", "Thu, 01 Dec 99999999999999999999 16:00:00 GMT"])
def test_an_expires_that_is_no_date_gives_no_lifetime(value: str) -> None:
    assert kept([("Expires", value)]) == [("Expires", value), ("Cache-Control", ASK_EACH_TIME)]


@pytest.mark.parametrize("value", [FUTURE, "Sun, 06 Nov 1994 08:49:37 GMT"])
def test_an_expires_that_is_a_date_is_all_that_browsers_are_told(value: str) -> None:
    assert kept([("Expires", value)]) == [("Expires", value)]


@pytest.mark.parametrize(
    "name",
    [
        *("CDN-Cache-Control", "Cloudflare-CDN-Cache-Control", "Surrogate-Control", "Surrogate-Key", "Cache-Tag"),
        *("X-Accel-Expires", "Edge-Control"),
    ],
)
def test_words_to_shared_caches_are_not_sent_on(name: str) -> None:
    assert is_for_shared_caches(name)
    assert is_for_caches(name)
    assert kept([(name, "60")]) == [("Cache-Control", ASK_EACH_TIME)]


def test_words_to_all_caches_are_told_from_those_to_shared_caches_alone() -> None:
    for name in ("Cache-Control", "expires"):
        assert is_for_caches(name)
        assert not is_for_shared_caches(name)
    assert not is_for_caches("X-Cache-Control-Of-Mine")


@pytest.mark.parametrize(
    "name",
    [
        *("X-Request-ID", "x-correlation-id", "Request-Id", "X-Runtime", "X-Response-Time", "Server-Timing"),
        *("traceparent", "tracestate", "X-Trace-Id", "X-B3-TraceId", "x-b3-sampled", "X-Amzn-Trace-Id"),
        *("X-Cloud-Trace-Context", "CF-Ray", "X-Amz-Cf-Id", "Date"),
    ],
)
def test_fields_of_one_answer_are_in_no_page(name: str) -> None:
    assert is_of_one_answer(name)
    assert kept([(name, "1")]) == [("Cache-Control", ASK_EACH_TIME)]


@pytest.mark.parametrize("name", ["NEL", "Report-To", "X-Request", "X-B3", "Server", "Timing-Allow-Origin", "B3s"])
def test_fields_of_every_answer_are_kept(name: str) -> None:
    assert not is_of_one_answer(name)
    assert kept([(name, "1")])[0] == (name, "1")


def test_the_reference_has_every_field_of_one_answer() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in OF_ONE_ANSWER if f"`{name}`" not in text] == []


# ETag -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "etag"),
    [
        ('"mine"', "mine"),
        (' "mine" ', "mine"),
        ('"a,b"', "a,b"),
        ('"\xe9"', "\xe9"),
        ('""', ""),
        ('W/"mine"', ""),
        ("mine", ""),
        ('"mi"ne"', ""),
        ('"mi ne"', ""),
        ('"mi\x7fne"', ""),
        ('"mi\u20acne"', ""),
        ("", ""),
    ],
)
def test_an_etag_of_the_app_is_one_that_is_strong_and_readable(value: str, etag: str) -> None:
    assert strong_etag([("etag", value)]) == etag


def test_two_etags_count_as_none() -> None:
    assert strong_etag([("ETag", '"a"'), ("ETag", '"b"')]) == ""
    assert strong_etag([]) == ""
