"""The protocol as specified: no order of events loses an acknowledged invalidation, and every rule is needed.

The files, from the inside out:

- ``gate`` is the store as one program sees it.
- ``explorer`` takes programs through every order of their operations.
- ``protocol`` is the model, ``processes`` are the same programs made of the real code.
- ``situations`` name the programs that run side by side.
- ``variants`` are the real code with one rule left out of each.

This file searches the model, ``test_real_code`` the real code, ``test_renders`` both for renders.
``test_one_render`` tries longer runs of the real code at random.

    pytest tests/model -s                            says how many states each search had
    pytest tests/model -s -k capture_before_data     tells what goes wrong without one rule, step by step
    MODEL_DEPTH=1 pytest tests/model                 22 million states instead of 2: ten minutes, 3 GB of memory
    MODEL_DEPTH=2 pytest tests/model                 one more lost key everywhere; takes as much again, many times

A search fails with the shortest run that breaks the promise. ``v0`` is the data before the first commit;
a tag's value is shown as ``any/hard/purge``; a nonce has the name of the program that made it.
"""

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
    result = search(
        f"without: {rule.value}", protocol.system(**SITUATIONS[SHOWS_IN[rule]].make(protocol), off=frozenset({rule}))
    )
    assert result.violation is not None, f"{rule.value}: nothing goes wrong without it ({result})"
    assert "was served v" in result.violation
