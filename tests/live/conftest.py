"""Fixtures of the live tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.support.origin import Origin


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    """Return the app behind the cache, with a record of its renders."""
    directory = tmp_path / "origin"
    directory.mkdir()
    return Origin(directory)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Return the URL of a new store."""
    return f"sqlite:///{tmp_path}/pages.sqlite3"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return the folder of the server's sockets. The test's own folder may have too long a path."""
    made = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield made
    shutil.rmtree(made)
