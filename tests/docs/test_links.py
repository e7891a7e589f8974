"""Links into the repository lead to files. Sphinx checks the links between pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
#: Read in the repository, not by Sphinx.
BESIDE = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "cluster/deploy/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_into_the_repository_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(repo:([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", BESIDE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_relative_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_heading_that_is_linked_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(repo:(\w+\.md#[^)]+)\)", page.read_text("utf-8")):
        name, _, anchor = link.partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
