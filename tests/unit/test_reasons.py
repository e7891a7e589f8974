"""Each reason of the reference has a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wsgi_isr.observe.reasons import reason

HEADERS = (Path(__file__).parents[2] / "docs" / "reference" / "headers.md").read_text("utf-8")


def documented() -> list[str]:
    tables = HEADERS.partition("### Reasons")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return [name.replace("NAME", "accept").replace("NNN", "404") for name in names if name != "detail"]


def test_the_reference_has_reasons() -> None:
    assert {"method", "set-cookie", "vary-accept", "status-404", "status-500", "lock-timeout"} <= {*documented()}


@pytest.mark.parametrize("token", documented())
def test_each_reason_of_the_reference_has_a_sentence(token: str) -> None:
    said = reason(token)
    assert said.text.endswith((".", "log."))
    assert not said.text.startswith("The app gave the reason")


def test_a_reason_of_an_app_is_quoted() -> None:
    assert reason("a\x1bb").text == "The app gave the reason 'a\\x1bb'."
