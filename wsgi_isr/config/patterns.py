"""Translate patterns of other frameworks into werkzeug's syntax, for error messages."""

from __future__ import annotations

import re
from collections.abc import Callable

#: A named group of a regular expression, with at most one level of nested brackets.
_GROUP = re.compile(r"\(\?P<(\w+)>((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*)\)[?*+]?")
#: The variable parts of a path in other frameworks, and in werkzeug. Each is replaced in this order.
_TRANSLATIONS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\(\\d\+\)|\(\[0-9\]\+\)|\\d\+", "<int:number>"),
    (r"\(?\[\^/\]\+\)?|\(?\\w\+\)?|\(\[[^\]]*\][+*]\)", "<name>"),
    (r"\(?\.[*+]\)|\.\*", "<path:rest>"),
    (r"\{(\w+):(int|float|path|uuid)\}", r"<\2:\1>"),  # Starlette
    (r"\{\*(\w+)\}|\{(\w+)\.\.\.\}", lambda match: f"<path:{match[1] or match[2]}>"),
    (r"\{(\w+)(?::[^{}]*)?\}", r"<\1>"),  # FastAPI, Pyramid, URI templates
    (r"\[\[?\.\.\.(\w+)\]\]?", r"<path:\1>"),  # Next.js
    (r"\[(\w+)\]", r"<\1>"),
    (r"(?<=/):([A-Za-z_]\w*)(?:\([^()]*\))?[*+]", r"<path:\1>"),  # Express, Rails
    (r"(?<=/):([A-Za-z_]\w*)(?:\([^()]*\))?\??", r"<\1>"),
    (r"\*+(\w*)", lambda match: f"<path:{match[1] or 'rest'}>"),  # globs, Rails
)


def spelling(pattern: str) -> str:
    """Return a pattern in werkzeug's syntax, from a glob, a regular expression or another framework.

    A pattern of werkzeug is returned unchanged.
    """
    pattern = re.sub(r"\A\^+|\$+\Z", "", pattern)
    pattern = _GROUP.sub(lambda match: f"<{_converter(match[2])}{match[1]}>", pattern)
    # Only the text between werkzeug's own parameters is translated: a parameter may resemble any other syntax.
    parts = re.split(r"(<[^<>]*>)", pattern)
    for number in range(0, len(parts), 2):
        for other, ours in _TRANSLATIONS:
            parts[number] = re.sub(other, ours, parts[number])
    return "".join(parts)


def _converter(expression: str) -> str:
    """Return werkzeug's converter for the content of a group."""
    if expression in (r"\d+", "[0-9]+", r"\d{4}", "[0-9]{4}"):
        return "int:"
    return "path:" if expression in (".*", ".+") else ""
