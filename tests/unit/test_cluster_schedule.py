"""Schedules of faults: drawn from a seed, and fair to visitors."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.chaos.nemesis import Nemesis
from cluster.chaos.schedule import (
    BALANCER,
    EVERY_INSTANCE,
    EVERY_NODE,
    FAULTS,
    QUIET_BETWEEN,
    QUIET_IN_THE_END,
    Strike,
    after_quiet,
    draw,
    may_strike,
)

NODES, INSTANCES = ["node-1", "node-2", "node-3"], ["instance-1", "instance-2", "instance-3"]


def test_a_seed_is_a_schedule() -> None:
    assert draw(7, 30, NODES, INSTANCES) == draw(7, 30, NODES, INSTANCES)
    assert draw(7, 30, NODES, INSTANCES) != draw(8, 30, NODES, INSTANCES)


def test_a_schedule_depends_on_nothing_but_its_seed() -> None:
    random.seed(1)
    first = draw(7, 30, NODES, INSTANCES)
    random.seed(2)
    assert draw(7, 30, NODES, INSTANCES) == first


@given(st.integers(0, 10**6), st.floats(5, 90))
def test_all_is_undone_before_the_end(seed: int, seconds: float) -> None:
    strikes = draw(seed, seconds, NODES, INSTANCES)
    assert [strike.at for strike in strikes] == sorted(strike.at for strike in strikes)
    assert all(strike.ends <= seconds - QUIET_IN_THE_END + 0.001 for strike in strikes)
    assert {strike.part for strike in strikes} <= {*NODES, *INSTANCES, BALANCER, EVERY_INSTANCE, EVERY_NODE}


@given(st.integers(0, 10**6))
def test_nothing_strikes_twice_at_once_and_one_instance_is_always_left_alone(seed: int) -> None:
    strikes = draw(seed, 60, NODES, INSTANCES)
    for strike in strikes:
        during = [other for other in strikes if other is not strike and other.at <= strike.at < other.ends]
        assert strike.part not in {other.part for other in during}
        struck = {other.part for other in [*during, strike]} & set(INSTANCES)
        assert len(struck) < len(INSTANCES)
        if strike.part == EVERY_INSTANCE:
            assert struck == set()


@given(st.integers(0, 10**6))
def test_a_minute_shows_every_kind(seed: int) -> None:
    assert {strike.fault for strike in draw(seed, 60, NODES, INSTANCES)} >= set(FAULTS) - {"blackout", "roll"}


@given(st.integers(0, 10**6))
@example(5916)  # a pause that was as long as a quiet time by chance
def test_once_each_kind_has_struck_all_is_quiet(seed: int) -> None:
    strikes = draw(seed, 60, NODES, INSTANCES)
    (first, *_) = sorted(after_quiet(strikes))
    assert {strike.fault for strike in strikes[:first]} == set(FAULTS)
    assert strikes[first].at >= max(strike.ends for strike in strikes[:first]) + QUIET_BETWEEN - 0.01


def test_a_short_run_has_no_blackout() -> None:
    assert not [s for seed in range(50) for s in draw(seed, 10, NODES, INSTANCES) if s.fault == "blackout"]


def test_the_last_idle_instance_is_left_alone() -> None:
    assert may_strike("kill", "instance-1", {"instance-2"}, INSTANCES)
    assert not may_strike("kill", "instance-1", {"instance-2", "instance-3"}, INSTANCES)
    assert not may_strike("kill", "instance-1", {"instance-1"}, INSTANCES)
    assert not may_strike("roll", EVERY_INSTANCE, {"instance-3"}, INSTANCES)
    assert may_strike("flush", "node-1", {*INSTANCES, "node-2"}, INSTANCES)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_kind_is_carried_out_by_somebody(fault: str) -> None:
    assert hasattr(Nemesis, "_" + fault.replace(" ", "_"))


def test_a_strike_says_when_what_how_long_and_how_much() -> None:
    assert (
        str(Strike(1.25, "clock", "instance-2", 2.0, -3.0)) == "   1.2 s  clock         instance-2 for 2.0 s (-3.0 s)"
    )
    assert str(Strike(12, "flush", "node-1")) == "  12.0 s  flush         node-1"
