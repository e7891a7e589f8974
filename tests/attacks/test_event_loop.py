"""The event loop of the worker reads requests exactly as gunicorn does, or leaves them to gunicorn."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import create
from gunicorn.workers.gthread import ThreadWorker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.support import hostile_heads
from tests.support.workers import RunningWorker, configuration
from wsgi_isr import ISR
from wsgi_isr.pages.fingerprint import VARIABLES, fingerprint_of
from wsgi_isr.servers.call_path import CallPath
from wsgi_isr.servers.gunicorn_worker import Worker
from wsgi_isr.servers.loop_answers import Incomplete, LoopAnswers

#: The number of random requests for each configuration.
REQUESTS = 4000
NOW = 1_700_000_000.25
LOCAL, STRANGER, UNIX = ("127.0.0.1", 50000), ("192.0.2.77", 50000), ""


def site(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer with the parts of the request that an answer may depend on."""
    parts = (environ.get(name) for name in ("PATH_INFO", "QUERY_STRING", "HTTP_HOST", "wsgi.url_scheme", "SCRIPT_NAME"))
    shown = ["server" if str(each).startswith("127.0.0.1:") else str(each) for each in parts]  # without a Host
    body = f"<title>{'|'.join(shown)}</title>{'words ' * 200}".encode("latin-1", "replace")
    start_response("200 OK" if environ["PATH_INFO"] != "/other" else "404 Not Found", [("Content-Type", "text/html")])
    return [body] if environ["REQUEST_METHOD"] != "HEAD" else []


def cached_site() -> ISR:
    return ISR(site, {"/page/<name>": 3600, "/other": 3600}, store="memory://", clock=lambda: NOW)


class Wire:
    """A socket that records the bytes that gunicorn sends."""

    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data

    send = sendall


class Reading:
    """One request as gunicorn's own way reads and answers it.

    :raises Exception: gunicorn refuses it.
    """

    def __init__(self, cfg: Any, app: Any, data: bytes, peer: Any) -> None:
        parser = RequestParser(cfg, iter([data]), peer)
        request = next(parser)
        wire = Wire()
        response, self.environ = create(request, wire, peer, ("127.0.0.1", 8000), cfg)
        self.fingerprint: Any = None
        before = dict(self.environ)
        body = app(self.environ, response.start_response)
        for part in body:
            response.write(part)
        response.close()
        self.environ = {**before, **self.environ}
        assert parser.finish_body()
        self.rest = parser.unreader.take_buffered()
        self.sent, self.closes = wire.sent, response.should_close()


def without_date(sent: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", sent)


class Comparison:
    """The event loop and gunicorn's own way, with one app.

    :ivar answered: the number of requests that the loop has answered.
    """

    def __init__(self, cfg: Any, outer: Callable[[ISR], Any] = lambda isr: isr) -> None:
        self.cfg = cfg
        isr = cached_site()
        self.app = outer(isr)
        self.loop = LoopAnswers(cfg, CallPath(self.app))
        self.requests = self.answered = 0

    def compare(self, data: bytes, peer: Any) -> None:
        """Check that both agree on the request at the begin of ``data``, once its page is cached."""
        self.requests += 1
        for method in (b"GET", b"GET", None):  # the first renders the page, and the second prepares it
            asked = data.replace(b"HEAD", method) if method else data
            try:
                theirs: Reading | None = Reading(self.cfg, self.app, asked, peer)
            except Exception:  # StopIteration or NoMoreData included: an end, or a part of a head
                theirs = None
        try:
            found = self.loop.find(data, peer)
        except Incomplete:
            assert theirs is None, f"{data!r} is complete"
            return
        if found is None:
            return
        self.answered += 1
        assert theirs is not None, f"gunicorn refuses {data!r}"
        for closes in {found[3], theirs.closes}:
            ours = b"".join(self.loop.parts(found, closes))
            assert closes == theirs.closes, data
            assert without_date(ours) == without_date(theirs.sent), data
        assert data[found[-1] :] == theirs.rest, data
        head = self.loop._heads.read(data, peer)
        assert head is not None
        environ = head[0]
        self.loop._path.fix(environ)
        as_get = {**theirs.environ, "REQUEST_METHOD": "GET"}
        assert theirs.environ["REQUEST_METHOD"] == ("HEAD" if found[1] else "GET")
        assert fingerprint_of(environ) == fingerprint_of(as_get), data


CONFIGURATIONS: dict[str, tuple[dict[str, Any], Callable[[ISR], Any]]] = {
    "as it comes": ({}, lambda isr: isr),
    "behind a proxy": (
        {"forwarded_allow_ips": "*"},
        lambda isr: ProxyFix(isr, x_for=1, x_proto=1, x_host=1, x_port=1, x_prefix=1),
    ),
    "lax": (
        {
            "header_map": "dangerous",
            "casefold_http_method": True,
            "permit_unconventional_http_method": True,
            "permit_unconventional_http_version": True,
            "limit_request_line": 0,
        },
        lambda isr: isr,
    ),
    "strict": (
        {"limit_request_line": 60, "limit_request_fields": 4, "limit_request_field_size": 40, "header_map": "refuse"},
        lambda isr: isr,
    ),
    "other schemes": (
        {"secure_scheme_headers": {"X-FORWARDED-SSL": "on", "X_FORWARDED_PROTO": "https"}, "forwarder_headers": "*"},
        lambda isr: ProxyFix(isr),
    ),
}


@pytest.fixture(params=CONFIGURATIONS)
def comparison(request: pytest.FixtureRequest) -> Comparison:
    options, outer = CONFIGURATIONS[request.param]
    return Comparison(configuration(**options), outer)


def test_the_loop_reads_random_requests_as_gunicorn_does(comparison: Comparison, figure: Callable[[str], None]) -> None:
    choose = random.Random(27)
    for _ in range(REQUESTS):
        comparison.compare(hostile_heads.stream(choose, most=2), choose.choice([LOCAL, STRANGER, UNIX]))
    figure(f"{comparison.requests} requests, of which the loop answered {comparison.answered}")
    assert comparison.answered > REQUESTS / 10


@pytest.fixture(scope="module")
def usual() -> Comparison:
    return Comparison(configuration())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    choose=st.randoms(use_true_random=False), peer=st.sampled_from([LOCAL, STRANGER, UNIX]), raw=st.binary(max_size=40)
)
def test_the_loop_reads_any_request_as_gunicorn_does(
    usual: Comparison, choose: random.Random, peer: Any, raw: bytes
) -> None:
    data = hostile_heads.stream(choose, most=2)
    place = choose.randrange(len(data) + 1)
    usual.compare(data, peer)
    usual.compare(data[:place] + raw + data[place:], peer)


def test_a_mount_point_is_read_as_gunicorn_reads_it(
    monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/page")
    comparison = Comparison(configuration(), lambda isr: ISR(site, revalidate=60, store="memory://", clock=lambda: NOW))
    choose = random.Random(3)
    for _ in range(REQUESTS // 4):
        comparison.compare(hostile_heads.stream(choose, most=1), LOCAL)
    figure(f"{comparison.requests} requests, of which the loop answered {comparison.answered}")
    assert comparison.answered > REQUESTS / 80


def test_the_loop_knows_every_variable_of_a_fingerprint(usual: Comparison) -> None:
    assert {name for name in VARIABLES if name.startswith("HTTP_")} <= usual.loop._heads._needed


# Side by side: whole connections -----------------------------------------------------------------------------------


@pytest.fixture
def both() -> Iterator[tuple[RunningWorker, RunningWorker]]:
    """Yield the worker and gunicorn's own, each with an app of its own that is the same."""
    ours, theirs = (ISR(site, {"/page/<name>": 3600, "/other": 3600}, store="memory://") for _ in range(2))
    with (
        RunningWorker(Worker, ours, threads=8) as worker,
        RunningWorker(ThreadWorker, theirs, threads=8) as other,
    ):
        yield worker, other


def test_connections_with_random_requests_get_the_same_bytes(
    both: tuple[RunningWorker, RunningWorker], figure: Callable[[str], None]
) -> None:
    ours, theirs = both
    choose = random.Random(13)
    warm = b"".join(
        b"GET %s HTTP/1.1\r\nHost: site.example\r\n%s\r\n" % (path, proto)
        for path in (b"/page/1", b"/page/2", b"/other", b"/page/1?a=1")
        for proto in (b"", b"X-Forwarded-Proto: https\r\n")
        for _ in range(2)
    )
    for worker in both:
        worker.exchange(warm)
    before, total = ours.worker.answered, 1000
    for _ in range(total):
        data = hostile_heads.stream(choose)
        pieces = hostile_heads.split(data, choose)
        # In one piece: the errors that gunicorn finds in a part of a head depend on the pieces before it.
        received, expected = ours.exchange(*pieces, pause=0.001), theirs.exchange(data)
        assert hostile_heads.comparable(received) == hostile_heads.comparable(expected), pieces
    answered = ours.worker.answered - before
    figure(f"{total} connections; the loop answered {answered} requests")
    assert answered > total / 10
    assert os.getpid() == ours.worker.pid
