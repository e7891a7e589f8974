"""The protocol as it is specified: no order of events loses an acknowledged invalidation, and none of its
rules can be left out. How to search further, and how to read what is found: ``README.md``."""

from __future__ import annotations

import pytest

from tests.model import protocol
from tests.model.protocol import Rule
from tests.model.situations import SHOWS_IN, SITUATIONS, search


@pytest.mark.parametrize("name", SITUATIONS)
def test_no_acknowledged_invalidation_is_lost(name: str) -> None:
    situation = SITUATIONS[name]
    result = search(name, protocol.system(**situation.make(protocol)))
    assert result.violation is None, result
    assert situation.sees <= {(how, behind) for who, how, behind in result.served if who == "reader"}


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
def test_an_invalidation_is_lost_unless(rule: Rule) -> None:
    result = search(f"without: {rule.value}", protocol.system(**SITUATIONS[SHOWS_IN[rule]].make(protocol), off={rule}))
    assert result.violation is not None, f"{rule.value}: nothing goes wrong without it ({result})"
    assert "was served v" in result.violation
