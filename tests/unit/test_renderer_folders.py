"""The folders of renderers' sockets: those of servers that are gone are removed, and no others."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from wsgi_isr.renderers import folders, supervisor
from wsgi_isr.renderers.folders import make_folder
from wsgi_isr.renderers.supervisor import Watcher
from wsgi_isr.testing import in_processes


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="t-", dir="/tmp")  # the path of a socket has to be short
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield Path(folder)
    # rmtree() gives up in a folder that is nested too deeply.
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture(scope="module")
def gone() -> str:
    """Return the id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return str(process.pid)


@pytest.fixture
def old(temporary: Path, gone: str) -> Path:
    """Return the path of a folder of a server that is gone. There is no folder at the path."""
    mine = Path(make_folder(os.getpid()))
    *where, _, started, namespace, unique = mine.name.split("-")
    mine.rmdir()
    return temporary / "-".join([*where, gone, started, namespace, unique])


def test_a_folder_is_for_this_user_only(temporary: Path) -> None:
    found = Path(make_folder(os.getpid())).stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o700)


def test_the_package_changes_the_owner_of_no_file_but_of_a_journal_or_switch_that_root_has_just_made() -> None:
    modules = Path(supervisor.__file__).parents[1].rglob("*.py")
    assert [module.name for module in modules if "chown" in module.read_text("utf-8")] == ["files.py"]


@pytest.mark.skipif(sys.platform != "linux", reason="only there can be told who is gone")
def test_the_folder_of_a_server_that_is_gone_is_removed(old: Path) -> None:
    old.mkdir()
    for name in ("urgent", "later", "new"):
        (old / name).touch()
    mine = Path(make_folder(os.getpid()))
    assert list(old.parent.iterdir()) == [mine]


def test_that_of_a_server_that_cannot_be_seen_from_here_stays(temporary: Path, gone: str) -> None:
    # Two containers may share /tmp, and each has process ids of its own.
    *where, _, started, namespace, unique = Path(make_folder(os.getpid())).name.split("-")
    theirs = temporary / "-".join([*where, gone, started, f"{namespace}1", unique])
    theirs.mkdir()
    make_folder(os.getpid())
    assert theirs.exists()


def test_that_of_a_server_whose_process_is_hidden_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc may be mounted with hidepid= while the server runs as another user."""

    def hidden(path: str, **more: str) -> IO[str]:
        raise FileNotFoundError(path)

    theirs = Path(make_folder(os.getppid()))
    monkeypatch.setattr(folders, "open", hidden, raising=False)
    make_folder(os.getpid())
    assert theirs.exists()


def test_that_of_a_server_of_unknown_age_stays_while_there_is_a_process_of_that_number(old: Path) -> None:
    *where, _, _, namespace, unique = old.name.split("-")
    theirs = old.with_name("-".join([*where, str(os.getppid()), "0", namespace, unique]))
    theirs.mkdir()
    make_folder(os.getpid())
    assert theirs.exists()


@pytest.mark.parametrize("name", ["wsgi-isr-checkout", "wsgi-isr-1-2-3-4-notes", "wsgi-isr-", "wsgi-isr"])
def test_what_has_another_name_is_not_ours(name: str, temporary: Path) -> None:
    (temporary / name).mkdir()
    make_folder(os.getpid())
    assert (temporary / name).exists()


@pytest.mark.parametrize("number", ["\N{SUPERSCRIPT TWO}", "9" * 30, "0"])
def test_a_number_that_no_process_has_keeps_no_server_from_starting(number: str, old: Path) -> None:
    *where, _, started, namespace, unique = old.name.split("-")
    old.with_name("-".join([*where, number, started, namespace, unique])).mkdir()
    make_folder(os.getpid())


def test_a_folder_that_is_nested_too_deeply_keeps_no_server_from_starting(old: Path) -> None:
    old.mkdir()
    inner = os.open(old, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
    make_folder(os.getpid())
    assert (old / "d" / "d").exists()


def test_files_that_renderers_do_not_make_stay(old: Path) -> None:
    old.mkdir()
    (old / "notes").write_text("notes")
    (old / "later").mkdir()
    (old / "later" / "notes").touch()
    make_folder(os.getpid())
    assert (old / "notes").read_text() == "notes"
    assert (old / "later" / "notes").exists()


def test_a_file_of_that_name_stays(old: Path) -> None:
    old.write_text("notes")
    make_folder(os.getpid())
    assert old.read_text() == "notes"


def test_a_link_of_that_name_is_not_followed(old: Path) -> None:
    elsewhere = old.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "urgent").touch()
    old.symlink_to(elsewhere)
    make_folder(os.getpid())
    assert (elsewhere / "urgent").exists()


def test_a_link_in_such_a_folder_is_not_followed(old: Path) -> None:
    elsewhere = old.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "urgent").touch()
    old.mkdir()
    (old / "later").symlink_to(elsewhere / "urgent")
    (old / "new").symlink_to(elsewhere)
    make_folder(os.getpid())
    assert not old.exists()
    assert (elsewhere / "urgent").exists()


def test_a_folder_of_another_user_stays(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old.mkdir()
    (old / "urgent").touch()
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    make_folder(os.getpid())
    assert (old / "urgent").exists()


@pytest.mark.parametrize("unreadable", ["folder", "parent"])
def test_what_this_user_may_not_read_keeps_no_server_from_starting(unreadable: str, old: Path) -> None:
    """The test runs in a child without root's rights, because permission bits do not stop root."""
    old.mkdir()
    closed = old if unreadable == "folder" else old.parent
    old.parent.chmod(0o777)
    closed.chmod(0o333 if unreadable == "parent" else 0o000)
    if os.getuid() == 0:
        os.chown(old, 65534, 65534)

    def child(_: int) -> str:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return make_folder(os.getppid())

    try:
        [mine] = in_processes(1, child)
        assert Path(mine).is_dir()
        assert old.is_dir()
    finally:
        closed.chmod(0o700)


# The watcher makes them ----------------------------------------------------------------------------------


def watcher(folder: str | None, prepare: Callable[[], object]) -> Watcher:
    """Return a watcher whose supervisor never ends loading its app."""
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads, such as those of pytest-xdist.
        warnings.simplefilter("ignore", DeprecationWarning)
        return Watcher(folder, load=signal.pause, prepare=prepare)


def test_once_a_watcher_has_begun_its_sockets_take_connections(temporary: Path) -> None:
    begun = watcher(None, lambda: None)
    try:
        for name in ("urgent", "later"):
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(f"{begun.folder}/{name}")
    finally:
        begun.stop()
        begun.wait(30)


def test_the_sockets_of_another_watcher_take_the_place_of_those_before(temporary: Path) -> None:
    first = watcher(None, lambda: None)
    second = watcher(first.folder, lambda: None)
    assert second.folder == first.folder
    assert [each.name for each in temporary.iterdir()] == [Path(first.folder).name]
    for each in (first, second):
        each.stop()
        each.wait(30)


def test_a_watcher_that_ends_before_it_has_sockets_is_an_error(temporary: Path) -> None:
    with pytest.raises(OSError, match="their watcher has ended"):
        watcher(None, lambda: os._exit(1))


def test_a_watcher_that_has_no_place_for_sockets_says_why(temporary: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        watcher("/nowhere", lambda: None)


def test_a_watcher_that_says_nothing_is_killed_after_a_while(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_START_TIMEOUT", 0.05)
    monkeypatch.setattr(supervisor, "_EXIT_GRACE", 0.0)
    alive, end = os.pipe()

    def hang() -> None:
        os.close(alive)
        while True:
            signal.pause()

    with pytest.raises(TimeoutError):
        watcher(None, hang)
    os.close(end)
    assert os.read(alive, 1) == b"", "a process has the other end"
    os.close(alive)
