"""The documentation is written in the language of the project: see CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BESIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/deploy/README.md")]
PAGES = [*BESIDE, *sorted((ROOT / "examples").glob("*/README.md")), *sorted((ROOT / "docs").rglob("*.md"))]
#: Openings that hide the subject, and actors that name no process, thread, client or node.
OPENINGS = r"(?:^|^- |^#+ |[.:!?] |\| |\*\*)(?:What|Who|Whoever|That|Of) \w+"
ACTORS = r"\b(?:[Ww]hoever|[Nn]obody|[Ss]omebody)\b"
ODD = re.compile(f"{OPENINGS}|{ACTORS}", re.MULTILINE)
#: "That is 5 s" points at the sentence before.
FINE = re.compile(r".*That (?:is|needs|avoids|saves|thread)$", re.DOTALL)


def prose(page: Path) -> str:
    """Return the text of a page without code, comments and targets of links."""
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_sentence_hides_its_subject(page: Path) -> None:
    assert [match[0] for match in ODD.finditer(prose(page)) if not FINE.match(match[0])] == []
