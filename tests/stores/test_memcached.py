"""The memcached store on healthy nodes. The neighbouring files test faulty ones."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.parts.proxy import Proxy
from tests.support.memcached import Memcached
from wsgi_isr.errors import ConfigError, StoreUnavailable, ValueTooLarge
from wsgi_isr.stores.base import Many, Store
from wsgi_isr.stores.memcached.chunks import MARK, OVERHEAD
from wsgi_isr.stores.memcached.commands import LAST_DATE, LONGEST_TTL, expiry
from wsgi_isr.stores.memcached.connection import Connection, Facts
from wsgi_isr.stores.memcached.store import MemcachedStore
from wsgi_isr.stores.nodes.addresses import addresses
from wsgi_isr.stores.nodes.wire import Settings
from wsgi_isr.testing import StoreSuite, in_threads

TLS = Path(__file__).parents[1] / "support" / "tls"
ITEM_LIMIT = 1024 * 1024
#: The largest value that is not split at the usual limit.
LARGEST_WHOLE = ITEM_LIMIT - OVERHEAD - MARK - 1


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Memcached]]:
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(3):
            started.append(Memcached())
            stack.callback(started[-1].kill)
        yield started


@pytest.fixture
def opened(nodes) -> Iterator[list[MemcachedStore]]:
    """Yield a list of stores, which are closed at the end of the test."""
    stores: list[MemcachedStore] = []
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def node(nodes) -> Memcached:
    return nodes[0]


def url(*nodes: Memcached | Proxy, options: str = "") -> str:
    # A machine under load may be slow. Another file tests slow nodes.
    return f"memcached://{','.join(each.name for each in nodes)}?timeout=5&connect_timeout=5&deadline=10{options}"


@pytest.fixture
def store(node, opened) -> MemcachedStore:
    """Return a store on one node."""
    opened.append(MemcachedStore.from_url(url(node)))
    return opened[-1]


@pytest.fixture
def key() -> str:
    """Return a random store key of a page."""
    return f"isr1:test:p:{secrets.token_hex(8)}"


class Suite(StoreSuite):
    shared = persistent = True
    shortest_ttl = 1.0
    count = 1

    @pytest.fixture(autouse=True)
    def _nodes(self, nodes):
        self.url = url(*nodes[: self.count])

    # The memory is bounded by the option that the node was started with, in steps of 1 MiB.
    test_thousands_of_random_writes_stay_within_the_bound = None
    test_values_that_are_read_stay_and_others_are_evicted = None
    test_a_token_from_before_an_eviction_is_not_good_for_a_later_value = None

    def make_store(self) -> Store:
        return MemcachedStore.from_url(self.url)

    def advance(self, seconds: float) -> None:
        time.sleep(seconds + 0.3)  # a node under load reads its clock late


class TestOneNode(Suite):
    pass


class TestThreeNodes(Suite):
    count = 3


# The URL


def test_a_store_opens_without_a_node_that_answers():
    store = MemcachedStore.from_url("memcached://[::1]:1,127.0.0.1:2?timeout=0.1&pool=3&tls=0&max_value=5")
    assert store.nodes == ("127.0.0.1:2", "[::1]:1")
    assert store.max_value == 5


@pytest.mark.parametrize(
    "wrong",
    [
        "memcached://",
        "memcached:///",
        "memcached://a/path",
        "memcached://a,a:11211",
        "memcached://::1",
        "memcached://a?timeout=0",
        "memcached://a?timeout=soon",
        "memcached://a?connect_timeout=-1",
        "memcached://a?deadline=inf",
        "memcached://a?pool=0",
        "memcached://a?pool=1.5",
        "memcached://a?max_value=0",
        "memcached://a?retries=3",
        "memcached://a?timeout=1&timeout=2",
        "memcached://a?tls=yes",
        "memcached://a?tls_ca=ca.pem",
        "memcached://a?tls=1&tls_ca=",
        "memcached://a?tls=1&tls_ca=/nowhere/ca.pem",
        f"memcached://a?tls=1&tls_ca={__file__}",
        f"memcached://a?tls=1&tls_cert={TLS}/ca.pem",
        f"memcached://a?tls=1&tls_key={TLS}/client.pem",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        MemcachedStore.from_url(wrong)
    assert caught.value.option == "store"
    assert caught.value.remedy


def test_the_order_of_the_nodes_in_the_url_does_not_matter(nodes, opened):
    opened += [MemcachedStore.from_url(url(*nodes)), MemcachedStore.from_url(url(*reversed(nodes)))]
    one, other = opened
    keys = [f"isr1:test:p:{secrets.token_hex(8)}" for _ in range(50)]
    for key in keys:
        one.set(key, key.encode())
    assert other.get_many(keys).values == {key: key.encode() for key in keys}
    assert one.nodes == other.nodes
    assert [one.node_of(key) for key in keys] == [other.node_of(key) for key in keys]


@pytest.mark.parametrize("wrong", ["", "a b", "a\r\nflush_all", "k" * 201, "é", "a\n"])
def test_what_is_no_key_never_reaches_a_node(store, wrong):
    for verb in (
        store.get,
        store.gets,
        store.delete,
        lambda key: store.set(key, b""),
        lambda key: store.get_many([key]),
    ):
        with pytest.raises(ValueError, match="is no key"):
            verb(wrong)


# Routing


def holding(nodes: list[Memcached], key: str) -> list[str]:
    return [node.name for node in nodes if node.has(key)]


def test_what_belongs_to_an_entry_is_on_the_node_of_the_entry(nodes, opened):
    opened.append(MemcachedStore.from_url(url(*nodes)))
    for plane in "pd":
        for _ in range(10):
            entry = f"isr1:test:{plane}:{secrets.token_hex(8)}"
            opened[0].set(entry, random.randbytes(2_000_000))
            opened[0].add(f"{entry}:lock", b"token", 30)
            homes = {home for each in ("", ":lock") for home in holding(nodes, entry + each)}
            assert homes == {opened[0].node_of(entry)}
            [home] = [node for node in nodes if node.name in homes]
            assert len(parts_of(home, entry)) == 2
            assert not any(each.startswith(entry) for node in nodes if node is not home for each in node.contents())


def test_an_epoch_is_on_the_node_that_its_key_names(nodes, opened):
    opened.append(MemcachedStore.from_url(url(*nodes)))
    for node in nodes:
        epoch = f"isr1:test:e:{node.name}"
        opened[0].set(epoch, b"nonce")
        assert opened[0].node_of(epoch) == node.name
        assert holding(nodes, epoch) == [node.name]


def test_an_epoch_of_a_node_that_is_not_among_ours_is_unreachable(store):
    with pytest.raises(StoreUnavailable, match=r"10\.9\.9\.9:1: it is not among"):
        store.get("isr1:test:e:10.9.9.9:1")
    assert list(store.get_many(["isr1:test:e:10.9.9.9:1"]).unreachable) == ["isr1:test:e:10.9.9.9:1"]


def test_many_keys_cost_one_command_to_each_node_that_may_hold_one(nodes, opened):
    proxies = [Proxy(node.port) for node in nodes]
    opened.append(MemcachedStore.from_url(url(*proxies)))
    keys = [f"isr1:test:t:{secrets.token_hex(8)}" for _ in range(100)]
    for key in keys[::2]:
        opened[0].set(key, key.encode())
    for proxy in proxies:
        proxy.requests.clear()
    looked_up = [int(node.stats()["cmd_get"]) for node in nodes]
    assert opened[0].get_many(keys) == Many({key: key.encode() for key in keys[::2]}, {})
    assert [len(proxy.requests) for proxy in proxies] == [1, 1, 1]  # a command each, in one piece
    assert sum(int(node.stats()["cmd_get"]) for node in nodes) - sum(looked_up) == 100
    alone = [key for key in keys if opened[0].node_of(key) == proxies[0].name]
    assert len(opened[0].get_many(alone).values) == len(set(alone) & set(keys[::2]))
    assert [len(proxy.requests) for proxy in proxies] == [2, 1, 1]
    for proxy in proxies:
        proxy.refuse()


# Answers


def test_every_command_is_answered(node, opened, key):
    # "noreply", pymemcache's default, would let two adds of one lock both succeed.
    proxy = Proxy(node.port)
    opened.append(MemcachedStore.from_url(url(proxy)))
    store = opened[0]
    store.set(key, b"1")
    assert store.add(key, b"2") is False
    found = store.gets(key)
    assert store.cas(key, b"3", found.token) is True
    assert store.cas(key, b"4", found.token) is False
    assert store.delete(key) is True
    assert store.delete(key) is False
    store.set(key, random.randbytes(2_000_000))
    commands = [len(proxy.commands(name)) for name in (b"set", b"add", b"gets", b"cas", b"delete")]
    assert commands == [4, 1, 1, 2, 2]
    assert not [request for request in proxy.requests if b"noreply" in request.split(b"\r\n")[0]]
    proxy.refuse()


def test_a_token_from_before_a_restart_is_not_good_after_it(opened, key):
    node = Memcached()
    try:
        opened.append(MemcachedStore.from_url(url(node)))
        store = opened[0]
        store.set(key, b"same")
        before = store.gets(key)
        node.restart()
        store.set(key, b"same")
        after = store.gets(key)
        assert before.token.number == after.token.number  # memcached counts from 1 again
        assert store.cas(key, b"late", before.token) is False
        assert store.cas(key, b"new", after.token) is True
    finally:
        node.kill()


def test_a_token_of_another_node_is_refused_even_where_the_nodes_cannot_be_told_apart(store, key):
    # In containers every node is process 1, and those of one compose file start in the same second.
    store.set(key, b"value")
    token = store.gets(key).token
    assert store.cas(key, b"late", token._replace(node="10.0.0.9:11211")) is False
    assert store.cas(key, b"new", token) is True


def test_a_lock_that_is_let_go_of_is_free_at_once(store, key):
    assert store.add(key, b"mine", 30) is True
    assert store.cas(key, b"free", store.gets(key).token, 0) is True
    assert store.get(key) is None
    assert store.add(key, b"theirs", 30) is True


def test_an_item_that_somebody_else_wrote_is_missing_and_not_in_the_way(store, node, key, caplog):
    for foreign in ("", "x", "\x02short", "\x03" + 24 * "x" + "not a list"):
        assert node.say(f"set {key} 0 0 {len(foreign)}", foreign) == [b"STORED"]
        assert store.add(key, b"ours") is False  # the store has not read it yet
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert store.get(key) is None
        assert key in caplog.text
        assert store.add(key, b"ours") is True
        assert store.get(key) == b"ours"
    node.say(f"set {key} 0 0 1", "x")
    assert store.get_many([key]) == Many({}, {})
    node.say(f"set {key} 0 0 1", "x")
    assert store.gets(key) is None


# Time to live


def remaining(node: Memcached, key: str) -> int:
    """Return the seconds left to an item, -1 for no end (doc/protocol.txt, "Meta Get")."""
    [answer] = node.say(f"mg {key} t")
    return int(answer.removeprefix(b"HD t"))


@pytest.mark.parametrize("verb", ["set", "add", "cas"])
@pytest.mark.parametrize(
    ("ttl", "least", "most"),
    [
        pytest.param(None, -1, -1, id="none"),
        pytest.param(0.2, 2, 2, id="less than a second"),
        pytest.param(10, 11, 11, id="whole"),
        pytest.param(10.5, 12, 12, id="fraction"),
        pytest.param(30 * 86400 - 1, 30 * 86400, 30 * 86400, id="the longest that is no date"),
        pytest.param(30 * 86400, 30 * 86400, 30 * 86400 + 2, id="30 days"),
        pytest.param(365 * 86400, 365 * 86400, 365 * 86400 + 2, id="a year"),
        pytest.param(1e9, -1, -1, id="beyond 2038"),
        pytest.param(float("inf"), -1, -1, id="infinite"),
    ],
)
def test_a_ttl_is_rounded_up_to_what_memcached_counts(store, node, key, verb, ttl, least, most):
    if verb == "cas":
        store.set(key, b"old")
        assert store.cas(key, b"value", store.gets(key).token, ttl) is True
    else:
        getattr(store, verb)(key, b"value", ttl)
    # One second may have passed on the node's clock between the two commands.
    assert least - (least > 0) <= remaining(node, key) <= most


def test_a_date_counts_by_the_clock_of_the_node():
    connection = Connection(addresses("a", "memcached", 11211)[0], Settings(clock=lambda: 1000.0))
    connection.facts = Facts(ITEM_LIMIT, (0, 0), ahead=500_000.0)
    assert expiry(40 * 86400, connection) == 500_000 + 1000 + 40 * 86400 + 1
    assert expiry(0, connection) == -1
    assert expiry(LONGEST_TTL - 1, connection) == LONGEST_TTL
    assert expiry(LONGEST_TTL - 0.5, connection) == 501_000 + LONGEST_TTL + 1
    assert expiry(LAST_DATE - 501_002, connection) == LAST_DATE - 1
    assert expiry(LAST_DATE - 501_001, connection) == 0


def test_a_value_is_there_for_as_long_as_was_asked_at_least(store):
    # At many moments within memcached's second, of which each value gets a different part.
    began = {}
    for _ in range(10):
        key = f"isr1:test:p:{secrets.token_hex(8)}"
        began[key] = time.monotonic()
        store.set(key, b"value", 1)
        time.sleep(0.1)
    gone = {}
    while len(gone) < len(began):
        for key in began.keys() - gone.keys():
            before = time.monotonic()
            if store.get(key) is None:
                gone[key] = before - began[key]
        assert time.monotonic() - min(began.values()) < 10
    assert min(gone.values()) > 1.0
    # Less than 1 s longer on an idle machine.
    assert sorted(gone.values())[5] < 2.1


# Values above the item limit


@pytest.mark.parametrize("size", [LARGEST_WHOLE, LARGEST_WHOLE + 1, ITEM_LIMIT, 2 * ITEM_LIMIT, 5_000_001])
def test_a_value_of_any_size_comes_back_by_every_reading_verb(store, node, key, size):
    key += ":" + "k" * (199 - len(key))
    value = random.randbytes(size)
    refused = node.stats()["store_too_large"]
    store.set(key, value, 60)
    assert store.get(key) == value
    assert store.gets(key).value == value
    assert store.get_many([key]) == Many({key: value}, {})
    assert (not parts_of(node, key.rpartition(":")[0])) == (size <= LARGEST_WHOLE)
    assert node.stats()["store_too_large"] == refused
    assert store.delete(key) is True
    assert store.get(key) is None


def test_add_and_cas_work_on_split_values(store, key):
    old, new = random.randbytes(1_500_000), random.randbytes(2_500_000)
    assert store.add(key, old) is True
    assert store.add(key, new) is False
    found = store.gets(key)
    assert found.value == old
    assert store.cas(key, new, found.token) is True
    assert store.cas(key, old, found.token) is False
    assert store.get(key) == new
    assert store.cas(key, b"small", store.gets(key).token) is True
    assert store.get(key) == b"small"


def parts_of(node: Memcached, key: str) -> list[str]:
    return sorted(each for each in node.contents() if each.startswith(f"{key}:part:"))


def test_equal_parts_are_stored_once(store, node, key):
    value = random.randbytes(3_000_000)
    store.set(key, value, 60)
    before = parts_of(node, key)
    store.set(key, value, 60)
    assert parts_of(node, key) == before
    assert len(before) == 3


def test_a_writer_that_is_refused_does_not_cut_short_the_life_of_the_parts(store, node, key):
    value = random.randbytes(1_500_000)
    store.set(key, value, 1000)
    store.add(key, value, 5)
    assert sorted(remaining(node, part) > 500 for part in parts_of(node, key)) == [False, False, True, True]
    assert store.get(key) == value


def test_parts_live_as_long_as_what_names_them(store, node, key):
    store.set(key, random.randbytes(1_500_000), 100)
    lives = [remaining(node, part) for part in parts_of(node, key)]
    assert len(lives) == 2
    assert min(lives) >= remaining(node, key)


@pytest.mark.parametrize("verb", ["get", "gets", "get_many"])
@pytest.mark.parametrize("harm", ["evicted", "changed", "cut short"])
def test_a_value_that_lost_a_part_is_missing_and_not_in_the_way(store, node, key, verb, harm):
    store.set(key, random.randbytes(2_500_000))
    part = parts_of(node, key)[0]
    if harm == "evicted":
        assert node.say(f"delete {part}") == [b"DELETED"]
    else:
        store_raw(node, part, bytes(ITEM_LIMIT - OVERHEAD) if harm == "changed" else b"")
    if verb == "get_many":
        store.set(f"{key}:small", b"there")
        assert store.get_many([key, f"{key}:small"]) == Many({f"{key}:small": b"there"}, {})
    else:
        assert getattr(store, verb)(key) is None
    assert store.add(key, b"new") is True
    assert store.get(key) == b"new"


def store_raw(node: Memcached, key: str, value: bytes) -> None:
    client = Connection(addresses(node.name, "memcached", 11211)[0], Settings(timeout=5, connect_timeout=5))
    client.begin(time.monotonic() + 10)
    assert client.set(key, value) is True
    client.close()


def test_a_reader_of_a_damaged_value_does_not_remove_what_was_written_meanwhile(node, opened, key):
    proxy = Proxy(node.port)
    opened += [MemcachedStore.from_url(url(proxy)), MemcachedStore.from_url(url(node))]
    reader, writer = opened
    writer.set(key, random.randbytes(2_500_000))
    part = parts_of(node, key)[0]
    node.say(f"delete {part}")
    held = threading.Event()
    fault = proxy.next(b"get " + part[:-32].encode(), held=held)  # the parts; the manifest was read

    def read_or_write(number: int) -> bytes | None:
        if number == 0:
            return reader.get(key)
        assert fault.seen.wait(20)
        writer.set(key, new)
        held.set()
        return None

    new = random.randbytes(3_000_000)
    assert in_threads(2, read_or_write) == [new, None]
    assert writer.get(key) == new
    proxy.refuse()


def test_readers_see_one_version_or_another_and_never_a_mixture(nodes, opened, key):
    opened.append(MemcachedStore.from_url(url(*nodes)))
    store, stop = opened[0], threading.Event()

    def version(number: int) -> bytes:
        return bytes([number % 256]) * (1_000_000 + 300_000 * (number % 5))

    store.set(key, version(0))

    def run(number: int) -> int:
        seen = 0
        try:
            for turn in range(25):
                if number < 2:
                    store.set(key, version(2 * turn + number))
                elif number == 2 and (found := store.gets(key)) is not None:
                    store.cas(key, version(turn), found.token)
            while number > 2 and not stop.is_set():
                value = store.get(key)
                assert value is not None
                assert value == version(value[0])
                seen += 1
        finally:
            if number < 2:
                stop.set()
        return seen

    assert sum(in_threads(5, run)) > 5


def limited(size: int) -> Memcached:
    """Return a node with another item limit. memcached's slab chunks must fit into it in equal parts."""
    return Memcached(arguments=["-I", str(size), "-o", f"slab_chunk_max={min(size // 2, 512 * 1024)}"])


@pytest.mark.parametrize("size", [1024, 128 * 1024, 512 * 1024, 2 * ITEM_LIMIT])
def test_the_limit_is_the_one_that_the_node_has(opened, key, size):
    node = limited(size)
    try:
        opened.append(MemcachedStore.from_url(url(node)))
        whole = size - OVERHEAD - MARK - 1
        for more in (-1, 0, 1, 2, size):
            value = random.randbytes(whole + more)
            opened[0].set(key, value)
            assert opened[0].get(key) == value
            assert any(":part:" in each for each in node.contents()) == (more > 0)
            node.flush()
        assert node.stats()["store_too_large"] == "0"
    finally:
        node.kill()


def test_where_even_the_manifest_would_be_too_large_the_value_is_refused_and_the_old_one_stays(opened, key):
    node = limited(1024)
    try:
        opened.append(MemcachedStore.from_url(url(node)))
        store = opened[0]
        store.set(key, b"old")
        with pytest.raises(ValueTooLarge) as caught:
            store.set(key, bytes(1_000_000))
        assert 10_000 < caught.value.limit < 1_000_000
        assert store.get(key) == b"old"
        value = random.randbytes(caught.value.limit)
        store.set(key, value)
        assert store.get(key) == value
        with pytest.raises(ValueTooLarge):
            store.set(key, value + b"x")
        assert store.get(key) == value
        assert node.stats()["store_too_large"] == "0"
    finally:
        node.kill()


def test_a_node_without_memory_for_a_value_says_so_and_is_not_left_alone(opened, key):
    node = Memcached(megabytes=2, arguments=["-M"])  # an error instead of evictions
    try:
        opened.append(MemcachedStore.from_url(url(node)))
        store = opened[0]
        store.set(key, b"small")

        def fill() -> None:
            for number in range(50):
                store.set(f"{key}:{number}", random.randbytes(900_000))

        with pytest.raises(StoreUnavailable, match="memory"):
            fill()
        assert store.get(key) == b"small"
    finally:
        node.kill()


# TLS


def server(*, asks: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "node.pem")
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(TLS / "ca.pem")
    return context


@pytest.mark.parametrize("asks", [False, True], ids=["server", "client too"])
def test_nodes_are_talked_to_over_tls(node, opened, key, asks):
    proxy = Proxy(node.port, server(asks=asks))
    certificate = f"&tls_cert={TLS}/client.pem" if asks else ""
    opened.append(MemcachedStore.from_url(url(proxy, options=f"&tls=1&tls_ca={TLS}/ca.pem{certificate}")))
    value = random.randbytes(1_500_000)
    for each in (b"small", value, b"again"):
        opened[0].set(key, each)
        assert opened[0].get(key) == each
    proxy.cut()  # while idle: the next write checks the connection first, the next read tries again
    opened[0].set(key, b"after")
    proxy.cut()
    assert opened[0].get(key) == b"after"
    proxy.refuse()


@pytest.mark.parametrize(
    ("asks", "options", "host"),
    [
        pytest.param(False, "&tls=1", "127.0.0.1", id="an authority that nobody here trusts"),
        pytest.param(False, f"&tls=1&tls_ca={TLS}/ca.pem", "localhost", id="another name"),
        pytest.param(True, f"&tls=1&tls_ca={TLS}/ca.pem", "127.0.0.1", id="no certificate of ours"),
        pytest.param(False, "", "127.0.0.1", id="no TLS on our side"),
    ],
)
def test_a_node_that_cannot_be_trusted_is_unreachable(node, opened, key, asks, options, host):
    proxy = Proxy(node.port, server(asks=asks))
    opened.append(
        MemcachedStore.from_url(f"memcached://{host}:{proxy.port}?timeout=2&connect_timeout=5&deadline=10{options}")
    )
    with pytest.raises(StoreUnavailable):
        opened[0].set(key, b"value")
    proxy.refuse()


def test_a_node_reports_its_state(opened):
    node = Memcached(megabytes=64, arguments=["-c", "40"])
    try:
        opened.append(MemcachedStore.from_url(url(node, options="&pool=3")))
        report = opened[0].report(node.name)
        assert (report.max_connections, report.pool, report.memory, report.evictions) == (40, 3, 64 * 2**20, 0)
        assert report.version[:1].isdigit()
        assert abs(report.ahead) < 60
    finally:
        node.kill()
