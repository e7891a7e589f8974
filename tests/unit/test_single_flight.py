"""Single flight: one caller leads, and the followers get its result."""

from __future__ import annotations

import threading

from tests.unit.scripted import NEVER, start
from wsgi_isr.cache.single_flight import Flight, Flights


def test_the_first_leads_and_later_ones_join() -> None:
    flights: Flights[str] = Flights()
    flight, is_leader = flights.join_or_create("a")
    assert is_leader
    assert flights.join_or_create("a") == (flight, False)
    assert flights.get("a") is flight
    assert len(flights) == 1


def test_flights_of_different_keys_are_independent() -> None:
    flights: Flights[str] = Flights()
    one, other = flights.join_or_create("a")[0], flights.join_or_create("b")[0]
    assert one is not other
    one.set_result("done")
    assert flights.get("a") is None
    assert flights.get("b") is other


def test_everybody_who_waits_gets_the_outcome() -> None:
    flights: Flights[str] = Flights()
    flight, _ = flights.join_or_create("a")
    waiting = [start(lambda: flight.wait(NEVER)) for _ in range(5)]
    assert flight.set_result("done")
    assert [future.result(NEVER) for future in waiting] == ["done"] * 5


def test_who_comes_after_the_landing_leads_a_new_flight() -> None:
    flights: Flights[str] = Flights()
    first, _ = flights.join_or_create("a")
    first.set_result("done")
    second, is_leader = flights.join_or_create("a")
    assert is_leader
    assert second is not first
    assert (first.done, second.done) == (True, False)


def test_a_flight_is_claimed_once() -> None:
    flights: Flights[str] = Flights()
    flight, _ = flights.join_or_create("a")
    assert flight.claim()
    assert not flight.claim()


def test_a_flight_that_has_landed_cannot_be_claimed() -> None:
    flights: Flights[str] = Flights()
    flight, _ = flights.join_or_create("a")
    flight.set_result("busy")
    assert not flight.claim()


def test_only_the_first_landing_counts() -> None:
    flights: Flights[str] = Flights()
    flight, _ = flights.join_or_create("a")
    assert flight.set_result("timeout")
    assert not flight.set_result("late")
    assert flight.wait(0) == "timeout"


def test_a_late_landing_does_not_touch_the_flight_that_took_its_place() -> None:
    flights: Flights[str] = Flights()
    old, _ = flights.join_or_create("a")
    old.set_result("timeout")
    new, _ = flights.join_or_create("a")
    old.set_result("late")
    assert flights.get("a") is new
    assert not new.done


def test_who_waits_longer_than_they_may_gets_nothing() -> None:
    flights: Flights[str] = Flights()
    flight, _ = flights.join_or_create("a")
    assert flight.wait(0) is None
    assert flight.wait(-1) is None


def test_of_many_threads_exactly_one_leads() -> None:
    flights: Flights[str] = Flights()
    barrier = threading.Barrier(8)

    def join_or_create() -> tuple[Flight[str], bool]:
        barrier.wait(NEVER)
        return flights.join_or_create("a")

    boarded = [future.result(NEVER) for future in [start(join_or_create) for _ in range(8)]]
    assert sum(is_leader for _, is_leader in boarded) == 1
    assert len({id(flight) for flight, _ in boarded}) == 1
