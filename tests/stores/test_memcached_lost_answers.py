"""Commands to memcached whose answer is lost or forged: what no other kind of node has."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.live.support.waiting import until
from tests.support.cluster import Cluster, is_open, keys
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.stores.memcached.store import MemcachedStore
from wsgi_isr.stores.nodes.addresses import Address


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(stack)


def test_a_writer_that_dies_before_the_manifest_leaves_the_old_value(cluster):
    node = cluster.node()
    proxy = cluster.proxy(node)
    store, other = cluster.store(proxy), cluster.store(node)
    tag = next(keys("t"))
    old, new = random.randbytes(1_500_000), random.randbytes(2_500_000)
    store.set(tag, old)
    proxy.next(f"set {tag} ".encode(), forward=0)
    with pytest.raises(StoreUnavailable):
        store.set(tag, new)
    assert other.get(tag) == old
    until(lambda: not is_open(store, proxy.name), "the probe")
    proxy.next(f"set {tag}:part:".encode(), forward=200)
    with pytest.raises(StoreUnavailable):
        store.set(tag, new)
    assert other.get(tag) == old


@pytest.mark.parametrize(
    "answer", [b"GARBAGE\r\n", b"VALUE other 0 2\r\n\x01x\r\nEND\r\n", b"VALUE key\r\n", b"HTTP/1.1 400 \r\n"]
)
def test_what_is_no_answer_of_memcached_is_an_unreachable_node(answer):
    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    while command := connection.recv(4096):
                        connection.sendall(b"END\r\n" if command.startswith(b"stats") else answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        store = MemcachedStore([Address("127.0.0.1", listener.getsockname()[1])])
        with pytest.raises(StoreUnavailable):
            store.get("key")
        store.close()
        listener.shutdown(socket.SHUT_RDWR)
