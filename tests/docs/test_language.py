"""The documentation is written in the language of the project: see CONTRIBUTING.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.language import complaints_of

ROOT = Path(__file__).parents[2]
BESIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "cluster/deploy/README.md")]
PAGES = [*BESIDE, *sorted((ROOT / "examples").glob("*/README.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_sentence_hides_its_subject(page: Path) -> None:
    assert list(complaints_of(page)) == []


@pytest.mark.parametrize(
    "text",
    [
        "What it does.",
        "- Who asks",
        "## Whoever asks",
        "It waits. That saves time.",
        "| Of all |",
        "**What is** stored",
        "`nobody` asks",
        'It says "somebody"',
        "The client\nWhat it gets",
    ],
)
def test_a_hidden_subject_is_found_in_every_part_of_a_page(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.md").write_text(f"# Title\n\n{text}\n", "utf-8")
    assert {line for line, _ in complaints_of(tmp_path / "page.md")} <= {3, 4} != set()


@pytest.mark.parametrize("text", ["```python\n# What\n```", "<!-- Who asks -->", "Pages are kept."])
def test_code_and_comments_are_no_prose(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.md").write_text(f"{text}\n", "utf-8")
    assert list(complaints_of(tmp_path / "page.md")) == []
