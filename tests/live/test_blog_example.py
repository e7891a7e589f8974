"""The main example: its demo plays the whole story over HTTP, and the app below it works by itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from examples.blog_flask.blog import create_app

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    *("MISS", "HIT", "304", "HEAD", "CROWD", "STALE", "ERROR"),
    *("LOGIN", "SESSION", "MIXED", "ADMIN", "COMMENT", "BROWSER", "PUBLISH", "EDITOR", "WRONG", "KILL"),
    *("DEPLOY", "DEVELOP", "STOP"),
)
DEMO = [sys.executable, "-m", "examples.blog_flask.demo"]


def run_demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WSGI_ISR_", "BLOG_", "PYTHONWARN"))}
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=150,
    )


def steps_seen(output: str, word: str) -> list[str]:
    return re.findall(rf"^{word} +([A-Z0-9]+) ", output, re.MULTILINE)


# The demo


def test_every_step_of_the_story_holds():
    run = run_demo("--check")
    assert run.returncode == 0, run.stdout + run.stderr
    assert steps_seen(run.stdout, "ok") == list(STEPS)
    assert "FAIL" not in run.stdout


def test_without_a_store_the_story_ends_at_its_first_step_and_the_log_is_shown():
    run = run_demo("--check", WSGI_ISR_STORE="null://")
    assert run.returncode == 1
    assert steps_seen(run.stdout, "ok") == []
    assert steps_seen(run.stdout, "FAIL") == ["MISS"]
    assert "Listening at" in run.stderr


def test_a_server_that_cannot_start_is_a_failed_step_with_the_reason():
    run = run_demo("--check", WSGI_ISR_STORE="no-such-scheme://x")
    assert run.returncode == 1
    assert steps_seen(run.stdout, "FAIL") == ["START"]
    assert "no-such-scheme" in run.stderr


def test_a_port_that_is_taken_is_said_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = run_demo("--port", port)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert port in run.stderr
    assert "--port" in run.stderr


@pytest.mark.parametrize("asked_by", [signal.SIGTERM, signal.SIGINT])
def test_the_demo_says_what_to_try_and_ends_when_asked(asked_by, tmp_path):
    environment = {
        **os.environ,
        "BLOG_DB": str(tmp_path / "blog.sqlite3"),
        "WSGI_ISR_STORE": f"sqlite:///{tmp_path / 'pages.sqlite3'}",
    }
    demo = subprocess.Popen([*DEMO, "--port", "0"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    with demo:
        try:
            assert demo.stdout is not None
            lines = iter(demo.stdout.readline, "")
            (port,) = next(found for line in lines if (found := re.findall(r"http://127.0.0.1:(\d+)/", line)))
            demo.send_signal(asked_by)
            rest = "".join(lines)
            assert demo.wait(30) == 0
        finally:
            demo.terminate()  # has no effect after its end
    assert "look /stats" in rest
    assert "Stopped." in rest
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))


# The app without a cache


@pytest.fixture
def blog(tmp_path: Path) -> Flask:
    return create_app(DB=str(tmp_path / "blog.sqlite3"), SLOW=0)


@pytest.fixture
def anonymous(blog: Flask) -> FlaskClient:
    return blog.test_client()


@pytest.fixture
def admin(blog: Flask) -> FlaskClient:
    client = blog.test_client()
    assert log_in(client, "admin", "admin").status_code == 303
    return client


def log_in(client: FlaskClient, login: str, password: str, **form: str):
    token = token_in(client.get("/login").text)
    return client.post("/login", data={"csrf": token, "login": login, "password": password, **form})


def token_in(page: str) -> str:
    return re.findall(r'name="csrf" value="([^"]+)"', page)[0]


PAGES = ["/", "/posts/what-vary-says", "/tags/caching", "/about", "/stats", "/posts/none", "/tags/none", "/none"]


@pytest.mark.parametrize("path", PAGES)
def test_an_anonymous_page_depends_on_cookies_but_sets_none(anonymous, path):
    answer = anonymous.get(path)
    assert answer.status_code == (404 if path.endswith("none") else 200)
    assert "Set-Cookie" not in answer.headers
    assert answer.vary.as_set() == {"cookie"}
    assert re.search(r'id="rendered-at" datetime="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"', answer.text)
    assert f'id="rendered-by">{os.getpid()}<' in answer.text


def test_the_login_needs_its_token_and_the_right_password(anonymous):
    assert anonymous.post("/login", data={"login": "admin", "password": "admin"}).status_code == 400
    assert log_in(anonymous, "admin", "wrong").status_code == 403
    assert log_in(anonymous, "ada", "").status_code == 403  # has no password, so none is right
    assert "Robin Vale" not in anonymous.get("/about").text.partition("<main")[0]


def test_passwords_are_kept_as_hashes(blog):
    with closing(sqlite3.connect(blog.config["DB"])) as connection:
        rows = connection.execute("SELECT login, password_hash FROM user WHERE password_hash NOT NULL").fetchall()
    assert {login for login, _ in rows} == {"admin", "reader"}
    assert all(login not in password_hash for login, password_hash in rows)


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "evil"])
def test_the_login_leads_nowhere_else(anonymous, target):
    assert log_in(anonymous, "admin", "admin", next=target).headers["Location"] == "/"


def test_logging_out_needs_the_token_and_forgets_the_user(admin):
    assert admin.post("/logout").status_code == 400
    assert admin.post("/logout", data={"csrf": token_in(admin.get("/").text)}).status_code == 303
    assert admin.get("/admin").headers["Location"] == "/login?next=/admin"


def test_a_reader_with_an_account_is_not_the_administrator(anonymous):
    log_in(anonymous, "reader", "reader")
    assert anonymous.get("/admin").status_code == 403
    assert anonymous.post("/admin/posts", data={"title": "x"}).status_code == 403


def test_a_new_post_is_escaped_and_found_under_its_tags(admin, anonymous):
    form = {"title": "Hé <b>!", "summary": "s & t", "tags": "New Tag, web", "body": "a `<i>`\r\n\r\n    <pre>"}
    made = admin.post("/admin/posts", data={"csrf": token_in(admin.get("/admin").text), **form})
    assert (made.status_code, made.headers["Location"]) == (303, "/posts/h-b")
    page = anonymous.get("/posts/h-b").text
    assert "<p>a <code>&lt;i&gt;</code></p>" in page
    assert "<code>&lt;pre&gt;</code></pre>" in page
    assert "Hé &lt;b&gt;!" in page
    assert "<b>" not in page
    assert "/posts/h-b" in anonymous.get("/tags/new-tag").text


@pytest.mark.parametrize("form", [{}, {"name": "x"}, {"name": " ", "body": "y"}, {"name": "x", "body": "y" * 5000}])
def test_a_comment_that_lacks_something_is_given_back(anonymous, form):
    answer = anonymous.post("/posts/what-vary-says/comments", data=form)
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text


def test_commenting_under_a_name_of_ours_needs_the_token(admin):
    assert admin.post("/posts/what-vary-says/comments", data={"body": "y"}).status_code == 400


@pytest.mark.parametrize(
    ("options", "named"),
    [({"SLOW": "soon"}, "BLOG_SLOW"), ({"REVALIDATE": -1}, "BLOG_REVALIDATE"), ({"SLOW": 3}, "BLOG_TIMEOUT")],
)
def test_an_impossible_option_is_an_error_at_start_that_names_it(tmp_path, options, named):
    with pytest.raises(ValueError, match=named):
        create_app(DB=str(tmp_path / "blog.sqlite3"), **options)


def test_faults_are_off_unless_a_directory_is_named(tmp_path):
    (tmp_path / "fail").touch()
    sound = create_app(DB=str(tmp_path / "blog.sqlite3"), SLOW=0)
    faulty = create_app(DB=str(tmp_path / "blog.sqlite3"), SLOW=0, FAULTS=str(tmp_path))
    assert sound.test_client().get("/about").status_code == 200
    assert faulty.test_client().get("/about").status_code == 500
    assert (tmp_path / "renders").read_text() == f"{os.getpid()} GET /about\n"


def test_processes_that_start_at_once_fill_the_database_once(tmp_path):
    path = tmp_path / "new" / "blog.sqlite3"
    code = "import sys; from examples.blog_flask.blog import create_app; print(create_app(DB=sys.argv[1]).secret_key)"
    started = [
        subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    keys = {process.communicate(timeout=60)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(keys) == 1
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM post").fetchone() == (12,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
