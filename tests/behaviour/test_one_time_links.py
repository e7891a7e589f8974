"""Links that work once: what the log says where a blanket rule covers them, and the rule that keeps them whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Environ, Origin

MAGIC = "/magic/abc"


def signs_in(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [HTML, ("Set-Cookie", "session=1")])
    return [b"welcome"]


def test_a_link_that_signs_in_under_a_blanket_rule_is_one_warning(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(revalidate=60)
    for path in (MAGIC, MAGIC, "/magic/def"):
        origin.on(path, signs_in)
        assert site.visit(path).headers["Set-Cookie"] == "session=1"
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "rule '*'" in said
    assert 'write "/magic/<token>": 0' in said


def test_with_the_rule_that_the_warning_names_a_link_is_opened_once(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site({"/magic/<token>": 0}, revalidate=60)
    origin.on(MAGIC, signs_in)
    assert site.visit(MAGIC).headers["Set-Cookie"] == "session=1"
    assert (origin.calls[MAGIC], caplog.records) == (1, [])
