"""The page for people who come from Next.js names the tests that prove it; they are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "nextjs.md").read_text(encoding="utf-8")
PROOFS = re.findall(r"\[test\]\(repo:([^)#]+)#([^)]+)\)", PAGE)
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize(("path", "name"), PROOFS)
def test_a_proof_is_a_test(path: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in functions(path)


def test_every_row_beside_next_js_has_a_proof() -> None:
    rows = [row for row in ROWS if not re.match(r"\|[ -|]*(---|Next\.js)", row)]
    assert len(rows) >= 24 + 18
    assert [row for row in rows if "[test](" not in row] == []


def test_each_of_the_eighteen_promises_is_there() -> None:
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", "\n".join(ROWS), re.MULTILINE)] == list(range(1, 19))
