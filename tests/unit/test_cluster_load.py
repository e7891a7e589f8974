"""The pages that a load asks for, and their form in a request."""

from __future__ import annotations

import pytest

from cluster.load import generator as load
from cluster.load.request import Answer


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("/", "/"),
        ("/日本", "/%E6%97%A5%E6%9C%AC"),
        ("/a page?q=x y", "/a%20page?q=x%20y"),
        ("/%E6%97%A5?a=1&b=%2F", "/%E6%97%A5?a=1&b=%2F"),
        ("/page#part", "/page"),
    ],
)
def test_a_page_is_asked_for_as_a_browser_does(given: str, asked: str) -> None:
    assert load.asked(given) == asked


def test_links_are_read_as_a_browser_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    body = '<a href="/?a=1&amp;b=2">x</a> <a href="/日本">x</a> <a href=/plain>x</a> <a href="//elsewhere.test/">x</a>'
    monkeypatch.setattr(load, "fetch", lambda *_arguments: Answer(200, {}, body.encode()))
    assert load.discover(1) == ["/", "/?a=1&b=2", "/%E6%97%A5%E6%9C%AC", "/plain"]
