"""The figures of one run of the benchmarks, from ``benchmarks.json``."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).with_name("benchmarks.json")


@functools.cache
def figures() -> dict[str, Any]:
    """Return the whole run."""
    run: dict[str, Any] = json.loads(FIGURES.read_text("utf-8"))
    return run


def benchmark(name: str) -> dict[str, Any]:
    """Return the outcome of a benchmark."""
    outcome: dict[str, Any] = figures()["benchmarks"][name]
    return outcome


def rows(name: str, table: int = 0) -> dict[str, dict[str, Any]]:
    """Return the rows of a table of a benchmark, by their labels."""
    return {row["label"]: row for row in benchmark(name)["tables"][table]["rows"]}


def medians(name: str, table: int = 0) -> dict[str, float]:
    """Return the medians of a table of a benchmark, by their labels."""
    return {label: row["median"] for label, row in rows(name, table).items()}


def short(microseconds: float) -> str:
    """Return microseconds with two digits that matter."""
    return f"{microseconds:.2g}" if microseconds < 10 else f"{microseconds:.0f}"
