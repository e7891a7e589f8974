"""The worker's event loop: the requests that it answers, and those that it leaves to threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from gunicorn.workers.gthread import ThreadWorker

from tests.behaviour.looped import HOST, Client, Connect, Pages, Run, until, warm
from tests.behaviour.visitor import Clock
from tests.support.workers import RunningWorker
from wsgi_isr import ISR, Rule
from wsgi_isr.pages.respond import MAX_WIRES
from wsgi_isr.servers import gunicorn_worker
from wsgi_isr.stores.memory import MemoryStore


@pytest.fixture
def isr(pages: Pages, clock: Clock) -> ISR:
    rules = {"/held": 0, "/<path:name>": Rule(revalidate=3600, tags=["all"])}
    return ISR(pages, rules, store="memory://", clock=clock, local_cache_bytes=64 << 20)


# Requests ----------------------------------------------------------------------------------------------------------


def test_the_loop_answers_a_page_from_its_first_hit_on(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr)
    client = connect(worker)
    answers = [client.get() for _ in range(4)]
    assert [answer.label for answer in answers] == ["MISS", "HIT", "HIT", "HIT"]
    assert worker.worker.answered == worker.worker.nr - 2 == 2
    assert answers[1] == answers[2] == answers[3]
    assert list(answers[1].headers) == list(answers[2].headers)


def test_every_kind_of_request_may_follow_another_on_a_connection(
    isr: ISR, pages: Pages, run: Run, connect: Connect
) -> None:
    worker = run(isr)
    client = connect(worker)
    hit = warm(client)
    pages.renders.clear()
    assert client.get("/b").label == "MISS"
    assert client.get() == hit
    client.send(b"POST /a2 HTTP/1.1\r\n%sContent-Length: 5\r\n\r\nhelloGET /a HTTP/1.1\r\n%s\r\n" % (HOST, HOST))
    assert client.read().label == "BYPASS"
    assert client.read() == hit
    assert client.get(method="HEAD")._replace(body=hit.body) == hit
    assert client.get() == hit
    assert client.get("/a", b"Cookie: x=1").label == "HIT"
    assert client.get() == hit
    assert pages.renders == ["/b", "/a2"]
    assert worker.worker.answered == 4  # 3 GETs and the HEAD; a thread has read the one behind the POST


def test_a_client_that_has_the_page_gets_a_304_from_the_loop(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr)
    client = connect(worker)
    for accepted in (b"", b"gzip", b"gzip, br"):
        fields = [b"Accept-Encoding: " + accepted] if accepted else []
        tag = warm(client, "/a", *fields).headers["etag"].encode()
        before = worker.worker.answered
        unchanged = client.get("/a", *fields, b"If-None-Match: " + tag)
        assert (unchanged.status, unchanged.body, worker.worker.answered) == (304, b"", before + 1)
        slow = client.get("/a", *fields, b"If-None-Match: " + tag + b",")
        assert (slow.status, worker.worker.answered) == (304, before + 1)
        assert list(unchanged.headers) == list(slow.headers)
        assert client.get("/a", *fields, b'If-None-Match: "other"').status == 200


def test_a_condition_in_the_coding_does_not_reach_the_304(isr: ISR, run: Run, connect: Connect) -> None:
    client = connect(run(isr))
    tag = warm(client).headers["etag"].encode()
    assert client.get("/a", b"If-None-Match: " + tag).status == 304
    for odd in (b"None", b"None unchanged", b"('None',)", b"(None,)"):
        assert client.get("/a", b"Accept-Encoding: " + odd).status == 200


def test_pipelined_requests_are_answered_in_their_order(isr: ISR, run: Run, connect: Connect) -> None:
    client = connect(run(isr))
    warm(client)
    warm(client, "/b")
    paths = [b"/a", b"/b", b"/new", b"/a", b"/other", b"/b", b"/a"]
    client.send(b"".join(b"GET %s HTTP/1.1\r\n%s\r\n" % (path, HOST) for path in paths))
    assert [client.read().body.split()[0] for _ in paths] == paths


@pytest.mark.parametrize(
    ("request_line", "fields", "version", "is_kept"),
    [
        (b"GET /a HTTP/1.1", b"", b"HTTP/1.1", True),
        (b"GET /a HTTP/1.1", b"Connection: close\r\n", b"HTTP/1.1", False),
        (b"GET /a HTTP/1.0", b"", b"HTTP/1.0", False),
        (b"GET /a HTTP/1.0", b"Connection: Keep-Alive\r\n", b"HTTP/1.0", True),
        (b"HEAD /a HTTP/1.0", b"", b"HTTP/1.0", False),
    ],
)
def test_a_connection_is_kept_or_closed_as_its_client_expects(
    request_line: bytes, fields: bytes, version: bytes, is_kept: bool, isr: ISR, run: Run, connect: Connect
) -> None:
    worker = run(isr)
    warm(connect(worker))
    client = connect(worker)
    before = worker.worker.answered
    client.send(b"%s\r\n%s%s\r\n" % (request_line, HOST, fields))
    assert client.file.peek(8).startswith(version)
    answer = client.read("HEAD" if request_line.startswith(b"HEAD") else "GET")
    assert worker.worker.answered == before + 1
    assert answer.headers["connection"] == ("keep-alive" if is_kept else "close")
    if is_kept:
        assert client.get().status == 200
    else:
        assert client.is_closed()
    until(lambda: worker.worker.nr_conns == 1 + is_kept)


def test_without_keepalive_each_connection_is_closed(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr, keepalive=0)
    warm_ones = [connect(worker).get() for _ in range(3)]
    assert [answer.headers["connection"] for answer in warm_ones] == ["close"] * 3
    assert worker.worker.answered == 1
    until(lambda: worker.worker.nr_conns == 0)


def test_beyond_the_kept_connections_each_one_is_closed(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr, worker_connections=5, threads=4)  # so that one connection is kept
    first = connect(worker)
    warm(first)
    assert first.get().headers["connection"] == "keep-alive"  # the loop has it back from the thread
    second = connect(worker)
    assert second.get().headers["connection"] == "close"
    assert second.is_closed()


# Freshness ---------------------------------------------------------------------------------------------------------


def test_age_goes_on_in_the_loop_and_a_look_up_happens_once_in_a_minute(
    isr: ISR, clock: Clock, run: Run, connect: Connect
) -> None:
    worker = run(isr)
    client = connect(worker)
    warm(client)
    seen = []
    for _ in range(14):
        clock.advance(9.9)
        isr._poll_ahead()
        before = worker.worker.answered
        seen.append((int(client.get().headers["age"]), worker.worker.answered > before))
    assert [age for age, _ in seen] == [int(9.9 * number + 1e-9) for number in range(1, 15)]
    assert [by_loop for _, by_loop in seen].count(False) == 2


def test_the_loop_keeps_the_tags_of_its_pages_in_the_store(
    isr: ISR, clock: Clock, run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = run(isr)
    client = connect(worker)
    warm(client)
    assert isr._live is not None
    kept: list[float] = []
    monkeypatch.setattr(isr._live.tag_versions, "keep_alive", lambda snapshot: kept.append(clock()))
    before = worker.worker.answered
    for _ in range(50):
        clock.advance(1)
        isr._poll_ahead()
        assert client.get().label == "HIT"
    assert worker.worker.answered == before + 50
    assert len(kept) > 5


def test_with_lapsed_epochs_a_thread_asks_the_store(isr: ISR, clock: Clock, run: Run, connect: Connect) -> None:
    worker = run(isr)
    client = connect(worker)
    warm(client)
    clock.advance(0.2)  # coherence is 0.1
    before = worker.worker.answered
    assert [client.get().label for _ in range(2)] == ["HIT", "HIT"]
    assert worker.worker.answered == before + 1


def test_the_loop_never_asks_the_store(pages: Pages, run: Run, connect: Connect) -> None:
    asked: list[str] = []

    class Watched(MemoryStore):
        def get_many(self, keys: Any) -> Any:
            asked.append(threading.current_thread().name)
            return super().get_many(keys)

    isr = ISR(pages, {"/<path:name>": 3600}, store=Watched(), coherence=0.02)
    worker = run(isr)
    client = connect(worker)
    until(lambda: client.get().status == 200 and worker.worker.answered > 300)
    assert "wsgi-isr-epochs" in asked
    assert "worker" not in asked


def test_an_invalidation_of_this_process_shows_at_once(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr)
    client = connect(worker)
    old = warm(client)
    assert client.get() == old
    isr.invalidate(["all"])
    assert client.get().body != old.body


def test_an_invalidation_of_another_process_shows_when_the_epochs_are_read(
    pages: Pages, clock: Clock, run: Run, connect: Connect
) -> None:
    store = MemoryStore()
    rules = {"/<path:name>": Rule(revalidate=3600, tags=["all"])}
    here, elsewhere = (ISR(pages, rules, store=store, clock=clock) for _ in range(2))
    worker = run(here)
    client = connect(worker)
    old = warm(client)
    elsewhere.invalidate(["all"])
    before = worker.worker.answered
    assert client.get() == old  # for no longer than coherence
    assert worker.worker.answered == before + 1
    clock.advance(0.1)
    here._poll_ahead()
    assert client.get().body != old.body


def test_an_expired_page_is_left_to_a_thread(isr: ISR, clock: Clock, run: Run, connect: Connect) -> None:
    worker = run(isr)
    client = connect(worker)
    warm(client)
    before = worker.worker.answered
    clock.advance(3600)
    isr._poll_ahead()
    assert client.get().label == "STALE"
    assert worker.worker.answered == before


# Left to gunicorn --------------------------------------------------------------------------------------------------


def left_to_threads(worker: RunningWorker, client: Client) -> bool:
    assert [client.get().label for _ in range(3)] == ["MISS", "HIT", "HIT"]
    return worker.worker._answers is None and worker.worker.answered == 0


class Middleware:
    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)


def test_behind_a_middleware_threads_answer_everything(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(Middleware(isr))
    assert left_to_threads(worker, connect(worker))


@pytest.mark.parametrize(
    "options",
    [
        {"http_parser": "python"},
        {"strip_header_spaces": True},
        {"proxy_protocol": "v1"},
        {"pre_request": lambda worker, request: None},
        {"post_request": lambda worker, request, environ, response: None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_with_such_an_option_threads_answer_everything(
    options: dict[str, Any], isr: ISR, run: Run, connect: Connect
) -> None:
    worker = run(isr, **options)
    assert left_to_threads(worker, connect(worker))


def test_with_coherence_0_threads_answer_everything(pages: Pages, run: Run, connect: Connect) -> None:
    worker = run(ISR(pages, revalidate=60, store="memory://", coherence=0))
    assert left_to_threads(worker, connect(worker))


def test_without_the_parser_threads_answer_everything(
    isr: ISR, run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gunicorn.http import message

    monkeypatch.setattr(message, "_fast_parser_available", False)
    worker = run(isr)
    assert left_to_threads(worker, connect(worker))


def test_with_another_gunicorn_threads_answer_everything(
    isr: ISR, run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(cfg: Any) -> bool:
        raise AttributeError("no such setting")

    monkeypatch.setattr(gunicorn_worker, "is_parser_usable", missing)
    worker = run(isr)
    assert left_to_threads(worker, connect(worker))


def test_an_error_in_the_loop_leaves_the_request_to_a_thread(
    isr: ISR, run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = run(isr)
    client = connect(worker)
    warm(client)

    def broken(fingerprint: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(isr, "_prepared", broken)
    before = worker.worker.answered
    assert [client.get().label for _ in range(3)] == ["HIT"] * 3
    assert worker.worker.answered == before


def test_gunicorns_own_worker_gives_the_same_answers(isr: ISR, run: Run, connect: Connect) -> None:
    ours, theirs = connect(run(isr)), connect(run(isr, ThreadWorker))
    warm(ours)
    for method in ("GET", "HEAD"):
        one, other = ours.get(method=method), theirs.get(method=method)
        one.headers.pop("date"), other.headers.pop("date")
        assert one == other
        assert list(one.headers) == list(other.headers)


def test_all_bytes_of_a_prepared_page_are_counted(isr: ISR, run: Run, connect: Connect) -> None:
    client = connect(run(isr))
    client.get("/text")
    empty = weight(isr)
    codings = [b"", b"gzip", b"br", b"zstd", *(b"gzip, x%d" % number for number in range(12))]
    for accepted in codings:
        fields = [b"Accept-Encoding: " + accepted] if accepted else []
        tag = warm(client, "/text", *fields).headers["etag"].encode()
        client.get("/text", *fields, b"If-None-Match: " + tag)
    assert isr._live is not None
    (cached,) = isr._live.local.fingerprints.values()
    assert len({id(wire) for wire in cached.prepared.wires.values()}) == MAX_WIRES
    assert weight(isr) - empty < isr._live.local.bytes


def weight(isr: ISR) -> int:
    """Return the bytes of all objects that L1 holds."""
    from tests.benchmarks.memory import _weigh

    assert isr._live is not None
    return _weigh(isr._live.local)
