"""The release of an instance after a roll."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from cluster.chaos.faults import roll, set_release
from cluster.load.report import Spell, spells
from cluster.parts.gunicorn import Instance, SharedOptions

if TYPE_CHECKING:
    from cluster.supervisor.supervise import Cluster


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """Return an instance that is not started."""
    for name in ("WSGI_ISR_RELEASE", "WSGI_ISR_ADOPT_RELEASE"):
        monkeypatch.delenv(name, raising=False)
    made = Instance("instance-1", None, SharedOptions("app:app", "memory://", tmp_path, tmp_path / "renders"))
    yield made
    made.close()


def test_an_instance_is_of_the_release_that_was_rolled_out_last(instance: Instance) -> None:
    for release in ("one", "two"):
        set_release(instance, release)
        assert instance.environment()["WSGI_ISR_RELEASE"] == release


def test_which_release_was_before_is_left_to_the_store(instance: Instance) -> None:
    set_release(instance, "one")
    assert "WSGI_ISR_ADOPT_RELEASE" not in instance.environment()


def test_a_part_that_was_dead_is_noted_as_restarted_by_a_roll(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = [{"what": "kill", "part": "instance-1", "at": 1.0}]
    monkeypatch.setattr(instance, "restart", lambda: None)

    def note(what: str, part: str = "", **_more: object) -> None:
        noted.append({"what": what, "part": part, "at": 5.0})

    roll(cast("Cluster", SimpleNamespace(instances=[instance], note=note)), "one")
    assert spells(noted, 0.0, 9.0) == [Spell("kill", "instance-1", 1.0, 5.0)]
