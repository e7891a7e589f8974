"""The pictures and the tables of figures in the repository are those that their script makes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from docs.pictures import draw, figures, tables


@pytest.mark.parametrize(("name", "text"), draw.pictures().items(), ids=lambda value: str(value)[:30])
def test_a_picture_is_what_the_script_draws(name: str, text: str) -> None:
    assert (draw.HERE / name).read_text("utf-8") == text, "run: python -m docs.pictures.draw"
    ElementTree.fromstring(text)


def test_no_picture_is_left_over() -> None:
    assert {file.name for file in draw.HERE.glob("*.svg")} == set(draw.pictures())


def test_the_charts_are_of_a_run_in_full() -> None:
    assert figures.figures()["quick"] is False


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=lambda path: path.name)
def test_the_figures_of_a_document_are_those_of_the_run(path: Path) -> None:
    assert path.read_text("utf-8") == tables.renewed(path), "run: python -m docs.pictures.draw"


def test_every_table_of_figures_is_in_a_document() -> None:
    text = "".join(path.read_text("utf-8") for path in tables.DOCUMENTS)
    assert [name for name in tables.TABLES if f"<!-- figures: {name} -->" not in text] == []
    assert text.count("alt: A fresh hit ") + text.count('alt="A fresh hit ') == 3
