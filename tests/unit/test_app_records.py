"""The records of apps in a store: bounded and sealed. Their errors disturb nothing else."""

from __future__ import annotations

import threading
from typing import Any

import msgpack
import pytest

from tests.unit.scripted import NEVER, Clock, Gate
from wsgi_isr.cache.app_records import (
    MAX_APPS,
    MAX_MOUNTS,
    MAX_RULES,
    Advice,
    AppRecord,
    Apps,
    Presence,
    Registry,
    advice,
    kept_pattern,
)
from wsgi_isr.cache.entry import Codec
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.config.origin import Site
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.stores.base import Many
from wsgi_isr.stores.memory import MemoryStore

KEY = Keyspace("site").apps(0)
NONE = Apps((), ())


def record(name: str = "shop", **fields: Any) -> AppRecord:
    return AppRecord(name, ("/a",), True, ("local",), (("example.com", ""),), 1.0, 2.0)._replace(**fields)


class Remote(MemoryStore):
    """A store on other machines: a node may be unreachable."""

    remote = True
    nodes = ("a:1", "b:1")
    away = False

    def get_many(self, keys: Any) -> Many:
        found = super().get_many(keys)
        return Many({}, {key: StoreUnavailable("a:1", "away") for key in keys}) if self.away else found


def test_what_was_written_is_read_by_every_process_of_the_namespace() -> None:
    store = MemoryStore()
    assert Registry(store, "site").apps() == NONE
    Registry(store, "site").write(record(), NONE)
    assert Registry(store, "site").apps() == Apps((record(),), ("site",))
    assert Registry(store, "other").apps() == Apps((), ("site",))


def test_a_record_takes_the_place_of_the_one_of_its_name() -> None:
    registry = Registry(MemoryStore(), "site")
    registry.write(record("blog"), NONE)
    for rules in (("/a",), ("/a", "/b")):
        known = registry.apps()
        assert known is not None
        registry.write(record(rules=rules), known)
    found = registry.apps()
    assert found is not None
    assert [(each.name, each.rules) for each in found.records] == [("shop", ("/a", "/b")), ("blog", ("/a",))]


def test_on_several_nodes_there_are_copies_and_one_of_them_is_enough() -> None:
    store = Remote()
    Registry(store, "site").write(record(), NONE)
    keys = [Keyspace("site").apps(copy) for copy in range(16)]
    assert all(store.get(key) is not None for key in keys)
    for key in keys[:7] + keys[8:]:
        store.delete(key)
    assert Registry(store, "site").apps() == Apps((record(),), ("site",))


def test_while_a_node_is_away_nothing_is_known() -> None:
    store = Remote()
    store.away = True
    assert Registry(store, "site").apps() is None


def test_what_another_node_does_not_have_in_the_place_of_one_that_is_away_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Remote()
    assert Registry(store, "site").apps() == NONE
    monkeypatch.setattr(store, "is_displaced", lambda key: True)
    assert Registry(store, "site").apps() is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"damaged",
        Codec().seal(msgpack.packb("text"), "apps"),
        Codec().seal(msgpack.packb([["too", "short"]]), "apps"),
        Codec().seal(msgpack.packb([record(name=7)]), "apps"),  # type: ignore[arg-type]
        Codec().seal(msgpack.packb([record(rules=("x" * 10_000,))]), "apps"),
        Codec().seal(msgpack.packb([record(mounts=(("a", "b", "c"),))]), "apps"),
        Codec().seal(msgpack.packb([record(last="yesterday")]), "apps"),  # type: ignore[arg-type]
        Codec().seal(msgpack.packb([record()]), "sites"),
        Codec("another key of 16 bytes").seal(msgpack.packb([record()]), "apps"),
    ],
)
def test_what_another_program_has_written_is_no_record(data: bytes) -> None:
    store = MemoryStore()
    store.set(KEY, data)
    signed = Registry(store, "site", "a key of our own, of 16 bytes")
    assert signed.apps() is None
    if not data.startswith(Codec().seal(msgpack.packb([record()]), "sites")):
        assert Registry(store, "site").apps() is None


def test_records_are_bounded() -> None:
    registry = Registry(MemoryStore(), "site")
    for number in range(3 * MAX_APPS):
        known = registry.apps()
        assert known is not None
        registry.write(record(f"app {number}"), known)
    found = registry.apps()
    assert found is not None
    assert len(found.records) == MAX_APPS
    assert found.records[0].name == f"app {3 * MAX_APPS - 1}"


# Records of an app ----------------------------------------------------------------------------------------


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, patterns: Any = ("/a",)) -> None:
        self.store = MemoryStore()
        self.clock = Clock()
        self.looks: list[Any] = []
        monkeypatch.setattr("wsgi_isr.cache.app_records.in_thread", lambda work: self.looks.append(work) or True)
        self.registry = Registry(self.store, "site")
        self.presence = Presence(self.registry, self.store, "site", "shop", patterns, self.clock, self.clock)

    def serve(self, host: str = "example.com") -> None:
        self.presence.served(Site("http", host))

    def look(self) -> AppRecord:
        for work in self.looks:
            work()
        self.looks.clear()
        found = self.registry.apps()
        assert found is not None
        return found.records[0]


def test_a_record_is_written_in_the_background_after_the_first_page(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.serve()
    scene.serve()
    assert len(scene.looks) == 1
    assert scene.registry.apps() == NONE
    now = scene.clock()
    assert scene.look() == record(since=now, last=now)


def test_an_app_that_is_closed_waits_for_the_look_in_progress_and_begins_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    scene.serve()
    gate, looks = Gate(), scene.looks.pop()
    monkeypatch.setattr(scene.presence, "look", gate.enter)
    look = threading.Thread(target=looks)
    look.start()
    gate.reached()
    over = threading.Event()
    closing = threading.Thread(target=lambda: (scene.presence.close(NEVER), over.set()))
    closing.start()
    assert not over.wait(0.01)
    gate.open()
    closing.join(NEVER)
    look.join(NEVER)
    assert over.is_set()
    scene.serve("other.example.com")
    assert scene.looks == []


def test_an_app_that_is_closed_waits_no_longer_than_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.serve()  # and the read never begins
    scene.presence.close(0.0)


def test_it_is_looked_at_once_a_minute_and_renewed_every_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.serve()
    first = scene.look()
    for minute in range(1, 12):
        scene.serve()
        assert scene.looks == []
        scene.clock.advance(60)
        scene.serve()
        found = scene.look()
        assert found.since == first.since
        assert found.last == first.last + (660 if minute > 10 else 0)


def test_another_host_is_noted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.serve()
    scene.look()
    scene.serve("www.example.com")
    assert set(scene.look().mounts) == {("example.com", ""), ("www.example.com", "")}


def test_hosts_that_a_client_invents_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    for number in range(10 * MAX_MOUNTS):
        scene.serve(f"{number}.test")
    assert len(scene.look().mounts) == MAX_MOUNTS


def test_of_many_rules_some_are_kept_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [f"/{number}" for number in range(MAX_RULES + 1)])
    scene.serve()
    found = scene.look()
    assert (len(found.rules), found.is_complete) == (MAX_RULES, False)


def test_a_long_pattern_is_kept_as_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = "/" + "x" * 500
    scene = Scene(monkeypatch, [pattern])
    scene.serve()
    (found,) = scene.look().rules
    assert found == kept_pattern(pattern) != pattern
    apps = Apps((scene.look(),), ())
    assert list(advice([f"route:{pattern}"], [], apps, scene.store, "site", False)) == []


def test_a_store_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)

    def fail(*_: Any) -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(scene.store, "get_many", fail)
    scene.serve()
    scene.looks[0]()
    monkeypatch.undo()
    scene.presence.look()
    assert scene.look().name == "shop"


# Advice -------------------------------------------------------------------------------------------------


def test_before_the_first_page_of_an_own_app_an_unused_store_is_usual() -> None:
    store = MemoryStore()
    own, other = (next(advice(["tag:a"], [], NONE, store, "site", is_own)) for is_own in (True, False))
    assert own == Advice("no app has used memory:// yet: name the store that the app uses", is_quiet=True)
    assert not other.is_quiet


def test_what_the_store_says_makes_no_line_of_its_own() -> None:
    bad = "x\n\x1b[31mfake"
    apps = Apps((record(bad, rules=(bad,), nodes=(bad,)),), (bad,))
    texts = [one.text for one in advice(["route:/b"], [], apps, MemoryStore(), "site", False)]
    texts += [one.text for one in advice(["tag:a"], [], Apps((), (bad,)), MemoryStore(), "site", False)]
    assert len(texts) == 3
    assert all(text.isprintable() for text in texts)
