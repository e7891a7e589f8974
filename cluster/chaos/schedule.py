"""Draw a schedule of faults from a seed. Pure: the same seed gives the same schedule, on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

#: Seconds before the first strike, after the last one's end, and between two: on average, and at most.
QUIET_AT_FIRST, QUIET_IN_THE_END, PAUSE, LONGEST_PAUSE = 1.0, 1.5, 1.0, 5.0
#: Seconds of quiet once each kind has struck: longer than any excuse of these strikes, so that a healthy cluster shows.
QUIET_BETWEEN = 10.0
#: Seconds for an instance to start again on a busy machine.
STARTING = 2.0
EVERY_INSTANCE, EVERY_NODE, BALANCER = "instances", "nodes", "balancer"


@dataclass(frozen=True)
class Strike:
    """A fault: its time in seconds from the beginning, its target, its duration and its amount."""

    at: float
    fault: str
    part: str
    lasts: float = 0.0
    amount: float = 0.0

    @property
    def ends(self) -> float:
        """Return when the fault is undone."""
        return self.at + self.lasts

    def __str__(self) -> str:
        lasts = f" for {self.lasts:.1f} s" if self.lasts else ""
        amount = f" ({FAULTS[self.fault].unit % self.amount})" if FAULTS[self.fault].unit else ""
        return f"{self.at:6.1f} s  {self.fault:<13} {self.part}{lasts}{amount}"


@dataclass(frozen=True)
class Kind:
    """A kind of fault: its targets, the range of its duration, and the range of its amount.

    :param busy: seconds after its end for which its part is left alone.
    """

    strikes: str
    lasts: tuple[float, float] = (0.0, 0.0)
    amount: Callable[[random.Random], float] = lambda _chance: 0.0
    unit: str = ""
    busy: float = 0.5
    needs: float = 0.0


FAULTS: Mapping[str, Kind] = {
    "kill worker": Kind("instance"),
    "kill renderer": Kind("instance"),
    "kill": Kind("instance", (0.5, 2.0), busy=STARTING),
    # Long enough that other processes may hold its leases when it wakes up in the middle of a render.
    "hang": Kind("instance", (0.5, 5.0)),
    "clock": Kind("instance", (2.0, 4.0), lambda c: c.choice((-1, 1)) * c.uniform(0.5, 5.0), "%+.1f s", busy=STARTING),
    "roll": Kind(EVERY_INSTANCE, busy=STARTING),
    # Only in a blackout may a visitor see that no instance answers.
    "blackout": Kind(EVERY_INSTANCE, (0.3, 0.8), busy=STARTING, needs=15.0),
    "kill node": Kind("node", (0.0, 1.0)),
    "hang node": Kind("node", (0.5, 2.5)),
    "flush": Kind("node"),
    "cut off": Kind("node", (0.5, 2.0)),
    "dead cable": Kind("node", (0.5, 2.0)),
    "slow network": Kind("node", (1.0, 3.0), lambda chance: chance.uniform(0.02, 0.12), "%.2f s at most"),
    "pressure": Kind(EVERY_NODE, (1.5, 3.0)),
    "reload": Kind(BALANCER),
}


def after_quiet(strikes: Sequence[Strike]) -> set[int]:
    """Return the numbers of the strikes that follow a quiet time of :data:`QUIET_BETWEEN`."""
    return {
        number
        for number, strike in enumerate(strikes)
        if number and strike.at >= max(earlier.ends for earlier in strikes[:number]) + QUIET_BETWEEN - 0.01
    }


def targets(strike: Strike, instances: Sequence[str]) -> list[str]:
    """Return the parts that are busy with a strike."""
    return list(instances) if strike.part == EVERY_INSTANCE else [strike.part]


def draw(seed: int, seconds: float, nodes: Sequence[str], instances: Sequence[str]) -> list[Strike]:
    """Draw a schedule.

    No part has two faults at once, and one instance is always left alone, except in a blackout: a visitor whom no
    instance could serve would say nothing about the cache.

    :param seconds: all faults are undone some time before the end.
    :param nodes: their names.
    :param instances: their names.
    """
    chance = random.Random(seed)
    free = dict.fromkeys([*nodes, *instances, BALANCER, EVERY_NODE], 0.0)
    strikes: list[Strike] = []
    deck: list[str] = []
    now = QUIET_AT_FIRST
    while now < seconds - QUIET_IN_THE_END:
        if not deck:  # each kind once before any repeats: a short run must cover many kinds
            if strikes:
                now = max(now, *(strike.ends for strike in strikes)) + QUIET_BETWEEN
            deck = sorted(name for name, kind in FAULTS.items() if seconds >= kind.needs)
            chance.shuffle(deck)
        name = deck.pop()
        kind = FAULTS[name]
        lasts, amount = chance.uniform(*kind.lasts), kind.amount(chance)
        parts = {"node": list(nodes), "instance": list(instances)}.get(kind.strikes, [kind.strikes])
        chance.shuffle(parts)
        busy = {part for part, until in free.items() if until > now}
        idle = [part for part in parts if may_strike(name, part, busy, instances)]
        if idle and now + lasts < seconds - QUIET_IN_THE_END:
            strikes.append(Strike(round(now, 3), name, idle[0], round(lasts, 3), round(amount, 3)))
            for part in targets(strikes[-1], instances):
                free[part] = now + lasts + kind.busy
            now += min(chance.expovariate(1 / PAUSE), LONGEST_PAUSE)
        else:  # try a later time
            deck.insert(0, name)
            now += 0.1
    return strikes


def may_strike(fault: str, part: str, busy: Collection[str], instances: Sequence[str]) -> bool:
    """Return whether a fault may strike a part while other parts are busy."""
    if part == EVERY_INSTANCE:
        return not any(instance in busy for instance in instances)
    if FAULTS[fault].strikes == "instance":
        return part not in busy and any(other not in busy for other in instances if other != part)
    return part not in busy
