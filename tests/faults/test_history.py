"""No acknowledged invalidation is lost by evictions, flushes, restarts, cut connections or kills.

Each test makes a history and has it checked (:mod:`cluster.chaos.history`). ``FAULTS_READS`` and
``FAULTS_INVALIDATIONS`` set the length of a history, for each fault and coherence. ``python -m tests.faults.run``
makes long histories.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.support.experiment import Plan, run
from tests.faults.support.faults import FAULTS

READS = int(os.environ.get("FAULTS_READS", "3000"))
INVALIDATIONS = int(os.environ.get("FAULTS_INVALIDATIONS", "50"))
ASKING, POLLING = 0.0, 0.1
PLAN = Plan(READS, INVALIDATIONS, seconds=90 + READS / 50)


#: Kinds of nodes and coherences. Redis has one of the two coherences, because each history takes its time.
KINDS = [("memcached", ASKING), ("memcached", POLLING), ("redis", POLLING)]
HISTORIES = [
    pytest.param(kind, fault, coherence, id=f"{kind}-{fault}-{'polling' if coherence else 'asking each time'}")
    for fault in FAULTS
    for kind, coherence in KINDS
    if kind in FAULTS[fault].kinds
]


@pytest.mark.parametrize(("kind", "fault", "coherence"), HISTORIES)
def test_no_answer_is_older_than_an_acknowledged_invalidation_allows(
    kind: str, fault: str, coherence: float, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    outcome = run(tmp_path, FAULTS[fault], coherence, PLAN, kind=kind)
    figure(str(outcome))
    assert not outcome.violations, "\n".join(map(str, outcome.violations[:20]))
    assert outcome.complaints == []
    # A history without hits or changes would prove nothing.
    assert outcome.figures.labels["HIT"] > READS / 100
    assert outcome.figures.soon > READS / 50
    assert {"MISS", "EXPIRED", "STALE"} <= set(outcome.figures.labels)


@pytest.mark.parametrize(
    ("rule", "fault", "coherence"),
    [
        ("capture before the data is read", "no fault", POLLING),
        ("renew the epochs a second time", "no fault", ASKING),
        ("trust late tags only where no epoch changed", "no fault", ASKING),
        ("control keys never move", "nodes are paused", POLLING),
        ("control keys end with the run of their server", "nodes restart from a snapshot", POLLING),
    ],
)
def test_without_one_rule_of_the_protocol_the_history_shows_it(
    rule: str, fault: str, coherence: float, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    until_seen = Plan(reads=10**9, invalidations=0, seconds=100, to_the_end=False)
    outcome = run(tmp_path, FAULTS[fault], coherence, until_seen, broken=rule, kind=FAULTS[fault].kinds[0])
    figure(f"{outcome}, such as: {outcome.violations[0]}")
    shown = {violation.promise for violation in outcome.violations}
    assert shown <= {f"{label} is not older than what was acknowledged before" for label in outcome.figures.labels}
    assert shown
