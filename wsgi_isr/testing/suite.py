"""The suite that every store passes, for authors of stores.

In the store's own test module, with pytest::

    class TestMyStore(StoreSuite):
        shared = persistent = True

        @pytest.fixture(autouse=True)
        def _place(self, tmp_path):
            self.now = 1e9
            self.url = f"my://{tmp_path}"

        def make_store(self):
            return MyStore(self.url, clock=lambda: self.now)

        def advance(self, seconds):
            self.now += seconds

Each test is one situation. Each test has random keys, so the suite can test a store that cannot be emptied. For a store
without a clock parameter, leave out ``advance``: the suite sleeps.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import select
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from ..errors import ValueTooLarge
from ..stores.base import Many, Store

_Test = TypeVar("_Test", bound=Callable[..., None])

#: Seconds after which a thread or process that does not end counts as hanging.
PATIENCE = 30.0


def needs(*flags: str) -> Callable[[_Test], _Test]:
    """Mark a test that applies only if these attributes of :class:`StoreSuite` are true; ``stores`` by default."""

    def mark(test: _Test) -> _Test:
        test.__dict__["needs"] = flags
        return test

    return mark


def in_threads(count: int, job: Callable[[int], Any]) -> list[Any]:
    """Return the results of ``job(0)`` to ``job(count - 1)``, each in its own thread, started together."""
    answers: list[Any] = [None] * count
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            gate.wait(PATIENCE)
            answers[number] = job(number)
        except BaseException as error:
            answers[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def in_processes(count: int, job: Callable[[int], Any]) -> list[Any]:
    """Return the results of :func:`in_threads` from forked children, which exit without cleanup.

    Results go through JSON.
    """
    gate, opener = os.pipe()
    children = []
    for number in range(count):
        answers, answer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside other threads: that is the tested situation.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                os.close(opener)
                os.read(gate, 1)  # until the parent closes its end
                message = json.dumps([job(number), None])
            except BaseException:
                message = json.dumps([None, traceback.format_exc()])
            os.write(answer, message.encode())
            os._exit(0)
        os.close(answer)
        children.append((pid, answers))
    os.close(gate)
    os.close(opener)
    return [_answer(pid, answers) for pid, answers in children]


def _answer(pid: int, answers: int) -> Any:
    message = b""
    try:
        while select.select([answers], [], [], PATIENCE)[0]:
            piece = os.read(answers, 65536)
            if not piece:
                break
            message += piece
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(answers)
        os.waitpid(pid, 0)
    assert message, "a child hangs, or was killed"
    answer, failure = json.loads(message)
    assert failure is None, f"in a child:\n{failure}"
    return answer


class StoreSuite:
    """The tests of a store: subclass it, and override the attributes and methods below."""

    #: Another process that opens the same store sees the same values.
    shared = False
    #: Values remain after every handle was closed.
    persistent = False
    #: ``False`` for a store that keeps nothing.
    stores = True
    #: The shortest ttl, in seconds, that has certainly not passed when the next verb runs.
    shortest_ttl = 1.0

    def make_store(self) -> Store:
        """Return a new handle; if ``shared`` or ``persistent``, on the same values during one test."""
        raise NotImplementedError

    def make_bounded_store(self, max_bytes: int) -> Store:
        """Return a handle on an empty store that holds at most so many bytes of keys and values."""
        pytest.skip("the store has no bound of its own")

    def advance(self, seconds: float) -> None:
        """Let time pass for the store."""
        time.sleep(seconds)

    # The tools of the tests

    def __init_subclass__(cls) -> None:
        """Leave out tests that do not apply: skipped tests would appear in every run."""
        super().__init_subclass__()
        for name, test in vars(StoreSuite).items():
            flags = getattr(test, "needs", ("stores",))
            if name.startswith("test_") and not all(getattr(cls, flag) for flag in flags):
                setattr(cls, name, None)

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        self._opened: list[Store] = []
        self._prefix = f"suite:{secrets.token_hex(8)}:"
        yield self.another()
        for store in self._opened:
            store.close()

    def another(self) -> Store:
        """Return another handle, closed at the end of the test."""
        store = self.make_store()
        self._opened.append(store)
        return store

    def key(self, name: str = "key") -> str:
        return self._prefix + name

    def let_expire(self) -> None:
        self.advance(2 * self.shortest_ttl)

    # The properties of a store

    @needs()
    def test_it_says_whether_it_keeps_anything(self, store: Store) -> None:
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

    def test_what_was_set_is_read_by_every_reading_verb(self, store: Store) -> None:
        store.set(self.key(), b"value")
        assert store.get(self.key()) == b"value"
        found = store.gets(self.key())
        assert found is not None
        assert found.value == b"value"
        assert store.get_many([self.key()]) == Many({self.key(): b"value"}, {})

    def test_set_writes_over_what_was_there(self, store: Store) -> None:
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

    def test_delete_removes_and_says_whether_there_was_something(self, store: Store) -> None:
        store.set(self.key(), b"value")
        assert store.delete(self.key()) is True
        assert store.get(self.key()) is None
        assert store.delete(self.key()) is False

    @needs()
    def test_delete_of_a_missing_key_says_so(self, store: Store) -> None:
        assert store.delete(self.key()) is False

    # Add

    @needs()
    def test_add_writes_where_the_key_is_missing(self, store: Store) -> None:
        assert store.add(self.key(), b"first") is True
        assert store.get(self.key()) == (b"first" if self.stores else None)

    def test_add_leaves_what_is_there(self, store: Store) -> None:
        store.add(self.key(), b"first")
        assert store.add(self.key(), b"second") is False
        assert store.get(self.key()) == b"first"

    def test_add_writes_again_after_a_delete(self, store: Store) -> None:
        store.add(self.key(), b"first")
        store.delete(self.key())
        assert store.add(self.key(), b"second") is True
        assert store.get(self.key()) == b"second"

    # Compare and swap

    def test_cas_writes_where_nobody_wrote_since(self, store: Store) -> None:
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

    def token(self, store: Store, name: str = "key") -> Any:
        found = store.gets(self.key(name))
        assert found is not None
        return found.token

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

    def test_a_token_from_before_an_expiry_is_not_good_for_what_came_after(self, store: Store) -> None:
        store.set(self.key(), b"same", ttl=self.shortest_ttl)
        token = self.token(store)
        self.let_expire()
        assert store.add(self.key(), b"same") is True
        assert store.cas(self.key(), b"late", token) is False

    # Threads

    def test_of_many_threads_that_add_one_key_exactly_one_wins(self, store: Store) -> None:
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
    def test_values_survive_that_every_handle_is_closed(self, store: Store) -> None:
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
    def test_of_many_processes_that_add_one_key_exactly_one_wins(self, store: Store) -> None:
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
    def test_a_fork_while_other_threads_are_using_the_store_locks_nobody_out(self, store: Store) -> None:
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

    # Bounds

    def test_thousands_of_random_writes_stay_within_the_bound(self, store: Store) -> None:
        bounded, chance = self.bounded(400_000), random.Random(1)
        keys = [self.key(f"random:{number}") for number in range(700)]
        for _ in range(2000):
            bounded.set(chance.choice(keys), chance.randbytes(chance.choice([0, 50, 700, 2000, 9000, 30_000])))
        held = bounded.get_many(keys).values
        assert sum(len(key) + len(value) for key, value in held.items()) <= 400_000
        assert len(held) > 10

    def test_what_is_read_is_kept_and_what_is_not_is_evicted(self, store: Store) -> None:
        bounded = self.bounded(400_000)
        for name in ("read", "unread"):
            bounded.set(self.key(name), b"x" * 5000)
        for number in range(200):
            bounded.set(self.key(f"filler:{number}"), b"x" * 5000)
            assert bounded.get(self.key("read")) is not None, f"lost after {number} writes"
        assert bounded.get(self.key("unread")) is None

    def test_a_token_from_before_an_eviction_is_not_good_for_what_came_after(self, store: Store) -> None:
        bounded = self.bounded(400_000)
        bounded.set(self.key(), b"same")
        token = self.token(bounded)
        for number in range(200):
            bounded.set(self.key(f"filler:{number}"), b"x" * 5000)
        assert bounded.cas(self.key(), b"late", token) is False
        bounded.set(self.key(), b"same")
        assert bounded.cas(self.key(), b"late", token) is False

    def bounded(self, max_bytes: int) -> Store:
        store = self.make_bounded_store(max_bytes)
        self._opened.append(store)
        return store
