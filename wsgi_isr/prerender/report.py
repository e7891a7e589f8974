"""The result of a run of ``wsgi-isr prerender``."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """A page (or a source of pages) that failed, the reason, and some of the pages that link to it."""

    path: str
    reason: str
    linked_from: tuple[str, ...] = ()


class Report(NamedTuple):
    """The outcome for every page.

    ``left`` pages were not tried, because the run was ``interrupted``. ``beyond`` links were not followed, because
    there are too many. ``assets``, ``written``, ``unchanged`` and ``removed`` count the files of an export.
    """

    site: str
    rendered: int
    there: int
    skipped: tuple[Problem, ...]
    failed: tuple[Problem, ...]
    left: int
    beyond: int
    interrupted: bool
    seconds: float
    assets: int = 0
    written: int = 0
    unchanged: int = 0
    removed: int = 0

    @property
    def ok(self) -> bool:
        """Return whether the run is complete."""
        return not (self.failed or self.left or self.beyond or self.interrupted)
