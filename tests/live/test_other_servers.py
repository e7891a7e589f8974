"""The plain middleware without hooks: under uWSGI, with and without ``--lazy-apps``, under waitress and granian."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live.support.origin import Origin
from tests.live.support.other import SERVERS, Other, running
from tests.live.support.uploads import SENT
from tests.live.support.visitor import HOST, SITE, Answer, Crowd, ask
from tests.live.support.waiting import until
from tests.live.support.windows import check_one_render_in_each
from wsgi_isr import invalidate

MEASURED = "tests.live.support.measured:application"
UPLOADS = "tests.live.support.uploads:application"
#: Servers with ``wsgi.file_wrapper``.
WITH_FILE_WRAPPER = ("uwsgi", "uwsgi-lazy-apps", "waitress")

every_server = pytest.mark.parametrize("kind", SERVERS)


@pytest.fixture
def env(origin: Origin, store: str) -> dict[str, str]:
    return {**origin.env, "WSGI_ISR_STORE": store, "WSGI_ISR_REVALIDATE": "3600", "WSGI_ISR_COHERENCE": "0"}


@pytest.fixture
def server(kind: str, env: dict[str, str], tmp_path: Path) -> Iterator[Other]:
    """Yield a server of the app with uploads and files."""
    with running(kind, tmp_path / "log", env, UPLOADS) as server:
        yield server


class Sent(NamedTuple):
    """An answer as an HTTP client reads it."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def verdict(self) -> str | None:
        return self.headers["X-ISR"]


def send(server: Other, method: str, path: str, body: bytes | None = None, **headers: str) -> Sent:
    """Send one request and return the answer."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=10)
    with closing(connection):
        connection.request(method, path, body, {"Host": SITE, "Connection": "close", **headers})
        answer = connection.getresponse()
        return Sent(answer.status, answer.headers, answer.read())


@every_server
def test_all_processes_share_one_render_in_each_window_made_in_the_background(
    kind: str, origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    env |= {"WSGI_ISR_REVALIDATE": "0.5", "LIVE_SLOW": "0.2"}
    with running(kind, tmp_path / "log", env, MEASURED) as server:
        with Crowd([server.port], clients=4) as crowd:
            until(lambda: len(origin.renders()) > 4, "four windows")
        renders = origin.settled()
        assert server.stop() in (0, -signal.SIGTERM)  # waitress has no handler
        assert server.group() == []
    assert crowd.errors() == []
    check_one_render_in_each(renders, crowd.answers, 0.5)
    later = {render.name: render.thread for render in renders[1:]}
    assert set(later.values()) == {"wsgi-isr-render"}
    assert {answer.verdict for answer in crowd.answers if answer.render in later} <= {"HIT", "STALE"}
    if kind != "waitress":
        assert len({answer.worker for answer in crowd.answers}) == 2


@every_server
def test_a_visitor_gets_the_stale_page_while_a_new_one_is_rendered(
    kind: str, origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    env |= {"WSGI_ISR_REVALIDATE": "0.5"}
    with running(kind, tmp_path / "log", env, MEASURED) as server:
        old = ask(server.port)
        assert (old.verdict, ask(server.port).verdict) == ("MISS", "HIT")
        origin.hold()

        def stale() -> Answer | None:
            answer = ask(server.port)
            return answer if answer.verdict == "STALE" else None

        assert until(stale, "a stale page").render == old.render
        origin.held()
        assert ask(server.port).render == old.render
        origin.release()
        until(lambda: ask(server.port).render != old.render, "the new page")


@every_server
def test_an_invalidation_by_another_process_holds_for_the_next_request(
    kind: str, origin: Origin, env: dict[str, str], store: str, tmp_path: Path
) -> None:
    with running(kind, tmp_path / "log", env, MEASURED) as server:
        old = ask(server.port)
        until(lambda: {ask(server.port).verdict for _ in range(8)} == {"HIT"}, "hits")
        invalidate(paths=["/"], store=store)
        new = ask(server.port)
        assert (new.verdict, new.render != old.render) == ("EXPIRED", True)
        assert {ask(server.port).render for _ in range(8)} == {new.render}
    assert len(origin.settled()) == 2


@every_server
def test_a_post_reaches_the_app_with_its_body_and_invalidates_its_page(server: Other) -> None:
    assert send(server, "GET", "/a").verdict == "MISS"
    assert send(server, "GET", "/a").verdict == "HIT"
    body = os.urandom(300_000)
    answer = send(server, "POST", "/a", body)
    assert (answer.status, answer.verdict) == (200, "BYPASS")
    assert answer.body == hashlib.sha256(body).hexdigest().encode()
    assert send(server, "GET", "/a").verdict == "EXPIRED"


@every_server
def test_head_sends_the_headers_of_the_page_and_no_body(server: Other) -> None:
    page = send(server, "GET", "/a")
    head = send(server, "HEAD", "/a")
    assert (head.status, head.verdict, head.body) == (200, "HIT", b"")
    assert head.headers["ETag"] == page.headers["ETag"]
    assert head.headers["Content-Length"] == str(len(page.body))


@every_server
def test_a_path_in_utf_8_is_one_page(server: Other) -> None:
    path = "/caf%C3%A9/%E2%82%AC"
    page = send(server, "GET", path)
    again = send(server, "GET", path.lower())
    assert (page.verdict, again.verdict) == ("MISS", "HIT")
    assert again.body == page.body


@every_server
def test_files_are_sent_by_the_server_itself_or_kept_as_a_page(kind: str, server: Other) -> None:
    whole = SENT.read_bytes()
    private = send(server, "GET", "/private")
    assert (private.status, private.body) == (200, whole)
    page, again = send(server, "GET", "/file"), send(server, "GET", "/file")
    assert (page.body, again.body) == (whole, whole)
    assert again.verdict == "HIT"
    # A logged-in visitor's request is the app's own: it gets the wrapper of the server.
    own = send(server, "GET", "/file", Authorization="Basic eA==")
    assert (own.body, own.verdict) == (whole, "BYPASS")
    assert own.headers["X-File-Wrapper"] == ("yes" if kind in WITH_FILE_WRAPPER else "no")


@pytest.mark.parametrize("kind", ["uwsgi", "uwsgi-lazy-apps"])
def test_uwsgi_finishes_and_stores_the_page_it_renders_before_it_stops(
    kind: str, origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    env |= {"WSGI_ISR_REVALIDATE": "0.5"}
    with running(kind, tmp_path / "log", env, MEASURED) as server:
        ask(server.port)
        origin.hold()
        until(lambda: ask(server.port).verdict == "STALE", "a stale page")
        worker = origin.held()
        server.ask_to_stop()
        time.sleep(1)  # longer than an idle worker takes
        assert worker in {process.pid for process in server.group()}, "the worker did not wait for its render"
        origin.release()
        assert server.wait_for_stop() == 0
    _, new = origin.settled()
    with running(kind, tmp_path / "log", env, MEASURED) as server:
        assert ask(server.port).render == new.name, "the page that was rendered during the stop is not in the store"
