"""The record of the switch, and its bytes in the store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgpack
import pytest

from wsgi_isr.cache.entry import Codec
from wsgi_isr.cache.switch import NO_RECORD, ON, PASS, SERVE_STALE, Copies, Record, checked
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
