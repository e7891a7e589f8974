"""Check pages and invalidations after a change of the list of nodes, as ``docs/how-to/nodes.md`` describes them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.memcached import Memcached
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.tag_versions import Mode, TagVersions
from wsgi_isr.cache.verdict import Validity
from wsgi_isr.config.settings import Config
from wsgi_isr.pages.request_key import PageKey, tags_of_page
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.nodes.rendezvous import Ring

KEYS = Keyspace("test")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(stack)


def tag_versions(store: Store) -> TagVersions:
    """Return the control plane of a process that asks each time."""
    return TagVersions(store, KEYS.tag, KEYS.epoch, coherence=0, monotonic=time.monotonic)


def tag_that_moves_to(store: Store, node: Memcached) -> str:
    """Return a tag that belongs on ``node``, once the node is in the list."""
    tags = (f"tag:{number}" for number in itertools.count())
    return next(tag for tag in tags if store.node_of(KEYS.tag(tag)) == node.name)


def test_a_tag_that_moves_to_a_new_node_counts_as_purged(cluster: Cluster) -> None:
    old, other, new = cluster.node(), cluster.node(), cluster.node()
    before, after = tag_versions(cluster.store(old, other)), cluster.store(old, other, new)
    tag = tag_that_moves_to(after, new)
    snapshot = before.prove(before.capture([tag]), [tag])
    assert before.validity(snapshot, before.epochs()) is Validity.VALID
    seen = tag_versions(after)
    assert seen.validity(snapshot, seen.epochs()) is Validity.PURGED


def test_processes_with_different_lists_do_not_see_each_others_invalidations(cluster: Cluster) -> None:
    old, other, new = cluster.node(), cluster.node(), cluster.node()
    before, list_with_new = tag_versions(cluster.store(old, other)), cluster.store(old, other, new)
    after = tag_versions(list_with_new)
    tag = tag_that_moves_to(list_with_new, new)
    everything = "all"
    snapshot = after.prove(after.capture([tag, everything]), [tag, everything])

    # Acknowledged by a process that still has the old list, and unseen by processes with the new one ...
    assert before.invalidate([tag], Mode.EXPIRE) == {}
    assert after.validity(snapshot, after.epochs()) is Validity.VALID
    # ... until a process with the new list invalidates everything, the last step of the guide.
    assert after.invalidate([everything], Mode.STALE) == {}
    assert after.validity(snapshot, after.epochs()) is Validity.STALE


def test_a_node_that_is_replaced_under_its_name_begins_with_nothing(cluster: Cluster) -> None:
    node, other = cluster.node(), cluster.node()
    store = cluster.store(node, other)
    process = tag_versions(store)
    here, there = tag_that_moves_to(store, node), tag_that_moves_to(store, other)
    on_it, elsewhere = (process.prove(process.capture([tag]), [tag]) for tag in (here, there))
    node.restart()

    def came_back() -> bool:
        return process.epochs()[node.name] is not None

    deadline = time.monotonic() + 20
    while not came_back():
        assert time.monotonic() < deadline
    assert process.validity(on_it, process.epochs()) is Validity.PURGED
    assert process.validity(elsewhere, process.epochs()) is Validity.VALID
    # Invalidations are delivered again, and seen by all processes with the same list.
    assert process.invalidate([here, there], Mode.EXPIRE) == {}


@pytest.mark.parametrize(("nodes", "purged"), [(3, 94), (10, 52), (30, 21)])
def test_how_many_pages_carry_a_tag_that_is_on_one_node(nodes: int, purged: int, figure: Callable[[str], None]) -> None:
    """Check the mean over all nodes; tags that every page has are on one of them each."""
    config = Config.load({"/p/<int:number>": 60}, {"store": "memory://"}, {})
    policy = config.rules.policies["/p/<int:number>"]
    ring = Ring(f"memcached-{number}.memcached:11211" for number in range(nodes))
    shares = []
    for number in range(2000):
        tags = [*tags_of_page(PageKey("https", "a.test", "", f"/p/{number}"), policy, config.rules), f"tag:{number}"]
        assert len(tags) == 7
        homes = {ring.ranking(Keyspace(f"site {number}").tag(tag))[0] for tag in tags}
        shares.append(len(homes) / nodes)
    share = 100 * sum(shares) / len(shares)
    figure(f"{nodes} nodes: {share:.0f} % of the pages have a tag on a given one")
    assert share == pytest.approx(purged, abs=2)
