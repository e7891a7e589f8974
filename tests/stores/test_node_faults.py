"""The stores on memcached and Redis, on nodes that are killed, paused, slow, full or gone."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.live.support.waiting import until
from tests.support.cluster import TIMEOUT, Cluster, is_open, key_on, keys, seconds
from tests.support.memcached import Memcached
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.stores.memcached.store import MemcachedStore
from wsgi_isr.stores.nodes.addresses import Address
from wsgi_isr.stores.nodes.wire import Settings
from wsgi_isr.testing import in_threads


@pytest.fixture(params=["memcached", "redis"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(stack, request.param)


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_a_data_key_is_on_the_next_node_while_its_own_is_down(cluster, fault):
    store = cluster.three()
    first = store.nodes[0]
    key = key_on(store, first)
    second = store._ring.ranking(key)[1]
    store.set(key, b"before")
    assert not store.is_displaced(key)
    with contextlib.ExitStack() as stack:
        if fault == "killed":
            cluster.nodes[first].kill()
        else:
            stack.enter_context(cluster.nodes[first].paused())
        assert store.get(key) is None
        assert store.is_displaced(key)
        assert store.get_many([key]) == ({}, {})
        assert store.add(key, b"lock", 60) is True
        assert store.add(key, b"lock", 60) is False
        found = store.gets(key)
        assert store.cas(key, b"during", found.token, 60) is True
        assert store.get(key) == b"during"
        assert cluster.nodes[second].has(key)
        assert store.delete(key) is True
        assert store.get(key) is None


def test_all_processes_agree_on_the_next_node(cluster):
    store = cluster.three()
    other = cluster.store(*reversed(cluster.nodes.values()))
    first = store.nodes[1]
    cluster.nodes[first].kill()
    for key in itertools.islice((key for key in keys() if store.node_of(key) == first), 20):
        assert store.add(key, b"one", 60) is True
        assert other.add(key, b"two", 60) is False


def test_a_write_goes_to_the_next_node_even_where_the_first_hint_is_its_own_failure(cluster):
    for verb in ("set", "add", "delete"):
        store = cluster.three()
        key = key_on(store, store.nodes[0])
        cluster.nodes[store.nodes[0]].kill()
        if verb == "delete":
            assert store.delete(key) is False
        else:
            getattr(store, verb)(key, b"value")
            assert store.get(key) == b"value"
        store.close()


@pytest.mark.parametrize("fault", ["killed", "paused"])
@pytest.mark.parametrize("plane", ["t", "e"])
def test_a_control_key_never_moves(cluster, plane, fault):
    store = cluster.three()
    first = store.nodes[0]
    key = key_on(store, first, "t") if plane == "t" else f"isr1:test:e:{first}"
    store.set(key, b"before")
    token = store.gets(key).token
    with contextlib.ExitStack() as stack:
        if fault == "killed":
            cluster.nodes[first].kill()
        else:
            stack.enter_context(cluster.nodes[first].paused())
        for verb in (
            lambda: store.get(key),
            lambda: store.gets(key),
            lambda: store.set(key, b"new"),
            lambda: store.add(key, b"new"),
            lambda: store.cas(key, b"new", token),
            lambda: store.delete(key),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                verb()
            assert caught.value.node == first
            assert caught.value.cause
        assert not [node.name for node in cluster.nodes.values() if node.name != first and node.contents()]


def test_a_key_of_a_node_that_is_down_is_unreachable_and_one_that_is_gone_is_missing(cluster):
    store = cluster.three()
    down = store.nodes[0]
    tags = list(itertools.islice(keys("t"), 60))
    pages = list(itertools.islice(keys("p"), 60))
    for key in tags[::2] + pages[::2]:
        store.set(key, b"value")
    cluster.nodes[down].kill()
    many = store.get_many(tags + pages)
    lost = {key for key in tags if store.node_of(key) == down}
    assert many.unreachable.keys() == lost
    assert {error.node for error in many.unreachable.values()} == {down}
    assert many.values.keys() == {key for key in tags[::2] + pages[::2] if store.node_of(key) != down}


def test_with_every_node_down_a_data_key_is_unreachable_on_its_own(cluster):
    store = cluster.three()
    key = key_on(store, store.nodes[2])
    for node in cluster.nodes.values():
        node.kill()
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as caught:
            store.get(key)
        assert caught.value.node == store.nodes[2]
        assert list(store.get_many([key]).unreachable) == [key]


def test_a_node_that_hangs_costs_one_timeout_and_no_more(cluster, monkeypatch):
    store = cluster.three()
    node = store._nodes[store.nodes[0]]
    in_threads(4, lambda _: [store.get(key) for key in itertools.islice(keys(), 100)])  # several connections
    waited = []
    blame = node._classify_failure
    # Each wait for the node ends here. (A request may also be slow because the machine is busy.)
    monkeypatch.setattr(node, "_classify_failure", lambda *cause: waited.append(cause[1]) or blame(*cause))
    with cluster.nodes[node.name].paused():
        took = [seconds(store.get, key) for key in itertools.islice(keys(), 5000)]
        assert [isinstance(error, node._probing.timeouts) for error in waited] == [
            True
        ]  # the fault concerned a third of the keys
        assert TIMEOUT <= max(took) < 2 * TIMEOUT
        assert not [each for each in node._connections if each.wire.is_open]
        assert is_open(store, node.name)


@pytest.mark.parametrize("verb", ["get", "add"])
def test_a_deadline_shorter_than_the_timeout_is_time_enough_to_blame_a_node(cluster, verb):
    node = cluster.node()
    store = cluster.store(node, timeout=5.0, deadline=0.3)
    store.get("key")
    arguments = ("key",) if verb == "get" else ("key", b"value")
    with node.paused():
        assert seconds(getattr(store, verb), *arguments) < 1.0
        assert is_open(store, node.name)


def test_threads_that_wait_for_a_connection_to_a_node_that_hangs_wait_for_one_timeout_together(cluster):
    node = cluster.node()
    store = cluster.store(node, pool=2)
    store.get("key")
    with node.paused():
        took = in_threads(12, lambda _: seconds(store.get, "key"))
    assert max(took) < 2 * TIMEOUT


def test_a_node_that_is_back_is_used_again_and_has_its_own_keys_back(cluster):
    store = cluster.three()
    first = store.nodes[0]
    key = key_on(store, first)
    store.set(key, b"before")
    with cluster.nodes[first].paused():
        assert store.get(key) is None
        store.set(key, b"elsewhere")
    until(lambda: not is_open(store, first), "the probe")
    assert store.get(key) == b"before"
    cluster.nodes[first].kill()
    assert store.get(key) == b"elsewhere"
    cluster.nodes[first].start()
    until(lambda: not is_open(store, first), "the probe")
    assert store.get(key) is None


def test_what_a_node_that_hung_adds_late_is_taken_back_since_it_was_added_elsewhere(cluster):
    """For example a lock: no process would release it, and no other one could take it until it expires."""
    store = cluster.three()
    first = store.nodes[0]
    key, other = key_on(store, first), key_on(store, first)
    store.set(other, b"here")  # a connection is open: the next command waits in the node's buffer
    with cluster.nodes[first].paused():
        assert store.add(key, b"ours")
    until(lambda: not is_open(store, first), "the probe")
    assert store.get(key) is None
    assert store.add(key, b"theirs")
    assert store.get(other) == b"here"


def test_what_was_added_by_others_since_is_not_taken_back(cluster):
    store = cluster.three()
    first = store.nodes[0]
    key = key_on(store, first)
    store.get(key)
    nobody = cluster.store(*cluster.nodes.values())
    node = cluster.nodes[first]
    with node.paused():
        assert store.add(key, b"same")
        # The node goes on without the command, as after a restart, and another client is first.
        node.kill()
        node.start()
        assert nobody.add(key, b"same")
    until(lambda: not is_open(store, first), "the probe")
    assert store.get(key) == b"same"


def test_a_restarted_node_costs_nobody_an_error(cluster):
    node = cluster.node()
    store = cluster.store(node, pool=8)
    tag = next(keys("t"))

    def together(_: int) -> None:
        for _ in range(20):
            store.get(tag)

    for verb in (lambda: store.get(tag), lambda: store.set(tag, b"x"), lambda: store.add(tag, b"x")):
        in_threads(8, together)  # several connections are open, and will be stale
        node.restart()
        for _ in range(8):
            verb()
        assert not is_open(store, node.name)


def test_a_token_read_on_the_next_node_is_refused_by_the_first_and_the_other_way_round(cluster):
    store = cluster.three()
    first = store.nodes[0]
    key = key_on(store, first)
    store.set(key, b"same")
    before = store.gets(key).token
    cluster.nodes[first].kill()
    store.set(key, b"same")
    during = store.gets(key).token
    assert store.cas(key, b"late", before) is False
    cluster.nodes[first].start()
    until(lambda: not is_open(store, first), "the probe")
    store.set(key, b"same")
    after = store.gets(key).token
    if cluster.kind == "memcached":  # the numbers alone would match
        assert before.number == during.number == after.number
    assert store.cas(key, b"late", before) is False
    assert store.cas(key, b"late", during) is False
    assert store.cas(key, b"new", after) is True


def test_the_deadline_bounds_a_verb_that_tries_several_nodes(cluster):
    store = cluster.three(timeout=0.5, deadline=0.8)
    store.get_many(list(itertools.islice(keys(), 100)))
    key = key_on(store, store.nodes[0])
    with contextlib.ExitStack() as stack:
        for node in cluster.nodes.values():
            stack.enter_context(node.paused())
        assert seconds(store.get, key) < 1.1
        # The last node had too little time to count as faulty.
        assert [is_open(store, name) for name in store._ring.ranking(key)] == [True, False, False]


def test_an_answer_that_comes_in_drops_is_cut_off_at_the_deadline():
    """Each byte comes in time, but the whole answer never does: no timeout of the socket ends this."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            while not stop.is_set() and connection.recv(4096):
                for byte in b"STAT pid 1\r\n" * 100:
                    if stop.wait(0.02):
                        return
                    with contextlib.suppress(OSError):
                        connection.send(bytes([byte]))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        settings = Settings(timeout=0.2, connect_timeout=0.2, deadline=0.6)
        store = MemcachedStore([Address("127.0.0.1", listener.getsockname()[1])], settings)
        took = seconds(store.get, "key")
        assert 0.5 < took < 1.0
        assert is_open(store, store.nodes[0])
        store.close()
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)


def test_a_value_too_large_for_the_time_there_is_does_not_make_the_node_look_down(cluster):
    node = cluster.node()
    proxy = cluster.proxy(node)
    store = cluster.store(proxy, timeout=0.4, deadline=0.6)
    cluster.store(node).set("key", random.randbytes(900_000))
    store.get("other")
    proxy.pause_between_pieces = 0.1
    with pytest.raises(StoreUnavailable):
        store.get("key")
    assert not is_open(store, proxy.name)


def test_a_node_with_too_many_connections_is_left_alone():
    node = Memcached(arguments=["-c", "40"])
    store = MemcachedStore([Address("127.0.0.1", node.port)], Settings(timeout=1, connect_timeout=1))
    taken = []

    def full() -> bool:
        taken.append(socket.create_connection(("127.0.0.1", node.port), 5))
        taken[-1].settimeout(0.1)
        try:
            return taken[-1].recv(100).startswith(b"ERROR Too many")
        except TimeoutError:
            return False  # the value found a place, and keeps it

    def refused() -> bool:
        until(lambda: all(full() for _ in range(5)), "the limit")
        try:
            store.get("key")
        except StoreUnavailable:
            return True
        store.close()  # the value found a place as well: an earlier connection was about to be closed
        return False

    try:
        taken += [socket.create_connection(("127.0.0.1", node.port), 5) for _ in range(60)]
        until(refused, "an error")
        assert is_open(store, node.name)
        for each in taken:
            each.close()
        until(lambda: not is_open(store, node.name), "the probe")
        store.set("key", b"value")
        assert store.get("key") == b"value"
    finally:
        store.close()
        for each in taken:
            each.close()
        node.kill()


def test_a_name_with_several_addresses_is_tried_at_each(cluster, monkeypatch):
    node = cluster.node()
    look_up = socket.getaddrinfo

    def two(host: str, port: int, *arguments: object, **options: object) -> list[object]:
        assert host == "cache.example"
        return [found for each in ("127.0.0.2", "127.0.0.1") for found in look_up(each, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    store = cluster.store(Address("cache.example", node.port))
    store.set("key", b"value")
    assert store.get("key") == b"value"


def test_a_name_that_nobody_knows_is_an_unreachable_node():
    with contextlib.closing(MemcachedStore([Address("cache.invalid", 11211)])) as store:  # RFC 2606
        with pytest.raises(StoreUnavailable) as caught:
            store.get("key")
        assert caught.value.node == "cache.invalid:11211"
