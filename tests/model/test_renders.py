"""One render in each window (P1), and late writers lose (P4).

The search covers every order of the workers' operations on the store, as a model and with the real code. Without the
rule behind a promise, the search finds a violation.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from typing import Any

import pytest

from tests.model import processes
from tests.model.explorer import System
from tests.model.gate import Gate, Program
from tests.model.processes import Parts, TimedRegenerator
from tests.model.protocol import PAGE
from tests.model.situations import search
from tests.model.variants import Forwarding, parts_with
from wsgi_isr.cache.entry import Codec
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.lease import Lease
from wsgi_isr.cache.regenerate import _Begin
from wsgi_isr.cache.task import Attempt, Outcome, Task
from wsgi_isr.stores.base import Token

LOCK = Keyspace.lock(PAGE)


class Rule(enum.Enum):
    """A rule that can be left out."""

    LOOK_AGAIN = "who has won the lock looks at the entry again"
    STORE_BY_CAS = "a page is stored by compare-and-swap"


# The model: an entry is the time at which its render began; the stale one to begin with has none -----------

STALE = -1


def _worker(off: Collection[Rule]) -> Program:
    def program(gate: Gate) -> None:
        if gate.get(PAGE) != STALE:
            return
        token = f"{gate.name}'s"
        if not gate.add(LOCK, token):
            return
        held: Any = gate.gets(PAGE)
        if held.value == STALE or Rule.LOOK_AGAIN in off:
            entry = gate.time()
            gate.read()
            _store(gate, entry, held.token, off)
        lock: Any = gate.gets(LOCK)
        if lock is not None and lock.value == token:
            gate.cas(LOCK, b"free", lock.token, 0)

    return program


def _store(gate: Gate, entry: int, token: Token, off: Collection[Rule]) -> None:
    if Rule.STORE_BY_CAS in off:
        gate.set(PAGE, entry)
        return
    while not gate.cas(PAGE, entry, token):
        theirs: Any = gate.gets(PAGE)
        if theirs.value >= entry:
            return
        token = theirs.token


def _committer(gate: Gate) -> None:
    gate.commit()


def _model(situation: str, off: Collection[Rule] = ()) -> System:
    def stale_page(gate: Gate) -> None:
        gate.set(PAGE, STALE)

    programs = {"one": _worker(off), "two": _worker(off), "three": _worker(off)}
    if situation == P4:
        programs["three"] = _committer
    return System(programs, stale_page, overwrites=_later_by_earlier, **_OPTIONS[situation])


def _later_by_earlier(key: str, old: Any, new: Any) -> str | None:
    if key != PAGE or new >= old:
        return None
    return f"the page of a render that began at {old} is overwritten by one that began at {new}"


# The real thing --------------------------------------------------------------------------------------------


def _real(situation: str, parts: Parts | None = None) -> System:
    programs = {name: processes.renderer(["a"]) for name in ("one", "two", "three")}
    setup: processes.Maker | None = processes.invalidated_since_failure("a", mode="stale")
    if situation == P4:
        programs["three"] = processes.committer()
    if situation == P1_COLD:
        setup = None
        programs["three"] = processes.visitors(1, ["a"])
    return processes.system(programs, parts, setup, overwrites=_later_entry_by_earlier, **_OPTIONS[situation])


def _later_entry_by_earlier(key: str, old: Any, new: Any) -> str | None:
    if key != PAGE:
        return None
    began = [Codec().unpack(value, processes.TASK.text).started for value in (old, new)]
    return _later_by_earlier(key, *began)


class NeverLooksAgain(TimedRegenerator):
    def _render_unless_current(
        self, task: Task, attempt: Attempt, lease: Lease | None, overdue: Callable[[], None]
    ) -> Outcome:
        _, token = self._entries.gets(task)
        begin = _Begin(attempt.trigger, self._entries.monotonic(), 0.0, 0)
        outcome: Outcome = self._render(task, lease, None, token, begin, overdue)
        return outcome


class BlindlyStored(Forwarding):
    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        if key != PAGE:
            return super().cas(key, value, token, ttl)
        self.set(key, value, ttl)
        return True


_VARIANTS: dict[Rule, Callable[[], Parts]] = {
    Rule.LOOK_AGAIN: lambda: parts_with(regenerator=NeverLooksAgain),
    Rule.STORE_BY_CAS: lambda: parts_with(store=lambda self, gate: BlindlyStored(gate)),
}

# Situations ------------------------------------------------------------------------------------------------

P1 = "three workers find a stale page"
P1_COLD = "two workers and a visitor find no page"
P1_LOST = "a lock lapses while its owner renders"
P4 = "a lock lapses while its owner renders, and the data changes"

_LAPSE = {"losses": 1, "vanishes": lambda key: key == LOCK}
_OPTIONS: dict[str, dict[str, Any]] = {
    P1: {"renders": 1},
    P1_COLD: {"renders": 1},
    P1_LOST: {"renders": 1, **_LAPSE},
    P4: _LAPSE,
}
_SHOWS_IN = {
    Rule.LOOK_AGAIN: (P1, "2 renders in one window"),
    Rule.STORE_BY_CAS: (P4, "is overwritten"),
}


@pytest.mark.parametrize("situation", [P1, P1_LOST, P4])
def test_the_model_renders_once_and_keeps_the_latest(situation: str) -> None:
    result = search(situation, _model(situation))
    assert result.violation is None, result


@pytest.mark.parametrize("situation", _OPTIONS)
def test_the_code_renders_once_and_keeps_the_latest(situation: str) -> None:
    result = search(situation, _real(situation))
    assert result.violation is None, result


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
def test_the_model_does_not_unless(rule: Rule) -> None:
    situation, said = _SHOWS_IN[rule]
    result = search(f"without: {rule.value}", _model(situation, off={rule}))
    assert said in str(result.violation), f"{rule.value}: nothing goes wrong without it ({result})"


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
def test_the_code_does_not_unless(rule: Rule) -> None:
    situation, said = _SHOWS_IN[rule]
    result = search(f"without: {rule.value}", _real(situation, _VARIANTS[rule]()))
    assert said in str(result.violation), f"{rule.value}: nothing goes wrong without it ({result})"
