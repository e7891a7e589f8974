"""The part of the suite that tests a store under several threads, handles and processes."""

from __future__ import annotations

import threading
from typing import Any

from ..stores.base import Store
from .concurrency import in_processes, in_threads
from .store_tests import StoreTests, needs


class ManyHandlesTests(StoreTests):
    """Tests of threads, handles, processes and forks."""

    # Threads

    def test_exactly_one_of_many_threads_adds_a_key(self, store: Store) -> None:
        keys = [self.key(f"lock:{number}") for number in range(20)]
        won = in_threads(8, lambda number: [store.add(key, b"%d" % number) for key in keys])
        assert [sum(each) for each in zip(*won, strict=True)] == [1] * len(keys)
        for position, key in enumerate(keys):
            assert store.get(key) == b"%d" % [answers[position] for answers in won].index(True)

    def test_increments_by_cas_from_many_threads_are_all_counted(self, store: Store) -> None:
        store.set(self.key(), b"0")
        in_threads(8, lambda _: self.increment(store, 25))
        assert store.get(self.key()) == b"200"

    def increment(self, store: Store, times: int) -> int:
        """Increment by compare-and-swap; return how often another writer came between."""
        beaten = -times
        while times:
            beaten += 1
            found = store.gets(self.key())
            assert found is not None
            times -= store.cas(self.key(), b"%d" % (int(found.value) + 1), found.token)
        return beaten

    # Several handles, several processes

    @needs()
    def test_close_may_be_repeated_and_a_later_verb_opens_again(self, store: Store) -> None:
        store.set(self.key(), b"value")
        store.close()
        store.close()
        if self.persistent:
            assert store.get(self.key()) == b"value"
        store.set(self.key(), b"again")
        assert store.get(self.key()) == (b"again" if self.stores else None)

    @needs("persistent")
    def test_values_survive_the_closing_of_every_handle(self, store: Store) -> None:
        store.set(self.key(), b"value", ttl=100 * self.shortest_ttl)
        store.close()
        assert self.another().get(self.key()) == b"value"

    @needs("shared")
    def test_a_token_of_one_handle_is_good_for_another(self, store: Store) -> None:
        other = self.another()
        store.set(self.key(), b"old")
        assert other.cas(self.key(), b"new", self.token(store)) is True
        assert store.get(self.key()) == b"new"

    @needs("shared")
    def test_exactly_one_of_many_processes_adds_a_key(self, store: Store) -> None:
        keys = [self.key(f"lock:{number}") for number in range(20)]

        def compete(number: int) -> list[bool]:
            mine = self.make_store()
            return [mine.add(key, b"%d" % number) for key in keys]

        won = in_processes(4, compete)
        assert [sum(each) for each in zip(*won, strict=True)] == [1] * len(keys)
        for position, key in enumerate(keys):
            assert store.get(key) == b"%d" % [answers[position] for answers in won].index(True)

    @needs("shared")
    def test_increments_by_cas_from_many_processes_are_all_counted(self, store: Store) -> None:
        store.set(self.key(), b"0")
        in_processes(4, lambda _: self.increment(store, 25))
        assert store.get(self.key()) == b"100"

    @needs()
    def test_a_store_that_was_in_use_before_a_fork_works_on_both_sides(self, store: Store) -> None:
        store.set(self.key("before"), b"parent")

        def child(_: int) -> object:
            inherited = store.get(self.key("before"))
            store.set(self.key("child"), b"child")
            # In threads of the child as well: a lock may be free only for the thread that forked.
            read = in_threads(2, lambda _: store.get(self.key("child")) == b"child")
            return [inherited == b"parent", all(read)]

        [[inherited, wrote]] = in_processes(1, child)
        assert wrote is self.stores
        if self.shared:
            assert inherited
        assert store.get(self.key("before")) == (b"parent" if self.stores else None)
        assert store.get(self.key("child")) == (b"child" if self.shared else None)

    @needs()
    def test_a_fork_while_other_threads_use_the_store_leaves_no_lock_held(self, store: Store) -> None:
        stop = threading.Event()

        def hammer(number: int) -> None:
            while not stop.is_set():
                store.set(self.key(f"thread:{number}"), b"x" * 5000)
                store.get(self.key(f"thread:{number}"))

        def child(number: int) -> bool:
            store.set(self.key(f"child:{number}"), b"child")
            return store.get(self.key(f"child:{number}")) == b"child"

        def fork_all(number: int) -> list[Any]:
            if number:
                hammer(number)
                return []
            try:
                return [in_processes(1, child) for _ in range(10)]
            finally:
                stop.set()

        assert in_threads(4, fork_all)[0] == [[self.stores]] * 10
        store.set(self.key("after"), b"parent")
        assert store.get(self.key("after")) == (b"parent" if self.stores else None)
