"""The rights of a process on a file are found out without creating the file."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsgi_isr.errors import ConfigError
from wsgi_isr.stores.files import check_link, check_writable, this_user
from wsgi_isr.stores.sqlite.store import SQLiteStore
from wsgi_isr.testing import in_processes


def refusal(path: Path) -> tuple[int | None, str]:
    """Return the number of the error, and the path that causes it."""
    with pytest.raises(OSError) as caught:
        check_writable(str(path))
    return caught.value.errno, str(caught.value.filename)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def as_plain_user(job: Callable[[], object]) -> object:
    """Return the answer of a child without root's rights: permission bits do not stop root."""

    def child(_: int) -> object:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return job()

    [answer] = in_processes(1, child)
    return answer


@pytest.mark.parametrize("name", ["file", "missing", "missing/below/file"])
def test_a_file_that_can_be_written_or_made_is_left_as_it_is(name: str, place: Path) -> None:
    (place / "file").write_text("notes")
    check_writable(str(place / name))
    assert [each.name for each in place.iterdir()] == ["file"]
    assert (place / "file").read_text() == "notes"


def test_a_file_behind_a_link_that_leads_nowhere_is_not_made(place: Path) -> None:
    (place / "link").symlink_to(place / "elsewhere")
    check_writable(str(place / "link"))
    assert not (place / "elsewhere").exists()


# Links, as root ----------------------------------------------------------------------------------------------


@pytest.fixture
def link(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a dangling link of another user than root, in a process that believes to be root's."""
    link = place / "link"
    link.symlink_to(place / "elsewhere")
    if os.geteuid() == 0:
        os.lchown(link, 65534, 65534)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return link


def refused_link(path: Path) -> bool:
    try:
        check_link(str(path))
    except OSError as error:
        return (error.errno, error.filename) == (errno.ELOOP, str(path))
    return False


def test_root_follows_no_link_of_another_user(link: Path) -> None:
    assert refused_link(link)


def test_another_user_follows_each_link(link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    assert not refused_link(link)


@pytest.mark.parametrize(("mode", "refused"), [(0o755, False), (0o775, True), (0o1777, True)])
def test_root_follows_its_own_link_where_no_other_user_can_write(
    place: Path, monkeypatch: pytest.MonkeyPatch, mode: int, refused: bool
) -> None:
    own = place / "own"
    own.symlink_to(place / "elsewhere")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    place.chmod(mode)

    def of_root(look: Callable[[str], os.stat_result]) -> Callable[[str], os.stat_result]:
        def look_as_root(path: str) -> os.stat_result:
            fields = list(look(path))
            fields[stat.ST_UID] = 0
            return os.stat_result(fields)

        return look_as_root

    with monkeypatch.context() as patched:
        patched.setattr("os.lstat", of_root(os.lstat))
        patched.setattr("os.stat", of_root(os.stat))
        is_refused = refused_link(own)
    assert is_refused == refused


def test_root_does_not_mind_what_is_no_link(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (place / "file").touch()
    assert not refused_link(place / "file")
    assert not refused_link(place / "missing")


def test_root_makes_no_store_behind_a_link_of_another_user(link: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        SQLiteStore(str(link))
    assert caught.value.option == "store"
    assert str(link) in caught.value.problem
    assert not (link.parent / "elsewhere").exists()


def test_root_makes_no_store_behind_a_link_that_came_later(link: Path, caplog: pytest.LogCaptureFixture) -> None:
    link.rename(link.with_name("later"))
    store = SQLiteStore(str(link))
    link.with_name("later").rename(link)
    store.set("page", b"page")
    store.close()
    assert not (link.parent / "elsewhere").exists()
    assert "a link of another user" in caplog.text


# Paths -------------------------------------------------------------------------------------------------------


def test_paths_where_no_file_can_be_are_refused(place: Path) -> None:
    (place / "file").touch()
    (place / "loop").symlink_to("loop")
    assert refusal(place) == (errno.EISDIR, str(place))
    for path, number in (
        (place / "file" / "below", errno.ENOTDIR),
        (place / "loop" / "below", errno.ELOOP),
        (place / ("x" * 300), errno.ENAMETOOLONG),
    ):
        assert refusal(path) == (number, str(path))


@pytest.mark.parametrize("closed", ["file", "directory"])
def test_what_is_closed_to_this_user_is_named(closed: str, place: Path) -> None:
    directory = place / "directory"
    directory.mkdir()
    (directory / "file").touch()
    in_the_way = directory / "file" if closed == "file" else directory
    in_the_way.chmod(0o444 if closed == "file" else 0o555)
    asked = directory / "file" if closed == "file" else directory / "missing" / "file"
    assert as_plain_user(lambda: refusal(asked)) == [errno.EACCES, str(in_the_way)]
    directory.chmod(0o755)


def test_a_user_without_an_account_is_called_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    assert this_user() == "user 54321"
