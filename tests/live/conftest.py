"""Fixtures of the live tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.support.origin import Origin


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
