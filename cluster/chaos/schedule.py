"""Which faults strike when, drawn from a seed. Pure: the same seed is the same schedule, on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

#: Seconds before the first strike, after the last one's end, and between two: on average, and at the most.
QUIET_AT_FIRST, QUIET_IN_THE_END, PAUSE, LONGEST_PAUSE = 1.0, 1.5, 1.0, 5.0
#: And once each kind has struck: longer than what they did excuses anything, so that it is seen how all is well.
QUIET_BETWEEN = 10.0
#: What an instance needs to start again on a machine that is busy.
STARTING = 2.0
EVERY_INSTANCE, EVERY_NODE, BALANCER = "instances", "nodes", "balancer"


@dataclass(frozen=True)
class Strike:
    """A fault: when, in seconds from the beginning, on what, for how long, and how much of it."""

    at: float
    fault: str
    part: str
    lasts: float = 0.0
    amount: float = 0.0

    @property
    def ends(self) -> float:
        """When what it did is undone."""
        return self.at + self.lasts

    def __str__(self) -> str:
        lasts = f" for {self.lasts:.1f} s" if self.lasts else ""
        amount = f" ({FAULTS[self.fault].unit % self.amount})" if FAULTS[self.fault].unit else ""
        return f"{self.at:6.1f} s  {self.fault:<13} {self.part}{lasts}{amount}"


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it strikes, how long it lasts, and how much it is.

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
    # Up to so long that its leases are others' when it wakes up in the middle of a render.
    "hang": Kind("instance", (0.5, 5.0)),
    "clock": Kind("instance", (2.0, 4.0), lambda c: c.choice((-1, 1)) * c.uniform(0.5, 5.0), "%+.1f s", busy=STARTING),
    "roll": Kind(EVERY_INSTANCE, busy=STARTING),
    # Only here may a visitor see that nobody is there.
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
    """The numbers of the strikes before which all is quiet for that long."""
    return {
        number
        for number, strike in enumerate(strikes)
        if number and strike.at >= max(earlier.ends for earlier in strikes[:number]) + QUIET_BETWEEN - 0.01
    }


def targets(strike: Strike, instances: Sequence[str]) -> list[str]:
    """The parts that are busy with a strike."""
    return list(instances) if strike.part == EVERY_INSTANCE else [strike.part]


def draw(seed: int, seconds: float, nodes: Sequence[str], instances: Sequence[str]) -> list[Strike]:
    """A schedule.

    Nothing strikes a part while something else does, and one instance is always left alone, except in a blackout: a
    visitor whom nobody is there to serve would say nothing about the cache.

    :param seconds: all is undone some time before the end. :param nodes: their names; :param instances: theirs.
    """
    chance = random.Random(seed)
    free = dict.fromkeys([*nodes, *instances, BALANCER, EVERY_NODE], 0.0)
    strikes: list[Strike] = []
    deck: list[str] = []
    now = QUIET_AT_FIRST
    while now < seconds - QUIET_IN_THE_END:
        if not deck:  # each kind once before any comes again: a short run is to show as much as it can
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
        else:  # later
            deck.insert(0, name)
            now += 0.1
    return strikes


def may_strike(fault: str, part: str, busy: Collection[str], instances: Sequence[str]) -> bool:
    """Whether a fault may strike a part while others are busy with one."""
    if part == EVERY_INSTANCE:
        return not any(instance in busy for instance in instances)
    if FAULTS[fault].strikes == "instance":
        return part not in busy and any(other not in busy for other in instances if other != part)
    return part not in busy
