"""Which release an instance is of after a roll, and whose pages it adopts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from cluster.faults import roll, set_release
from cluster.instances import Instance, Served
from cluster.report import Spell, spells

if TYPE_CHECKING:
    from cluster.supervise import Cluster


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """One that is not started."""
    for name in ("WSGI_ISR_RELEASE", "WSGI_ISR_ADOPT"):
        monkeypatch.delenv(name, raising=False)
    made = Instance("instance-1", None, Served("app:app", "memory://", tmp_path, tmp_path / "renders"))
    yield made
    made.close()


def releases(instance: Instance) -> tuple[str | None, str | None]:
    env: Mapping[str, str] = instance.environment()
    return env.get("WSGI_ISR_RELEASE"), env.get("WSGI_ISR_ADOPT")


def test_a_release_adopts_the_pages_of_the_one_before(instance: Instance) -> None:
    set_release(instance, "one")
    assert releases(instance) == ("one", "")  # that one had no name
    set_release(instance, "two")
    assert releases(instance) == ("two", "one")


def test_the_release_before_may_be_the_one_that_the_cluster_was_started_with(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSGI_ISR_RELEASE", "zero")
    set_release(instance, "one")
    assert releases(instance) == ("one", "zero")


def test_a_release_that_is_rolled_out_once_more_adopts_what_it_adopted_before(instance: Instance) -> None:
    set_release(instance, "one")
    set_release(instance, "two")
    set_release(instance, "two")
    assert releases(instance) == ("two", "one")


def test_a_part_that_was_dead_is_noted_as_restarted_by_a_roll(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = [{"what": "kill", "part": "instance-1", "at": 1.0}]
    monkeypatch.setattr(instance, "restart", lambda: None)

    def note(what: str, part: str = "", **_more: object) -> None:
        noted.append({"what": what, "part": part, "at": 5.0})

    roll(cast("Cluster", SimpleNamespace(instances=[instance], note=note)), "one")
    assert spells(noted, 0.0, 9.0) == [Spell("kill", "instance-1", 1.0, 5.0)]
