"""Commands whose answer is lost: a proxy cuts the connection at a chosen byte."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.live.support.waiting import until
from tests.support.cluster import Cluster, is_open, key_on, keys
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.testing import in_threads


@pytest.fixture(params=["memcached", "redis"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(stack, request.param)


def test_an_add_whose_answer_is_lost_has_happened(cluster):
    node = cluster.node()
    proxy = cluster.proxy(node)
    store = cluster.store(proxy)
    for number, answer in enumerate((0, 1, 7)):  # of "STORED\r\n"
        for plane in "pt":
            key = f"isr1:test:{plane}:{number}"
            proxy.next(cluster.request("add"), answer=answer)
            assert store.add(key, b"token", 60) is True
            assert store.get(key) == b"token"
    assert not is_open(store, proxy.name)
    assert cluster.sent(proxy, "add") == 6  # no command was repeated


@pytest.mark.parametrize("theirs", [b"other", b"token"], ids=["other", "equal"])
def test_an_add_whose_answer_is_lost_after_somebody_elses_was_refused(cluster, theirs):
    node = cluster.node()
    proxy = cluster.proxy(node)
    store = cluster.store(proxy)
    assert cluster.store(node).add("key", theirs) is True
    proxy.next(cluster.request("add"), answer=0)
    assert store.add("key", b"token") is False


@pytest.mark.parametrize("forward", [0, 10, 40])
@pytest.mark.parametrize("plane", ["p", "t"])
def test_of_an_add_that_may_not_have_arrived_nobody_can_tell(cluster, plane, forward):
    store = cluster.store(*(proxies := [cluster.proxy(cluster.node()) for _ in range(3)]))
    key = key_on(store, proxies[0].name, plane)
    proxies[0].next(cluster.request("add"), forward=forward)
    with pytest.raises(StoreUnavailable) as caught:
        store.add(key, b"token-token-token", 60)
    assert caught.value.node == proxies[0].name
    # The node answers, so other processes look for the lock on this node.
    assert not [proxy.name for proxy in proxies if cluster.sent(proxy, "add") and proxy is not proxies[0]]
    assert store.add(key, b"token", 60) is True


@pytest.mark.parametrize("plane", ["p", "t"])
def test_after_a_doubtful_add_on_a_node_that_went_away_only_data_goes_elsewhere(cluster, plane):
    store = cluster.store(*(proxies := [cluster.proxy(cluster.node()) for _ in range(3)]))
    key = key_on(store, proxies[0].name, plane)
    store.get(key)
    held = threading.Event()
    fault = proxies[0].next(cluster.request("add"), answer=0, held=held)

    def add_or_refuse(number: int) -> object:
        if number:
            assert fault.seen.wait(20)
            proxies[0].refuse()
            held.set()
            return None
        try:
            return store.add(key, b"token", 60)
        except StoreUnavailable as error:
            return error.node

    assert in_threads(2, add_or_refuse)[0] == (True if plane == "p" else proxies[0].name)


def test_a_slow_answer_to_an_add_is_found_out_as_well(cluster):
    node = cluster.node()
    proxy = cluster.proxy(node)
    store = cluster.store(proxy)
    held = threading.Event()
    proxy.next(cluster.request("add"), held=held)
    try:
        assert store.add("key", b"token") is True
    finally:
        held.set()
    assert not is_open(store, proxy.name)


def test_of_a_cas_whose_answer_is_lost_nobody_can_tell(cluster):
    store = cluster.store(*(proxies := [cluster.proxy(cluster.node()) for _ in range(3)]))
    for plane in "pt":
        key = key_on(store, proxies[0].name, plane)
        store.set(key, b"older")
        assert store.cas(key, b"old", store.gets(key).token)  # a script must be known to the server
        token = store.gets(key).token
        proxies[0].next(cluster.request("cas"), answer=0)
        with pytest.raises(StoreUnavailable):
            store.cas(key, b"new", token)
        assert not [proxy.name for proxy in proxies[1:] if cluster.sent(proxy, "cas")]
        until(lambda: not is_open(store, proxies[0].name), "the probe")
        assert store.get(key) == b"new"


def test_a_set_whose_answer_is_lost_goes_to_the_next_node_or_fails(cluster):
    store = cluster.store(*(proxies := [cluster.proxy(cluster.node()) for _ in range(3)]))
    page, tag = (key_on(store, proxies[0].name, plane) for plane in "pt")
    proxies[0].next(cluster.request("set"), answer=0)
    store.set(page, b"value")
    written = {proxy.name for proxy in proxies if cluster.sent(proxy, "set")}
    assert written == set(store._ring.ranking(page)[:2])
    until(lambda: not is_open(store, proxies[0].name), "the probe")
    proxies[0].next(cluster.request("set"), answer=0)
    with pytest.raises(StoreUnavailable) as caught:
        store.set(tag, b"value")
    assert caught.value.node == proxies[0].name


def test_a_read_is_repeated_once_where_its_connection_was_stale(cluster):
    node = cluster.node()
    proxy = cluster.proxy(node)
    store = cluster.store(proxy)
    tag = next(keys("t"))
    store.set(tag, b"value")
    for verb in (store.get, store.gets):
        proxy.next(cluster.request("read"), forward=0)
        assert verb(tag)
    proxy.next(cluster.request("read"), forward=0)
    assert store.get_many([tag]).values == {tag: b"value"}
    proxy.next(cluster.request("read"), answer=9)  # in the middle of the answer
    assert store.get(tag) == b"value"
    proxy.next(cluster.request("read"), forward=0)
    proxy.next(cluster.request("read"), forward=0)
    with pytest.raises(StoreUnavailable):
        store.get(tag)
