"""The part of the suite that tests the verbs of a store, through one handle and in one thread."""

from __future__ import annotations

import random

import pytest

from ..errors import ValueTooLarge
from ..stores.base import Many, Store
from .store_tests import StoreTests, needs


class SingleHandleTests(StoreTests):
    """Tests of reading, writing, compare-and-swap and expiry."""

    # The properties of a store

    @needs()
    def test_keeps_tells_whether_values_are_kept(self, store: Store) -> None:
        assert store.keeps is self.stores

    @needs()
    def test_a_control_key_has_one_node_and_every_handle_names_the_same(self, store: Store) -> None:
        assert len(set(store.nodes)) == len(store.nodes) > 0
        other = self.another()
        assert other.nodes == store.nodes
        for key in (f"1:suite:t:tag{number}" for number in range(50)):
            assert store.node_of(key) in store.nodes
            assert other.node_of(key) == store.node_of(key)

    # Reading and writing

    @needs()
    def test_a_missing_key_is_missing_for_every_reading_verb(self, store: Store) -> None:
        assert store.get(self.key()) is None
        assert store.gets(self.key()) is None
        assert store.get_many([self.key("a"), self.key("b")]) == Many({}, {})

    @needs()
    def test_no_keys_at_all_give_no_values(self, store: Store) -> None:
        assert store.get_many([]) == Many({}, {})

    def test_a_value_that_was_set_is_read_by_every_reading_verb(self, store: Store) -> None:
        store.set(self.key(), b"value")
        assert store.get(self.key()) == b"value"
        found = store.gets(self.key())
        assert found is not None
        assert found.value == b"value"
        assert store.get_many([self.key()]) == Many({self.key(): b"value"}, {})

    def test_set_replaces_an_existing_value(self, store: Store) -> None:
        store.set(self.key(), b"a longer value")
        store.set(self.key(), b"short")
        assert store.get(self.key()) == b"short"

    def test_many_keys_are_found_at_once_and_the_missing_ones_left_out(self, store: Store) -> None:
        expected = {self.key(f"many:{number}"): b"%d" % number for number in range(1500)}
        for key, value in expected.items():
            store.set(key, value)
        asked = [key for pair in zip(expected, map(self.key, map(str, range(1500))), strict=True) for key in pair]
        assert store.get_many(asked) == Many(expected, {})

    def test_a_key_asked_for_twice_is_answered(self, store: Store) -> None:
        store.set(self.key(), b"value")
        assert store.get_many([self.key(), self.key()]) == Many({self.key(): b"value"}, {})

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"\0", id="nul"),
            pytest.param(bytes(range(256)), id="every byte"),
            pytest.param(b"\r\nEND\r\nVALUE x 0 1\r\n", id="protocol"),
            pytest.param(b"\xff\xfe\x80", id="not utf-8"),
            pytest.param(b"1234", id="digits"),
        ],
    )
    def test_odd_bytes_come_back_as_they_were(self, store: Store, value: bytes) -> None:
        store.set(self.key(), value)
        assert store.get(self.key()) == value
        assert type(store.get(self.key())) is bytes
        assert store.get_many([self.key()]).values == {self.key(): value}

    @pytest.mark.parametrize("name", ["%41_*?[a]", "'; DROP TABLE entry; --", "../../x", '{"a":"\\"}', "~!@#$^&()"])
    def test_odd_keys_are_different_keys(self, store: Store, name: str) -> None:
        key = self.key(name.replace(" ", "\x7e"))
        store.set(key, b"value")
        assert store.get(key) == b"value"
        assert store.get(key.replace("%", "x")[:-1]) is None

    def test_upper_and_lower_case_are_different_keys(self, store: Store) -> None:
        store.set(self.key("KEY"), b"upper")
        store.set(self.key("key"), b"lower")
        assert store.get(self.key("KEY")) == b"upper"

    def test_a_key_of_200_characters_is_told_from_its_neighbour(self, store: Store) -> None:
        keys = [self.key("k" * (199 - len(self.key(""))) + end) for end in "xy"]
        assert {len(key) for key in keys} == {200}
        for key in keys:
            store.set(key, key.encode())
        assert store.get_many(keys).values == {key: key.encode() for key in keys}

    def test_a_large_value_comes_back_whole(self, store: Store) -> None:
        value = random.randbytes(min(store.max_value, 3_000_000))
        store.set(self.key(), value)
        assert store.get(self.key()) == value

    @needs()
    @pytest.mark.parametrize("verb", ["set", "add", "cas"])
    def test_a_value_too_large_is_refused_and_the_old_one_stays(self, store: Store, verb: str) -> None:
        store.set(self.key("kept"), b"old")
        key = self.key("missing" if verb == "add" else "kept")
        found = store.gets(key)
        arguments = (found and found.token,) if verb == "cas" else ()
        with pytest.raises(ValueTooLarge) as caught:
            getattr(store, verb)(key, bytes(store.max_value + 1), *arguments)
        assert (caught.value.key, caught.value.size) == (key, store.max_value + 1)
        assert caught.value.limit == store.max_value
        assert store.get(key) == (b"old" if self.stores and verb != "add" else None)

    def test_delete_removes_a_value_and_returns_whether_there_was_one(self, store: Store) -> None:
        store.set(self.key(), b"value")
        assert store.delete(self.key()) is True
        assert store.get(self.key()) is None
        assert store.delete(self.key()) is False

    @needs()
    def test_delete_of_a_missing_key_returns_false(self, store: Store) -> None:
        assert store.delete(self.key()) is False

    # Add

    @needs()
    def test_add_writes_where_the_key_is_missing(self, store: Store) -> None:
        assert store.add(self.key(), b"first") is True
        assert store.get(self.key()) == (b"first" if self.stores else None)

    def test_add_leaves_an_existing_value(self, store: Store) -> None:
        store.add(self.key(), b"first")
        assert store.add(self.key(), b"second") is False
        assert store.get(self.key()) == b"first"

    def test_add_writes_again_after_a_delete(self, store: Store) -> None:
        store.add(self.key(), b"first")
        store.delete(self.key())
        assert store.add(self.key(), b"second") is True
        assert store.get(self.key()) == b"second"

    # Compare and swap

    def test_cas_writes_where_no_other_write_came_between(self, store: Store) -> None:
        store.set(self.key(), b"old")
        assert store.cas(self.key(), b"new", self.token(store)) is True
        assert store.get(self.key()) == b"new"

    def test_cas_with_a_ttl_of_0_removes_and_only_what_its_token_is_for(self, store: Store) -> None:
        store.set(self.key(), b"my lock", ttl=100 * self.shortest_ttl)
        mine = self.token(store)
        assert store.cas(self.key(), b"", mine, ttl=0) is True
        assert store.get(self.key()) is None
        assert store.add(self.key(), b"another's lock") is True
        assert store.cas(self.key(), b"", mine, ttl=0) is False
        assert store.get(self.key()) == b"another's lock"

    @pytest.mark.parametrize("verb", ["set", "cas", "delete", "delete and add", "delete and set"])
    def test_cas_is_refused_after_any_other_write_of_equal_bytes(self, store: Store, verb: str) -> None:
        store.set(self.key(), b"same")
        token = self.token(store)
        if verb == "cas":
            assert store.cas(self.key(), b"same", self.token(store))
        if "delete" in verb:
            assert store.delete(self.key())
        if "add" in verb:
            assert store.add(self.key(), b"same")
        if "set" in verb:
            store.set(self.key(), b"same")
        before = store.get(self.key())
        assert store.cas(self.key(), b"late", token) is False
        assert store.get(self.key()) == before

    def test_a_token_is_good_for_one_write_only(self, store: Store) -> None:
        store.set(self.key(), b"old")
        token = self.token(store)
        assert store.cas(self.key(), b"new", token) is True
        assert store.cas(self.key(), b"newer", token) is False
        assert store.get(self.key()) == b"new"

    def test_a_token_is_good_for_its_own_key_only(self, store: Store) -> None:
        store.set(self.key("a"), b"a")
        store.set(self.key("b"), b"b")
        assert store.cas(self.key("b"), b"new", self.token(store, "a")) is False
        assert store.get(self.key("b")) == b"b"

    def test_reading_does_not_use_a_token_up(self, store: Store) -> None:
        store.set(self.key(), b"old")
        token = self.token(store)
        assert store.get(self.key()) == b"old"
        assert store.gets(self.key()) is not None
        assert store.get_many([self.key()]).values
        assert store.add(self.key(), b"refused") is False
        assert store.cas(self.key(), b"new", token) is True

    # Expiry

    def test_a_value_past_its_ttl_is_missing_for_every_verb(self, store: Store) -> None:
        keys = [self.key(name) for name in ("get", "cas", "delete", "add")]
        for key in keys:
            store.set(key, b"value", ttl=self.shortest_ttl)
        assert store.get_many(keys).values == dict.fromkeys(keys, b"value")
        token = self.token(store, "cas")
        self.let_expire()
        assert store.get(keys[0]) is None
        assert store.gets(keys[0]) is None
        assert store.get_many(keys) == Many({}, {})
        assert store.cas(keys[1], b"late", token) is False
        assert store.delete(keys[2]) is False
        assert store.add(keys[3], b"new") is True
        assert store.get(keys[3]) == b"new"

    @pytest.mark.parametrize("verb", ["add", "cas"])
    def test_the_ttl_of_every_writing_verb_counts(self, store: Store, verb: str) -> None:
        if verb == "add":
            store.add(self.key(), b"value", ttl=self.shortest_ttl)
        else:
            store.set(self.key(), b"value")
            store.cas(self.key(), b"value", self.token(store), ttl=self.shortest_ttl)
        assert store.get(self.key()) == b"value"
        self.let_expire()
        assert store.get(self.key()) is None

    @pytest.mark.parametrize("verb", ["set", "cas"])
    def test_writing_without_a_ttl_ends_the_one_before(self, store: Store, verb: str) -> None:
        store.set(self.key(), b"old", ttl=self.shortest_ttl)
        if verb == "set":
            store.set(self.key(), b"new")
        else:
            assert store.cas(self.key(), b"new", self.token(store))
        self.let_expire()
        assert store.get(self.key()) == b"new"

    def test_a_token_from_before_an_expiry_is_not_good_for_a_later_value(self, store: Store) -> None:
        store.set(self.key(), b"same", ttl=self.shortest_ttl)
        token = self.token(store)
        self.let_expire()
        assert store.add(self.key(), b"same") is True
        assert store.cas(self.key(), b"late", token) is False

    # Bounds

    def test_thousands_of_random_writes_stay_within_the_bound(self, store: Store) -> None:
        bounded, chance = self.bounded(400_000), random.Random(1)
        keys = [self.key(f"random:{number}") for number in range(700)]
        for _ in range(2000):
            bounded.set(chance.choice(keys), chance.randbytes(chance.choice([0, 50, 700, 2000, 9000, 30_000])))
        held = bounded.get_many(keys).values
        assert sum(len(key) + len(value) for key, value in held.items()) <= 400_000
        assert len(held) > 10

    def test_values_that_are_read_stay_and_others_are_evicted(self, store: Store) -> None:
        bounded = self.bounded(400_000)
        for name in ("read", "unread"):
            bounded.set(self.key(name), b"x" * 5000)
        for number in range(200):
            bounded.set(self.key(f"filler:{number}"), b"x" * 5000)
            assert bounded.get(self.key("read")) is not None, f"lost after {number} writes"
        assert bounded.get(self.key("unread")) is None

    def test_a_token_from_before_an_eviction_is_not_good_for_a_later_value(self, store: Store) -> None:
        bounded = self.bounded(400_000)
        bounded.set(self.key(), b"same")
        token = self.token(bounded)
        for number in range(200):
            bounded.set(self.key(f"filler:{number}"), b"x" * 5000)
        assert bounded.cas(self.key(), b"late", token) is False
        bounded.set(self.key(), b"same")
        assert bounded.cas(self.key(), b"late", token) is False
