"""memcached nodes and a Redis server for a benchmark, and the plain clients that benchmarks compare with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
from pymemcache.client.base import Client
from redis import Redis as RedisClient

from cluster.errors import CannotStart
from cluster.parts.proxy import Proxy
from tests.benchmarks.report import CannotRun
from tests.support.memcached import HOST, Memcached
from tests.support.redis import Redis


@contextlib.contextmanager
def running(count: int, megabytes: int = 64) -> Iterator[list[Memcached]]:
    """Run so many nodes on this machine until the block ends."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(count):
            try:
                nodes.append(Memcached(megabytes))
            except pytest.fail.Exception as failure:  # the tests' helper exits with a message about the missing program
                raise CannotRun(str(failure)) from None
            stack.callback(nodes[-1].kill)
        yield nodes


@contextlib.contextmanager
def redis_running() -> Iterator[Redis]:
    """Run a Redis server on this machine until the block ends."""
    try:
        server = Redis()
    except CannotStart as failure:
        raise CannotRun(str(failure)) from None
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        yield server


@contextlib.contextmanager
def redis_client(server: Redis) -> Iterator[RedisClient]:
    """Return redis-py's plain client."""
    with contextlib.closing(RedisClient(HOST, server.port, protocol=2)) as opened:
        yield opened


def url_of(nodes: Sequence[Memcached | Proxy | Redis]) -> str:
    """Return the URL of a store on these nodes, with timeouts that a busy machine does not reach."""
    scheme = "redis" if isinstance(nodes[0], Redis) else "memcached"
    return f"{scheme}://{','.join(node.name for node in nodes)}?timeout=5&connect_timeout=5&deadline=10"


@contextlib.contextmanager
def client(node: Memcached, timeout: float | None = None) -> Iterator[Client]:
    """Return pymemcache's plain client: no pool, no routing, and no timeouts except by option."""
    with contextlib.closing(Client((HOST, node.port), timeout=timeout, connect_timeout=timeout)) as opened:
        yield opened
