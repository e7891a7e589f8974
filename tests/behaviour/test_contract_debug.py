"""``WSGI_ISR_DEBUG=1``: one line for each decision of the cache, for people and for machines."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Boom, Origin, answer, failing
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule, cached


@pytest.fixture
def debugged(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., Site]:
    """Return a function that makes a site with ``debug``."""
    monkeypatch.setenv("WSGI_ISR_DEBUG", "1")
    caplog.set_level(logging.DEBUG, "wsgi_isr")
    return make_site


class Line(dict[str, str]):
    """A parsed line: ``kind name=value name="a value"``."""

    def __init__(self, text: str) -> None:
        self.kind, *fields = shlex.split(text)
        super().__init__(field.split("=", 1) for field in fields)


def lines(caplog: pytest.LogCaptureFixture, kind: str | None = None) -> list[Line]:
    """Return the lines about decisions of one kind so far."""
    texts = [record.getMessage() for record in caplog.records if record.name == "wsgi_isr.debug"]
    found = [Line(text) for text in texts]
    return [line for line in found if kind in (None, line.kind)]


def test_every_request_has_one_line_with_its_verdict_and_its_page(
    debugged: Callable[..., Site], origin: Origin, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    site = debugged({"/a": Rule(revalidate=60, expire=120)})
    visits: list[tuple[str, dict[str, Any]]] = []
    labels = []
    for passed, path, request in (
        (0, "/a", {}),
        (0, "/a", {}),
        (0, "/a", {}),
        (0, "/a", {"method": "HEAD"}),
        (0, "/a?other=1", {}),
        (0, "/a", {"method": "OPTIONS"}),
        (0, "/a", {"headers": {"Authorization": "x"}}),
        (0, "/b", {}),
        (61, "/a", {}),
        (121, "/a", {}),
    ):
        clock.advance(passed)
        labels.append(site.visit_and_settle(path, **request).label)
        visits.append((path, request))
    found = lines(caplog, "page")
    assert [line["verdict"] for line in found] == labels
    assert len({*labels}) >= 5
    assert all(line["key"].endswith(path) for line, (path, _) in zip(found, visits, strict=True))


def test_what_was_refused_is_not_said_to_be_stored(
    debugged: Callable[..., Site], origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = debugged(revalidate=60)
    origin.on("/a", answer(b"x", ("Cache-Control", "private")))
    site.visit("/a")
    assert [line["verdict"] for line in lines(caplog, "render")] == ["REFUSED"]
    site.visit("/b")
    assert [line["verdict"] for line in lines(caplog, "render")] == ["REFUSED", "STORED"]


def test_what_was_not_cached_says_why(
    debugged: Callable[..., Site], origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = debugged(revalidate=60)
    origin.on("/a", answer(b"x", ("Set-Cookie", "a=b")))
    for request in ({}, {}, {"method": "POST"}, {"headers": {"Authorization": "x"}}):
        site.visit("/a", **request)
    found = [line for line in lines(caplog, "page") if line["verdict"] == "BYPASS"]
    assert len(found) >= 3
    assert all(line["reason"] for line in found)
    assert [line["reason"] for line in found][-2:] == ["method", "authorization"]
    assert any("cookie" in line["reason"] for line in found)


def test_renders_failures_and_invalidations_have_a_line_each(
    debugged: Callable[..., Site], origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = debugged({"/a": Rule(revalidate=60, tags=["a b"])})
    site.visit("/a")
    (render,) = lines(caplog, "render")
    assert render["key"].endswith("/a")
    site.isr.invalidate(tags=["a b"])
    (invalidation,) = lines(caplog, "invalidate")
    assert "a b" in invalidation["key"]
    origin.on("/a", failing(Boom()))
    site.visit("/a")
    assert [line["verdict"] for line in lines(caplog, "render")] == ["STORED", "FAILED"]
    assert [line["verdict"] for line in lines(caplog, "page")] == ["MISS", "STALE-IF-ERROR"]


def test_data_has_a_line_for_each_call(
    debugged: Callable[..., Site], origin: Origin, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    site = debugged({"/a": 0})

    @cached(revalidate=10)
    def titles() -> str:
        return "titles"

    origin.on("/a", answer(lambda environ: titles().encode()))
    for passed in (0, 0, 10, 0):
        clock.advance(passed)
        site.visit_and_settle("/a")
    found = lines(caplog, "data")
    assert [line["verdict"] for line in found if line["verdict"] != "SKIP"][:3] == ["MISS", "HIT", "STALE"]
    assert all("titles" in line["key"] for line in found)


HOSTILE = ["/a%0Apage%20verdict=HIT%20key=/forged", "/a%22%20verdict=HIT", "/a%1B[31m", "/a%00", "/a%C2%85b"]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_visitor_cannot_forge_a_line(
    debugged: Callable[..., Site], caplog: pytest.LogCaptureFixture, path: str
) -> None:
    site = debugged(revalidate=60)
    site.visit(path, method="OPTIONS")
    site.visit(path)
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert [line["verdict"] for line in lines(caplog, "page")] == ["BYPASS", "MISS"]


@pytest.mark.parametrize("path", ["/a%0Apage%20verdict=HIT%20key=/forged", "/a%1B[31m"])
def test_a_visitor_whose_write_invalidates_a_page_cannot_forge_a_line(
    debugged: Callable[..., Site], caplog: pytest.LogCaptureFixture, path: str
) -> None:
    debugged(revalidate=60).visit(path, method="POST")
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_nothing_is_said_where_it_is_off(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wsgi_isr")
    site = make_site(revalidate=60)
    for _ in range(3):
        site.visit("/a")
    assert lines(caplog) == []


def test_it_is_an_option_like_any_other(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wsgi_isr")
    site = make_site(revalidate=60, debug=True)
    site.visit("/a")
    assert [line["verdict"] for line in lines(caplog, "page")] == ["MISS"]


CONSOLE = """
from werkzeug.test import Client
from wsgi_isr import ISR

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"x"]

client = Client(ISR(app, revalidate=60, store="memory://"))
print([client.get("/a").headers["X-ISR"] for _ in range(2)])
"""


@pytest.mark.parametrize("on", [True, False])
def test_the_lines_are_on_the_console_of_a_server_that_set_up_no_logging(on: bool, tmp_path: Path) -> None:
    environ = {**os.environ, **({"WSGI_ISR_DEBUG": "1"} if on else {})}
    done = subprocess.run(
        [sys.executable, "-c", CONSOLE], env=environ, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "['MISS', 'HIT']\n")
    assert ("verdict=MISS" in done.stderr, "verdict=HIT" in done.stderr) == (on, on)
