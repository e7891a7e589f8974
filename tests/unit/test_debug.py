"""One line for each decision. No request of a visitor can add lines of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_isr.events import BackgroundFull, DataServed, Event, Invalidated, Refused, Rendered, RenderFailed, Served
from wsgi_isr.observe.debug import line_of
from wsgi_isr.pages.request_key import PageKey

KEY = PageKey("https", "example.org", "/app", "/caf\xc3\xa9", (("q", "a b"),), (("x-lang", "de"),)).text


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            Served("isr:p:1", "STALE", 61.24, text=PageKey("http", "localhost", "", "/a").text, seconds=0.00021),
            "page verdict=STALE key=http://localhost/a age=61.2 lock=none ms=0.2",
        ),
        (
            Served("isr:p:1", "MISS", text=KEY, lock="held", seconds=0.5),
            'page verdict=MISS key="https://example.org/app/caf\\u00e9?q=a b x-lang=a63964" lock=held ms=500.0',
        ),
        (
            Served("", "BYPASS", reason="cookie", text="/a?b=c"),
            "page verdict=BYPASS key=/a?b=c reason=cookie lock=none ms=0.0",
        ),
        (DataServed("shop:prices", "HIT", age=3, seconds=0.0001), "data verdict=HIT key=shop:prices age=3.0 ms=0.1"),
        (DataServed("shop:prices", "SKIP", reason="draft"), "data verdict=SKIP key=shop:prices reason=draft ms=0.0"),
        (Rendered("isr:p:1", 0.25, True, "page"), "render verdict=STORED key=page ms=250.0"),
        (Rendered("isr:p:1", 0.25, True, "page", refused=True), None),
        (Rendered("isr:p:1", 0.25, False, "page"), "render verdict=NOT-STORED key=page ms=250.0"),
        (
            RenderFailed("isr:p:1", "/a", "status-500", 1.25, None, "page"),
            "render verdict=FAILED key=page reason=status-500 retry_in=1.2",
        ),
        (Refused("isr:p:1", "/a", "set-cookie", "page"), "render verdict=REFUSED key=page reason=set-cookie"),
        (Invalidated(("tag:a", "tag:b"), "expire"), 'invalidate verdict=EXPIRE key="tag:a, tag:b"'),
        (
            Invalidated(("tag:a",), "purge", ("tag:a",)),
            'invalidate verdict=PURGE key=tag:a reason="not delivered: tag:a"',
        ),
        (BackgroundFull("isr:p:1"), None),
    ],
)
def test_a_decision_is_one_line(event: Event, line: str | None) -> None:
    assert line_of(event) == line


@given(st.text(), st.text())
def test_nothing_that_a_visitor_sends_makes_a_second_line_or_another_pair(text: str, reason: str) -> None:
    line = line_of(Served("", "BYPASS", reason=reason, text=text))
    assert line is not None
    assert line.isprintable()
    assert line.startswith("page verdict=BYPASS key=")
    plain = line.split('"')[::2]  # the text outside of quotes
    if '\\"' not in line:
        assert "".join(plain).count(" ms=") == 1
