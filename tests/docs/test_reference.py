"""The reference has every reason, event and error of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import wsgi_isr
from wsgi_isr import errors, events, sessions, testing
from wsgi_isr.stores import base

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
HEADERS = (REFERENCE / "headers.md").read_text("utf-8")
#: Values with a reason that ends up in ``Cache-Status``.
WITH_REASON = {"Bypass", "Failed", "Failure", "HitForMiss", "Passed", "Personal"}
#: Reasons of data alone: no answer carries them.
OF_DATA = {"closure", "unencodable"}


def reasons() -> set[str]:
    """Return every constant reason in the package."""
    found: set[str] = set()
    for path in (ROOT / "wsgi_isr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WITH_REASON:
                found |= {word.value for word in node.args[:1] if isinstance(word, ast.Constant)}
            elif isinstance(node, ast.FunctionDef) and node.name == "refuse":
                returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
                found |= {word.value for word in returned if isinstance(word, ast.Constant)} - {""}
    return found - OF_DATA


def test_every_reason_in_cache_status_is_in_the_reference() -> None:
    found = reasons()
    assert len(found) > 30
    assert {"query", "set-cookie", "lock-timeout", "csp-nonce"} <= found
    assert sorted(reason for reason in found if f"`{reason}`" not in HEADERS) == []


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join((REFERENCE / name).read_text("utf-8") for name in ("api.md", "errors.md"))
    named = set(re.findall(r"wsgi_isr\.(\w+)", pages)) | {name for name in vars(errors) if name[0].isupper()}
    assert [name for name in (*wsgi_isr.__all__, "CachedSession") if name not in named] == []


def test_a_line_of_a_public_docstring_has_one_field() -> None:
    # Sphinx takes a second one on the line for text.
    public = [getattr(wsgi_isr, name) for name in (*wsgi_isr.__all__, "CachedSession")]
    public += [
        value
        for module in (errors, events, sessions, testing, base)
        for value in vars(module).values()
        if getattr(value, "__module__", "") == module.__name__
    ]
    members = [member for thing in public if isinstance(thing, type) for member in vars(thing).values()]
    texts = [thing.__doc__ for thing in (*public, *members) if isinstance(thing.__doc__, str)]
    assert len(texts) > 100
    lines = [line for text in texts for line in text.splitlines()]
    assert [line for line in lines if re.search(r"\S.*\s:(?:param|raises|returns)\b", line)] == []


def test_events_and_errors_are_documented_where_they_are_defined() -> None:
    assert "automodule:: wsgi_isr.events" in (REFERENCE / "events.md").read_text("utf-8")
    assert "automodule:: wsgi_isr.errors" in (REFERENCE / "errors.md").read_text("utf-8")
    for event in events.Event.__args__:
        assert event.__doc__
