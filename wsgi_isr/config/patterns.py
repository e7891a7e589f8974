"""Patterns as other frameworks write them, for errors that say how werkzeug does."""

from __future__ import annotations

import re
from collections.abc import Callable

#: A named group of a regular expression, with one level of brackets inside.
_GROUP = re.compile(r"\(\?P<(\w+)>((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*)\)[?*+]?")
#: How others write the variable parts of a path, and how werkzeug does. In this order.
_SPELLINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
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
    """Return a pattern as werkzeug writes it, whichever other way it is written in: a glob, a regular expression, or
    those of other frameworks. One that is werkzeug's comes back as it is."""
    pattern = re.sub(r"\A\^+|\$+\Z", "", pattern)
    pattern = _GROUP.sub(lambda match: f"<{_converter(match[2])}{match[1]}>", pattern)
    # What is in the brackets of werkzeug may look like anything.
    parts = re.split(r"(<[^<>]*>)", pattern)
    for number in range(0, len(parts), 2):
        for other, ours in _SPELLINGS:
            parts[number] = re.sub(other, ours, parts[number])
    return "".join(parts)


def _converter(expression: str) -> str:
    """Return the converter for what a group of a regular expression matches."""
    if expression in (r"\d+", "[0-9]+", r"\d{4}", "[0-9]{4}"):
        return "int:"
    return "path:" if expression in (".*", ".+") else ""
