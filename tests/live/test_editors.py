"""An editor saves while a node of the cache is unreachable: no error, and all changes show once the node is back.

The delivery needs no request and no command. The journal has the invalidations that the node has missed, and the
processes of the app deliver them by themselves.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.parts import processes
from examples.blog_flask.browser import Browser
from tests.live.support.server import FROM_OUTSIDE, ROOT, Gunicorn
from tests.live.support.waiting import until
from tests.live.test_django_example import CELLO, Form, Visitor
from tests.support.memcached import Memcached
from wsgi_isr import InvalidationError, Receipt, invalidate
from wsgi_isr.cache.journal import Journal
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.stores import open_store

#: Seconds for the delivery once the node is back.
PROMISED = 5.0
SAVES = 10


class Nodes(NamedTuple):
    """Two nodes: the tag of all lists, ``posts`` or ``events``, is on the first, which will be unreachable."""

    away: Memcached
    other: Memcached
    store: str
    namespace: str
    journal: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "WSGI_ISR_STORE": self.store,
            "WSGI_ISR_NAMESPACE": self.namespace,
            "WSGI_ISR_JOURNAL": str(self.journal),
            "WSGI_ISR_COHERENCE": "0",
        }

    def tags_at(self, node: Memcached, *tags: str) -> list[bytes]:
        """Return a node's values of some tags."""
        return [line for tag in tags for line in node.say(f"get {Keyspace(self.namespace).tag(f'tag:{tag}')}")]

    def delivered(self) -> bool:
        return self.journal.exists() and Journal(str(self.journal)).is_empty()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    first, second = Memcached(), Memcached()
    try:
        store = f"memcached://{first.name},{second.name}"
        opened = open_store(store)

        def may_serve(namespace: str) -> bool:
            return {opened.node_of(Keyspace(namespace).tag(f"tag:{tag}")) for tag in ("posts", "events")} == {
                first.name
            }

        namespace = next(filter(may_serve, (f"site{number}" for number in count())))
        opened.close()
        yield Nodes(first, second, store, namespace, tmp_path / "journal")
    finally:
        second.kill()
        first.kill()


class Editor(NamedTuple):
    """An editor who saves in one of the examples.

    :param save: saves for the n-th time; returns the status of the answer.
    :param shows: the words that the list then has.
    """

    save: Callable[[int], int]
    shows: Callable[[int], str]


def blogger(port: int) -> Editor:
    browser = Browser(port)
    assert browser.log_in("admin", "admin").status == 303
    token = browser.get("/admin").csrf

    def save(number: int) -> int:
        form = {"title": f"Saved nr {number}", "summary": f"Summary {number}.", "tags": "caching", "body": "Hello."}
        return browser.post("/admin/posts", csrf=token, **form).status

    return Editor(save, lambda number: f"Saved nr {number}")


def librarian(port: int) -> Editor:
    """Return an editor who uses Django's admin."""
    browser = Visitor(port)
    page = "/admin/login/"
    assert browser.post(
        page, **{**Form(browser.get(page).body).fields, "username": "librarian", "password": "librarian"}
    )
    (number,) = re.findall(r'/admin/library/event/(\d+)/change/">A cello', browser.get("/admin/library/event/").body)
    page = f"/admin/library/event/{number}/change/"
    fields = Form(re.sub(r"(?s)<form[^>]*logout.*?</form>", "", browser.get(page).body)).fields
    fields = {name: value for name, value in fields.items() if name not in ("_addanother", "_continue")}

    def save(number: int) -> int:
        return browser.post(page, **{**fields, "title": f"A cello, saved nr {number}"}).status

    return Editor(save, lambda number: f"A cello, saved nr {number}")


class Site(NamedTuple):
    """One of the examples.

    :param kept: pages that show the saved change.
    :param saved: the status of the answer to a form.
    """

    target: str
    edit: Callable[[int], Editor]
    kept: tuple[str, ...]
    saved: int
    env: Callable[[Path], Mapping[str, str]]


SITES = {
    "blog": Site(
        "examples.blog_flask:app",
        blogger,
        ("/", "/tags/caching"),
        303,
        lambda path: {"BLOG_DB": f"{path}/blog.sqlite3"},
    ),
    "django admin": Site(
        "examples.site_django.wsgi:application",
        librarian,
        ("/", CELLO),
        302,
        lambda path: {"LIBRARY_DATA": f"{path}/data"},
    ),
}


@pytest.mark.parametrize("fault", ["hangs", "is killed"])
@pytest.mark.parametrize("then", ["nothing", "the workers are killed", "gunicorn is killed"])
@pytest.mark.parametrize("name", SITES)
def test_what_is_saved_while_a_node_is_away_is_seen_once_it_is_back(
    name: str, then: str, fault: str, nodes: Nodes, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    site = SITES[name]
    env = {**site.env(tmp_path), **nodes.env}

    def serve(is_asked: bool) -> Gunicorn:
        return Gunicorn(tmp_path / "log", env, site.target, is_asked=is_asked)

    server = serve(is_asked=True)
    with server:
        editor = site.edit(server.port)
        for page in site.kept:
            until(lambda page=page: Browser(server.port).get(page).verdict == "HIT", f"a kept page at {page}")

        (nodes.away.pause if fault == "hangs" else nodes.away.kill)()
        began = time.monotonic()
        assert [editor.save(number) for number in range(SAVES)] == [site.saved] * SAVES
        saving = time.monotonic() - began
        assert not nodes.delivered()

        if then == "the workers are killed":
            for worker in server.workers():
                server.kill(worker)
            server.wait_for_workers()
        if then == "gunicorn is killed":
            server.kill_all()
            server = serve(is_asked=False)
            server.__enter__()
        try:
            back = time.monotonic()
            (nodes.away.resume if fault == "hangs" else nodes.away.start)()
            until(nodes.delivered, "an empty journal", PROMISED)
            took = time.monotonic() - back
            for page in site.kept:
                # Enough answers for each worker; none shows the previous page.
                seen = [Browser(server.port).get(page) for _ in range(8)]
                assert {answer.status for answer in seen} == {200}
                assert all(editor.shows(SAVES - 1) in answer.body for answer in seen)
                assert "DEGRADED" not in {answer.verdict for answer in seen}
            log = server.log.read_text()
            assert f"it is kept in {nodes.journal}, and delivered when the node is back" in log
            assert "Traceback" not in log
        finally:
            if then == "gunicorn is killed":
                server.__exit__(None, None, None)
    figure(f"{SAVES} saves in {saving:.1f} s, each a {site.saved}; delivered {took:.1f} s after the node was back")


# Before any request -------------------------------------------------------------------------------------


def miss(nodes: Nodes) -> Receipt:
    """Put an invalidation into the journal, and bring the node back."""
    with nodes.away.paused():
        receipt = invalidate(tags=["posts"], store=nodes.store, namespace=nodes.namespace, journal=str(nodes.journal))
    assert receipt.pending == ("tag:posts",)
    return receipt


def connections(pid: int, nodes: Nodes) -> list[str]:
    """Return the connections of a process to a node (proc_net_tcp(5))."""
    ports = {f"{node.port:04X}" for node in (nodes.away, nodes.other)}
    own = {name.removeprefix("socket:[").removesuffix("]") for name in processes.open_files(pid)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[2] for row in rows if row[2].partition(":")[2] in ports and row[9] in own]


HOOKS = ("-m", "gunicorn", "--config", "python:wsgi_isr.gunicorn")
NO_HOOKS = ("-m", "gunicorn")


@pytest.mark.parametrize(
    ("worker_class", "preload", "program"),
    [
        ("gthread", False, HOOKS),
        ("gthread", True, HOOKS),
        ("gthread", True, NO_HOOKS),
        ("sync", False, NO_HOOKS),
        ("gevent", False, NO_HOOKS),
        ("gevent", True, HOOKS),
    ],
    ids=lambda value: {HOOKS: "hooks", NO_HOOKS: "no hooks", True: "preload", False: "-"}.get(value, value),
)
def test_a_server_that_nobody_asks_delivers_what_an_earlier_one_has_kept(
    worker_class: str, preload: bool, program: tuple[str, ...], nodes: Nodes, tmp_path: Path
) -> None:
    miss(nodes)
    env = {**nodes.env, "BLOG_DB": f"{tmp_path}/blog.sqlite3"}
    with Gunicorn(
        tmp_path / "log",
        env,
        "examples.blog_flask:app",
        worker_class=worker_class,
        preload=preload,
        program=program,
        is_asked=False,
    ) as server:
        until(nodes.delivered, "an empty journal", PROMISED)
        assert nodes.tags_at(nodes.away, "posts")[0].startswith(b"VALUE")
        if preload:
            # The master has neither thread nor connection.
            assert processes.threads(server.pid) == 1
            assert connections(server.pid, nodes) == []
        assert server.complaints() == []
        assert server.stop() == 0


SINGLE = """
import os, sys
from wsgiref.simple_server import make_server
from wsgi_isr import ISR

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

with make_server("127.0.0.1", 0, ISR(app, revalidate=60)) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


def test_a_server_of_one_process_delivers_as_well(nodes: Nodes) -> None:
    miss(nodes)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
    process = subprocess.Popen(
        [sys.executable, "-c", SINGLE], env={**inherited, **nodes.env}, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip().isdecimal()
            until(nodes.delivered, "an empty journal", PROMISED)
        finally:
            process.send_signal(signal.SIGKILL)


def test_without_a_journal_it_is_an_error(nodes: Nodes) -> None:
    with nodes.away.paused(), pytest.raises(InvalidationError):
        invalidate(tags=["posts"], store=nodes.store, namespace=nodes.namespace, journal=False)
    assert not nodes.journal.exists()
