"""Fixtures of the fault tests; what they measured is printed at the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.memcached import Memcached

FIGURE = "figure of a fault"


@pytest.fixture
def nodes() -> Iterator[tuple[Memcached, Memcached]]:
    """Two memcached nodes."""
    first = Memcached()
    try:
        second = Memcached()
        try:
            yield first, second
        finally:
            second.kill()
    finally:
        first.kill()


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
