"""The example of several hundred pages: under gunicorn, and each page of it by itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from werkzeug.test import Client

from examples.pydoc_bottle import catalogue
from examples.pydoc_bottle.caching import RULES, module_params, package_params, pages_of
from examples.pydoc_bottle.search import MOST, search
from examples.pydoc_bottle.site import site
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Answer, ask
from wsgi_isr import ISR

ROOT = Path(__file__).resolve().parents[2]
#: Parts of the modules; each worker of pytest-xdist may take some parts.
PARTS = 6
every_part = pytest.mark.parametrize("part", range(PARTS))

# Many modules of the standard library are deprecated, and warn when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# Under gunicorn


class Site(Gunicorn):
    def __init__(self, tmp_path: Path, env: Mapping[str, str]) -> None:
        super().__init__(tmp_path / "log", env, "examples.pydoc_bottle:app")


@pytest.fixture
def env(store: str) -> Mapping[str, str]:
    return {"WSGI_ISR_STORE": store, "WSGI_ISR_COHERENCE": "0"}


def verdicts(server: Gunicorn, *paths: str) -> list[str]:
    answers = [ask(server.port, path) for path in paths]
    assert {answer.status for answer in answers} == {200}
    return [answer.verdict for answer in answers]


def upgrade(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WSGI_ISR_", "PYTHONWARN"))}
    command = [sys.executable, "-m", "examples.pydoc_bottle.upgrade", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**inherited, **env}, capture_output=True, text=True, timeout=60)


def test_a_page_is_rendered_once_and_then_kept(env, tmp_path):
    with Site(tmp_path, env) as server:
        for path in ("/module/json.decoder", "/module/os", "/package/json", "/search?q=json", "/about", "/"):
            first, *others = [ask(server.port, path) for _ in range(6)]
            assert (first.status, first.verdict) == (200, "MISS")
            assert {(other.status, other.verdict, other.body) for other in others} == {(200, "HIT", first.body)}
            assert stamp(first)[1] in server.workers()
        assert ask(server.port, "/static/site.css").headers["content-type"].startswith("text/css")
        assert server.stop() == 0
        assert server.complaints() == []


def test_the_upgrade_of_a_package_invalidates_its_pages_and_the_index_alone(env, tmp_path):
    of_json = ["/module/json", "/module/json.decoder", "/package/json", "/"]
    of_others = ["/module/email.message", "/package/email", "/module/os", "/search?q=json"]
    with Site(tmp_path, env) as server:
        verdicts(server, *of_json, *of_others)
        assert set(verdicts(server, *of_json, *of_others)) == {"HIT"}
        job = upgrade("json", **env)
        assert job.returncode == 0, job.stderr
        assert re.fullmatch(r"json was upgraded: invalidated tag:package:json, tag:index in \d+ ms\.\n", job.stdout)
        assert verdicts(server, *of_others) == ["HIT"] * 4
        assert verdicts(server, *of_json) == ["EXPIRED"] * 4
        assert verdicts(server, *of_json) == ["HIT"] * 4


def test_a_search_is_one_page_however_its_query_is_spelled(env, tmp_path):
    same = [
        "q=xml+parser",
        "q=xml%20parser",
        "%71=x%6Dl+parser",
        "utm_source=mail&q=xml+parser",
        "q=xml+parser&gclid=1",
    ]
    with Site(tmp_path, env) as server:
        assert verdicts(server, *(f"/search?{query}" for query in same)) == ["MISS", "HIT", "HIT", "HIT", "HIT"]
        assert b"xml.parsers.expat" in ask(server.port, f"/search?{same[0]}").body
        assert verdicts(server, "/search?q=json", "/search?q=json", "/search") == ["MISS", "HIT", "MISS"]
        other = ask(server.port, "/search?q=xml+parser&page=2")
        assert (other.status, other.verdict) == (200, "BYPASS")
        assert 'detail="query"' in other.headers["cache-status"]


def test_a_module_that_is_not_there_is_a_404_with_a_page_of_its_own(env, tmp_path):
    with Site(tmp_path, env) as server:
        for path in ("/module/jsn", "/package/jsn", "/nowhere"):
            first, second = ask(server.port, path), ask(server.port, path)
            assert (first.status, second.status, second.verdict) == (
                404,
                404,
                "HIT" if path != "/nowhere" else "BYPASS",
            )
            assert b"<h1>Not here</h1>" in first.body
        assert b'href="/module/json"' in ask(server.port, "/module/jsn").body


def stamp(answer: Answer) -> tuple[str, int]:
    found = re.search(rb'id="rendered-at" datetime="([^"]+)".*?id="rendered-by">(\d+)<', answer.body, re.DOTALL)
    assert found is not None
    return found[1].decode(), int(found[2])


# The job


def test_the_job_says_what_it_does_not_know():
    unknown = upgrade("jsn", WSGI_ISR_STORE="sqlite:///nowhere.db")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "There is no package 'jsn'. Did you mean json?\n"
    homeless = upgrade("json")
    assert (homeless.returncode, homeless.stdout) == (2, "")
    assert "WSGI_ISR_STORE" in homeless.stderr


# The site without a cache


@cache
def get(path: str) -> str:
    answer = Client(site).get(path, buffered=True)
    assert answer.status_code == 200, path
    assert answer.content_type == "text/html; charset=UTF-8"
    return answer.text


def names_of(part: int) -> list[str]:
    return [params["name"] for params in module_params()][part::PARTS]


class Page(HTMLParser):
    """Check a page against rules of HTML that are easily broken here, and collect its links.

    :raises AssertionError: it breaks one.
    """

    VOID = frozenset({"meta", "link", "img", "input", "br", "wbr", "hr"})
    KNOWN = VOID | {
        *("html", "head", "title", "body", "header", "main", "footer", "nav", "section", "div", "p", "span"),
        *("h1", "h2", "h3", "h4", "ul", "li", "dl", "dt", "dd", "a", "strong", "em", "code", "time"),
        *("details", "summary", "form", "label", "button"),
    }

    def __init__(self, path: str, html: str) -> None:
        super().__init__(convert_charrefs=False)
        self.path, self.links = path, set[str]()
        self._open: list[str] = []
        self._ids = set[str]()
        self._seen: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], path
        assert html.startswith("<!doctype html>\n<html lang=")
        assert '<meta name="viewport" content="width=device-width' in html
        assert [self._seen.count(tag) for tag in ("title", "main", "h1")] == [1, 1, 1], path
        assert self._seen.count("link") == 2, "the style sheet and the icon"
        missing = {link for link in self.links if link.startswith("#")} - {f"#{name}" for name in self._ids}
        assert not missing, path

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.KNOWN, f"{self.path}: <{tag}>"
        given = dict(attrs)
        assert "p" not in self._open or tag not in {"div", "p", "ul", "section", "h2"}, f"{self.path}: <{tag}> in <p>"
        assert "a" not in self._open or tag != "a", f"{self.path}: a link in a link"
        self._seen.append(tag)
        if tag not in self.VOID:
            self._open.append(tag)
        if name := given.get("id"):
            assert name not in self._ids, f"{self.path}: two have the id {name}"
            self._ids.add(name)
        self.links |= {value for name, value in attrs if name in ("href", "src", "action") and value}

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"{self.path}: </{tag}>"
        assert self._open.pop() == tag, f"{self.path}: </{tag}>"


def check(path: str) -> None:
    """Check that the page is valid, links to existing pages, and reveals nothing of its machine."""
    html = get(path)
    there = {"/", "/about", "/search", "/static/site.css", "/static/icon.svg"}
    there |= {f"/module/{params['name']}" for params in module_params()}
    there |= {f"/package/{params['name']}" for params in package_params()}
    outside = ("#", "https://", "http://")
    here = {link.partition("#")[0] for link in Page(path, html).links if not link.startswith(outside)}
    assert here <= there, path
    for place in (str(ROOT), str(Path.cwd()), sys.prefix, sysconfig.get_path("stdlib"), f"{Path.home()}/"):
        assert len(Path(place).parts) < 3 or place not in html, path


@every_part
def test_every_module_has_a_sound_page_with_links_that_lead_somewhere(part, capfd):
    for name in names_of(part):
        check(f"/module/{name}")
    assert capfd.readouterr() == ("", "")


RENDER = """
import json, sys
from werkzeug.test import Client
from examples.pydoc_bottle.site import site
names = json.load(sys.stdin)
json.dump({name: Client(site).get(f"/module/{name}").text for name in reversed(names)}, sys.stdout)
"""
#: Other values of everything that differs between processes.
ELSEWHERE = {
    "PYTHONHASHSEED": "1",
    "TZ": "Asia/Kathmandu",
    "PASSWORD": "correct-horse",
    "PYTHONDOCS": "https://docs.invalid",
}


def render_elsewhere(names: list[str], directory: Path, **env: str) -> dict[str, str]:
    run = subprocess.run(
        [sys.executable, "-c", RENDER, "battery-staple"],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, "HOME": str(directory), **env},
        input=json.dumps(names),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert not re.search("correct-horse|battery-staple|Kathmandu|docs.invalid", run.stdout)
    assert str(directory) not in run.stdout
    return {name: without_stamp(html) for name, html in json.loads(run.stdout).items()}


@every_part
def test_a_page_is_the_same_in_another_process_with_another_environment(part, tmp_path):
    # Two processes of their own: pydoc would show the changes of pytest and other tests to modules of this one.
    names = names_of(part)
    pages, others = render_elsewhere(names, tmp_path, **ELSEWHERE), render_elsewhere(list(reversed(names)), ROOT)
    assert [name for name in names if pages[name] != others[name]] == []


def without_stamp(html: str) -> str:
    page, found, _ = html.partition('<footer class="site">')
    assert found
    return page


SIDE_EFFECTS = """
import os, signal, sys, threading, locale

def state():
    handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    files = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
    return (dict(os.environ), os.getcwd(), list(sys.path), handlers, files, threading.enumerate(),
            locale.setlocale(locale.LC_ALL), sys.excepthook, sys.displayhook, os.listdir())

before = state()
from examples.pydoc_bottle import catalogue
known, loaded = catalogue.names(), set(sys.modules)
count = len(catalogue.modules())
assert state() == before
assert not {name for name in sys.modules if name.partition(".")[0] in catalogue.HARMFUL or name in catalogue.HARMFUL}
os.write(3, f"{len(loaded)} {len(known)} {count}".encode())
"""


def test_importing_all_modules_changes_nothing_and_says_nothing(tmp_path):
    reading, writing = os.pipe()
    code = SIDE_EFFECTS.replace("os.write(3,", f"os.write({writing},")
    env = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "TERM": "xterm"}
    with open(reading) as told:
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            pass_fds=[writing],
            timeout=60,
            check=False,
        )
        os.close(writing)
        numbers = told.read().split()
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
    loaded, known, count = map(int, numbers)
    assert loaded < 300, "the names alone need no imports"
    assert known >= count > 400


@pytest.mark.parametrize(
    "path",
    ["/", "/about", "/search", "/search?q=xml+parser", "/search?q=e", "/search?q=%3Cb%3E%22%27%26", "/search?q=%FF"],
)
def test_the_other_pages_are_sound_as_well(path):
    check(path)
    assert "<b>" not in get(path)


def test_every_package_has_a_page_with_all_of_its_modules():
    packages = [params["name"] for params in package_params()]
    assert {"asyncio", "concurrent", "email", "json", "xml"} <= set(packages)
    for name in packages:
        check(f"/package/{name}")
        listed = set(re.findall(r'href="/module/([^"]+)"', get(f"/package/{name}")))
        assert listed == {module.name for module in catalogue.modules() if module.package == name}
    assert "/module/concurrent.futures.thread" in get("/package/concurrent")
    assert "/package/json" in get("/")


@pytest.mark.parametrize("name", ["this", "antigravity", "idlelib.pyshell", "test.support", "json.tool.x", "os.path"])
def test_what_is_not_listed_is_never_imported(name):
    before = set(sys.modules)
    assert Client(site).get(f"/module/{name}").status_code == 404
    assert name not in set(sys.modules) - before


def test_names_of_all_kinds_get_a_404_that_can_be_shown():
    for path in (
        "/module/%3Cb%3E",
        "/module/..",
        "/module/%FF",
        "/package/json.decoder",
        "/package/os",
        "/static/../site.py",
    ):
        answer = Client(site).get(path, buffered=True)
        assert answer.status_code == 404, path
        Page(path, answer.text)
    assert Client(site).post("/").status_code == 405


def test_a_page_names_its_moment_and_its_process():
    html = get("/module/json")
    assert re.search(r'id="rendered-at" datetime="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"', html)
    assert f'id="rendered-by">{os.getpid()}<' in html


def test_a_search_finds_every_word_and_the_better_match_first():
    def found(query: str) -> list[str]:
        return [module.name for module in search(query).hits]

    assert found("json")[0] == "json"
    assert found("JSON  Decoder")[0] == "json.decoder"
    assert found("decoder")[0] == "json.decoder"
    assert "xml.parsers.expat" in found("xml pars")
    assert found("json no-such-word") == found(" ") == []
    everything = search("e")
    assert len(everything.hits) == MOST < everything.total


# The rules


def test_a_page_has_the_tags_of_its_package():
    rules = ISR(site, RULES, store="memory://").configuration.rules
    for path, tags in (
        ("/module/json.decoder", ["pydoc", "package:json"]),
        ("/module/json", ["pydoc", "package:json"]),
        ("/package/json", ["pydoc", "package:json"]),
        ("/", ["pydoc", "index"]),
    ):
        policy, params = rules.match(path)
        assert (
            list(policy.tags(params) if callable(policy.tags) else (t.format_map(params) for t in policy.tags)) == tags
        )
    assert set(pages_of("json")) == {"package:json", "index"}
