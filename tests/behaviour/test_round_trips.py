"""Round trips to the store in a cluster of three nodes: in memory, and on the wire of memcached nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from cluster.parts.proxy import Proxy
from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin
from tests.behaviour.visitor import Clock, Jobs
from tests.support.memcached import Memcached
from tests.support.round_trips import Trip, Wires
from wsgi_isr import Rule
from wsgi_isr.stores.base import Many, Store, Token, Versioned, route
from wsgi_isr.stores.memcached.store import MemcachedStore
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.stores.nodes.rendezvous import Ring

TAGS = [f"tag {number}" for number in range(100)]
RULES = {"/a": Rule(revalidate=3600, tags=TAGS), "/b": 3600}
#: The number of tags of /a: its own, all pages, its rule, its path, and the prefixes / and /a.
EVERY_TAG = len(TAGS) + 5

Trips = dict[str, list[Trip]]


class ThreeNodes(MemoryStore):
    """A memory store as if spread over three nodes. Each verb is recorded at the node of its key."""

    nodes = ("a:1", "b:1", "c:1")

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self._ring = Ring(self.nodes)
        self._trips: Trips = {}
        self.trips()

    def trips(self) -> Trips:
        """Return the round trips of each node since the last call, in order."""
        trips, self._trips = self._trips, {node: [] for node in self.nodes}
        return trips

    def node_of(self, key: str) -> str:
        where = route(key)
        return where.node or self._ring.ranking(where.text)[0]

    def _note(self, verb: str, *keys: str) -> None:
        asked = [self.node_of(key) for key in keys]
        for node in dict.fromkeys(asked):
            self._trips[node].append(Trip.of(verb, [key for key, at in zip(keys, asked, strict=True) if at == node]))

    def get(self, key: str) -> bytes | None:
        self._note("get", key)
        return super().get(key)

    def get_many(self, keys: Sequence[str]) -> Many:
        self._note("get", *keys)
        return super().get_many(keys)

    def gets(self, key: str) -> Versioned | None:
        self._note("gets", key)
        return super().gets(key)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._note("set", key)
        super().set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._note("add", key)
        return super().add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._note("cas", key)
        return super().cas(key, value, token, ttl)

    def delete(self, key: str) -> bool:
        self._note("delete", key)
        return super().delete(key)


class Cluster:
    """Three nodes: a store for each process, and the round trips of all of them since the last call."""

    def __init__(self, open_store: Callable[[], Store], trips: Callable[[], Trips]) -> None:
        self.open_store = open_store
        self.trips = trips


@pytest.fixture(scope="module")
def memcached_nodes() -> Iterator[list[Memcached]]:
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(3):
            nodes.append(Memcached())
            stack.callback(nodes[-1].kill)
        yield nodes


@pytest.fixture(params=["in memory", "memcached"])
def cluster(request: pytest.FixtureRequest, clock: Clock, jobs: Jobs) -> Iterator[Cluster]:
    def settled(trips: Callable[[], Trips]) -> Callable[[], Trips]:
        """Return ``trips`` behind a wait for background jobs, whose round trips come once in a process."""

        def after_all_jobs() -> Trips:
            jobs.wait()
            return trips()

        return after_all_jobs

    with contextlib.ExitStack() as stack:
        if request.param == "in memory":
            memory = ThreeNodes(clock)
            yield Cluster(lambda: memory, settled(memory.trips))
            return
        proxies = []
        for node in request.getfixturevalue("memcached_nodes"):
            node.flush()
            proxies.append(Proxy(node.port))
            stack.callback(proxies[-1].refuse)
        names = ",".join(proxy.name for proxy in proxies)
        # A machine under load may be slow. Long timeouts keep retries out of the count.
        url = f"memcached://{names}?timeout=5&connect_timeout=5&deadline=10"
        yield Cluster(lambda: MemcachedStore.from_url(url), settled(Wires(proxies).trips))


def read(trips: Trips) -> list[list[str]]:
    """Return the kinds of keys that each round trip asked for, by node. Nothing may be written."""
    assert all(trip.verb == "get" for node in trips.values() for trip in node), trips
    return [[trip.planes for trip in node] for node in trips.values()]


@pytest.mark.parametrize("who", ["this process", "another process"])
def test_a_page_with_100_tags_is_checked_with_one_round_trip_to_each_node(
    make_site: MakeSite, cluster: Cluster, origin: Origin, who: str
) -> None:
    site, other = (make_site(RULES, store=cluster.open_store(), coherence=0) for _ in range(2))
    site.visit("/a")
    site.visit("/a")
    # These tags belong to other pages. There are so many that each node gets some.
    (site if who == "this process" else other).isr.invalidate(tags=[f"other {number}" for number in range(100)])
    cluster.trips()
    assert site.visit("/a").label == "HIT"
    asked = read(cluster.trips())
    checks = [[planes for planes in node if "t" in planes] for node in asked]
    assert [len(node) for node in checks] == [1, 1, 1]
    assert "".join(node[0] for node in checks) == "t" * EVERY_TAG
    assert {planes for node in asked for planes in node if "t" not in planes} == {"e"}
    assert all(node[0] == "e" and "t" in node[-1] for node in asked), "the epoch comes first"
    assert origin.calls["/a"] == 1


def test_on_a_quiet_site_each_request_asks_each_node_for_its_epoch_and_for_nothing_else(
    make_site: MakeSite, cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgi_isr.cache.tag_versions.READ_AGAIN", (20.0, 20.0))  # as if thousands of tags were in use
    site = make_site(RULES, store=cluster.open_store(), coherence=0)
    site.visit("/a")
    site.visit("/a")
    cluster.trips()
    for _ in range(5):
        assert site.visit("/a").label == "HIT"
        clock.advance(1.5)  # a response prepared for one second is of no use in the next
    assert read(cluster.trips()) == [["e"] * 5] * 3


def test_within_coherence_nobody_is_asked_and_after_it_each_node_once(
    make_site: MakeSite, cluster: Cluster, clock: Clock
) -> None:
    site = make_site(RULES, store=cluster.open_store(), coherence=0.1)
    for path in ("/a", "/b", "/a", "/b"):
        site.visit(path)
    clock.advance(1)
    site.visit("/a")
    cluster.trips()
    for _ in range(5):
        clock.advance(0.01)
        assert [site.visit(path).label for path in ("/a", "/b")] == ["HIT", "HIT"]
    assert read(cluster.trips()) == [[], [], []]
    clock.advance(0.1)
    for _ in range(5):
        assert [site.visit(path).label for path in ("/a", "/b")] == ["HIT", "HIT"]
    assert read(cluster.trips()) == [["es"], ["es"], ["es"]], "the switch is read along with the epoch"


def test_the_tags_are_asked_for_once_and_not_again_until_something_is_invalidated(
    make_site: MakeSite, cluster: Cluster
) -> None:
    site = make_site(RULES, store=cluster.open_store(), coherence=0)
    site.visit("/a")
    site.isr.invalidate(tags=[f"other {number}" for number in range(100)])
    site.visit("/a")
    cluster.trips()
    assert site.visit("/a").label == "HIT"
    assert read(cluster.trips()) == [["e"], ["e"], ["e"]]


def test_a_page_that_another_process_stored_on_a_quiet_site_is_fetched_without_its_tags(
    make_site: MakeSite, cluster: Cluster, origin: Origin
) -> None:
    make_site(RULES, store=cluster.open_store()).visit("/a")
    site = make_site(RULES, store=cluster.open_store(), coherence=0)
    site.visit("/b")  # its connections are open now: their first commands do not count
    cluster.trips()
    assert site.visit("/a").label == "HIT"
    assert sorted(read(cluster.trips())) == [["e"], ["e"], ["e", "p"]]
    assert origin.calls["/a"] == 1
