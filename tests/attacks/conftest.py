"""Fixtures of the attacks: the sites of ``tests/behaviour``, and a count of attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.attacks.support.attack import Attack
from tests.behaviour.conftest import clock, jobs, make_site, no_options_from_outside, only_these_apps, origin

__all__ = ["clock", "jobs", "make_site", "no_options_from_outside", "only_these_apps", "origin"]


@pytest.fixture
def attack(figure: Callable[[str], None]) -> Iterator[Attack]:
    """Return the count of a test, which ends with ``attack.over()``."""
    attack = Attack(figure)
    yield attack
    assert attack.is_over or not attack.leaks, attack.leaks
