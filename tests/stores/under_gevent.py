"""Functions that test_node_processes.py runs in a process whose sockets and threads are gevent's."""

from __future__ import annotations

import os
import random
import sys

from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.stores.memcached.store import MemcachedStore
from wsgi_isr.stores.nodes.addresses import Address
from wsgi_isr.stores.nodes.store import NodeStore
from wsgi_isr.stores.nodes.wire import Settings
from wsgi_isr.stores.redis.store import RedisStore


def store_at(kind: str, port: str, **settings: object) -> NodeStore:
    address = Address("127.0.0.1", int(port))
    if kind == "memcached":
        return MemcachedStore([address], Settings(**settings))
    return RedisStore({address.name: address}, Settings(**settings))


def one_timeout(kind: str, port: str) -> None:
    import gevent

    store = store_at(kind, port, timeout=5.0, deadline=10.0, pool=1)
    for key in ("slow", "fast"):
        store.set(key, key.encode())
    try:
        with gevent.Timeout(0.1):
            store.get("slow")
    except gevent.Timeout:
        print("Timeout, then", store.get("fast").decode())
    store.close()


def many_timeouts(kind: str, port: str) -> None:
    import gevent

    store = store_at(kind, port, timeout=5.0, deadline=10.0, pool=3)
    names = [f"key:{number}" for number in range(30)]
    for name in names:
        store.set(name, name.encode())
    counts = {"answered": 0, "ended": 0, "wrong": 0}

    def visit() -> None:
        for _ in range(40):
            key = random.choice(names)
            try:
                with gevent.Timeout(random.uniform(0, 0.03)):
                    if random.random() < 0.5:
                        right = store.get(key) == key.encode()
                    else:
                        found = store.gets(key)
                        right = found.value == key.encode() and store.cas(key, found.value, found.token) in (
                            True,
                            False,
                        )
                counts["answered" if right else "wrong"] += 1
            except gevent.Timeout:
                counts["ended"] += 1

    gevent.joinall([gevent.spawn(visit) for _ in range(12)], raise_error=True)
    # No connection was lost: all three can be in use at once.
    assert len(store._nodes[store.nodes[0]]._idle) == 3
    print(*counts.values())
    store.close()


def others_run(kind: str, port: str) -> None:
    import gevent

    store = store_at(kind, port, timeout=0.5, connect_timeout=0.5, pool=4)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    def fail(_: int) -> bool:
        try:
            store.get("key")
        except StoreUnavailable:
            return True
        return False

    ticking = gevent.spawn(tick)
    waiting = [gevent.spawn(fail, number) for number in range(20)]
    gevent.joinall(waiting, raise_error=True)
    meanwhile, ticks = ticks, 0
    gevent.sleep(1.5)  # while the node is probed, for half a second at a time
    ticking.kill()
    print(meanwhile, ticks, sum(each.value for each in waiting))
    store.close()


def before_patching_and_fork(kind: str, port: str) -> None:
    assert "gevent" not in sys.modules
    store = store_at(kind, port, timeout=5.0, connect_timeout=5.0, deadline=10.0, pool=2)
    for number in range(20):
        store.set(f"key:{number}", b"%d" % number)
    child = os.fork()
    if child == 0:
        from gevent import monkey

        monkey.patch_all()
        import gevent

        def read(number: int) -> int:
            return sum(store.get(f"key:{number}") == b"%d" % number for _ in range(10))

        reading = [gevent.spawn(read, number) for number in range(20)]
        gevent.joinall(reading, raise_error=True)
        print(sum(each.value for each in reading), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get("key:1") == b"1"
    store.close()
