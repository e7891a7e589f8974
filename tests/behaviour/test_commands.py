"""The commands that need the app: ``prerender``, ``refresh`` and ``invalidate --refresh``, and their output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from wsgi_isr.commands.main import main
from wsgi_isr.commands.prerender import EVERY, lines

APP = """
from wsgi_isr import ISR, Rule
print("the app says hello")
calls = []
def bare(environ, start_response):
    calls.append(environ["HTTP_HOST"] + environ["PATH_INFO"])
    bad = environ["PATH_INFO"] == "/bad"
    start_response("500 Oh No" if bad else "200 OK", [("Content-Type", "text/html")])
    return [b'<a href="/bad">%d</a>' % len(calls)]
class Around:
    def __init__(self, app):
        self.app = app
    def __call__(self, *request):
        return self.app(*request)
app = Around(ISR(bare, {"/": Rule(60, paths=["/"]), "/<slug>": 60}))
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def app_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a folder with the app the current one."""
    (tmp_path / "theapp.py").write_text(APP)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WSGI_ISR_STORE", f"sqlite:///{tmp_path}/store.db")
    yield
    for name in ("theapp", "broken"):
        sys.modules.pop(name, None)


def run(*arguments: str) -> Said:
    """Run one command as in a new process."""
    sys.modules.pop("theapp", None)
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return Said(result.exit_code, result.stdout, result.stderr)


def calls() -> list[str]:
    found: list[str] = sys.modules["theapp"].calls
    return found


def test_prerender_says_what_it_did_on_stdout_and_for_whom_on_stderr() -> None:
    said = run("prerender", "theapp:app")
    assert said.code == 0
    assert "http://localhost: 1 rendered, 0 already there, 0 skipped, 0 failed" in said.out
    assert "visitors of another host do not get them" in said.err
    assert "the app says hello" in said.err
    assert run("prerender", "theapp:app", "--quiet").out == ""
    assert calls() == []


def test_prerender_names_failures_and_who_links_to_them() -> None:
    said = run("prerender", "theapp:app", "--crawl", "--url", "https://example.com")
    assert (said.code, "failed: /bad: status-500 (linked from /)\n" in said.err) == (1, True)
    assert calls() == ["example.com/", "example.com/bad"]


def test_prerender_has_an_object_for_machines() -> None:
    said = run("prerender", "theapp:bare", "/a", "--json", "--url", "https://example.com/docs")
    report = json.loads(said.out)
    assert report.pop("seconds") >= 0
    counts = {
        "rendered": 0,
        "there": 0,
        "left": 0,
        "beyond": 0,
        "assets": 0,
        "written": 0,
        "unchanged": 0,
        "removed": 0,
    }
    skipped = [{"path": "/docs/a", "reason": "not-asked", "linked_from": []}]
    site = "https://example.com/docs"
    assert report == {"ok": True, "site": site, "skipped": skipped, "failed": [], "interrupted": False, **counts}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["theapp:bare"], "no page is named"),
        (["theapp"], "is not module:attribute"),
        (["nothing:app"], "does not import"),
        (["broken:app"], "raised ZeroDivisionError"),
        (["theapp:app", "blog"], "is not a path"),
        (["theapp:app", "--url", "example.com"], "is not scheme and host"),
        (["theapp:app", "--export", "theapp.py"], "theapp.py"),
        (["theapp:app", "--jobs", "0"], "--jobs"),
        (["theapp:app", "--nonsense"], "--nonsense"),
        ([], "MODULE:APP"),
    ],
)
def test_prerender_that_is_called_wrongly_says_so_in_one_line(arguments: list[str], problem: str) -> None:
    code, out, err = run("prerender", *arguments)
    assert (code, out) == (2, "")
    assert problem in err.splitlines()[-1]


@pytest.mark.parametrize("store", ["memory://", "null://"])
def test_a_store_that_nobody_else_sees_is_only_for_an_export(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_ISR_STORE", store)
    code, _, err = run("prerender", "theapp:app")
    assert (code, f"{store} is seen by no other process" in err) == (2, True)
    said = run("prerender", "theapp:app", "--export", "out")
    assert (said.code, "out: 2 files, 2 of them new or changed" in said.out) == (0, True)
    assert Path("out/index.html").read_bytes().startswith(b'<a href="/bad">')


def test_refresh_renders_now_and_names_what_could_not_be() -> None:
    url = ("--url", "https://example.com")
    assert run("refresh", "theapp:app", "/", "/x", *url).out == "/: rendered, changed\n/x: rendered, changed\n"
    code, out, err = run("refresh", "theapp:app", "/bad", "/x", *url)
    assert (code, out) == (1, "/x: rendered, the same as before\n")
    assert "/bad was not refreshed: status-500\n" in err
    said = run("refresh", "theapp:app", "/", "/new", "--only-if-cached", "--json", *url)
    new = {"path": "/new", "ok": True, "changed": False, "cached": False}
    assert json.loads(said.out) == {"ok": True, "pages": [{"path": "/", "ok": True, "changed": False}, new]}
    assert calls() == ["example.com/"]


def test_refresh_of_what_is_no_path_does_nothing() -> None:
    code, _, err = run("refresh", "theapp:app", "/", "x")
    assert (code, "'x' is not a path" in err) == (2, True)
    assert "theapp" not in sys.modules


def test_invalidate_may_render_the_pages_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    run("prerender", "theapp:app")
    said = run("invalidate", "--path", "/", "--refresh", "--app", "theapp:app")
    where = f"in sqlite:///{os.getcwd()}/store.db, namespace 'default': acknowledged by 1 of 1 node"
    assert (said.code, said.out.splitlines()) == (
        0,
        ["invalidated (expire): path:/", where, "/: rendered, the same as before"],
    )
    monkeypatch.setenv("WSGI_ISR_APP", "theapp:app")
    said = run("invalidate", "--path", "/bad", "--tag", "x", "--refresh", "--json")
    told = json.loads(said.out)
    assert (said.code, told["ok"], told["tags"], told["pages"][0]["path"]) == (1, False, ["tag:x", "path:/bad"], "/bad")
    # A command that renders nothing does not load the app that the variable names.
    sys.modules.pop("theapp")
    assert run("invalidate", "--path", "/").code == 0
    assert "theapp" not in sys.modules


def test_without_a_named_store_the_app_of_the_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    run("prerender", "theapp:app")
    store = os.environ["WSGI_ISR_STORE"]
    monkeypatch.delenv("WSGI_ISR_STORE")
    code, _, err = run("invalidate", "--path", "/")
    assert (code, "write --app myapp:app" in err) == (2, True)
    Path("theapp.py").write_text(APP.replace('"/<slug>": 60}', f'"/<slug>": 60}}, store={store!r}'))
    monkeypatch.setenv("WSGI_ISR_APP", "theapp:app")
    assert run("invalidate", "--path", "/").code == 0


def test_a_command_says_where_it_has_invalidated_and_what_may_be_wrong_with_it() -> None:
    run("prerender", "theapp:app")
    store = f"sqlite:///{os.getcwd()}/store.db"
    code, out, err = run("invalidate", "--path", "/")
    assert (code, out.splitlines()[1], err) == (0, f"in {store}, namespace 'default': acknowledged by 1 of 1 node", "")
    wrong = ("--path", "/", "--namespace", "shop")
    code, out, err = run("invalidate", *wrong)
    assert (code, f"in {store}, namespace 'shop'" in out) == (0, True)
    assert err == (
        f"warning: no app has used the namespace 'shop' of {store} yet: write namespace='default' "
        "(WSGI_ISR_NAMESPACE, --namespace)\n"
    )
    told = json.loads(run("invalidate", "--json", *wrong).out)
    assert (told["ok"], told["store"], told["namespace"], told["nodes"]) == (True, store, "shop", ["local"])
    assert (told["acknowledged"], told["pending"], len(told["warnings"])) == (["local"], [], 1)


@pytest.mark.parametrize("store", ["memory://", "null://"])
def test_without_a_cache_an_invalidation_is_a_success_that_says_so(store: str) -> None:
    code, out, err = run("invalidate", "--tag", "x", "--store", store)
    assert (code, out) == (0, "")
    assert err.startswith(f"nothing done: {store} ")
    assert json.loads(run("invalidate", "--tag", "x", "--store", store, "--json").out)["ok"] is True
    assert run("replay", "--store", store).out == "nothing is waiting\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--path", "/", "--refresh"], "write --app"),
        (["--tag", "x", "--refresh", "--app", "theapp:app"], "no page is named"),
        (["--path", "/", "--app", "theapp:app", "--store", "memory://"], "--store: the app has its own"),
        (["--refresh", "--app", "theapp:app", "--path", "x"], "is not a path"),
    ],
)
def test_invalidate_with_a_refresh_that_makes_no_sense_is_wrong_usage(arguments: list[str], problem: str) -> None:
    code, _, err = run("invalidate", *arguments)
    assert (code, problem in err) == (2, True)


def test_a_log_gets_a_line_of_progress_every_few_seconds() -> None:
    class Run:
        stopping = False

    said: list[str] = []
    now, running = 0.0, Run()
    show = lines(running, said.append, lambda: now)  # type: ignore[arg-type]
    for second in range(12):
        now = float(second)
        show(10 * second, 200, "/a")
    assert said == [
        f"prerender: {10 * at}/200 ({5 * at}%), 10.0/s, {20 - at} s left, at /a" for at in (int(EVERY), 2 * int(EVERY))
    ]
    running.stopping = True
    show(120, 200, "")
    show(120, 200, "")
    assert [line for line in said if line.startswith("stopping")] == [said[-1]]
