"""The circuit breaker: a node gets no requests until it answers a probe."""

from __future__ import annotations

import threading

import pytest

from tests.live.support.waiting import until
from wsgi_isr.stores.nodes.breaker import PAUSES, STABLE_AFTER, Breaker


class Probe:
    """A node that fails the first so many probes."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if self.count <= self.failures:
            raise TimeoutError(f"probe {self.count}")

    def bound(self) -> None:
        self()


class Pauses(list[float]):
    """Records the pauses of the breaker. They take no time before the ``hold``-th one."""

    def __init__(self, hold: int = 10**9) -> None:
        super().__init__()
        self.hold = hold
        self.go_on = threading.Event()

    def __call__(self, stop: threading.Event, pause: float) -> bool:
        self.append(pause)
        if len(self) > self.hold:
            self.go_on.wait(20)
        return stop.is_set()


def test_the_pauses_between_probes_grow_up_to_a_limit_with_jitter(clock):
    probe, pauses = Probe(failures=9), Pauses()
    breaker = Breaker("node", probe.bound, clock, pauses)
    breaker.trip("reset")
    until(lambda: breaker.cause is None, "the breaker to close")
    assert probe.count == len(pauses) == 10
    for pause, expected in zip(pauses, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2], strict=True):
        assert 0.75 * expected <= pause <= 1.25 * expected
    assert len({pause / round(pause, 1) for pause in pauses[6:]}) == 4  # the jitter


def test_while_open_it_tells_the_last_cause_and_one_probe_runs_at_a_time(clock):
    probe, pauses = Probe(failures=1), Pauses(hold=1)
    breaker = Breaker("node", probe.bound, clock, pauses)
    breaker.trip("reset")
    breaker.trip("reset by another thread")
    until(lambda: len(pauses) == 2, "the second pause")
    assert breaker.cause == "TimeoutError: probe 1"
    breaker.trip("and another")
    assert probe.count == 1
    pauses.go_on.set()
    until(lambda: breaker.cause is None, "the breaker to close")
    assert (probe.count, len(pauses)) == (2, 2)


@pytest.mark.parametrize(("passed", "first"), [(STABLE_AFTER - 1, 0.4), (STABLE_AFTER, 0.05)])
def test_a_node_that_fails_again_soon_is_left_alone_for_longer(clock, passed, first):
    probe, pauses = Probe(failures=2), Pauses()
    breaker = Breaker("node", probe.bound, clock, pauses)
    breaker.trip("one")
    until(lambda: breaker.cause is None, "the breaker to close")
    clock.advance(passed)
    breaker.trip("two")
    until(lambda: breaker.cause is None, "the breaker to close")
    assert len(pauses) == 4
    assert 0.75 * first <= pauses[3] <= 1.25 * first


def test_a_stopped_breaker_is_closed_and_its_probe_ends(clock):
    probe, pauses = Probe(failures=10**9), Pauses(hold=1)
    breaker = Breaker("node", probe.bound, clock, pauses)
    breaker.trip("reset")
    until(lambda: len(pauses) == 2, "the second pause")
    breaker.stop()
    assert breaker.cause is None
    pauses.go_on.set()
    until(lambda: not any("probe" in thread.name for thread in threading.enumerate()), "the probe to end")
    assert (breaker.cause, probe.count) == (None, 1)


def test_a_probe_does_not_keep_a_store_alive_that_nobody_uses(clock):
    probe, pauses = Probe(failures=10**9), Pauses(hold=1)
    breaker = Breaker("node", probe.bound, clock, pauses)
    breaker.trip("reset")
    until(lambda: len(pauses) == 2, "the second pause")
    del probe
    pauses.go_on.set()
    until(lambda: not any("probe" in thread.name for thread in threading.enumerate()), "the probe to end")


def test_without_another_thread_each_call_finds_out_for_itself(clock, monkeypatch):
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    probe = Probe()
    breaker = Breaker("node", probe.bound, clock)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    breaker.trip("reset")
    assert breaker.cause is None


def test_pauses_are_short_enough_to_find_a_node_again_within_seconds():
    assert PAUSES[0] < 0.1
    assert 1.25 * PAUSES[1] <= 2.5
