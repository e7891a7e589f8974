"""The decision whether a fetch goes through the data cache, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from wsgi_isr.data.http_bypass import FetchCall, bypass_reason, without_user

GET = FetchCall("GET", "https://shop.example/tea?q=a%40b", {}, {"timeout": 3.0, "allow_redirects": True}, 60)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"revalidate": False}, None),
        ({"revalidate": "hours"}, None),
        ({"revalidate": 0.5}, None),
        ({"headers": {"Accept": "application/json", "X-Author": None}}, None),
        ({"headers": {"Authorization": None}}, None),
        ({"url": "https://shop.example/@tea"}, None),
        ({"options": {"timeout": (3.0, 5), "verify": "/etc/ssl/shop.pem"}}, None),
        ({"method": "HEAD"}, "method"),
        ({"method": "POST", "has_body": True}, "method"),
        ({"no_store": True}, "no-store"),
        ({"revalidate": 0}, "revalidate-0"),
        ({"revalidate": 0.0}, "revalidate-0"),
        ({"streams": True}, "stream"),
        ({"has_body": True}, "body"),
        ({"has_credentials": True}, "authorization"),
        ({"url": "https://alice@shop.example/tea"}, "authorization"),
        ({"url": "https://alice:secret@shop.example/tea"}, "authorization"),
        ({"headers": {"Authorization": "Bearer alice"}}, "authorization"),
        ({"headers": {b"cookie": b"user=alice"}}, "authorization"),
        ({"headers": {"X-Api-Key": "alice"}}, "authorization"),
        ({"headers": {"X-CSRF-Token": "alice"}}, "authorization"),
        ({"has_hooks": True}, "hooks"),
        ({"has_proxies": True}, "proxies"),
        ({"headers": {"X-Trace": object()}}, "unencodable"),
        ({"options": {"timeout": object()}}, "unencodable"),
    ],
)
def test_a_call_bypasses_the_cache_for_a_reason(change: dict[str, Any], reason: str | None) -> None:
    assert bypass_reason(GET._replace(**change)) == reason


ALL: dict[str, Any] = {
    "method": "POST",
    "no_store": True,
    "revalidate": 0,
    "streams": True,
    "has_body": True,
    "has_credentials": True,
    "has_hooks": True,
    "has_proxies": True,
    "headers": {"X-Trace": object()},
}


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (0, "method"),
        (1, "no-store"),
        (2, "revalidate-0"),
        (3, "stream"),
        (4, "body"),
        (5, "authorization"),
        (6, "hooks"),
        (7, "proxies"),
        (8, "unencodable"),
    ],
)
def test_of_several_reasons_the_first_counts(number: int, reason: str) -> None:
    assert bypass_reason(GET._replace(**dict([*ALL.items()][number:]))) == reason


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://shop.example/tea", "https://shop.example/tea"),
        ("https://alice:secret@shop.example:8443/tea?q=1", "https://shop.example:8443/tea?q=1"),
        ("https://a@b@shop.example/@tea", "https://shop.example/@tea"),
    ],
)
def test_a_url_is_shown_without_its_user(url: str, shown: str) -> None:
    assert without_user(url) == shown
