"""The report of a benchmark: tables of samples, budgets that are met or missed, notes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


class CannotRun(Exception):
    """The machine lacks a program or resource of the benchmark. The message names the remedy."""


@dataclass(frozen=True)
class Row:
    """One contestant: a sample for each round, in the unit of its table."""

    label: str
    samples: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def ratio(over: Row, under: Row) -> float:
    """Return the ratio of ``over`` to ``under``: the median over the rounds.

    The ratio is taken within each round, where the load of the machine was the same for both. The ratio of two medians
    would compare moments that may lie seconds apart.
    """
    return statistics.median(a / b for a, b in zip(over.samples, under.samples, strict=True))


def undisturbed(over: Row, under: Row) -> float:
    """Return the ratio of the best tenth of each, for figures where more is better: other processes only take."""
    best, other = (sorted(row.samples)[int(0.9 * (len(row.samples) - 1))] for row in (over, under))
    return best / other


@dataclass(frozen=True)
class Table:
    """Rows of one unit, with ratios to the row called ``reference``."""

    title: str
    unit: str
    rows: Sequence[Row]
    reference: str
    digits: int = 2
    compare: Callable[[Row, Row], float] = ratio

    def row(self, label: str) -> Row:
        return next(row for row in self.rows if row.label == label)

    def lines(self) -> list[str]:
        width = max(len(row.label) for row in self.rows)
        lines = [self.title, f"  {'':{width}}  {'min':>9}  {'median':>9}  {'max':>9}  {self.unit}"]
        for row in self.rows:
            figures = "  ".join(f"{x:9.{self.digits}f}" for x in (min(row.samples), row.median, max(row.samples)))
            against = "= 1" if row.label == self.reference else f"{self.compare(row, self.row(self.reference)):.3g} x"
            lines.append(f"  {row.label:{width}}  {figures}  {against}")
        return lines

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "unit": self.unit,
            "reference": self.reference,
            "rows": [
                {
                    "label": row.label,
                    "min": min(row.samples),
                    "median": row.median,
                    "max": max(row.samples),
                    "rounds": len(row.samples),
                    "ratio": self.compare(row, self.row(self.reference)),
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True)
class Budget:
    """A promise of the project: ``measured`` is at most (or at least) ``limit``."""

    text: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def line(self, is_judged: bool) -> str:
        words = "at least" if self.at_least else "at most"
        verdict = ("ok    " if self.met else "MISSED") if is_judged else "quick "
        return f"  {verdict}  {self.text}: {self.measured:.5g} ({words} {self.limit:g})"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "met": self.met}


@dataclass
class Report:
    """The outcome of one benchmark.

    :ivar series: points of plots, by the title of the plot and the label of the line.
    """

    tables: list[Table] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)

    def text(self, is_judged: bool = True) -> str:
        """Return the whole report as text.

        :param is_judged: whether the text says of each budget that it is met or missed.
        """
        parts = ["\n".join(table.lines()) for table in self.tables]
        parts += ["\n".join(self.notes)] if self.notes else []
        parts += ["\n".join(budget.line(is_judged) for budget in self.budgets)] if self.budgets else []
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "tables": [table.to_json() for table in self.tables],
            "budgets": [budget.to_json() for budget in self.budgets],
            "notes": self.notes,
            "series": self.series,
        }
