"""The README is short, its links work on a package index as well, and its guarantees have tests."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = sorted({*re.findall(r"\]\(([^)]+)\)", README), *re.findall(r'(?:src|srcset)="([^"]+)"', README)})
GUARANTEES = README.partition("\n## Guarantees\n")[2].partition("\n## ")[0]


def url() -> str:
    """Return the address of the repository: setup.cfg has it."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser["metadata"]["url"]


def test_it_has_at_most_1200_words() -> None:
    assert len(README.split()) <= 1200


@pytest.mark.parametrize("link", LINKS)
def test_a_link_is_absolute_and_leads_to_a_file(link: str) -> None:
    for kind in ("blob", "raw"):
        if link.startswith(prefix := f"{url()}/{kind}/main/"):
            assert (ROOT / link.removeprefix(prefix).partition("#")[0]).exists()
            return
    raise AssertionError(f"{link} is no file of {url()}")


def test_each_of_the_six_guarantees_has_a_test() -> None:
    proofs = re.findall(r"^\| \S.* \| \[.*\]\(\S+/blob/main/(\S+)#(test_\w+)\) \|$", GUARANTEES, re.MULTILINE)
    assert len(proofs) == 6
    for path, name in proofs:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", ["setup.cfg", "SECURITY.md"])
def test_every_address_begins_with_the_repository(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"https://[^\s)]+", text)
    assert found
    assert [address for address in found if not address.startswith(url())] == []
