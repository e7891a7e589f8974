"""The Redis store on servers that are full, wrong, loading, replicas, busy, or no servers of Redis."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from cluster.parts.proxy import Proxy
from tests.live.support.waiting import until
from tests.support.cluster import is_open, seconds
from tests.support.redis import Redis, Sentinel
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.stores import open_store
from wsgi_isr.stores.nodes.addresses import Address
from wsgi_isr.stores.nodes.wire import Settings, Wire
from wsgi_isr.stores.redis.connection import Access, Connection
from wsgi_isr.stores.redis.store import RedisStore

PAGE, TAG = "isr1:test:p:page", "isr1:test:t:tag"
INFO = b"redis_mode:standalone\r\nrole:master\r\nrun_id:0123456789\r\nmaxmemory:1\r\nmaxmemory_policy:volatile-lru\r\n"
Start = Callable[..., Redis]
Open = Callable[..., RedisStore]


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def start(stack: contextlib.ExitStack) -> Start:
    """Return a function that starts a server with arguments, which ends with the test."""

    def start_one(*arguments: str) -> Redis:
        server = Redis(arguments=arguments)
        stack.callback(server.kill)
        return server

    return start_one


@pytest.fixture
def opened(stack: contextlib.ExitStack) -> Open:
    """Return a function that opens a store on ports, closed at the end of the test."""

    def open_one(*ports: int, access: Access = Access(), **settings: float) -> RedisStore:  # noqa: B008
        nodes = {address.name: address for address in (Address("127.0.0.1", port) for port in ports)}
        chosen = Settings(**{"timeout": 2.0, "connect_timeout": 2.0, "deadline": 5.0, "pool": 2, **settings})  # type: ignore[arg-type]
        store = RedisStore(nodes, chosen, access)
        stack.callback(store.close)
        return store

    return open_one


def causes_of(store: RedisStore, verb: Callable[[], object]) -> str:
    """Return the message of the ``StoreUnavailable`` that a verb raises."""
    with pytest.raises(StoreUnavailable) as caught:
        verb()
    assert caught.value.node == store.nodes[0]
    assert caught.value.cause
    return str(caught.value)


# Servers that are not to be used


@pytest.mark.parametrize(
    ("access", "cause"),
    [
        pytest.param(Access(password="wrong-secret"), "invalid username-password", id="password"),
        pytest.param(Access(user="nobody", password="secret"), "invalid username-password", id="user"),
        pytest.param(Access(), "Authentication required", id="no password"),
        pytest.param(Access(password="secret", database=4000), "DB index is out of range", id="database"),
    ],
)
def test_a_wrong_login_or_database_is_an_unreachable_node(
    access: Access, cause: str, start: Start, opened: Open
) -> None:
    server = start("--requirepass", "secret")
    store = opened(server.port, access=access)
    said = causes_of(store, lambda: store.get(PAGE))
    assert cause in said
    assert "secret" not in said
    assert is_open(store, server.name)
    assert list(store.get_many([PAGE, TAG]).unreachable) == [PAGE, TAG]


def test_a_user_who_may_not_ask_for_facts_is_told_the_command(start: Start, opened: Open) -> None:
    server = start("--user", "me", "on", ">mine", "~*", "+@all", "-info")
    store = opened(server.port, access=Access("me", "mine"))
    assert "'info' command" in causes_of(store, lambda: store.get(PAGE))
    assert is_open(store, server.name)


def test_a_user_who_may_not_write_gets_the_refusal_and_can_read(start: Start, opened: Open) -> None:
    server = start("--user", "me", "on", ">mine", "~*", "+@read", "+@connection", "+info")
    store = opened(server.port, access=Access("me", "mine"))
    assert "no permissions" in causes_of(store, lambda: store.set(PAGE, b"value"))
    assert not is_open(store, server.name)
    assert store.get(PAGE) is None


@pytest.mark.parametrize("kind", ["Cluster", "Sentinel"])
def test_cluster_and_sentinel_are_refused_with_the_reason(
    kind: str, start: Start, opened: Open, stack: contextlib.ExitStack, tmp_path: Path
) -> None:
    if kind == "Cluster":
        # Its second port would be 10,000 higher, which may be too high.
        with socket.create_server(("127.0.0.1", 0)) as free:
            bus = str(free.getsockname()[1])
        server = start("--cluster-enabled", "yes", "--cluster-port", bus)
    else:
        server = Sentinel(tmp_path / "sentinel.conf")
        stack.callback(server.kill)
    store = opened(server.port, access=Access(database=1))
    said = causes_of(store, lambda: store.get(PAGE))
    assert kind in said
    assert "its failover is asynchronous, so it can lose acknowledged invalidations" in said
    assert "accept_loss=1" in said
    assert is_open(store, store.nodes[0])


def test_with_accept_loss_sentinels_name_the_primary_and_a_failover_loses_all_tags(
    start: Start, opened: Open, stack: contextlib.ExitStack, tmp_path: Path
) -> None:
    primary = start()
    other = start("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
    sentinel = Sentinel(tmp_path / "sentinel.conf")
    stack.callback(sentinel.kill)
    sentinel.watch("main", primary)
    store = open_store(f"redis://127.0.0.1:1,{sentinel.name}?sentinel=main&accept_loss=1&timeout=2&deadline=5")
    stack.callback(store.close)
    assert isinstance(store, RedisStore)
    for key in (PAGE, TAG):
        store.set(key, b"value")
    assert primary.has(TAG)
    until(lambda: other.has(TAG), "the replica to catch up")
    primary.kill()
    causes_of(store, lambda: store.get(TAG))
    other.say("REPLICAOF", "NO", "ONE")
    sentinel.watch("main", other)
    until(lambda: not is_open(store, "main"), "the probe")
    assert store.get(PAGE) == b"value"
    assert store.get(TAG) is None
    sentinel.say("SENTINEL", "REMOVE", "main")
    store.close()
    assert "does not know 'main'" in causes_of(store, lambda: store.get(TAG))


def test_with_accept_loss_a_server_in_cluster_mode_holds_all_keys_in_one_slot(start: Start, opened: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        bus = str(free.getsockname()[1])
    server = start("--cluster-enabled", "yes", "--cluster-port", bus)
    store = opened(server.port, access=Access(accepts_loss=True))
    assert "hash slot" in causes_of(store, lambda: store.get(PAGE)).lower()  # no server holds the slots yet
    assert is_open(store, server.name)
    server.say("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    until(lambda: b"cluster_state:ok" in server.say("CLUSTER", "INFO"), "the cluster")
    until(lambda: not is_open(store, server.name), "the probe")
    for key in (PAGE, TAG):
        store.set(key, b"value")
    assert store.get_many([PAGE, TAG]).values == {PAGE: b"value", TAG: b"value"}
    assert server.contents() == {f"{{wsgi_isr:}}{key}" for key in (PAGE, TAG)}


def test_a_replica_is_refused_until_it_is_a_primary(start: Start, opened: Open) -> None:
    primary = start()
    replica = start("--replicaof", "127.0.0.1", str(primary.port))
    store = opened(replica.port)
    assert "it is a replica" in causes_of(store, lambda: store.get(TAG))
    assert replica.say("REPLICAOF", "NO", "ONE") == b"+OK\r\n"
    until(lambda: not is_open(store, replica.name), "the probe")
    store.set(TAG, b"value")
    assert store.get(TAG) == b"value"


def test_after_a_failover_the_tags_of_the_old_primary_are_missing(start: Start, opened: Open) -> None:
    primary = start()
    replica = start("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
    before, after = opened(primary.port), opened(replica.port)
    for key in (PAGE, TAG):
        before.set(key, b"value")
    until(lambda: replica.has(TAG), "the replica to catch up")
    replica.say("REPLICAOF", "NO", "ONE")
    until(lambda: b"role:master" in replica.say("INFO", "replication"), "the failover")
    assert after.get(PAGE) == b"value"
    assert after.get(TAG) is None


def test_a_primary_that_becomes_a_replica_is_not_used_any_more(start: Start, opened: Open) -> None:
    primary, server = start(), start()
    store = opened(server.port)
    store.set(TAG, b"value")
    server.say("REPLICAOF", "127.0.0.1", str(primary.port))
    causes_of(store, lambda: store.set(TAG, b"new"))  # READONLY
    assert is_open(store, server.name)
    causes_of(store, lambda: store.get(TAG))


# Servers that cannot work at present


def test_a_full_server_that_evicts_nothing_refuses_writes_and_can_be_read(start: Start, opened: Open) -> None:
    server = start("--maxmemory-policy", "noeviction")
    store = opened(server.port)
    store.set(PAGE, b"small")
    found = store.gets(PAGE)
    assert found is not None

    assert server.say("CONFIG", "SET", "maxmemory", "100kb") == b"+OK\r\n"  # less than a server needs
    assert "maxmemory" in causes_of(store, lambda: store.set(PAGE, b"value"))
    assert "maxmemory" in causes_of(store, lambda: store.add(TAG, b"value"))
    assert "maxmemory" in causes_of(store, lambda: store.cas(PAGE, b"new", found.token))
    assert not is_open(store, server.name)
    assert store.get(PAGE) == b"small"
    assert store.cas(PAGE, b"", found.token, 0) is True  # a lock is released nevertheless
    assert store.get(PAGE) is None


def test_a_server_that_runs_a_slow_script_is_left_alone_until_it_has_ended(start: Start, opened: Open) -> None:
    server = start("--busy-reply-threshold", "1")
    store = opened(server.port)
    store.set(PAGE, b"value")
    with socket.create_connection(("127.0.0.1", server.port), 20) as other:
        other.sendall(b"EVAL 'while true do end' 0\r\n")
        until(lambda: server.say("PING").startswith(b"-BUSY"), "the script")
        assert "BUSY" in causes_of(store, lambda: store.get(PAGE))
        assert is_open(store, server.name)
        assert server.say("SCRIPT", "KILL") == b"+OK\r\n"
    until(lambda: not is_open(store, server.name), "the probe")
    assert store.get(PAGE) == b"value"


def test_a_restarted_server_is_empty_and_costs_no_error(start: Start, opened: Open) -> None:
    server = start()
    store = opened(server.port)
    for verb in (lambda: store.get(TAG), lambda: store.set(TAG, b"x"), lambda: store.add(TAG, b"x")):
        store.set(TAG, b"before")
        server.restart()
        verb()
        assert not is_open(store, server.name)
        assert store.get(TAG) != b"before"


def test_a_connection_that_the_server_has_closed_is_replaced(start: Start, opened: Open) -> None:
    server = start()
    store = opened(server.port)
    store.set(PAGE, b"value")
    for verb in (lambda: store.get(PAGE), lambda: store.set(PAGE, b"value"), lambda: store.delete(TAG)):
        assert server.say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").startswith(b":")
        verb()
        assert not is_open(store, server.name)


# Lost and forged answers


@pytest.mark.parametrize("answer", [0, 1, 3, 10, 25, 28])
def test_an_answer_that_breaks_off_is_never_a_value(answer: int, start: Start, opened: Open) -> None:
    server = start()
    proxy = Proxy(server.port)
    store = opened(proxy.port)
    store.set(TAG, b"value")
    for _ in range(2):  # the first read is repeated over a new connection
        proxy.next(b"*2\r\n$3\r\nGET", answer=answer)
    causes_of(store, lambda: store.get(TAG))
    until(lambda: not is_open(store, proxy.name), "the probe")
    assert store.get(TAG) == b"value"
    proxy.refuse()


@contextlib.contextmanager
def scripted(answer: bytes, greeting: bytes = b"$%d\r\n%s\r\n" % (len(INFO), INFO)) -> Iterator[int]:
    """Yield the port of a server that answers ``INFO`` with ``greeting``, and all other commands with ``answer``."""

    def serve_one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while command := connection.recv(65536):
                connection.sendall(greeting if b"INFO" in command else answer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


FORGED = {
    "garbage": b"GARBAGE\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a size that is no number": b"$many\r\n",
    "a number that is no number": b":many\r\n",
    "a number": b":1\r\n",
    "an array": b"*2\r\n:1\r\n:2\r\n",
    "an array in arrays": b"*1\r\n" * 5000,
    "an unknown type": b"?1\r\n",
    "moved": b"-MOVED nonsense\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "cluster down": b"-CLUSTERDOWN The cluster is down\r\n",
}


@pytest.mark.parametrize("answer", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("verb", ["get", "gets", "get_many", "set", "add"])
def test_an_answer_of_another_kind_is_an_unreachable_node(verb: str, answer: bytes, opened: Open) -> None:
    with scripted(answer) as port:
        store = opened(port)
        if verb == "get_many":
            assert list(store.get_many([PAGE]).unreachable) == [PAGE]
        else:
            arguments = (PAGE, b"value") if verb in ("set", "add") else (PAGE,)
            causes_of(store, lambda: getattr(store, verb)(*arguments))
        assert is_open(store, store.nodes[0])


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"$5\r\nvalue\r\n", b"$0\r\n\r\n"])
def test_bytes_without_the_header_of_an_item_are_never_a_value(answer: bytes, opened: Open) -> None:
    with scripted(answer) as port:
        store = opened(port)
        causes_of(store, lambda: store.get(PAGE))  # its removal is not answered by a number


@pytest.mark.parametrize(
    "greeting",
    [b"+OK\r\n", b":1\r\n", b"$0\r\n\r\n", b"-ERR unknown command\r\n", b"$20\r\nrun_id:\r\nmaxmemory:x\r\n"],
)
def test_a_server_without_usable_facts_is_an_unreachable_node(greeting: bytes, opened: Open) -> None:
    with scripted(b"$-1\r\n", greeting) as port:
        store = opened(port)
        causes_of(store, lambda: store.get(PAGE))
        assert is_open(store, store.nodes[0])


def test_an_answer_that_comes_in_drops_is_cut_off_at_the_deadline(opened: Open) -> None:
    """Each byte comes in time, but the whole answer never does: no timeout of the socket ends this."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(4096)
            connection.sendall(b"$100000\r\n")
            while not stop.wait(0.02):
                connection.send(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=lambda: drip(listener.accept()[0]), daemon=True)
        accepting.start()
        store = opened(listener.getsockname()[1], timeout=1.0, deadline=1.5)
        assert 1.4 < seconds(store.get, PAGE) < 4
        assert is_open(store, store.nodes[0])
        store.close()
        stop.set()


class EndOfGreenlet(BaseException):
    """As gevent.Timeout: no ``Exception``."""


@pytest.mark.parametrize("moment", ["before the answer is read", "while the answer is read"])
def test_an_exception_of_any_kind_leaves_no_unread_answer_to_the_next_command(
    moment: str, start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(start().port, pool=1)
    for name in ("one", "two"):
        store.set(f"isr1:test:p:{name}", name.encode())

    def end(*_: object, **__: object) -> None:
        raise EndOfGreenlet

    with monkeypatch.context() as patched:
        if moment == "before the answer is read":
            patched.setattr(Connection, "read_response", end)
        else:
            patched.setattr(Wire, "recv", end)
            patched.setattr(Wire, "recv_into", end)  # hiredis
        with pytest.raises(EndOfGreenlet):
            store.get("isr1:test:p:one")
    assert store.get("isr1:test:p:two") == b"two"
    assert len(store._nodes[store.nodes[0]]._idle) == 1


def test_the_pool_of_redis_py_would_hand_an_unread_answer_to_the_next_command(start: Start) -> None:
    """The reason for a pool of our own: see :mod:`wsgi_isr.stores.redis.connection`."""
    server = start()
    proxy = Proxy(server.port)
    client = redis.Redis(port=proxy.port, protocol=2, max_connections=1)
    client.set("one", "1")
    client.set("two", "2")
    held = threading.Event()
    proxy.next(b"*2\r\n$3\r\nGET", held=held)
    connection = client.connection_pool.get_connection()
    connection.send_command("GET", "one")
    client.connection_pool.release(connection)  # as its client does after a BaseException at this moment
    threading.Timer(0.1, held.set).start()
    assert client.get("two") == b"1"
    client.close()
    proxy.refuse()
