"""The Redis store on healthy servers: URLs, items, expiry, memory. The neighbouring files test faulty ones."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.parts.proxy import Proxy
from tests.support.redis import Redis
from wsgi_isr.commands.main import main
from wsgi_isr.errors import ConfigError, StoreUnavailable, ValueTooLarge
from wsgi_isr.stores import open_store
from wsgi_isr.stores.base import Many, Store
from wsgi_isr.stores.redis.commands import LONGEST_TTL, milliseconds
from wsgi_isr.stores.redis.items import HEADER, pack
from wsgi_isr.stores.redis.memory import Facts, problem_of
from wsgi_isr.stores.redis.store import LARGEST_VALUE, RedisStore
from wsgi_isr.testing import StoreSuite

Open = Callable[..., RedisStore]
PATIENT = "timeout=5&connect_timeout=5&deadline=10"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Redis]]:
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(3):
            started.append(Redis())
            stack.callback(started[-1].kill)
        yield started


@pytest.fixture
def server(servers: list[Redis]) -> Redis:
    return servers[0]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Return a function that opens a URL; the stores are closed at the end of the test."""
    stores: list[RedisStore] = []

    def open_one(url: str) -> RedisStore:
        store = open_store(url)
        assert isinstance(store, RedisStore)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(server: Redis, opened: Open) -> RedisStore:
    return opened(f"redis://{server.name}?{PATIENT}")


@pytest.fixture
def key() -> str:
    """Return a random store key of a page."""
    return f"isr1:test:p:{secrets.token_hex(8)}"


@pytest.fixture
def tag() -> str:
    """Return a random store key of a tag."""
    return f"isr1:test:t:{secrets.token_hex(8)}"


class Suite(StoreSuite):
    shared = persistent = True
    shortest_ttl = 0.5
    count = 1

    @pytest.fixture(autouse=True)
    def _servers(self, servers: list[Redis]) -> None:
        self.url = f"redis://{','.join(each.name for each in servers[: self.count])}?{PATIENT}"

    # The memory is bounded by the configuration of the server.
    test_thousands_of_random_writes_stay_within_the_bound = None
    test_values_that_are_read_stay_and_others_are_evicted = None
    test_a_token_from_before_an_eviction_is_not_good_for_a_later_value = None

    def make_store(self) -> Store:
        return open_store(self.url)


class TestOneServer(Suite):
    pass


class TestThreeServers(Suite):
    count = 3


# The URL


@pytest.mark.parametrize(
    ("url", "nodes", "login", "database"),
    [
        ("redis://a", ["a:6379"], (None, None), 0),
        ("valkey://a/5", ["a:6379"], (None, None), 5),
        ("redis://b:1,[::1]/2", ["[::1]:6379", "b:1"], (None, None), 2),
        ("redis://:secret@a:1/", ["a:1"], (None, "secret"), 0),
        ("redis://me:se%40%2C%2Fcret:t@a,b/3", ["a:6379", "b:6379"], ("me", "se@,/cret:t"), 3),
        ("redis://me@a", ["a:6379"], ("me", ""), 0),
        ("redis://:secret@a,b/2?sentinel=main&accept_loss=1", ["main"], (None, "secret"), 2),
        ("redis:///run/a%20b.sock?database=4", ["/run/a%20b.sock"], (None, None), 4),
        ("redis://:secret@/run/redis.sock", ["/run/redis.sock"], (None, "secret"), 0),
    ],
)
def test_a_url_has_login_nodes_and_database(
    url: str, nodes: list[str], login: tuple[str | None, str | None], database: int, opened: Open
) -> None:
    store = opened(url)
    assert list(store.nodes) == nodes
    assert (store._access.user, store._access.password) == login
    assert store._access.database == database
    assert "secret" not in store.location + "".join(store.places) + repr(store._access)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://", "no host"),
        ("redis:///0", "no host"),
        ("redis://:secret@", "no host"),
        ("redis://@a", "missing before"),
        ("redis://:secret@a,:secret@b", "more than once"),
        ("redis://:sec@ret@a", "more than once"),
        ("redis://a/b", "not the number of a database"),
        ("redis://a/-1", "not the number of a database"),
        ("redis://a?database=1", "for Unix sockets"),
        ("redis:///run/a.sock?database=x", "not the number of a database"),
        ("redis://:secret@a,a", "twice"),
        ("redis://:secret@a b", "not an address"),
        ("redis://a?prefix=", "printable ASCII"),
        ("redis://a?prefix=a%20b", "printable ASCII"),
        ("redis://a?pool=0", "is not from 1"),
        ("redis://a?max_value=536870912", "is not from 1"),
        ("redis://a?default_ttl=0", "above 0"),
        ("redis://a?accept_loss=yes", "neither 0 nor 1"),
        ("rediss://a?tls=0", "contradicts rediss"),
        ("redis://a?sentinel=main", "its failover is asynchronous"),
        ("redis://a?accept_loss=1&sentinel=a%20b", "not the name of a primary"),
        ("redis:///run/a.sock?tls=1", "takes no TLS"),
        ("redis://a?db=1", "no option 'db'"),
    ],
)
def test_a_wrong_url_is_refused_and_its_password_is_not_repeated(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        open_store(url)
    assert caught.value.remedy
    assert "secret" not in str(caught.value)
    assert "sec@ret" not in str(caught.value)


def test_a_missing_client_library_is_one_line_with_the_command_to_run() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from wsgi_isr.stores import open_store\n"
        "try: open_store('valkey://a')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "valkey:// needs redis-py" in done.stdout
    assert "wsgi_isr[redis]" in done.stdout


def test_databases_and_prefixes_of_a_server_are_stores_of_their_own(server: Redis, opened: Open, key: str) -> None:
    urls = [f"redis://{server.name}{rest}" for rest in ("", "/1", "?prefix=other:")]
    stores = [opened(url) for url in urls]
    for number, store in enumerate(stores):
        assert store.get(key) is None
        store.set(key, b"%d" % number)
    assert [store.get(key) for store in stores] == [b"0", b"1", b"2"]
    assert len({store.places for store in stores}) == 3
    assert opened(f"valkey://{server.name}").places == stores[0].places
    assert {f"wsgi_isr:{key}", f"other:{key}"} <= server.contents()


# Items


def test_the_value_is_stored_as_it_is_behind_a_header(store: RedisStore, server: Redis, key: str) -> None:
    value = random.randbytes(1000)
    store.set(key, value)
    item = server.say("GET", f"wsgi_isr:{key}").partition(b"\r\n")[2].removesuffix(b"\r\n")
    assert item[HEADER:] == value


def test_an_item_of_another_program_is_missing_and_not_in_the_way(
    store: RedisStore, server: Redis, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"wsgi_isr:{key}"
    for verb in (store.get, store.gets, lambda key: store.get_many([key]).values.get(key)):
        for foreign in (("SET", name, ""), ("SET", name, "x"), ("SET", name, "long" * 20), ("LPUSH", name, "list")):
            server.say("DEL", name)
            server.say(*foreign)
            assert store.add(key, b"ours") is False  # the store has not read it yet
            with caplog.at_level(logging.WARNING):
                caplog.clear()
                assert verb(key) is None
            if foreign[0] == "LPUSH" and verb not in (store.get, store.gets):
                assert store.get(key) is None  # MGET takes a list for a missing value
            assert key in caplog.text
            assert store.add(key, b"ours") is True
            assert store.get(key) == b"ours"


def test_an_item_that_replaces_a_useless_one_meanwhile_is_returned(store: RedisStore, server: Redis, key: str) -> None:
    server.say("SET", f"wsgi_isr:{key}", "foreign")
    [node] = store._nodes.values()
    write = node.write

    def write_after_another(*args: object, **options: object) -> object:
        node.write = write  # type: ignore[method-assign]
        store.set(key, b"new")
        return write(*args, **options)  # type: ignore[arg-type]

    node.write = write_after_another  # type: ignore[method-assign, assignment]
    assert store.get(key) == b"new"
    assert store.get(key) == b"new"


def test_a_large_value_is_one_item_and_one_above_the_bound_is_refused(server: Redis, opened: Open, key: str) -> None:
    store = opened(f"redis://{server.name}?max_value=5000000&{PATIENT}")
    value = random.randbytes(5_000_000)
    store.set(key, value)
    assert store.get(key) == value
    with pytest.raises(ValueTooLarge):
        store.set(key, value + b"x")
    assert store.get(key) == value
    assert LARGEST_VALUE + HEADER == 512 * 1024 * 1024


def test_scripts_are_sent_once_and_again_after_the_server_forgot_them(server: Redis, opened: Open, key: str) -> None:
    proxy = Proxy(server.port)
    store = opened(f"redis://{proxy.name}?{PATIENT}")
    server.say("SCRIPT", "FLUSH")
    store.set(key, b"0")
    for number in range(1, 4):
        found = store.gets(key)
        assert found is not None
        assert store.cas(key, b"%d" % number, found.token) is True
    assert len([None for request in proxy.requests if b"\r\nEVAL\r\n" in request]) == 1
    server.say("SCRIPT", "FLUSH")
    found = store.gets(key)
    assert found is not None
    assert store.cas(key, b"4", found.token) is True
    assert store.cas(key, b"5", found.token) is False
    assert store.get(key) == b"4"
    proxy.refuse()


def test_many_keys_are_one_request_to_each_server(servers: list[Redis], opened: Open) -> None:
    proxies = [Proxy(server.port) for server in servers]
    store = opened(f"redis://{','.join(proxy.name for proxy in proxies)}?{PATIENT}")
    keys = [f"isr1:test:p:{number:040}" for number in range(100)]
    assert store.get_many(keys) == Many({}, {})
    for proxy in proxies:
        assert len([None for request in proxy.requests if b"MGET" in request]) == 1
        assert not [None for request in proxy.requests if b"KEYS" in request or b"FLUSH" in request]
        proxy.refuse()


# Time to live


def remaining(server: Redis, key: str) -> int:
    """Return the milliseconds left to a key, -1 for no end."""
    return int(server.say("PTTL", f"wsgi_isr:{key}").strip(b":\r\n"))


@pytest.mark.parametrize("verb", ["set", "add", "cas"])
def test_a_control_key_alone_has_no_expiry(store: RedisStore, server: Redis, key: str, tag: str, verb: str) -> None:
    for name in (key, tag):
        if verb == "cas":
            store.set(name, b"old", 5)
            found = store.gets(name)
            assert found is not None
            assert store.cas(name, b"new", found.token) is True
        else:
            getattr(store, verb)(name, b"value")
    assert remaining(server, tag) == -1
    month = 30 * 86400 * 1000
    assert month - 60_000 < remaining(server, key) <= month


def test_the_ttl_of_values_without_one_is_an_option(server: Redis, opened: Open, key: str) -> None:
    opened(f"redis://{server.name}?default_ttl=100").set(key, b"value")
    assert 40_000 < remaining(server, key) <= 100_000


@pytest.mark.parametrize(
    ("ttl", "expected"),
    [(10, "10000"), (0.0001, "1"), (1.0005, "1001"), (0, "0"), (-1, "0"), (1e9, "1000000000000")],
)
def test_a_ttl_is_rounded_up_to_a_millisecond(ttl: float, expected: str) -> None:
    assert milliseconds("isr1:n:p:x", ttl, 60) == milliseconds("isr1:n:t:x", ttl, 60) == expected


@pytest.mark.parametrize("ttl", [None, 1e300, float("inf"), LONGEST_TTL + 1])
def test_a_ttl_beyond_all_bounds_is_none(ttl: float | None, store: RedisStore, key: str, tag: str) -> None:
    assert milliseconds("isr1:n:p:x", ttl, 60) == "60000"
    assert milliseconds("isr1:n:t:x", ttl, 60) == ""
    for name in (key, tag):
        store.set(name, b"value", ttl)
        assert store.get(name) == b"value"


def test_the_longest_ttl_is_one_that_redis_takes(store: RedisStore, key: str) -> None:
    store.set(key, b"value", LONGEST_TTL)
    assert store.get(key) == b"value"


# The run of the server


def test_a_control_key_of_another_run_is_missing_and_a_page_is_not(
    store: RedisStore, server: Redis, key: str, tag: str
) -> None:
    old = pack(b"an older", b"value")
    for name in (key, tag):
        server.say("SET", f"wsgi_isr:{name}", old)
    assert store.get_many([key, tag]) == Many({key: b"value"}, {})
    assert store.get(tag) is None
    assert store.add(tag, b"new") is True
    server.say("SET", f"wsgi_isr:{tag}", old)
    assert store.gets(tag) is None


def test_a_snapshot_does_not_bring_old_tags_back(opened: Open, key: str, tag: str) -> None:
    server = Redis()
    try:
        store = opened(f"redis://{server.name}?{PATIENT}")
        for name in (key, tag):
            store.set(name, b"before")
        assert server.say("SAVE") == b"+OK\r\n"
        store.set(tag, b"invalidated")
        server.restart_from_snapshot()
        assert store.get(key) == b"before"
        assert store.get(tag) is None
    finally:
        server.kill()


# Memory


def test_a_full_server_evicts_pages_and_keeps_tags(opened: Open) -> None:
    server = Redis(megabytes=4)
    try:
        store = opened(f"redis://{server.name}?{PATIENT}")
        for number in range(200):
            store.set(f"isr1:test:t:{number}", b"version")
        for number in range(600):
            store.set(f"isr1:test:p:{number}", random.randbytes(20_000))
        assert len(store.get_many([f"isr1:test:t:{number}" for number in range(200)]).values) == 200
        assert 0 < len(store.get_many([f"isr1:test:p:{number}" for number in range(600)]).values) < 300
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("limit", "policy", "problem"),
    [
        (0, "volatile-lru", "maxmemory is 0"),
        (0, "noeviction", "noeviction"),
        (10**9, "noeviction", "refuses pages and invalidations"),
        (10**9, "volatile-lru", ""),
        (10**9, "allkeys-lfu", ""),
        (0, "", ""),  # the server does not tell
    ],
)
def test_the_memory_settings_are_judged(limit: int, policy: str, problem: str) -> None:
    said = problem_of(Facts(b"", limit, policy))
    assert problem in said
    assert bool(said) == bool(problem) == ("maxmemory-policy volatile-lru" in said)


def test_a_server_that_evicts_nothing_is_one_warning_and_a_finding_of_doctor(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    server = Redis(arguments=["--maxmemory-policy", "noeviction", "--requirepass", "s3cr3t"])
    try:
        url = f"redis://:s3cr3t@{server.name}?{PATIENT}"
        store = opened(url)
        for number in range(3):
            store.get(f"isr1:test:p:{number}")
            store._nodes[server.name].close()
        assert len([record for record in caplog.records if "noeviction" in record.getMessage()]) == 1
        done = CliRunner().invoke(main, ["doctor", "--store", url])
        assert done.exit_code == 1
        assert f"FAIL  memory: {server.name}: maxmemory-policy is noeviction" in done.output
        assert "ok    a lock" in done.output
        assert "s3cr3t" not in done.output
    finally:
        server.kill()


def test_doctor_finds_no_fault_with_a_server_that_evicts(server: Redis) -> None:
    done = CliRunner().invoke(main, ["doctor", "--store", f"redis://{server.name}?{PATIENT}"])
    assert done.exit_code == 0, done.output


# Passwords, Unix sockets, TLS


def test_user_password_and_database_are_used(opened: Open, key: str) -> None:
    server = Redis(arguments=["--requirepass", "se@cret", "--user", "me", "on", ">mine", "~wsgi_isr:*", "+@all"])
    try:
        for login in (":se%40cret", "default:se%40cret", "me:mine"):
            store = opened(f"redis://{login}@{server.name}/2?{PATIENT}")
            store.set(key, login.encode())
            assert store.get(key) == login.encode()
    finally:
        server.kill()


def test_a_unix_socket_is_connected_to(tmp_path: Path, opened: Open, key: str) -> None:
    path = f"/tmp/isr {os.getpid()}.sock"  # tmp_path may be too long for a socket
    server = Redis(arguments=["--unixsocket", path])
    try:
        store = opened(f"redis://{path.replace(' ', '%20')}?database=1&{PATIENT}")
        store.set(key, b"value")
        assert store.get(key) == b"value"
        epoch = f"isr1:test:e:{store.nodes[0]}"
        store.set(epoch, b"epoch")
        assert store.get(epoch) == b"epoch"
        assert store.node_of(epoch) == store.nodes[0]
    finally:
        server.kill()
        Path(path).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a new key and its self-signed certificate for 127.0.0.1."""
    directory = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=redis -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", directory / "key.pem", "-out", directory / "cert.pem"],
        check=True,
        capture_output=True,
    )
    both = directory / "both.pem"
    both.write_bytes((directory / "key.pem").read_bytes() + (directory / "cert.pem").read_bytes())
    return both


def behind_tls(server: Redis, certificate: Path) -> Proxy:
    """Return a TLS proxy before a server, because Redis may be built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return Proxy(server.port, context)


@pytest.mark.parametrize("scheme", ["rediss", "valkeys", "redis"])
def test_servers_are_talked_to_over_tls(scheme: str, server: Redis, opened: Open, key: str, certificate: Path) -> None:
    proxy = behind_tls(server, certificate)
    more = "&tls=1" if scheme == "redis" else ""
    store = opened(f"{scheme}://{proxy.name}?tls_ca={certificate}&{PATIENT}{more}")
    for value in (b"small", random.randbytes(1_500_000), b"again"):
        store.set(key, value)
        assert store.get(key) == value
    proxy.cut()  # while idle: the next write checks the connection first, the next read tries again
    store.set(key, b"after")
    proxy.cut()
    assert store.get(key) == b"after"
    proxy.refuse()


@pytest.mark.parametrize(
    ("scheme", "host", "trusts"),
    [
        pytest.param("rediss", "127.0.0.1", False, id="an authority that no client trusts"),
        pytest.param("rediss", "localhost", True, id="another name"),
        pytest.param("redis", "127.0.0.1", None, id="no TLS on our side"),
    ],
)
def test_a_server_that_cannot_be_trusted_is_unreachable(
    scheme: str, host: str, trusts: bool | None, server: Redis, opened: Open, key: str, certificate: Path
) -> None:
    proxy = behind_tls(server, certificate)
    authority = f"&tls_ca={certificate}" if trusts else ""
    store = opened(f"{scheme}://{host}:{proxy.port}?timeout=2&connect_timeout=5&deadline=10{authority}")
    with pytest.raises(StoreUnavailable):
        store.set(key, b"value")
    proxy.refuse()
