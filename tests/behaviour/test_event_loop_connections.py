"""The worker's event loop: connections of slow, silent and vanished clients, and the end of a worker."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time

import pytest

from tests.behaviour.looped import BIG, HOST, Connect, Pages, Run, until, warm
from tests.behaviour.visitor import Clock
from wsgi_isr import ISR, Rule
from wsgi_isr.servers import gunicorn_worker


@pytest.fixture
def isr(pages: Pages, clock: Clock) -> ISR:
    rules = {"/held": 0, "/<path:name>": Rule(revalidate=3600, tags=["all"])}
    return ISR(pages, rules, store="memory://", clock=clock, local_cache_bytes=64 << 20)


# Connections -------------------------------------------------------------------------------------------------------


def test_parts_of_heads_wait_in_the_loop_and_keep_no_thread_busy(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr, threads=1)
    slow = [connect(worker) for _ in range(20)]
    for client in slow:
        client.send(b"GET /a HTTP/1.1\r\nHost: site")
    other = connect(worker)
    assert [other.get("/b").label for _ in range(3)] == ["MISS", "HIT", "HIT"]
    for client in slow:
        client.send(b".example\r\n\r\n")
        assert client.read().status == 200


def test_a_head_that_stays_incomplete_ends_its_connection(
    isr: ISR, run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunicorn_worker, "WHOLE_HEAD", 0.3)
    monkeypatch.setattr(gunicorn_worker, "LOOK", 0.05)
    worker = run(isr)
    client = connect(worker)
    began = time.monotonic()
    stopped = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            client.send(b"GET /a HTTP/1.1\r\n")
            while not stopped.wait(0.05):
                client.send(b"X-Slow: 1\r\n")

    thread = threading.Thread(target=trickle)
    thread.start()
    assert client.is_closed()
    stopped.set()
    thread.join()
    assert time.monotonic() - began < 5
    until(lambda: worker.worker.nr_conns == 0)


def test_a_silent_connection_is_closed_and_so_is_an_idle_one(
    isr: ISR, run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunicorn_worker, "FIRST_BYTE", 0.1)
    worker = run(isr, keepalive=1)
    silent, idle = connect(worker), connect(worker)
    warm(idle)
    assert silent.is_closed()
    assert idle.is_closed()
    until(lambda: worker.worker.nr_conns == 0)


def test_a_very_long_head_is_left_to_a_thread(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr)
    client = connect(worker)
    warm(client)
    before = worker.worker.answered
    assert client.get("/a", *[b"X-%d: %s" % (number, b"y" * 4000) for number in range(12)]).label == "HIT"
    assert worker.worker.answered <= before + 1
    assert client.get().label == "HIT"


def test_a_slow_reader_gets_its_page_and_keeps_no_client_waiting(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr, threads=1)
    other = connect(worker)
    big = warm(other, "/big")
    warm(other)
    slow = connect(worker)
    before = worker.worker.answered
    slow.send(b"GET /big HTTP/1.1\r\n%s\r\nGET /a HTTP/1.1\r\n%s\r\n" % (HOST, HOST))
    until(lambda: worker.worker.answered == before + 1)
    assert [other.get().label for _ in range(5)] == ["HIT"] * 5
    assert slow.read() == big
    assert slow.read().label == "HIT"  # the request behind it
    assert slow.get("/big") == big


def test_a_client_that_stops_reading_is_dropped(
    isr: ISR, run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunicorn_worker, "READING", 0.3)
    monkeypatch.setattr(gunicorn_worker, "LOOK", 0.05)
    worker = run(isr)
    other = connect(worker)
    warm(other, "/big")
    slow = connect(worker)
    slow.send(b"GET /big HTTP/1.1\r\n%s\r\n" % HOST)
    until(lambda: worker.worker.nr_conns == 2)
    until(lambda: worker.worker.nr_conns == 1)
    with pytest.raises((ConnectionResetError, AssertionError, ValueError)):
        assert len(slow.read().body) == BIG


def test_a_client_that_resets_its_connection_leaves_nothing_behind(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr)
    other = connect(worker)
    warm(other, "/big")
    for number in range(20):
        client = connect(worker)
        client.send(b"GET /big HTTP/1.1\r\n%s\r\n" % HOST if number % 2 else b"GET /a")
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
    assert other.get("/big").label == "HIT"
    until(lambda: worker.worker.nr_conns == len(worker.worker._held) == 1)


# The life of a worker ----------------------------------------------------------------------------------------------


def test_a_worker_stops_after_its_number_of_requests(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr, max_requests=6)
    client = connect(worker)
    answers = [client.get() for _ in range(6)]
    assert [answer.headers["connection"] for answer in answers] == ["keep-alive"] * 5 + ["close"]
    assert worker.worker.answered == 4
    assert client.is_closed()
    until(lambda: not worker.is_running())


def test_a_worker_that_stops_finishes_a_large_answer(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr, graceful_timeout=15)
    client, idle = connect(worker), connect(worker)
    big = warm(idle, "/big")
    client.send(b"GET /big HTTP/1.1\r\n%s\r\n" % HOST)
    until(lambda: bool(worker.worker.answered))
    worker.stop()
    assert idle.is_closed()
    assert worker.is_running()
    assert client.read() == big
    until(lambda: not worker.is_running())


def test_past_the_graceful_timeout_a_worker_leaves_a_slow_reader(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr, graceful_timeout=1)
    client = connect(worker)
    warm(client, "/big")
    client.send(b"GET /big HTTP/1.1\r\n%s\r\n" % HOST)
    until(lambda: bool(worker.worker.answered))
    worker.stop()
    until(lambda: not worker.is_running())


def test_a_part_of_a_head_does_not_keep_a_worker_from_stopping(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr, graceful_timeout=60)
    before, during = connect(worker), connect(worker)
    warm(during)
    before.send(b"GET /a HTTP/1.1\r\n")
    until(lambda: any(each.is_reading_head for each in worker.worker._held))
    worker.stop()
    during.send(b"GET /a HTTP/1.1\r\n")
    until(lambda: not worker.is_running())


def test_a_request_during_the_stop_is_answered_and_its_connection_closed(
    isr: ISR, pages: Pages, run: Run, connect: Connect
) -> None:
    worker = run(isr)
    held, client = connect(worker), connect(worker)
    warm(client)
    held.send(b"GET /held HTTP/1.1\r\n%s\r\n" % HOST)
    pages.entered.acquire()
    worker.stop()
    answer = client.get()
    assert (answer.label, answer.headers["connection"]) == ("HIT", "close")
    pages.gate.set()
    assert held.read().status == 200
    until(lambda: not worker.is_running())


@pytest.mark.parametrize("begin", [b"\r\n", b"\r", b"\r\nGET /a HTTP/1.1\r\nHost: site"])
def test_an_empty_line_before_a_request_keeps_no_thread_busy(
    begin: bytes, isr: ISR, run: Run, connect: Connect
) -> None:
    worker = run(isr, threads=1)
    silent = [connect(worker) for _ in range(3)]
    for client in silent:
        client.send(begin)
    assert [connect(worker).get("/b").label for _ in range(2)] == ["MISS", "HIT"]
    rest = b".example\r\n\r\n" if begin.endswith(b"site") else b"\nGET /a HTTP/1.1\r\nHost: site.example\r\n\r\n"
    silent[0].send(rest if begin != b"\r\n" else rest[1:])
    assert silent[0].read().status == 200


def test_a_worker_without_descriptors_accepts_again_when_some_are_free(
    isr: ISR, run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunicorn_worker, "LOOK", 0.05)
    worker = run(isr)
    client = connect(worker)
    warm(client)
    refused = threading.Event()
    accept = gunicorn_worker.Connection

    def exhausted(cfg: object, sock: socket.socket, *given: object) -> object:
        if not refused.is_set():
            refused.set()
            sock.close()
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(cfg, sock, *given)

    monkeypatch.setattr(gunicorn_worker, "Connection", exhausted)
    with contextlib.suppress(OSError):
        connect(worker).close()
    assert refused.wait(5)
    assert client.get().label == "HIT"  # the worker lives
    assert connect(worker).get().label == "HIT"


def test_a_request_that_has_begun_is_answered_although_the_worker_stops(isr: ISR, run: Run, connect: Connect) -> None:
    worker = run(isr)
    idle = connect(worker)
    warm(idle)
    begun, fresh = connect(worker), connect(worker)
    begun.send(b"GET /a HTTP/1.1\r\nHost: si")
    until(lambda: worker.worker.nr_conns == 3)
    worker.stop()
    assert idle.is_closed()  # gunicorn keeps an idle connection of a stopping worker no longer
    begun.send(b"te.example\r\n\r\n")
    assert begun.read().status == 200
    assert fresh.get().status == 200


def test_a_page_with_few_visitors_is_answered_by_the_loop_as_well(pages: Pages, run: Run, connect: Connect) -> None:
    """The epochs are read ahead between two visits that are further apart than ``coherence``."""
    isr = ISR(pages, revalidate=3600, store="memory://", coherence=0.1)
    worker = run(isr)
    client = connect(worker)
    warm(client)
    before = worker.worker.answered
    for _ in range(5):
        for _ in range(2):  # the first may be the one that a request has asked for
            polled = isr._engine.tag_versions._polled
            until(lambda polled=polled: isr._engine.tag_versions._polled is not polled)  # type: ignore[misc]
        client.get()
    assert worker.worker.answered - before >= 4
