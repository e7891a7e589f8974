"""The node of each key, and addresses that name the same node."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from wsgi_isr.errors import ConfigError
from wsgi_isr.stores.nodes.addresses import Address, addresses
from wsgi_isr.stores.nodes.rendezvous import Ring

NAMES = ("10.0.0.1:11211", "10.0.0.2:11211", "10.0.0.3:11211")
KEYS = [f"isr1:ns:p:{number}" for number in range(12_000)]


def test_the_order_of_the_nodes_does_not_matter():
    rings = [Ring(order) for order in itertools.permutations(NAMES)]
    for key in KEYS[:500]:
        assert len({ring.ranking(key) for ring in rings}) == 1


def test_every_ranking_has_every_node_once():
    assert {tuple(sorted(Ring(NAMES).ranking(key))) for key in KEYS[:500]} == {NAMES}


def test_a_place_depends_on_names_and_key_alone():
    # Another version of this package must find the entries of this one.
    ring = Ring(["a:1", "b:2", "c:3"])
    assert ring.ranking("isr1:ns:p:x") == ("c:3", "a:1", "b:2")
    assert ring.ranking("isr1:ns:p:y") == ("b:2", "c:3", "a:1")


def test_nodes_get_equal_shares_as_first_and_as_second_choice():
    rankings = [Ring(NAMES).ranking(key)[:2] for key in KEYS]
    shares = Counter(rankings)
    assert len(shares) == 6
    for share in shares.values():  # 2,000 each; 5 standard deviations are 204
        assert abs(share - len(KEYS) / 6) < 204


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_node_more_takes_its_share_of_the_keys_and_moves_no_other(count):
    names = [f"10.0.0.{number}:11211" for number in range(count)]
    before, after = Ring(names), Ring([*names, "new:11211"])
    moved = [key for key in KEYS if before.ranking(key)[0] != after.ranking(key)[0]]
    assert {after.ranking(key)[0] for key in moved} == {"new:11211"}
    assert abs(len(moved) / len(KEYS) - 1 / (count + 1)) < 0.025


def test_without_its_node_a_key_is_where_a_ring_without_that_node_has_it():
    whole = Ring(NAMES)
    for key in KEYS[:500]:
        first, *others = whole.ranking(key)
        assert Ring(set(NAMES) - {first}).ranking(key) == tuple(others)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("10.0.0.1", ["10.0.0.1:11211"]),
        ("10.0.0.1:11212", ["10.0.0.1:11212"]),
        ("Cache-1.Example.COM:1", ["cache-1.example.com:1"]),
        ("cache_1", ["cache_1:11211"]),
        ("[::1]", ["[::1]:11211"]),
        ("[0:0:0:0::0001]:5", ["[::1]:5"]),
        ("[2001:DB8::A]:5", ["[2001:db8::a]:5"]),
        ("b, a:2,[::1]:3", ["b:11211", "a:2", "[::1]:3"]),
    ],
)
def test_equal_addresses_have_equal_names(written, names):
    assert [address.name for address in addresses(written, "memcached", 11211)] == names


def test_an_ipv6_address_is_connected_to_without_its_brackets():
    assert addresses("[::1]:5", "memcached", 11211) == (Address("::1", 5),)


@pytest.mark.parametrize(
    "written",
    [
        "",
        ",",
        "a,",
        "a,,b",
        "a:",
        "a:0",
        "a:65536",
        "a:port",
        "a:-1",
        "a:\u0661",
        "a b",
        "-a",
        "a..b:1/",
        "::1",
        "fe80::1:11211",
        "[::1",
        "[::1]11211",
        "[::1]:",
        "[a]",
        "10.0.0.256",
        "10.0.1",
        "user:secret@a",
        "user:secret@a:1",
        "a\r\nflush_all",
        "é",
    ],
)
def test_what_is_no_address_is_refused(written):
    with pytest.raises(ConfigError) as caught:
        addresses(written, "memcached", 11211)
    assert caught.value.option == "store"
    assert caught.value.remedy
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("written", ["a,a", "a,b,A:11211", "[::1],[0::1]:11211"])
def test_a_node_that_is_there_twice_is_refused(written):
    with pytest.raises(ConfigError, match="twice"):
        addresses(written, "memcached", 11211)
