"""The record of the releases that have stored pages: short, sealed, and best effort."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest

from tests.unit.scripted import Troubled, task_of
from wsgi_isr.cache.entry import Codec
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.releases import MAX_RELEASES, Releases
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.memory import MemoryStore

KEY = Keyspace("site").releases("shop")
TASK = task_of("/")


def releases(
    store: Store, release: str, adopt: str | None = "auto", codec: Codec | None = None, app: str = "shop"
) -> Releases:
    """Return a process of a release that begins now."""
    return Releases(release, adopt, "site", store, codec or Codec(), app)


def recorded(store: Store) -> list[str]:
    data = store.get(KEY)
    return [] if data is None else list(msgpack.unpackb(Codec().unseal(data, "releases")))


def page_of(release: str) -> str:
    return Keyspace("site", release).page(TASK.text)


def served(store: Store, *names: str) -> None:
    """Let a process of each of these releases store a page, one after the other."""
    for name in names:
        releases(store, name).record()


def test_a_new_release_adopts_from_the_one_that_stored_pages_last() -> None:
    store = MemoryStore()
    served(store, "1", "2")
    assert releases(store, "3").former_page(TASK) == page_of("2")


def test_the_first_release_adopts_from_none() -> None:
    store = MemoryStore()
    process = releases(store, "1")
    assert process.former_page(TASK) is None
    process.record()
    assert process.former_page(TASK) is None
    assert releases(store, "1").former_page(TASK) is None


def test_a_release_that_never_stored_a_page_is_adopted_by_none() -> None:
    store = MemoryStore()
    served(store, "1")
    releases(store, "2").former_page(TASK)
    assert recorded(store) == ["1"]
    assert releases(store, "3").former_page(TASK) == page_of("1")


def test_each_process_of_a_release_adopts_from_the_same_one() -> None:
    store = MemoryStore()
    served(store, "1")
    first = releases(store, "2")
    first.record()
    assert first.former_page(TASK) == releases(store, "2").former_page(TASK) == page_of("1")


def test_two_apps_of_one_namespace_adopt_each_from_its_own_release() -> None:
    store = MemoryStore()
    for app in ("shop", "blog"):
        releases(store, f"{app}-1", app=app).record()
    assert releases(store, "shop-2", app="shop").former_page(TASK) == page_of("shop-1")
    assert releases(store, "blog-2", app="blog").former_page(TASK) == page_of("blog-1")


def test_a_release_without_a_name_is_one_like_any_other() -> None:
    store = MemoryStore()
    served(store, "")
    assert releases(store, "2").former_page(TASK) == page_of("")


def test_after_a_return_to_an_older_release_it_adopts_from_the_newer_and_the_next_adopts_from_it() -> None:
    store = MemoryStore()
    served(store, "1", "2")
    back = releases(store, "1")
    assert back.former_page(TASK) == page_of("2")
    back.record()
    assert recorded(store) == ["2", "1"]
    assert releases(store, "3").former_page(TASK) == page_of("1")


def test_a_release_deletes_what_it_refuses_of_its_predecessor_alone() -> None:
    store = MemoryStore()
    served(store, "1", "2")
    for name in ("1", "2"):
        store.set(page_of(name), b"page")
    older = releases(store, "1")
    older.refuse(TASK)  # the newer one may be serving beside it
    assert store.get(page_of("2")) == b"page"
    assert older.former_page(TASK) is None
    assert older.former_page(task_of("/other")) is not None
    newer = releases(store, "2")
    newer.refuse(TASK)
    assert store.get(page_of("1")) is None


def test_what_is_remembered_as_refused_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_isr.cache.releases.MAX_REFUSED", 3)
    store = MemoryStore()
    served(store, "1", "2")
    older = releases(store, "1")
    for number in range(10):
        older.refuse(task_of(f"/{number}"))
    assert len(older._refused) <= 3


def test_the_record_is_short() -> None:
    store = MemoryStore()
    served(store, *(str(number) for number in range(20)))
    assert recorded(store) == [str(number) for number in range(20 - MAX_RELEASES, 20)]
    releases(store, "x" * 5000).record()
    assert recorded(store)[-1] == "19"


@pytest.mark.parametrize("adopt", [None, "mine"])
def test_a_name_or_none_asks_no_record(adopt: str | None) -> None:
    store = MemoryStore()
    served(store, "1")
    expected = None if adopt is None else page_of("mine")
    assert releases(store, "2", adopt).former_page(TASK) == expected


def test_fifty_processes_that_begin_at_once_leave_one_line() -> None:
    store = MemoryStore()
    served(store, "1")
    gate = threading.Barrier(50)

    def begin(_number: int) -> str | None:
        process = releases(store, "2")
        gate.wait(10)
        former = process.former_page(TASK)
        process.record()
        return former

    with ThreadPoolExecutor(50) as processes:
        formers = set(processes.map(begin, range(50)))
    assert formers == {page_of("1")}
    assert recorded(store) == ["1", "2"]


def test_a_process_writes_the_record_once_and_not_at_all_where_it_is_there() -> None:
    store = Troubled(MemoryStore())
    served(store, "1")
    process = releases(store, "1")
    store.calls.clear()
    for _ in range(5):
        process.record()
        process.former_page(TASK)
    assert [verb for verb, _ in store.calls] == ["get", "gets"]


@pytest.mark.parametrize("verb", ["get", "gets", "cas", "add"])
def test_a_store_that_is_away_costs_adoption_and_no_more(verb: str) -> None:
    store = Troubled(MemoryStore())
    served(store.inner, "1")
    process = releases(store, "2")
    store.failing = {verb}
    process.former_page(TASK)
    process.record()
    store.failing.clear()
    assert process.former_page(TASK) == page_of("1")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04",
        b"\x04garbage",
        Codec().seal(msgpack.packb({"a": 1}), "releases"),
        Codec().seal(b"\xc1", "releases"),
    ],
)
def test_a_damaged_record_is_none(data: bytes) -> None:
    store = MemoryStore()
    store.set(KEY, data)
    process = releases(store, "2")
    assert process.former_page(TASK) is None
    process.record()
    assert recorded(store) == ["2"]


def test_what_is_no_name_in_it_is_left_out() -> None:
    store = MemoryStore()
    store.set(KEY, Codec().seal(msgpack.packb(["1", 7, None, "x" * 5000, b"2"]), "releases"))
    assert releases(store, "2").former_page(TASK) == page_of("1")


def test_with_a_signing_key_a_foreign_record_is_none() -> None:
    store = MemoryStore()
    served(store, "theirs")
    codec = Codec("k" * 16, "site")
    assert releases(store, "2", codec=codec).former_page(TASK) is None
    releases(store, "1", codec=codec).record()
    assert releases(store, "2", codec=codec).former_page(TASK) == page_of("1")


def test_a_name_of_any_characters_comes_back_as_it_was() -> None:
    store = MemoryStore()
    served(store, "a\udcff b/\n")
    assert releases(store, "2").former_page(TASK) == page_of("a\udcff b/\n")
