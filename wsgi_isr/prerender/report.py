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

    :param site: the URL of the site.
    :param rendered: the number of pages that the run rendered.
    :param there: the number of pages that were cached already.
    :param left: the number of pages that were not tried, because the run was interrupted.
    :param beyond: the number of links that were not followed, because the maximum of pages was reached.
    :param seconds: the duration of the run.
    :param assets: the number of files that pages of an export need.
    :param written: the number of files that an export wrote.
    :param unchanged: the number of files that an export left as they were.
    :param removed: the number of files that an export removed.
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
