"""The checker of histories: the reads that it allows, and the reads that it must reject."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.chaos.history import Attempt, Circumstances, Invalidation, Outage, Read, Violation, check, figures, written

EXACT = Circumstances(coherence=0.0)
POLLED = Circumstances(coherence=0.1)


def read(start: float, version: int, label: str = "HIT", *, status: int = 200, end: float | None = None) -> Read:
    """Return a read of the page /a, which shows the rows x and y; y stays in version 1."""
    end = start + 0.01 if end is None else end
    return Read(start, end, status, label, "/a", shown="/a", versions={"x": version, "y": 1})


def invalidation(acknowledged: float, version: int, mode: str = "expire", row: str = "x") -> Invalidation:
    return Invalidation({row: version}, mode, (Attempt(acknowledged - 0.5, acknowledged),))


def promises(violations: list[Violation]) -> list[str]:
    return [violation.promise for violation in violations]


@pytest.mark.parametrize("label", ["HIT", "MISS", "EXPIRED", "BYPASS", "STALE"])
@pytest.mark.parametrize("mode", ["expire", "purge"])
def test_nothing_older_than_a_hard_invalidation_may_be_served_after_it(label: str, mode: str) -> None:
    history = [invalidation(10.0, 2, mode)]
    (violation,) = check([read(10.001, 1, label)], history, EXACT)
    assert violation.promise == f"{label} is not older than what was acknowledged before"
    assert (violation.row, violation.invalidation) == ("x", history[0])
    assert check([read(10.001, 2, label), read(10.002, 3, label)], history, EXACT) == []


@pytest.mark.parametrize("label", ["HIT", "MISS", "EXPIRED", "BYPASS"])
def test_what_says_to_be_fresh_may_not_be_older_than_a_soft_invalidation(label: str) -> None:
    assert len(check([read(10.001, 1, label)], [invalidation(10.0, 2, "stale")], EXACT)) == 1


def test_what_says_to_be_stale_may_be_older_than_a_soft_invalidation() -> None:
    assert check([read(10.001, 1, "STALE")], [invalidation(10.0, 2, "stale")], EXACT) == []


def test_a_soft_invalidation_after_a_hard_one_takes_nothing_back() -> None:
    history = [invalidation(10.0, 2, "expire"), invalidation(11.0, 3, "stale")]
    assert len(check([read(11.5, 1, "STALE")], history, EXACT)) == 1
    assert check([read(11.5, 2, "STALE")], history, EXACT) == []


@pytest.mark.parametrize("start", [9.6, 9.999, 10.0])
def test_a_read_that_began_before_the_acknowledgement_may_show_either(start: float) -> None:
    history = [invalidation(10.0, 2, "purge")]
    assert check([read(start, 1, end=10.2), read(start, 2, end=10.2)], history, EXACT) == []


def test_copies_may_be_served_for_as_long_as_they_are_not_checked() -> None:
    history = [invalidation(10.0, 2, "purge")]
    assert check([read(10.05, 1), read(10.099, 1)], history, POLLED) == []
    assert len(check([read(10.101, 1)], history, POLLED)) == 1


def test_an_invalidation_that_was_never_acknowledged_binds_nobody() -> None:
    refused = Invalidation({"x": 2}, "purge", (Attempt(9.0, 9.5, "not delivered"), Attempt(9.6, 10.0, "not delivered")))
    assert check([read(11.0, 1), read(11.1, 2)], [refused], EXACT) == []


def test_an_invalidation_counts_from_the_attempt_that_was_acknowledged() -> None:
    repeated = Invalidation({"x": 2}, "purge", (Attempt(9.0, 9.5, "not delivered"), Attempt(9.6, 10.0)))
    assert repeated.acknowledged == 10.0
    assert check([read(9.8, 1)], [repeated], EXACT) == []
    assert len(check([read(10.1, 1)], [repeated], EXACT)) == 1


def test_the_newest_version_counts_in_whatever_order_acknowledgements_came() -> None:
    history = [invalidation(10.2, 2), invalidation(10.1, 3)]
    assert len(check([read(10.3, 2)], history, EXACT)) == 1
    assert check([read(10.3, 3)], history, EXACT) == []


def test_each_row_of_a_page_counts() -> None:
    (violation,) = check([read(10.1, 5)], [invalidation(10.0, 2, row="y")], EXACT)
    assert violation.row == "y"


def test_a_row_that_a_page_does_not_show_does_not_count() -> None:
    assert check([read(10.1, 1)], [invalidation(10.0, 2, row="z")], EXACT) == []


def test_a_page_may_be_retained_past_a_hard_invalidation_only_where_renders_fail() -> None:
    history = [invalidation(10.0, 2, "expire")]
    failing = Circumstances(coherence=0.0, renders_fail=True)
    assert check([read(10.1, 1, "STALE-IF-ERROR")], history, failing) == []
    assert len(check([read(10.1, 1, "STALE-IF-ERROR")], history, EXACT)) == 1
    assert len(check([read(10.1, 1, "STALE")], history, failing)) == 1


def test_a_page_may_not_be_retained_past_a_purge_even_where_renders_fail() -> None:
    failing = Circumstances(coherence=0.0, renders_fail=True)
    assert len(check([read(10.1, 1, "STALE-IF-ERROR")], [invalidation(10.0, 2, "purge")], failing)) == 1


OUTAGE = Circumstances(coherence=0.0, outages=[Outage("A", 20.0, 22.0)], node_of={"x": "A", "y": "B"})


@pytest.mark.parametrize("start", [19.995, 20.0, 21.0, 22.0])
@pytest.mark.parametrize("label", ["DEGRADED", "STALE-IF-ERROR"])
def test_a_marked_page_may_be_old_by_tags_whose_node_is_away(start: float, label: str) -> None:
    assert check([read(start, 1, label)], [invalidation(10.0, 2, "purge")], OUTAGE) == []


def test_a_page_may_not_be_retained_past_a_purge_that_a_node_knows_that_is_there() -> None:
    failing = replace(OUTAGE, renders_fail=True)
    assert len(check([read(21.0, 1, "STALE-IF-ERROR")], [invalidation(10.0, 2, "purge", row="y")], failing)) == 1
    assert len(check([read(30.0, 1, "STALE-IF-ERROR")], [invalidation(10.0, 2, "purge")], failing)) == 1


def test_a_degraded_page_may_not_be_older_than_a_hard_invalidation_on_a_node_that_is_there() -> None:
    history = [invalidation(10.0, 2, "expire", row="y")]
    assert len(check([read(21.0, 1, "DEGRADED")], history, OUTAGE)) == 1
    assert check([read(21.0, 1, "DEGRADED")], [invalidation(10.0, 2, "stale", row="y")], OUTAGE) == []


@pytest.mark.parametrize("start", [19.0, 22.01])
def test_nothing_may_be_degraded_while_every_node_is_there(start: float) -> None:
    assert promises(check([read(start, 1, "DEGRADED")], [], OUTAGE)) == [
        "nothing is degraded while all nodes can be reached"
    ]


def test_a_node_that_is_away_excuses_nothing_that_says_to_be_fresh() -> None:
    assert len(check([read(21.0, 1, "HIT")], [invalidation(10.0, 2, "stale")], OUTAGE)) == 1


@pytest.mark.parametrize(
    ("answer", "promise"),
    [
        (Read(1.0, 1.1, 500, "MISS", "/a"), "no 5xx"),
        (Read(1.0, 1.1, 503, "", "/a"), "no 5xx"),
        (Read(1.0, 1.1, 404, "MISS", "/a"), "every page is there"),
        (Read(1.0, 1.1, 0, "", "/a", error="reset"), "no connection breaks"),
        (Read(1.0, 1.1, 200, "", "/a", shown="/a", versions={"x": 1}), "every answer is labelled"),
        (
            Read(1.0, 1.1, 200, "HIT", "/a", shown="/b", versions={"x": 1}),
            "an answer is for its own request, and not for '/b'",
        ),
        (Read(1.0, 1.1, 200, "HIT", "/a", shown="/a"), "a page shows its rows"),
    ],
)
def test_an_answer_that_is_no_page_is_rejected(answer: Read, promise: str) -> None:
    assert promises(check([answer], [], EXACT)) == [promise]


def test_a_connection_may_break_where_workers_are_killed_but_5xx_stay_forbidden() -> None:
    killed = Circumstances(coherence=0.0, cuts=True)
    cut, failed = Read(1.0, 1.1, 0, "", "/a", error="reset"), Read(1.0, 1.1, 502, "", "/a")
    assert promises(check([cut, failed], [], killed)) == ["no 5xx"]


def test_a_violation_says_what_was_shown_and_what_had_been_acknowledged() -> None:
    (violation,) = check([read(10.5, 1)], [invalidation(10.0, 2, "stale")], EXACT)
    assert "/a" in str(violation)
    assert "row 'x' in version 1; version 2 was acknowledged (stale) at 10.000000, 500.0 ms before" in str(violation)


def test_lines_are_read_as_they_were_written() -> None:
    page = {"path": "/a", "versions": {"x": 7}, "pid": 1}
    line = written([1.5, 1.75, 200, "STALE", "/a", 8000, page])
    assert Read.parse(line) == Read(1.5, 1.75, 200, "STALE", "/a", 8000, "/a", {"x": 7})
    assert Read.parse(written([1.5, 1.75, 0, "", "/a", 8000, "cut"])).error == "cut"
    line = written({"rows": {"x": 7}, "mode": "stale", "attempts": [(1.0, 1.5, "refused"), (1.6, 1.7, "")]})
    attempts = (Attempt(1.0, 1.5, "refused"), Attempt(1.6, 1.7))
    assert Invalidation.parse(line) == Invalidation({"x": 7}, "stale", attempts)


def test_figures_count_what_a_history_holds() -> None:
    refused = Invalidation({"x": 3}, "purge", (Attempt(19.0, 19.5, "no"), Attempt(19.6, 20.0)))
    never = Invalidation({"x": 4}, "purge", (Attempt(30.0, 30.5, "no"),))
    reads = [read(10.1, 2), read(12.0, 2, "STALE"), read(20.5, 3, "MISS"), Read(21.0, 21.1, 0, "", "/a")]
    counted = figures(reads, [invalidation(10.0, 2), refused, never])
    assert (counted.reads, counted.cut, counted.soon) == (4, 1, 2)
    assert counted.labels == {"HIT": 1, "STALE": 1, "MISS": 1}
    assert (counted.invalidations, counted.refused) == (2, 2)
    assert counted.seconds == pytest.approx(11.0)
