"""The journal's files: none before there is something to keep, none behind a link, and all for their own user."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_isr.errors import ConfigError
from wsgi_isr.invalidate import Journal, Kept

ENTRY = Kept("space", ("tag:a",), "expire")
LINES = [Kept("site", (f"tag:{name}",), "expire") for name in "ab"]


@pytest.fixture(autouse=True, params=[0o022, 0o000, 0o077], ids=oct)
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_check_makes_no_file(tmp_path: Path) -> None:
    Journal(str(tmp_path / "below" / "journal")).check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "file/journal", "other"])
def test_a_path_that_cannot_be_written_is_a_configuration_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other.lock").mkdir()
    with pytest.raises(ConfigError) as caught:
        Journal(str(tmp_path / name)).check()
    assert caught.value.option == "journal"


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "journal.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        Journal(str(tmp_path / "journal")).keep(ENTRY)
    assert not (tmp_path / "elsewhere").exists()


def test_a_journal_that_a_line_was_appended_to_is_for_its_own_user(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    journal.keep(LINES[0])
    modes = {file.name: oct(mode_of(file)) for file in tmp_path.iterdir()}
    assert modes == {"journal": "0o600", "journal.lock": "0o600"}
    assert journal.lines("site") == LINES[:1]


def test_a_journal_that_was_rewritten_is_for_its_own_user(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    for line in LINES:
        journal.keep(line)
    path.chmod(0o644)
    journal.done(LINES[0], Kept("site", (), "expire"))
    assert oct(mode_of(path)) == "0o600"
    assert journal.lines("site") == LINES[1:]


def test_a_directory_that_is_made_for_a_journal_is_for_its_own_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Journal(str(tmp_path / "spool" / "journal")).keep(LINES[0])
    assert oct(mode_of(tmp_path / "spool")) == "0o700"
    assert oct(mode_of(tmp_path)) == "0o755"


def test_a_rewrite_does_not_follow_a_link_in_place_of_its_temporary_file(tmp_path: Path) -> None:
    path, victim = tmp_path / "journal", tmp_path / "victim"
    victim.write_text("precious")
    journal = Journal(str(path))
    journal.keep(LINES[0])
    (tmp_path / f"journal.{os.getpid()}").symlink_to(victim)
    journal.done(LINES[0], Kept("site", (), "expire"))
    assert victim.read_text() == "precious"
    assert journal.lines("site") == []
    assert not path.is_symlink()
