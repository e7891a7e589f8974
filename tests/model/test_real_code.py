"""The same searches with programs of the real ``TagVersions``, ``Cache``, ``Leases`` and codec.

So the search takes the production code through every order of its operations on the store.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.model import processes
from tests.model.gate import FRESH, RETAINED, STALE, UNPROVEN
from tests.model.processes import (
    invalidated_since_failure,
    invalidator,
    own_invalidator,
    reader,
    refresher,
    renderer,
    visitors,
)
from tests.model.protocol import Rule
from tests.model.situations import DEPTH, SHOWS_IN, SITUATIONS, search
from tests.model.variants import VARIANTS, Also


@pytest.mark.parametrize("name", SITUATIONS)
def test_no_acknowledged_invalidation_is_lost(name: str) -> None:
    situation = SITUATIONS[name]
    result = search(name, processes.system(**situation.make(processes)))
    assert result.violation is None, result
    assert situation.sees <= {(how, behind) for who, how, behind in result.served if who == "reader"}


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
def test_an_invalidation_is_lost_unless(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = VARIANTS[rule](monkeypatch)
    system = processes.system(**SITUATIONS[SHOWS_IN[rule]].make(processes), parts=parts)
    result = search(f"without: {rule.value}", system)
    assert result.violation is not None, f"{rule.value}: nothing goes wrong without it ({result})"
    assert "was served v" in result.violation


# Situations of the real code only --------------------------------------------------------------------------

_LOCK = {"losses": 1, "vanishes": lambda key: key.endswith(":lock")}

#: The arguments of a system, and how its visitors or its reader are served, at least.
REAL: dict[str, tuple[dict[str, Any], set[tuple[str, str, bool]]]] = {
    "visitors render what they need": (
        {
            "programs": {"job": invalidator("a"), "visitors": visitors(2, ["a"]), "reader": reader()},
            "setup": renderer(["a"]),
            "losses": 1,
        },
        {("visitors", FRESH, False), ("reader", RETAINED, True)},
    ),
    "visitors render and find a tag": (
        {"programs": {"job": invalidator("a"), "visitors": visitors(1, [], ["a"]), "reader": reader()}},
        {("visitors", FRESH, False), ("reader", RETAINED, True)},
    ),
    "visitors render and fail": (
        {
            "programs": {"job": invalidator("a"), "visitors": visitors(2, ["a"], fails=True), "reader": reader()},
            "setup": renderer(["a"]),
            "losses": 1,
        },
        {("visitors", FRESH, False), ("visitors", RETAINED, True)},
    ),
    "visitors render and fail after a purge": (
        {
            "programs": {"job": invalidator("a", mode="purge"), "visitors": visitors(2, ["a"], fails=True)},
            "setup": renderer(["a"]),
            "losses": 1,
        },
        {("visitors", FRESH, False)},
    ),
    "visitors render while a node is cut off": (
        {
            "programs": {"job": invalidator("a"), "visitors": visitors(1, ["a"]), "reader": reader()},
            "setup": renderer(["a"]),
            "cuts": 1,
        },
        {("visitors", FRESH, False), ("visitors", UNPROVEN, True)},
    ),
    "visitors of a process that polls": (
        {
            "programs": {"job": invalidator("a"), "visitors": visitors(4, ["a"], polls=2)},
            "setup": renderer(["a"]),
            "losses": 1,
        },
        {("visitors", FRESH, False)},
    ),
    "visitors of two processes": (
        {
            "programs": {"job": invalidator("a"), "visitors": visitors(1, ["a"]), "others": visitors(1, ["a"])},
            "setup": renderer(["a"]),
        },
        {("visitors", FRESH, False), ("others", FRESH, False)},
    ),
    "a page is refreshed beside an older render": (
        {
            "programs": {"job": refresher("a"), "renderer": renderer(["a"]), "reader": reader()},
            "setup": invalidated_since_failure("a", mode="stale"),
            "losses": 1,
        },
        {("reader", FRESH, False), ("reader", STALE, True)},
    ),
    "a fresh page is refreshed, and a process has a copy of it": (
        {
            "programs": {"job": refresher("a"), "reader": reader(4, polls=2)},
            "setup": renderer(["a"]),
            "losses": 1,
        },
        {("reader", FRESH, False), ("reader", STALE, False)},
    ),
    "a page is refreshed and invalidated": (
        {
            "programs": {"job": refresher("a"), "hard": invalidator("a"), "reader": reader()},
            "setup": renderer(["a"]),
        },
        {("reader", FRESH, False), ("reader", RETAINED, True)},
    ),
    "two refresh a page": (
        {
            "programs": {"job": refresher("a"), "another": refresher("a", skew=10.0), "reader": reader()},
            "setup": renderer(["a"]),
        },
        {("reader", FRESH, False)},
    ),
    "a process invalidates something itself": (
        {
            "programs": {"job": own_invalidator("a"), "renderer": renderer(["a"]), "reader": reader()},
            "setup": renderer(["a"]),
            "losses": 1,
        },
        {("job", FRESH, False), ("job", RETAINED, True)},
    ),
    "a renderer whose clock is ahead": (
        {
            "programs": {
                "job": invalidator("a"),
                "ahead": renderer(["a"], skew=10.0),
                "visitors": visitors(1, ["a"]),
            },
            "setup": invalidated_since_failure("a", mode="stale"),
            **_LOCK,
        },
        {("visitors", FRESH, False), ("visitors", STALE, True)},
    ),
    "a page is made with cached data": (
        {
            "programs": {"job": invalidator("a"), "renderer": renderer(["a"], uses_data=True), "reader": reader()},
            "setup": invalidator("a"),
        },
        {("reader", FRESH, False), ("reader", RETAINED, True)},
    ),
    "a page is made with cached data by a process that polls, and one of its tags does not exist": (
        {
            "programs": {
                "job": invalidator("a"),
                "renderer": renderer(["a", "b"], uses_data=True, coherence=1.0),
                "reader": reader(),
            },
            "setup": invalidator("a"),
        },
        {("reader", FRESH, False), ("reader", RETAINED, True)},
    ),
    "a page is made with old data while a node is cut off": (
        {
            "programs": {"renderer": renderer(["a"], uses_data=True), "reader": reader()},
            "setup": invalidated_since_failure("a", uses_data=True),
            "cuts": 1,
        },
        {("reader", FRESH, False), ("reader", UNPROVEN, True)},
    ),
}

if DEPTH:
    REAL["a page is made with cached data while a node is cut off"] = (
        {
            "programs": {"job": invalidator("a"), "renderer": renderer(["a"], uses_data=True), "reader": reader()},
            "setup": invalidated_since_failure("a", mode="stale", uses_data=True),
            "cuts": 1,
        },
        {("reader", FRESH, False), ("reader", STALE, True), ("reader", RETAINED, True), ("reader", UNPROVEN, True)},
    )


@pytest.mark.parametrize("name", REAL)
def test_no_acknowledged_invalidation_is_lost_where(name: str) -> None:
    arguments, sees = REAL[name]
    result = search(name, processes.system(**arguments))
    assert result.violation is None, result
    assert sees <= result.served


_ALSO_SHOWS_IN = {
    Also.EPOCH_LOST_TWICE: SITUATIONS["two keys are lost"].make(processes),
    Also.OWN_INVALIDATION: REAL["a process invalidates something itself"][0],
    Also.CLOCKS_DIFFER: REAL["a renderer whose clock is ahead"][0],
    Also.CARRIED_STAMPS: REAL["a page is made with cached data"][0],
    Also.STAMPS_AFTER_EPOCHS: REAL[
        "a page is made with cached data by a process that polls, and one of its tags does not exist"
    ][0],
    Also.REFRESH_MARKS: REAL["a fresh page is refreshed, and a process has a copy of it"][0],
}


@pytest.mark.parametrize("rule", Also, ids=lambda rule: rule.name.lower())
def test_an_invalidation_is_lost_in_the_real_code_unless(rule: Also, monkeypatch: pytest.MonkeyPatch) -> None:
    system = processes.system(**_ALSO_SHOWS_IN[rule], parts=VARIANTS[rule](monkeypatch))
    result = search(f"without: {rule.value}", system)
    assert result.violation is not None, f"{rule.value}: nothing goes wrong without it ({result})"
    assert "was served v" in result.violation
