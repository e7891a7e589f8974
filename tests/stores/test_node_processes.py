"""The stores on memcached and Redis in threads that share connections, in children of a fork, and under gevent."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.support.waiting import until
from tests.support.cluster import TIMEOUT, Cluster, is_open, key_on, seconds
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.testing import in_processes, in_threads

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["memcached", "redis"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(stack, request.param)


def test_a_full_pool_is_waited_for(cluster):
    proxy = cluster.proxy(cluster.node())
    store = cluster.store(proxy, pool=1, timeout=5, connect_timeout=5)
    store.set("key", b"value")
    held = threading.Event()
    fault = proxy.next(cluster.request("get"), held=held)

    def read(number: int) -> bytes | None:
        if number:
            assert fault.seen.wait(20)
        if number == 7:
            until(lambda: store._nodes[proxy.name]._waiting == 6, "the others to queue up")
            held.set()
        return store.get("key")

    assert in_threads(8, read) == [b"value"] * 8
    assert cluster.connections_in(proxy.requests) == 1  # one connection, all the time


def test_a_full_pool_is_waited_for_until_the_deadline_and_the_node_is_not_to_blame(cluster):
    proxies = [cluster.proxy(cluster.node()) for _ in range(2)]
    store = cluster.store(*proxies, pool=1, timeout=5, connect_timeout=5, deadline=0.3)
    key = key_on(store, proxies[0].name)
    patient = store._nodes[proxies[0].name]
    store.get(key)
    held = threading.Event()
    fault = proxies[0].next(cluster.request("get"), held=held)
    reader = threading.Thread(target=patient.read, args=(time.monotonic() + 20, cluster.reading, key))
    reader.start()
    assert fault.seen.wait(20)
    try:
        for verb in (store.get, lambda key: store.add(key, b"lock")):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="in use"):
                verb(key)
            assert 0.25 < time.monotonic() - began < 0.8
        assert list(store.get_many([key]).unreachable) == [key]
        # Other processes see the node, and look for the key there.
        assert not cluster.sent(proxies[1], "get")
        assert not is_open(store, proxies[0].name)
    finally:
        held.set()
        reader.join()
    assert store.get(key) is None


def test_connections_are_not_opened_before_they_are_needed_nor_more_than_are(cluster):
    node = cluster.node()
    store = cluster.store(node, pool=16)
    opened = cluster.accepted_by(node)  # each look is one connection more
    for _ in range(100):
        store.get("key")
    assert cluster.accepted_by(node) - opened == 2


def test_close_leaves_no_connection_open(cluster):
    node = cluster.node()
    store = cluster.store(node, pool=4)
    in_threads(4, lambda _: [store.get("key") for _ in range(50)])
    store.close()
    until(lambda: cluster.connected_to(node) == 1, "the node to notice")  # the connection of this look


# Fork


def test_a_child_uses_connections_of_its_own(cluster):
    node = cluster.node()
    store = cluster.store(node, pool=4)
    for number in range(20):
        store.set(f"key:{number}", b"%d" % number)
    in_threads(4, lambda number: store.get(f"key:{number}"))
    inherited = [
        connection.wire._inner.fileno()
        for connection in store._nodes[node.name]._connections
        if connection.wire.is_open
    ]
    assert inherited

    def read_all(_: int) -> bool:
        return all(store.get(f"key:{number}") == b"%d" % number for _ in range(100) for number in range(20))

    def child(number: int) -> list[bool]:
        closed = []
        for descriptor in inherited:
            try:
                os.fstat(descriptor)
                closed.append(False)
            except OSError:
                closed.append(True)
        return [all(closed), read_all(number)]

    together = in_threads(2, lambda number: in_processes(3, child) if number else read_all(number))
    assert together == [True, [[True, True]] * 3]


def test_a_child_starts_with_a_closed_breaker_and_can_open_it(cluster):
    node = cluster.node()
    store = cluster.store(node)
    with node.paused():
        with pytest.raises(StoreUnavailable):
            store.get("key")
        assert is_open(store, node.name)

        def child(_: int) -> list[bool]:
            before = is_open(store, node.name)
            slow, fast = seconds(store.get, "key"), seconds(store.get, "key")
            return [before, slow > TIMEOUT / 2, fast < TIMEOUT / 2, is_open(store, node.name)]

        assert in_processes(1, child) == [[False, True, True, True]]
        assert is_open(store, node.name)


def test_a_child_of_a_fork_while_the_pool_is_full_finds_it_empty(cluster):
    proxy = cluster.proxy(cluster.node())
    store = cluster.store(proxy, pool=1, timeout=5)
    store.set("key", b"value")
    held = threading.Event()
    fault = proxy.next(cluster.request("get"), held=held)
    reader = threading.Thread(target=store.get, args=("key",))
    reader.start()
    assert fault.seen.wait(20)
    try:
        assert in_processes(1, lambda _: store.get("key") == b"value") == [True]
    finally:
        held.set()
        reader.join()


# Real gevent, in a process of its own, since monkey-patching cannot be undone


def run_under_gevent(name: str, *arguments: object) -> str:
    code = f"from tests.stores.under_gevent import {name}; import sys; {name}(*sys.argv[1:])"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"from gevent import monkey; monkey.patch_all()\n{code}",
            *map(str, arguments),
        ]
        if not name.startswith("before_patching")
        else [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_greenlet_that_is_timed_out_hands_its_answer_to_nobody(cluster):
    proxy = cluster.proxy(cluster.node())
    held = threading.Event()
    proxy.next(cluster.request("get") if cluster.kind == "redis" else b"get slow", held=held)
    try:
        assert run_under_gevent("one_timeout", cluster.kind, proxy.port) == "Timeout, then fast\n"
    finally:
        held.set()


def test_greenlets_killed_at_any_moment_hand_their_answers_to_nobody(cluster):
    proxy = cluster.proxy(cluster.node())
    proxy.jitter = 0.003
    answered, ended, wrong = map(int, run_under_gevent("many_timeouts", cluster.kind, proxy.port).split())
    assert wrong == 0
    assert answered > 20
    assert ended > 20


def test_greenlets_that_wait_for_a_node_let_the_others_run(cluster):
    node = cluster.node()
    with node.paused():
        during_calls, during_probes, failed = map(int, run_under_gevent("others_run", cluster.kind, node.port).split())
    assert failed == 20
    # A hundred ticks a second on an idle machine.
    assert during_calls >= 10
    assert during_probes >= 30


def test_a_store_used_before_the_fork_and_the_patching_works_in_greenlets_after_them(cluster):
    # gunicorn --preload with gevent workers: imported and used in the master, patched in the worker.
    node = cluster.node()
    assert run_under_gevent("before_patching_and_fork", cluster.kind, node.port) == "200\n"
