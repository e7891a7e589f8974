"""Search over names and summaries."""

from __future__ import annotations

import re
from typing import NamedTuple

from .catalogue import Module, modules

#: Longer queries are cut: each query becomes a page that is kept for a while.
LONGEST = 80
MOST = 60


class Found(NamedTuple):
    """The matches, best first: at most :data:`MOST` of ``total``."""

    hits: list[Module]
    total: int


def search(query: str) -> Found:
    """Return the modules that have every word of the query in their name or summary."""
    words = query.lower().split()
    if not words:
        return Found([], 0)
    ranked = sorted((rank, module.name.lower(), module) for module in modules() if (rank := _rank(words, module)))
    return Found([module for _, _, module in ranked[:MOST]], len(ranked))


def _rank(words: list[str], module: Module) -> tuple[int, ...] | None:
    """Return a sort key that puts better matches first, and names with fewer dots; ``None`` is no match."""
    ranks = [_rank_of(word, module) for word in words]
    if None in ranks:
        return None
    return (sum(rank or 0 for rank in ranks), module.name.count("."))


def _rank_of(word: str, module: Module) -> int | None:
    name, summary = module.name.lower(), module.summary.lower()
    parts = name.split(".")
    for rank, matches in enumerate(
        (
            word == name,
            word in parts,
            name.startswith(word) or any(part.startswith(word) for part in parts),
            word in name,
            re.search(rf"\b{re.escape(word)}", summary),
            word in summary,
        ),
        start=1,
    ):
        if matches:
            return rank
    return None
