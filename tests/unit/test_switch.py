"""The record of the switch, and its bytes in the store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgpack
import pytest

from wsgi_isr.cache.app_records import Registry
from wsgi_isr.cache.entry import Codec
from wsgi_isr.cache.switch import NO_RECORD, ON, PASS, SERVE_STALE, Copies, Record, checked
from wsgi_isr.cache.switchboard import Switchboard
from wsgi_isr.errors import ConfigError
from wsgi_isr.stores.memory import MemoryStore

NOW = 1_700_000_000.0
GOOD = Record(int(NOW * 1000), PASS, NOW + 60, ("/a",), "ann", NOW)


def copies(folder: Path | str = "", namespace: str = "default") -> Copies:
    return Copies(MemoryStore(), namespace, None, str(folder), lambda: NOW)


def test_a_record_survives_its_bytes() -> None:
    one = copies()
    for record in (GOOD, GOOD._replace(rules=None, until=None, mode=SERVE_STALE), GOOD._replace(mode=ON)):
        assert one.newest([None, one.seal(record)]) == record


@pytest.mark.parametrize(
    "fields",
    [
        (),
        None,
        7,
        {"stamp": 1},
        GOOD[:-1],
        (*GOOD, 1),
        GOOD._replace(stamp=0),
        GOOD._replace(stamp=-1),
        GOOD._replace(stamp=True),
        GOOD._replace(stamp=2**63),
        GOOD._replace(stamp=1.5),  # type: ignore[arg-type]
        GOOD._replace(mode="off"),
        GOOD._replace(mode=[]),  # type: ignore[arg-type]
        GOOD._replace(until=float("nan")),
        GOOD._replace(until=float("inf")),
        GOOD._replace(until="soon"),  # type: ignore[arg-type]
        GOOD._replace(rules=()),
        GOOD._replace(rules="/a"),  # type: ignore[arg-type]
        GOOD._replace(rules=("/a",) * 1000),
        GOOD._replace(rules=(b"/a",)),  # type: ignore[arg-type]
        GOOD._replace(actor=None),  # type: ignore[arg-type]
        GOOD._replace(actor="a" * 10_000),
        GOOD._replace(since=None),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_malformed_records_count_as_missing(fields: Any) -> None:
    assert checked(fields, NOW) is None
    sealed = (
        Codec(None, "default").seal(msgpack.packb(fields), "switch") if fields != GOOD._replace(stamp=2**64) else b""
    )
    assert copies().newest([sealed]) is NO_RECORD


def test_the_highest_stamp_counts_in_any_order() -> None:
    one = copies()
    older, newer = one.seal(GOOD), one.seal(GOOD._replace(stamp=GOOD.stamp + 1, mode=ON))
    for order in ([older, newer, None], [None, newer, older]):
        assert one.newest(order).mode == ON


def test_a_file_of_another_namespace_switches_nothing_and_stays(tmp_path: Path) -> None:
    copies(tmp_path, "shop").write_file(GOOD)
    assert copies(tmp_path, "shop").filed() == GOOD
    assert copies(tmp_path).filed() is NO_RECORD
    assert not copies(tmp_path).remove_file()
    assert copies(tmp_path, "shop").remove_file()
    assert os.listdir(tmp_path) == []


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    one = copies(tmp_path / "new")
    one.write_file(GOOD)
    one.write_file(GOOD._replace(mode=ON))
    assert json.loads((tmp_path / "new" / "off").read_text())["mode"] == ON
    assert os.listdir(tmp_path / "new") == ["off"]


def test_a_switch_of_a_rule_concerns_its_pages_and_no_data() -> None:
    assert GOOD.mode_for("/a", False, NOW) == PASS
    assert GOOD.mode_for("/b", False, NOW) == GOOD.mode_for("/a", True, NOW) == ON
    assert GOOD.mode_for("/a", False, NOW + 60) == ON
    assert GOOD._replace(rules=None).mode_for("f", True, NOW) == PASS


def test_a_file_from_the_future_is_as_old_as_this_moment_and_can_be_overruled(tmp_path: Path) -> None:
    one = copies(tmp_path)
    (tmp_path / "off").touch()
    os.utime(tmp_path / "off", (NOW + 10 * 86400,) * 2)
    assert one.filed()[:2] == (int(NOW * 1000), PASS)
    store = MemoryStore()
    turned = Switchboard(one, store, "default", Registry(store, "default")).turn(ON)
    assert checked(turned.record, NOW) == turned.record
    assert one.newest(one.read().values.values()).mode == one.filed().mode == ON


def test_a_record_that_no_process_would_obey_is_refused() -> None:
    one = copies()
    store = MemoryStore()
    ahead = GOOD._replace(stamp=GOOD.stamp + 24 * 3600 * 1000)
    one.write(ahead)
    with pytest.raises(ConfigError, match="clock"):
        Switchboard(one, store, "default", Registry(store, "default")).turn(ON)
    assert one.newest(one.read().values.values()) == ahead


@pytest.mark.parametrize("text", ["/\udcff", "\ud800"])
def test_a_rule_that_is_no_text_is_refused(text: str) -> None:
    store = MemoryStore()
    with pytest.raises(ConfigError, match="UTF-8"):
        Switchboard(copies(), store, "default", Registry(store, "default")).turn(PASS, rules=(text,))


def test_the_file_of_another_namespace_is_not_overwritten(tmp_path: Path) -> None:
    copies(tmp_path, "shop").write_file(GOOD)
    with pytest.raises(ConfigError, match="another namespace"):
        copies(tmp_path).write_file(GOOD._replace(mode=ON))
    assert copies(tmp_path, "shop").filed() == GOOD


def test_a_folder_and_a_file_that_root_makes_belong_to_the_owner_of_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int, int]] = []
    owner = os.stat(tmp_path).st_uid, os.stat(tmp_path).st_gid
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, *ids, **_: given.append((os.path.basename(path), *ids)))
    monkeypatch.setattr(os, "fchown", lambda file, *ids: given.append(("off", *ids)))
    copies(tmp_path / "new" / "state").write_file(GOOD)
    assert given == [(name, *owner) for name in ("new", "state", "off")]
