"""gunicorn started as root with ``--user``: root creates, changes and removes no file of that user."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.live.support import as_user
from tests.live.support.origin import Origin
from tests.live.support.server import SUPERVISOR, Gunicorn
from tests.live.support.visitor import ask
from tests.live.support.waiting import until
from wsgi_isr.cache.journal import Journal
from wsgi_isr.errors import ConfigError

#: No account has this number.
USER = 54321

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root can start gunicorn with --user")


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder that every user may enter, with a short path. All users share ``tmp``; the user owns ``own``."""
    made = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    made.chmod(0o755)
    (made / "tmp").mkdir()
    (made / "tmp").chmod(0o1777)
    (made / "own").mkdir(mode=0o700)
    os.chown(made / "own", USER, USER)
    yield made
    # rmtree() gives up in a folder that is nested too deeply.
    subprocess.run(["rm", "-rf", made], check=True)


@pytest.fixture
def origin(place: Path) -> Origin:
    return Origin(place / "own")


@pytest.fixture
def env(place: Path, origin: Origin) -> dict[str, str]:
    own = place / "own"
    return {
        **origin.env,
        "WSGI_ISR_STORE": f"sqlite:///{own}/pages.sqlite3",
        "WSGI_ISR_REVALIDATE": "0.3",
        "TMPDIR": str(place / "tmp"),
    }


APP = """
from wsgi_isr import wrap
application = wrap("tests.live.support.origin:origin")
"""


@pytest.fixture
def serve(tmp_path: Path, place: Path, env: dict[str, str]) -> Callable[..., Gunicorn]:
    """Return a function that starts a server with one worker that runs as :data:`USER`."""
    (place / "user_app.py").write_text(APP)

    def serve(program: Sequence[str] = as_user.PROGRAM, preload: bool = False) -> Gunicorn:
        return Gunicorn(
            tmp_path / "log",
            env,
            "user_app",
            workers=1,
            preload=preload,
            arguments=["--user", str(USER), "--group", str(USER)],
            directory=place,
            program=program,
        )

    return serve


def sockets_of(place: Path) -> Path:
    """Return the only folder of sockets, which the user alone owns, with all that it contains."""
    (folder,) = (place / "tmp").glob("wsgi-isr-*")
    # The recorder of counts opens its two after the renderers have begun.
    until(lambda: {each.name for each in folder.iterdir()} == {"urgent", "later", "counts", "totals"}, "the sockets")
    found = {each.name: each.lstat() for each in folder.iterdir()}
    assert all(stat.S_ISSOCK(each.st_mode) for each in found.values())
    assert {(each.st_uid, each.st_gid) for each in (folder.stat(), *found.values())} == {(USER, USER)}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    return folder


def rendered_by(server: Gunicorn, renderer: int) -> None:
    """Wait until that process has rendered the page at ``/``."""

    def found() -> bool:
        answer = ask(server.port)
        assert answer.status == 200, answer
        return bool(answer.page["pid"] == renderer)

    until(found, "a page by the renderer")


def other_renderer(server: Gunicorn, *old: int) -> int:
    (pid,) = until(lambda: [pid for pid in server.renderers() if pid not in old], "another renderer")
    return pid


# Renderers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_renderers_and_their_sockets_belong_to_the_user(
    preload: bool, serve: Callable[..., Gunicorn], place: Path
) -> None:
    with serve(preload=preload) as server:
        first = other_renderer(server)
        folder = sockets_of(place)
        rendered_by(server, first)
        assert os.stat(f"/proc/{first}").st_uid == USER

        server.signal(signal.SIGHUP)
        second = other_renderer(server, first)
        until(lambda: server.renderers() == [second], "the end of the old renderer")
        assert sockets_of(place) == folder
        rendered_by(server, second)

        (supervisor,) = server.called(SUPERVISOR)
        server.kill(supervisor)
        third = other_renderer(server, second)
        assert sockets_of(place) == folder
        rendered_by(server, third)

        assert server.stop() == 0
        assert server.left() == []
    assert list((place / "tmp").iterdir()) == []


#: gunicorn, and the user who puts a link in the place of each socket before the socket has its name.
PLANTS = """
import os, socket
from tests.live.support.as_user import run

listen = socket.socket.listen

def plant(self, *backlog):
    listen(self, *backlog)
    if self.family == socket.AF_UNIX:
        os.unlink(self.getsockname())
        os.symlink(os.environ["VICTIM"], self.getsockname())
        open(os.environ["PLANTED"], "a").write("x")

socket.socket.listen = plant
run()
"""


def test_a_link_in_the_place_of_a_socket_gives_no_file_away(
    serve: Callable[..., Gunicorn], env: dict[str, str], place: Path
) -> None:
    victim, planted = place / "victim", place / "own" / "planted"
    victim.write_text("root's")
    victim.chmod(0o600)
    env |= {"VICTIM": str(victim), "PLANTED": str(planted)}
    with serve(program=("-c", PLANTS, "--config", "python:wsgi_isr.gunicorn")) as server:
        server.signal(signal.SIGHUP)
        until(lambda: len(planted.read_text()) >= 4, "the links for two pairs of sockets")
        assert ask(server.port).status == 200
        assert server.stop() == 0
    assert (victim.stat().st_uid, victim.stat().st_gid) == (0, 0)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert victim.read_text() == "root's"
    assert list((place / "tmp").iterdir()) == []


def test_root_removes_no_file_behind_a_link_in_the_place_of_the_folder(
    serve: Callable[..., Gunicorn], place: Path
) -> None:
    victim = place / "victim"
    victim.mkdir()
    (victim / "urgent").touch()
    with serve() as server:
        other_renderer(server)
        folder = sockets_of(place)
        folder.rename(place / "own" / "moved")
        folder.symlink_to(victim)
        os.chown(folder, USER, USER, follow_symlinks=False)
        assert server.stop() == 0
    assert (victim / "urgent").exists()


def test_a_folder_of_sockets_that_was_filled_with_folders_does_not_keep_the_server_from_ending(
    serve: Callable[..., Gunicorn], place: Path
) -> None:
    with serve() as server:
        other_renderer(server)
        nest(sockets_of(place), 2000)
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []


# Files ---------------------------------------------------------------------------------------------------


def owners(folder: Path) -> dict[str, int]:
    """Return the owner of the folder and of everything below it."""
    return {str(each): each.lstat().st_uid for each in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_the_store_and_the_journal_are_made_by_the_user(
    preload: bool, serve: Callable[..., Gunicorn], env: dict[str, str], place: Path
) -> None:
    own = place / "own"
    env |= {
        "WSGI_ISR_STORE": f"sqlite:///{own}/.wsgi_isr/store.db",
        "WSGI_ISR_JOURNAL": f"{own}/.wsgi_isr/journal",
        "WSGI_ISR_REVALIDATE": "3600",
    }
    # The second time, the file exists: root looks at it.
    for verdicts in (["MISS", "HIT"], ["HIT", "HIT"]):
        with serve(preload=preload) as server:
            assert {*owners(own).values()} == {USER}
            assert [ask(server.port).verdict for _ in verdicts] == verdicts
            assert {*owners(own).values()} == {USER}
            assert server.stop() == 0
            assert server.complaints() == []
    assert stat.S_IMODE((own / ".wsgi_isr").stat().st_mode) == 0o700
    assert stat.S_IMODE((own / ".wsgi_isr" / "store.db").stat().st_mode) == 0o600


@pytest.fixture
def linked(env: dict[str, str], place: Path) -> Callable[..., Path]:
    """Put links in place of the app's files, to files in a folder of root; return that folder."""

    def link(*names: str) -> Path:
        roots = place / "roots"
        roots.mkdir()
        roots.chmod(0o700)
        for name in names:
            (place / "own" / name).symlink_to(roots / name)
        return roots

    env |= {"WSGI_ISR_JOURNAL": f"{place}/own/journal"}
    return link


def test_root_makes_no_file_behind_links_in_the_place_of_those_of_the_store(
    serve: Callable[..., Gunicorn], linked: Callable[..., Path]
) -> None:
    roots = linked("pages.sqlite3-wal", "pages.sqlite3-shm")
    with serve(preload=True) as server:
        assert ask(server.port).status == 200
        assert server.stop() == 0
    assert list(roots.iterdir()) == []


@pytest.mark.parametrize("name", ["pages.sqlite3", "journal", "journal.lock", "journal.turn"])
def test_root_refuses_a_link_in_the_place_of_a_store_or_a_journal_and_names_it(
    name: str, serve: Callable[..., Gunicorn], linked: Callable[..., Path]
) -> None:
    roots = linked(name)
    with pytest.raises(AssertionError, match=f"ConfigError: .*/own/{re.escape(name)}.* link"), serve(preload=True):
        pass
    assert list(roots.iterdir()) == []


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_where_the_user_cannot_make_the_store_the_log_names_user_and_directory(
    preload: bool, serve: Callable[..., Gunicorn], env: dict[str, str], place: Path
) -> None:
    env |= {"WSGI_ISR_STORE": f"sqlite:///{place}/.wsgi_isr/store.db"}
    with serve(preload=preload) as server:
        ask(server.port)
        assert ask(server.port).verdict in ("DEGRADED", "HIT")
        assert server.stop() == 0
        log = server.log.read_text()
    assert f"make {place}/.wsgi_isr a directory that user {USER} can write to" in log
    assert not (place / ".wsgi_isr").exists()


@pytest.mark.parametrize("kept_before", [False, True])
def test_a_journal_that_root_makes_belongs_to_the_owner_of_the_folder(kept_before: bool, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    os.chown(own, 12345, 12346)
    journal = Journal(str(own / "below" / "journal"))
    for number in range(2 if kept_before else 1):
        journal.keep("site", [f"tag:{number}"], "expire", ("memcached://a:1",))
    with journal.delivery_lock():
        pass
    if kept_before:
        journal.settle({journal.lines("site", ("memcached://a:1",))[0].id: ["tag:0"]})
    found = {each.name: (each.stat().st_uid, each.stat().st_gid) for each in own.rglob("*")}
    assert found == dict.fromkeys(["below", "journal", "journal.lock", "journal.turn"], (12345, 12346))


def test_root_gives_away_no_file_that_was_there(tmp_path: Path) -> None:
    own, roots = tmp_path / "own", tmp_path / "roots"
    own.mkdir()
    os.chown(own, 12345, 12345)
    roots.touch()
    os.link(roots, own / "journal")
    Journal(str(own / "journal")).keep("site", ["tag:a"], "expire", ("memcached://a:1",))
    assert roots.stat().st_uid == os.geteuid()


def test_a_file_of_another_user_is_an_error_that_names_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    path.touch()
    os.chown(path, 12345, 12345)
    monkeypatch.setattr(os, "access", lambda place, mode, **options: place != str(path))
    with pytest.raises(ConfigError) as caught:
        Journal(str(path)).check()
    assert caught.value.problem.startswith(f"{path}: Permission denied: {path} belongs to user 12345, and this process")


def nest(folder: Path, depth: int) -> None:
    """Create ``depth`` folders, each inside the previous one."""
    inner = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
