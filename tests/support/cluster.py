"""Nodes, proxies before them and stores on them, for tests of faults between the three."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.parts.proxy import Proxy
from tests.support.memcached import Memcached
from tests.support.redis import Redis
from wsgi_isr.errors import StoreError
from wsgi_isr.stores.memcached.store import MemcachedStore
from wsgi_isr.stores.nodes.addresses import Address
from wsgi_isr.stores.nodes.store import NodeStore
from wsgi_isr.stores.nodes.wire import Settings
from wsgi_isr.stores.redis.commands import find
from wsgi_isr.stores.redis.store import RedisStore

#: Seconds: short enough to wait for, long enough for a healthy node on a machine under load.
TIMEOUT = 0.3


#: The first bytes of requests to Redis: the number of the words, and the first word.
REDIS_REQUESTS: dict[str, bytes | tuple[bytes, ...]] = {
    "get": b"*2\r\n$3\r\nGET\r\n",
    "read": (b"*2\r\n$3\r\nGET\r\n", b"*2\r\n$4\r\nMGET\r\n"),
    "set": (b"*3\r\n$3\r\nSET\r\n", b"*5\r\n$3\r\nSET\r\n"),
    "add": (b"*4\r\n$3\r\nSET\r\n", b"*6\r\n$3\r\nSET\r\n"),
    "cas": b"*7\r\n$7\r\nEVALSHA\r\n",
}


class Cluster:
    """Nodes, proxies and stores that end with the test.

    :param kind: ``memcached`` or ``redis``.
    """

    def __init__(self, stack: contextlib.ExitStack, kind: str = "memcached") -> None:
        self._stack = stack
        self.kind = kind
        self.nodes: dict[str, Memcached | Redis] = {}

    def node(self) -> Memcached | Redis:
        node = Memcached() if self.kind == "memcached" else Redis()
        self._stack.callback(node.kill)
        self.nodes[node.name] = node
        return node

    def proxy(self, node: Memcached | Redis) -> Proxy:
        proxy = Proxy(node.port)
        self._stack.callback(proxy.refuse)
        self.nodes[proxy.name] = node
        return proxy

    def store(self, *nodes: Memcached | Redis | Proxy | Address, **settings: object) -> NodeStore:
        chosen = Settings(**{"timeout": TIMEOUT, "connect_timeout": TIMEOUT, "deadline": 5.0, **settings})
        addresses = [node if isinstance(node, Address) else Address("127.0.0.1", node.port) for node in nodes]
        store: NodeStore
        if self.kind == "memcached":
            store = MemcachedStore(addresses, chosen)
        else:
            store = RedisStore({address.name: address for address in addresses}, chosen)
        self._stack.callback(store.close)
        return store

    def request(self, verb: str) -> bytes | tuple[bytes, ...]:
        """Return the first bytes of a verb's request on the wire; ``read`` for any verb that reads."""
        if self.kind == "redis":
            return REDIS_REQUESTS[verb]
        return b"get" if verb == "read" else verb.encode() + b" "

    def sent(self, proxy: Proxy, verb: str) -> int:
        """Return how many requests of a verb came to a proxy."""
        return len([None for request in proxy.requests if request.startswith(self.request(verb))])

    def connections_in(self, requests: list[bytes]) -> int:
        """Return how many connections a proxy has seen, by their first request."""
        first = b"stats\r\n" if self.kind == "memcached" else b"*1\r\n$4\r\nINFO\r\n"
        return requests.count(first)

    def accepted_by(self, node: Memcached | Redis) -> int:
        """Return how many connections a node has accepted, that of this question among them."""
        if isinstance(node, Memcached):
            return int(node.stats()["total_connections"])
        return node.figure("total_connections_received")

    def connected_to(self, node: Memcached | Redis) -> int:
        """Return how many connections to a node are open, that of this question among them."""
        if isinstance(node, Memcached):
            return int(node.stats()["curr_connections"])
        return node.figure("connected_clients")

    def reading(self, connection: Any, key: str) -> object:
        """Read a key over a connection of a node."""
        return connection.get(key) if self.kind == "memcached" else find(connection, key)

    def three(self, **settings: object) -> NodeStore:
        return self.store(*(self.node() for _ in range(3)), **settings)


def keys(plane: str = "p") -> Iterator[str]:
    """Yield keys of a plane, all different."""
    return (f"isr1:test:{plane}:{secrets.token_hex(6)}" for _ in itertools.count())


def key_on(store: NodeStore, name: str, plane: str = "p") -> str:
    """Return a key whose first node is ``name``."""
    return next(key for key in keys(plane) if store.node_of(key) == name)


def is_open(store: NodeStore, name: str) -> bool:
    """Return whether the store's circuit breaker for a node is open."""
    return store._nodes[name].breaker.cause is not None


def seconds(call: Callable[..., object], *arguments: object) -> float:
    """Return the duration of a call, successful or not."""
    began = time.monotonic()
    with contextlib.suppress(StoreError):
        call(*arguments)
    return time.monotonic() - began
