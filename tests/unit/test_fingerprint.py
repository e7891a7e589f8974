"""Two requests with one fingerprint get one response. So each variable that decides is part of the fingerprint."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.test import create_environ

from wsgi_isr.cache.verdict import Bypass
from wsgi_isr.config.rule_set import RuleSet
from wsgi_isr.config.rules import Rule
from wsgi_isr.pages.fingerprint import VARIABLES, fingerprint_of, is_plain, query_of
from wsgi_isr.pages.request_key import Matcher


class Watched(dict[str, Any]):
    """An environ that notes the names that are read."""

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__(environ)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.read.append(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.append(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.read.append(str(name))
        return super().__contains__(name)


def request(path: str = "/blog/a?page=2", **variables: Any) -> Watched:
    return Watched({**create_environ(path, "http://example.org"), **variables})


def test_the_fingerprint_has_the_variables_in_their_order() -> None:
    environ = request()
    fingerprint = fingerprint_of(environ)
    assert tuple(environ.read) == VARIABLES
    assert fingerprint == tuple(dict.get(environ, name) for name in VARIABLES)


def test_every_variable_that_the_matcher_reads_is_part_of_the_fingerprint() -> None:
    """Otherwise a warm page is sent to a request that the matcher would pass to the app."""
    matcher = Matcher(RuleSet({"/blog/<slug>": Rule(revalidate=60, query=["page"])}, Rule()), None)
    environ = request()
    match = matcher.match(environ)
    assert not isinstance(match, Bypass)
    assert match[0].by_url_alone
    assert not matcher.personal_cookies(match[0], environ)
    assert set(environ.read) <= set(VARIABLES)


@pytest.mark.parametrize(
    "variables",
    [
        {"REQUEST_METHOD": "HEAD"},
        {"HTTP_COOKIE": "a=b"},
        {"HTTP_AUTHORIZATION": "Basic YTpi"},
        {"HTTP_IF_MODIFIED_SINCE": "Mon, 30 Nov 2026 21:00:00 GMT"},
        {"HTTP_RANGE": "bytes=0-9"},
        {"HTTP_UPGRADE": "websocket"},
        {"REMOTE_USER": "ada"},
        {"AUTH_TYPE": "Basic"},
        {"HTTP_HOST": ""},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_request_with_more_than_an_address_is_not_plain(variables: dict[str, str]) -> None:
    assert is_plain(fingerprint_of(request()))
    assert not is_plain(fingerprint_of(request(**variables)))


def test_the_query_is_the_raw_one() -> None:
    assert query_of(fingerprint_of(request("/?b=2&a=%20"))) == "b=2&a=%20"
