"""The folders of renderers' sockets: those of servers that are gone are removed, and no others."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_isr.renderers import make_folder


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="t-", dir="/tmp")  # the path of a socket has to be short
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def gone() -> str:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return str(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only there can be told who is gone")
def test_the_folder_of_a_server_that_is_gone_is_removed(temporary: Path, gone: str) -> None:
    mine = Path(make_folder())
    *where, _, started, namespace, unique = mine.name.split("-")
    left = temporary / "-".join([*where, gone, started, namespace, unique])
    left.mkdir()
    again = Path(make_folder())
    assert sorted(temporary.iterdir()) == sorted([mine, again])


def test_that_of_a_server_that_cannot_be_seen_from_here_stays(temporary: Path, gone: str) -> None:
    # As where two containers share /tmp: each has process ids of its own.
    *where, _, started, namespace, unique = Path(make_folder()).name.split("-")
    theirs = temporary / "-".join([*where, gone, started, f"{namespace}1", unique])
    theirs.mkdir()
    make_folder()
    assert theirs.exists()


@pytest.mark.parametrize("name", ["wsgi-isr-checkout", "wsgi-isr-1-2-3-4-notes", "wsgi-isr-", "wsgi-isr"])
def test_what_has_another_name_is_not_ours(name: str, temporary: Path) -> None:
    (temporary / name).mkdir()
    make_folder()
    assert (temporary / name).exists()
