"""The pictures in the repository are those that their script draws."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from docs.pictures import draw


@pytest.mark.parametrize(("name", "text"), draw.pictures().items(), ids=lambda value: str(value)[:30])
def test_a_picture_is_what_the_script_draws(name: str, text: str) -> None:
    assert (draw.HERE / name).read_text("utf-8") == text, "run: python docs/pictures/draw.py"
    ElementTree.fromstring(text)


def test_no_picture_is_left_over() -> None:
    assert {file.name for file in draw.HERE.glob("*.svg")} == set(draw.pictures())


def test_the_chart_is_of_a_run_in_full() -> None:
    assert json.loads(draw.FIGURES.read_text("utf-8"))["quick"] is False
