"""The journal's files: none is made before there is something to keep, and none behind a link."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgi_isr.errors import ConfigError
from wsgi_isr.invalidate import Journal, Kept

ENTRY = Kept("space", ("tag:a",), "expire")


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


def test_a_link_in_the_place_of_the_next_journal_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1234)
    journal = Journal(str(tmp_path / "journal"))
    journal.keep(ENTRY)
    (tmp_path / "elsewhere").write_text("notes")
    (tmp_path / "journal.1234").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        journal.done(ENTRY, ENTRY._replace(tags=()))
    assert (tmp_path / "elsewhere").read_text() == "notes"
