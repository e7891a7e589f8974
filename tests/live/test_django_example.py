"""The example in Django under gunicorn. Its own ``tests.py`` tests the site without its cache.

Its settings stay out of this process, which another test gives settings of its own.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from cluster.parts import processes
from examples.blog_flask.browser import Answer, Browser
from tests.live.support.server import ROOT, Gunicorn
from tests.live.support.visitor import SITE
from tests.live.support.waiting import until

TARGET = "examples.site_django.wsgi:application"
MANAGE = str(ROOT / "examples" / "site_django" / "manage.py")
LISTS = ("/", "/topics/children/", "/topics/history/", "/topics/making/", "/topics/music/", "/topics/reading/")
CELLO, BRASS, BEARS = "/events/cello-between-shelves/", "/events/brass-on-the-steps/", "/events/story-hour/"
PUBLIC = (*LISTS, CELLO, BRASS, BEARS, "/about/")


class Form(HTMLParser):
    """The fields of the last form of a page, as a browser would send them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("name") or ""
        if tag == "form":
            self.fields = {}
        elif tag == "input" and (given.get("type") != "checkbox" or "checked" in given):
            self.fields[name] = given.get("value") or ("on" if "checked" in given else "")
        elif tag in ("select", "textarea"):
            self._open, self.fields[name] = name, ""
        elif tag == "option" and "selected" in given:
            self.fields[self._open] = given.get("value") or ""

    def handle_data(self, data: str) -> None:
        if self.lasttag == "textarea" and self._open:
            self.fields[self._open] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("select", "textarea"):
            # HTML leaves out the line break behind the tag.
            self.fields[self._open] = self.fields[self._open].removeprefix("\r\n").removeprefix("\n")
            self._open = ""


class Visitor(Browser):
    """Send forms as a person does: load them, change something, send them back with the rest."""

    def send(self, path: str, **changes: str) -> Answer:
        return self.post(path, **{**Form(self.get(path).body).fields, **changes})

    def log_in(self, login: str, password: str) -> Answer:
        return self.send("/login/", username=login, password=password)


class Library:
    """A server and its files; each test has visitors of its own."""

    def __init__(self, server: Gunicorn, env: Mapping[str, str], data: Path) -> None:
        self.server = server
        self.env = env
        self.data = data

    def visitor(self, login: str = "") -> Visitor:
        visitor = Visitor(self.server.port)
        if login:
            assert visitor.log_in(login, login).status == 302
        return visitor

    def look(self, *paths: str) -> dict[str, Answer]:
        """Return the pages as anonymous visitors get them."""
        return {path: self.visitor().get(path) for path in paths}

    def keep(self, *paths: str) -> None:
        """Make the cache have fresh copies of these pages."""
        for path in paths:
            until(lambda path=path: self.visitor().get(path).verdict == "HIT", f"a kept page at {path}")

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a process of its own, in another working directory."""
        return manage(*arguments, **self.env)


def environment(**env: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
    return {**inherited, **env}


def manage(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", MANAGE, *arguments]
    return subprocess.run(command, env=environment(**env), cwd="/", capture_output=True, text=True, timeout=120)


def site(data: Path) -> dict[str, str]:
    """Return the variables of a site with its database and store there."""
    # gunicorn opens the listening socket that it inherits from a test a second time, and drops the first object.
    warnings = "default,ignore:unclosed <socket.socket:ResourceWarning"
    return {"LIBRARY_DATA": str(data), "LIBRARY_HOSTS": f"{SITE} new.test", "PYTHONWARNINGS": warnings}


@pytest.fixture(scope="module", params=["sync", "gthread"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    directory = tmp_path_factory.mktemp("library")
    # Without it, other workers might serve an invalidated page for another tenth of a second.
    env = {**site(directory / "data"), "WSGI_ISR_COHERENCE": "0"}
    with Gunicorn(directory / "log", env, TARGET, worker_class=request.param) as server:
        yield Library(server, env, directory / "data")
        assert server.complaints() == []
        assert "Warning" not in server.log.read_text()
        assert server.stop() == 0


# Public pages


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_page_is_made_once_and_then_comes_from_the_cache(library: Library, path: str) -> None:
    library.keep(path)
    # Pages belong to a host; no page of this host was requested before.
    first, *others = [library.visitor().get(path, Host="new.test") for _ in range(6)]
    assert (first.status, first.verdict) == (200, "MISS")
    assert {(other.verdict, other.body) for other in others} == {("HIT", first.body)}
    assert "Set-Cookie" not in first.headers
    assert first.account == "Log in"


def test_who_has_seen_a_form_still_gets_pages_from_the_cache(library: Library) -> None:
    library.keep(*PUBLIC)
    visitor = library.visitor()
    assert visitor.get(BEARS + "reserve/")["Set-Cookie"].startswith("csrftoken=")
    assert {visitor.get(path).verdict for path in PUBLIC} == {"HIT"}


# Private pages


@pytest.mark.parametrize(("login", "name"), [("reader", "Sam"), ("librarian", "Noor")])
def test_a_page_of_who_is_logged_in_is_never_kept(library: Library, login: str, name: str) -> None:
    visitor = library.visitor(login)
    for path in (*PUBLIC, "/account/", "/nowhere/", BEARS + "reserve/"):
        for _ in range(3):
            own, stranger = visitor.get(path), library.visitor().get(path)
            assert own.verdict == "BYPASS"
            assert own.account.startswith(name)
            assert name not in stranger.body, f"{path} shows {name} to a stranger"
    assert {answer.verdict for answer in library.look(*PUBLIC).values()} == {"HIT"}
    assert library.look("/account/")["/account/"]["Location"] == "/login/?next=/account/"
    kept = b"".join(file.read_bytes() for file in library.data.glob("pages.sqlite3*"))
    assert b"Alderbrook" in kept
    assert name.encode() not in kept


def test_visitors_with_and_without_a_session_at_once_each_see_their_own_page(library: Library) -> None:
    visitors = {"Sam": library.visitor("reader"), "Noor": library.visitor("librarian"), "Log in": library.visitor()}

    def look_around(shown: str) -> set[str]:
        return {visitors[shown].get(path).account.removesuffix(" Log out") for _ in range(5) for path in PUBLIC}

    with ThreadPoolExecutor(3) as people:
        assert list(people.map(look_around, visitors)) == [{shown} for shown in visitors]


def test_logging_in_and_out(library: Library) -> None:
    visitor = library.visitor()
    library.keep("/")
    assert visitor.post("/login/", username="reader", password="reader").status == 403
    assert "correct username and password" in visitor.log_in("reader", "wrong").body
    assert visitor.get("/").verdict == "HIT"
    assert visitor.log_in("reader", "reader")["Location"] == "/account/"
    assert "Hello, Sam" in visitor.get("/account/").body

    assert visitor.post("/logout/").status == 403
    assert "Hello, Sam" in visitor.get("/account/").body
    assert visitor.post("/logout/", **Form(visitor.get("/about/").body).fields)["Location"] == "/"
    assert visitor.get("/account/").status == 302
    after = visitor.get("/")
    assert (after.verdict, after.account) == ("HIT", "Log in")


# Forms


def test_a_form_for_everybody_works_with_its_token_alone(library: Library) -> None:
    library.keep(*PUBLIC)
    page, visitor = BEARS + "reserve/", library.visitor()
    assert visitor.post(page, name="Ida", people="2").status == 403
    token = Form(library.visitor().get(page).body).fields["csrfmiddlewaretoken"]
    visitor.get(page)
    assert visitor.post(page, name="Ida", people="2", csrfmiddlewaretoken=token).status == 403  # another visitor's
    assert library.look(BEARS)[BEARS].verdict == "HIT"

    before = places(library.look(BEARS)[BEARS])
    answer = visitor.send(page, name="Ida", people="2")
    assert answer.status == 302
    seen = library.look(*PUBLIC)
    assert places(seen[BEARS]) == before - 2
    assert {path for path, answer in seen.items() if answer.verdict != "HIT"} == {BEARS}
    reservation = visitor.get(answer["Location"])
    assert "Ida" in reservation.body
    assert reservation.verdict == "BYPASS"

    assert visitor.send(answer["Location"])["Location"] == BEARS
    assert visitor.get(answer["Location"]).status == 404
    assert places(library.look(BEARS)[BEARS]) == before


def places(event: Answer) -> int:
    (left,) = re.findall(r"(\d+) of \d+ left", event.body)
    return int(left)


def test_every_visitor_has_a_token_of_their_own_and_no_form_is_kept(library: Library) -> None:
    for page in (BEARS + "reserve/", "/login/"):
        answers = [library.visitor().get(page) for _ in range(4)]
        assert {answer.verdict for answer in answers} == {"BYPASS"}
        assert len({Form(answer.body).fields["csrfmiddlewaretoken"] for answer in answers}) == 4
        assert len({answer["Set-Cookie"] for answer in answers}) == 4


def test_the_last_places_are_given_away_once(library: Library) -> None:
    page = "/events/bind-a-book/reserve/"  # has eight seats
    visitors = [library.visitor() for _ in range(12)]
    forms = [Form(visitor.get(page).body).fields for visitor in visitors]
    with ThreadPoolExecutor(12) as people:
        answers = list(people.map(lambda n: visitors[n].post(page, **{**forms[n], "name": f"Nr. {n}"}), range(12)))
    assert sorted(answer.status for answer in answers) == [200] * 4 + [302] * 8
    assert "All 8 are taken." in library.look("/events/bind-a-book/")["/events/bind-a-book/"].body


# Changes


def test_what_the_staff_edits_is_seen_at_once_and_all_else_stays(library: Library) -> None:
    library.keep(*PUBLIC)
    before = library.look(*PUBLIC)
    staff = library.visitor("librarian")
    title = f"A cello, {before[CELLO].stamp}"
    assert staff.send(CELLO + "edit/", title=title)["Location"] == CELLO
    after = library.look(*PUBLIC)
    changed = {path for path in PUBLIC if after[path].verdict != "HIT" or after[path].body != before[path].body}
    assert changed == {"/", "/topics/music/", CELLO, BRASS}  # BRASS has it under "More music"
    assert all(title in after[path].body for path in changed)
    assert {answer.verdict for answer in library.look(*PUBLIC).values()} == {"HIT"}


def test_an_event_that_moves_to_another_topic_changes_the_menu_of_all_pages_that_have_it(library: Library) -> None:
    library.keep(*PUBLIC, "/events/folk-session/")
    staff = library.visitor("librarian")
    topics = dict(re.findall(r'<option value="(\d+)"[^>]*>([^<]+)', staff.get("/events/folk-session/edit/").body))
    before = in_menu(library, "Music"), in_menu(library, "Making")
    (making,) = [value for value, name in topics.items() if name == "Making"]
    assert staff.send("/events/folk-session/edit/", topic=making).status == 302
    after = library.look(*PUBLIC)
    assert {path for path, answer in after.items() if answer.verdict == "HIT"} == {BEARS, "/about/"}
    assert (in_menu(library, "Music"), in_menu(library, "Making")) == (before[0] - 1, before[1] + 1)
    assert "Bring an instrument" not in after["/topics/music/"].body
    assert "Bring an instrument" in after["/topics/making/"].body

    (music,) = [value for value, name in topics.items() if name == "Music"]
    staff.send("/events/folk-session/edit/", topic=music)
    assert (in_menu(library, "Music"), in_menu(library, "Making")) == before


def in_menu(library: Library, topic: str) -> int:
    """Return the shown number of events, which must be equal on all pages with the menu."""
    counts = {re.findall(rf"{topic} <span>(\d+)<", answer.body)[0] for answer in library.look(*LISTS).values()}
    assert len(counts) == 1
    return int(counts.pop())


@pytest.mark.parametrize("login", ["", "reader"])
def test_only_the_staff_may_edit(library: Library, login: str) -> None:
    visitor = library.visitor(login)
    library.keep(BEARS)
    answer = visitor.get(BEARS + "edit/")
    assert (answer.status, answer["Location"]) == ((403, "") if login else (302, f"/login/?next={BEARS}edit/"))
    token = Form(visitor.get("/login/" if not login else BEARS + "reserve/").body).fields["csrfmiddlewaretoken"]
    assert visitor.post(BEARS + "edit/", title="Mine", csrfmiddlewaretoken=token).status == answer.status
    assert library.look(BEARS)[BEARS].verdict == "HIT"


def test_a_draft_is_shown_to_the_staff_and_to_nobody_else(library: Library) -> None:
    draft, staff = "/events/swap-seeds/", library.visitor("librarian")
    for _ in range(2):
        assert staff.get(draft).status == 200
        assert library.look(draft)[draft].status == 404


def test_a_job_beside_the_server_publishes_a_draft_that_is_seen_at_once(library: Library) -> None:
    draft = "/events/winter-lights-walk/"
    library.keep(*PUBLIC)
    assert library.look(draft)[draft].status == 404  # the 404 is stored, too
    assert "winter-lights-walk" in library.manage("publish").stdout.split()
    job = library.manage("publish", "winter-lights-walk")
    assert job.returncode == 0, job.stderr
    assert f"Published {draft}\n" in job.stdout
    assert "Invalidated tag:event:winter-lights-walk, tag:events, tag:topic:history, tag:topics in " in job.stdout
    after = library.look(draft, *PUBLIC)
    assert after[draft].status == 200
    assert {path for path, answer in after.items() if answer.verdict == "HIT"} == {CELLO, BRASS, BEARS, "/about/"}
    assert {path for path in LISTS if draft in after[path].body} == {"/", "/topics/history/"}
    again = library.manage("publish", "winter-lights-walk")
    assert (again.returncode, "nothing was published" in again.stderr) == (1, True)


SHELL = """
from examples.site_django.models import Event
event = Event.objects.get(slug="story-hour")
event.title = "Story hour, from the shell"
event.save()
"""


def test_what_is_saved_in_the_shell_is_seen_at_once(library: Library) -> None:
    library.keep(*PUBLIC)
    job = library.manage("shell", "-v", "0", "-c", SHELL)
    assert (job.returncode, job.stderr) == (0, "")
    after = library.look(*PUBLIC)
    assert {path for path in PUBLIC if "Story hour, from the shell" in after[path].body} == {
        "/",
        "/topics/children/",
        BEARS,
    }
    assert {path for path, answer in after.items() if answer.verdict == "EXPIRED"} >= {"/", "/topics/children/", BEARS}


# Setting up


def test_one_command_makes_the_database_and_workers_inherit_nothing(tmp_path: Path) -> None:
    with Gunicorn(tmp_path / "log", site(tmp_path / "data"), TARGET, workers=3, preload=True) as server:
        assert Browser(server.port).get("/").status == 200
        assert [name for name in processes.open_files(server.pid) if "sqlite3" in name] == []
        assert processes.threads(server.pid) == 1
        assert server.complaints() == []
        assert server.stop() == 0


def test_processes_that_start_at_once_make_one_site(tmp_path: Path) -> None:
    env = site(tmp_path / "data")
    with ThreadPoolExecutor(4) as starting:
        commands = list(starting.map(lambda _: manage("setup", **env), range(4)))
    assert [command.returncode for command in commands] == [0] * 4, [command.stderr for command in commands]
    said = sorted(command.stdout.split()[-2:] for command in commands)
    assert said == [["is", "ready."], *[["ready", "already."]] * 3]
    with closing(sqlite3.connect(tmp_path / "data" / "library.sqlite3")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM library_event").fetchone() == (16,)
        assert connection.execute("SELECT COUNT(*) FROM auth_user").fetchone() == (2,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    key = tmp_path / "data" / "secret_key"
    assert len(key.read_text()) == 50
    assert key.stat().st_mode & 0o077 == 0
    assert sorted(file.name for file in key.parent.iterdir() if "library.sqlite3-" not in file.name) == [
        "library.sqlite3",
        "secret_key",
        "setup.lock",
    ]


def test_a_start_that_was_cut_short_is_completed_by_the_next(tmp_path: Path) -> None:
    env = site(tmp_path / "data")
    assert manage("migrate", "library", **env).returncode == 0  # the tables, without rows
    assert manage("setup", **env).stdout.endswith(" is ready.\n")
    with closing(sqlite3.connect(tmp_path / "data" / "library.sqlite3")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM library_event").fetchone() == (16,)


def test_the_tests_of_the_site_pass(tmp_path: Path) -> None:
    run = manage("test", "examples.site_django", **site(tmp_path))
    assert run.returncode == 0, run.stderr
    assert re.search(r"Ran [1-9]\d+ tests", run.stderr)


def test_django_has_nothing_to_say_against_the_settings(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "examples.site_django.manage", "check", "--fail-level", "INFO"]
    run = subprocess.run(command, cwd=ROOT, env=environment(**site(tmp_path)), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_the_readme_says_is_what_one_sees(tmp_path: Path) -> None:
    assert shutil.which("curl"), "install curl"
    env = {**site(tmp_path / "data"), "WSGI_ISR_COHERENCE": "0"}
    readme = (ROOT / "examples" / "site_django" / "README.md").read_text("utf-8")
    steps = readme.partition("## Try it")[2].partition("\n## ")[0]
    (functions,) = re.findall(r"```sh\n(.*?)```", steps, re.DOTALL)
    blocks = [textwrap.dedent(block) for block in re.findall(r"```console\n(.*?)```", steps, re.DOTALL)]
    typed = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks), re.MULTILINE)
    assert typed
    with Gunicorn(tmp_path / "log", env, TARGET) as server:
        script = "".join(f"{command}\necho -----\n" for command, _ in typed)
        here = f"http://127.0.0.1:{server.port}"
        run = subprocess.run(
            ["bash", "-c", functions.replace("http://127.0.0.1:8000", here) + script],
            cwd=ROOT,
            env=environment(**env, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", TMPDIR=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.stderr == ""
    said = run.stdout.replace("\r", "").replace(here, "http://127.0.0.1:8000").split("-----\n")
    assert len(said) == len(typed) + 1
    for (command, expected), got in zip(typed, said[:-1], strict=True):
        assert doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS), f"$ {command}\n{got}"


ONE_LINE = """
import json
from werkzeug.test import Client
from examples.site_django.wsgi import application
from wsgi_isr import ISR

site = ISR(application.app, revalidate=60, store="memory://")  # the app without its cache, in another one

def labels(visitor, path):
    return [visitor.get(path).headers["X-ISR"] for _ in range(3)]

visitor = Client(site)
own = {path: labels(Client(site), path) for path in ("/login/", "/account/", "/events/story-hour/reserve/")}
own |= {path + " again": labels(visitor, path) for path in ("/login/", "/account/")}
token = visitor.get_cookie("csrftoken").value
form = {"username": "reader", "password": "reader", "csrfmiddlewaretoken": token}
assert visitor.post("/login/", data=form).status_code == 302
own |= {path + " as reader": labels(visitor, path) for path in ("/", "/account/", "/about/")}
assert "Sam" in visitor.get("/").text
assert "Sam" not in Client(site).get("/").text
public = [labels(Client(site), path) for path in ("/topics/music/", "/topics/reading/")]
print(json.dumps({"own": own, "public": public}))
site.close()
"""


def test_the_one_line_without_any_rule_is_as_safe(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", ONE_LINE]
    run = subprocess.run(command, cwd=ROOT, env=environment(**site(tmp_path)), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert {label for labels in seen["own"].values() for label in labels} == {"BYPASS"}, seen["own"]
    assert seen["public"] == [["MISS", "HIT", "HIT"]] * 2
