"""setup.cfg names exactly the distributions that the package imports."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Extras for people, made of others.
COLLECTIONS = {"demo", "dev"}
#: Distributions whose module has another name.
IMPORTED_AS = {"opentelemetry_api": "opentelemetry"}


def declared() -> tuple[set[str], dict[str, set[str]]]:
    """Return the distributions that are always installed, and those that each extra adds."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = {name: names(text) for name, text in parser["options.extras_require"].items() if name not in COLLECTIONS}
    return names(parser["options"]["install_requires"]), extras


def names(requirements: str) -> set[str]:
    """Return the import names in a list of requirements."""
    lines = [line for line in requirements.splitlines() if line.strip() and not line.startswith("#")]
    found = {re.split(r"[\[<>=!~; ]", line.strip())[0].lower().replace("-", "_") for line in lines}
    return {IMPORTED_AS.get(name, name) for name in found}


def imported() -> set[str]:
    """Return the top-level names that the package imports and that are neither its own nor Python's."""
    found: set[str] = set()
    for path in (ROOT / "wsgi_isr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"wsgi_isr", "_typeshed"}


def test_every_imported_distribution_is_declared() -> None:
    always, extras = declared()
    # tomllib is part of Python from 3.11 on. wsgi_isr.testing needs pytest, which its users have. Code for Django runs
    # only in apps that have imported Django.
    assert imported() - always.union(*extras.values()) <= {"tomllib", "pytest", "django"}


def test_every_declared_distribution_is_imported() -> None:
    always, extras = declared()
    assert always - imported() == set()
    assert [extra for extra, needed in extras.items() if not needed & imported()] == []


def test_draft_mode_needs_no_extra() -> None:
    assert "itsdangerous" in declared()[0]
