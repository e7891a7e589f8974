"""Fixtures of the live tests; the figures that they measured are printed at the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.support.origin import Origin

FIGURE = "figure"


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    """The app behind the cache, and what it was asked for."""
    directory = tmp_path / "origin"
    directory.mkdir()
    return Origin(directory)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """The URL of a store that nobody has opened yet."""
    return f"sqlite:///{tmp_path}/pages.sqlite3"


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says what was measured, as a line below the results."""
    return lambda line: record_property(FIGURE, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # As properties of the reports, the lines find their way out of the processes of pytest-xdist.
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, line in report.user_properties if report.when == "call" else ():
            if name == FIGURE:
                terminalreporter.write_line(f"{report.nodeid.rpartition('/')[2]}: {line}")
