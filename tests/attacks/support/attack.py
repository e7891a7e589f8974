"""The size of an attack, and its count of attempts and leaks.

``ATTACK_SCALE`` multiplies counts: 1 in ``make test``, more in ``make attack``. ``ATTACK_SEED`` chooses what is random.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

SCALE = int(os.environ.get("ATTACK_SCALE", "1"))
SEED = os.environ.get("ATTACK_SEED", "1")
#: Leaks that a failure shows.
SHOWN = 5


def scaled(count: int) -> int:
    """Return ``count`` in ``make test``, and a multiple of it in ``make attack``."""
    return count * SCALE


def dice(name: str) -> random.Random:
    """Return a generator, the same one for the same name and seed."""
    return random.Random(f"{SEED} {name}")


class Attack:
    """Attempts, and the leaks among them. Its methods are for one thread.

    :param say: gets a line with the count.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.tried = 0
        self.leaks: list[str] = []
        self.is_over = False

    def check(self, held: bool, what: str) -> None:
        """Count an attempt.

        :param held: whether the attempt had no effect.
        :param what: describes the attempt, for the failure.
        """
        self.tried += 1
        if not held:
            self.leaks.append(what)

    def over(self, what: str = "attempts") -> None:
        """Report the count.

        :raises AssertionError: there was a leak, or no attempt.
        """
        self.is_over = True
        self._say(f"{self.tried:,} {what}, {len(self.leaks)} leaks (scale {SCALE}, seed {SEED})")
        assert self.tried, "no attempt was made"
        shown = "\n".join(self.leaks[:SHOWN])
        assert not self.leaks, f"{len(self.leaks)} leaks in {self.tried} attempts:\n{shown}"
