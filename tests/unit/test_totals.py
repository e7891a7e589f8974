"""``Totals``: they add up, have differences, and cross processes as bytes."""

from __future__ import annotations

import msgpack
import pytest

from wsgi_isr.observe.totals import BOUNDS, MAX_ROWS, Durations, InProgress, Renders, Totals, class_of, merged

ONE = Totals(
    requests={("/", "HIT", ""): 3, ("/", "STALE", "time"): 1},
    renders={("/", "time", "stored"): Renders(1, 0.5, 0.25, 1, (1,) + (0,) * len(BOUNDS))},
    waits={("/",): Durations(1, 0.5)},
    marks={("dropped",): 2},
    in_progress=(InProgress("/", "miss", 5.0),),
    running={("/",): 1},
    local_bytes=100,
    nodes={"one": True, "two": True},
    journal_pending=3,
    processes=1,
)
OTHER = Totals(
    requests={("/", "HIT", ""): 4, ("/a", "MISS", ""): 1},
    renders={("/", "time", "stored"): Renders(2, 1.0, 0.5, 0, (0, 2) + (0,) * (len(BOUNDS) - 1))},
    local_bytes=50,
    nodes={"two": False},
    journal_pending=3,
    processes=1,
)


def test_totals_add_up_by_their_labels() -> None:
    both = ONE.merge(OTHER)
    assert both.requests == {("/", "HIT", ""): 7, ("/", "STALE", "time"): 1, ("/a", "MISS", ""): 1}
    assert both.renders == {("/", "time", "stored"): Renders(3, 1.5, 0.75, 1, (1, 2) + (0,) * (len(BOUNDS) - 1))}
    assert (both.dropped, both.local_bytes, both.processes) == (2, 150, 2)


def test_a_node_is_up_if_every_process_reaches_it() -> None:
    assert ONE.merge(OTHER).nodes == {"one": True, "two": False}


def test_the_processes_of_a_machine_have_one_journal() -> None:
    assert ONE.merge(OTHER).journal_pending == 3
    assert ONE.merge(Totals()).journal_pending == 3


def test_earlier_totals_and_the_difference_add_up_to_the_later_ones() -> None:
    later = ONE.merge(OTHER)
    assert ONE.merge(later.since(ONE).counts()).counts() == later.counts()


def test_a_difference_has_only_what_has_changed() -> None:
    since = ONE.merge(Totals(requests={("/", "HIT", ""): 1})).since(ONE)
    assert since.requests == {("/", "HIT", ""): 1}
    assert (since.renders, since.marks) == ({}, {})


def test_bytes_have_everything() -> None:
    assert Totals.decode(ONE.encode()) == ONE
    assert Totals.decode(Totals().encode()) == Totals()


def test_a_table_of_a_later_version_is_left_out() -> None:
    tables, moment = msgpack.unpackb(ONE.encode())
    tables["later"] = [["label", 1]]
    assert Totals.decode(msgpack.packb([tables, moment])) == ONE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb([{"requests": [["/", "HIT", 1]]}, [0, {}, None, 0, []]]),
        msgpack.packb([{"requests": [["/", "HIT", "", "1"]]}, [0, {}, None, 0, []]]),
        msgpack.packb([{"requests": [["/" * 1000, "HIT", "", 1]]}, [0, {}, None, 0, []]]),
        msgpack.packb([{"requests": [["/", "HIT", "", True]]}, [0, {}, None, 0, []]]),
        msgpack.packb([{"renders": [["/", "time", "stored", [1, 1.0, 1.0, 0, [1]]]]}, [0, {}, None, 0, []]]),
        msgpack.packb([{"waits": [["/", ["1", 1.0, [0] * (len(BOUNDS) + 1)]]]}, [0, {}, None, 0, []]]),
        msgpack.packb([{}, ["many", {}, None, 0, []]]),
        ONE.encode()[:-1],
    ],
)
def test_other_bytes_are_no_totals(data: bytes) -> None:
    with pytest.raises(ValueError, match="no totals"):
        Totals.decode(data)


def test_parts_are_small_and_add_up() -> None:
    requests = {(f"/{number}", "HIT", ""): number for number in range(3 * MAX_ROWS)}
    large = Totals(requests=requests, local_bytes=7, processes=1)
    parts = list(large.parts())
    assert len(parts) == 3
    assert merged(parts) == large


def test_totals_without_rows_are_one_part() -> None:
    assert list(Totals(processes=1).parts()) == [Totals(processes=1)]


@pytest.mark.parametrize(("seconds", "number"), [(0.0, 0), (0.005, 0), (0.0051, 1), (3600.0, 14), (1e9, len(BOUNDS))])
def test_a_duration_belongs_to_the_first_class_that_holds_it(seconds: float, number: int) -> None:
    assert class_of(seconds) == number
