"""Programs that run side by side in a search: the same for the model (``protocol``) and the real code (``processes``).

Both have programs of the same names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from tests.model.explorer import Result, System, explore
from tests.model.protocol import Rule

#: For searches that take minutes: 1 adds the situations at the end of this file, and one lost key to every
#: situation that has any; 2 adds two.
DEPTH = int(os.environ.get("MODEL_DEPTH", "0"))


class Situation(NamedTuple):
    """Programs that run side by side.

    ``make`` gets a kit (one of the two modules) and returns the arguments of its ``system``. ``sees``: the ways in
    which the reader is served at least, each with whether the data was older than an acknowledged invalidation. A
    search without these has missed its purpose.
    """

    make: Callable[[Any], dict[str, Any]]
    sees: frozenset[tuple[str, bool]]


_SITUATIONS: dict[str, Situation] = {}
SITUATIONS: Mapping[str, Situation] = _SITUATIONS


def _situation(name: str, *sees: tuple[str, bool], depth: int = 0) -> Callable[[Callable[[Any], dict[str, Any]]], None]:
    def add(make: Callable[[Any], dict[str, Any]]) -> None:
        if depth <= DEPTH:
            _SITUATIONS[name] = Situation(make, frozenset({("fresh", False), *sees}))

    return add


@_situation("a tag that is known before the render", ("retained", True))
def _known(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer(["a"]), "reader": kit.reader(2)}
    return {"programs": programs, "setup": kit.renderer(["a"]), "losses": 1}


@_situation("a page that is not stored yet", ("retained", True))
def _cold(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer(["a"]), "reader": kit.reader(1)}
    return {"programs": programs, "losses": 1}


@_situation("a page that is not stored yet, whose tag exists", ("retained", True))
def _cold_with_tag(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer(["a"]), "reader": kit.reader(1)}
    return {"programs": programs, "setup": kit.invalidator("a"), "losses": 1}


@_situation("a tag that turns up in the render", ("retained", True))
def _late(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer([], ["a"]), "reader": kit.reader(1)}
    return {"programs": programs, "losses": 1}


@_situation("a page that is not there, whose tag does not exist")
def _negative(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer(["a"], mints=False), "reader": kit.reader(2)}
    return {"programs": programs, "losses": 1}


@_situation("two keys are lost", ("retained", True))
def _two_lost(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer(["a"]), "reader": kit.reader(1)}
    return {"programs": programs, "setup": kit.renderer(["a"]), "losses": 2}


@_situation("two keys are lost, and a tag turns up in the render", ("retained", True))
def _two_lost_late(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer([], ["a"]), "reader": kit.reader(1)}
    return {"programs": programs, "losses": 2}


@_situation("two invalidations at once, one softer than the other", ("stale", True), ("retained", True))
def _soft_and_hard(kit: Any) -> dict[str, Any]:
    programs = {"soft": kit.invalidator("a", mode="stale"), "hard": kit.invalidator("a"), "reader": kit.reader(2)}
    return {"programs": programs, "setup": kit.renderer(["a"]), "losses": 1}


@_situation("two invalidations at once, and a render", ("stale", True), ("retained", True))
def _soft_hard_and_render(kit: Any) -> dict[str, Any]:
    programs = {
        "soft": kit.invalidator("a", mode="stale"),
        "hard": kit.invalidator("a"),
        "renderer": kit.renderer(["a"]),
        "reader": kit.reader(1),
    }
    return {"programs": programs, "setup": kit.renderer(["a"])}


@_situation("a purge and an expiry at once", ("retained", True))
def _purge_and_expire(kit: Any) -> dict[str, Any]:
    programs = {"purge": kit.invalidator("a", mode="purge"), "hard": kit.invalidator("a"), "reader": kit.reader(2)}
    return {"programs": programs, "setup": kit.renderer(["a"]), "losses": 1}


@_situation("a purge, a lost key, and renders that fail")
def _purge(kit: Any) -> dict[str, Any]:
    programs = {
        "job": kit.invalidator("a", mode="purge"),
        "renderer": kit.renderer(["a"]),
        "reader": kit.reader(2),
    }
    return {"programs": programs, "setup": kit.renderer(["a"]), "losses": 1}


@_situation("two renders at once", ("retained", True))
def _two_renders(kit: Any) -> dict[str, Any]:
    programs = {
        "job": kit.invalidator("a"),
        "renderer": kit.renderer(["a"]),
        "another": kit.renderer(["a"]),
        "reader": kit.reader(1),
    }
    # The model has no lock here. The lock of the real code has to be lost for this.
    lock = {"losses": 1, "vanishes": lambda key: key.endswith(":lock")}
    return {"programs": programs, "setup": kit.renderer(["a"]), **lock}


@_situation("tags on two nodes", ("retained", True))
def _two_nodes(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("b"), "renderer": kit.renderer(["a"], ["b"]), "reader": kit.reader(1)}
    return {"programs": programs, "nodes": ("n1", "n2")}


@_situation("tags on two nodes, of which another page's is invalidated as well", ("stale", True))
def _bystander(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a", mode="stale"), "other": kit.bystander("c"), "reader": kit.reader(3)}
    return {"programs": programs, "setup": kit.renderer(["a", "b"]), "nodes": ("n1", "n2")}


@_situation("the page on one node and its tag on another, and a lost key", ("retained", True))
def _page_elsewhere(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("b"), "renderer": kit.renderer(["b"]), "reader": kit.reader(1)}
    return {"programs": programs, "setup": kit.renderer(["b"]), "nodes": ("n1", "n2"), "losses": 1}


@_situation("epochs are polled", ("retained", True))
def _polled(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer(["a"]), "reader": kit.reader(4, polls=2)}
    return {"programs": programs, "setup": kit.renderer(["a"]), "losses": 1}


@_situation("a node is cut off", ("retained", True), ("unproven", True))
def _cut(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer(["a"]), "reader": kit.reader(2)}
    return {"programs": programs, "setup": kit.renderer(["a"]), "cuts": 1}


@_situation("one of two nodes is cut off", ("retained", True), ("unproven", True))
def _one_of_two_cut(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "reader": kit.reader(2)}
    return {"programs": programs, "setup": kit.renderer(["a"]), "nodes": ("n1", "n2"), "cuts": 1}


@_situation("a node is cut off twice, and a tag turns up in the render", ("retained", True), ("unproven", True))
def _cut_twice(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer([], ["a"]), "reader": kit.reader(1)}
    # The keys are there already. Other situations search their beginning.
    return {"programs": programs, "setup": kit.invalidator("a"), "cuts": 2}


@_situation("a write times out and happens later", ("retained", True))
def _late_write(kit: Any) -> dict[str, Any]:
    programs = {
        "job": kit.invalidator("a", attempts=2),
        "renderer": kit.renderer(["a"]),
        "reader": kit.reader(1),
    }
    return {"programs": programs, "setup": kit.renderer(["a"]), "doubts": 1}


# Bigger ones ---------------------------------------------------------------------------------------------


@_situation("two invalidations and two renders", ("stale", True), ("retained", True), depth=1)
def _many(kit: Any) -> dict[str, Any]:
    programs = {
        "soft": kit.invalidator("a", mode="stale"),
        "hard": kit.invalidator("a"),
        "renderer": kit.renderer(["a"]),
        "another": kit.renderer(["a"]),
        "reader": kit.reader(1),
    }
    return {"programs": programs, "setup": kit.renderer(["a"])}


@_situation("tags of one batch on two nodes", ("retained", True), depth=1)
def _batch(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("b", "a"), "renderer": kit.renderer(["a"], ["b"]), "reader": kit.reader(2)}
    return {"programs": programs, "nodes": ("n1", "n2")}


@_situation("a node is cut off, and a key is lost", ("retained", True), ("unproven", True), depth=1)
def _cut_and_lost(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a"), "renderer": kit.renderer([], ["a"]), "reader": kit.reader(1)}
    return {"programs": programs, "cuts": 1, "losses": 1}


@_situation("a node is cut off, and a write happens late", ("retained", True), ("unproven", True), depth=1)
def _cut_and_late(kit: Any) -> dict[str, Any]:
    programs = {"job": kit.invalidator("a", attempts=2), "renderer": kit.renderer(["a"]), "reader": kit.reader(1)}
    return {"programs": programs, "setup": kit.renderer(["a"]), "cuts": 1, "doubts": 1}


@_situation("a page that is not there, another page with its tag, and an invalidation", ("retained", True), depth=1)
def _negative_and_page(kit: Any) -> dict[str, Any]:
    programs = {
        "job": kit.invalidator("a"),
        "gone": kit.renderer(["a"], mints=False),
        "renderer": kit.renderer(["a"]),
        "reader": kit.reader(1),
    }
    return {"programs": programs}


# Rules -----------------------------------------------------------------------------------------------------

#: The situation in which a missing rule is found.
SHOWS_IN: Mapping[Rule, str] = {
    Rule.EPOCH_BEFORE_TAGS: "a tag that turns up in the render",
    Rule.EPOCH_AFTER_TAGS: "a tag that is known before the render",
    Rule.CAS_OF_WHAT_STAYS: "two invalidations at once, one softer than the other",
    Rule.CAPTURE_BEFORE_DATA: "a page that is not stored yet",
    Rule.LATE_TAGS_BEFORE_EPOCHS: "a tag that turns up in the render",
    Rule.INVALID_WHERE_EPOCHS_DIFFER: "a tag that turns up in the render",
    Rule.VALID_AT_WHERE_EPOCHS_AGREE: "a page that is not stored yet, whose tag exists",
    Rule.EPOCHS_BEFORE_TAGS: "a tag that is known before the render",
    Rule.TAG_NONCES: "a tag that is known before the render",
    Rule.EPOCH_NONCES: "a tag that is known before the render",
    Rule.MISSING_IS_PURGED: "a purge, a lost key, and renders that fail",
    Rule.CONTROL_KEYS_STAY: "one of two nodes is cut off",
    Rule.UNREACHABLE_PROVES_NOTHING: "a node is cut off twice, and a tag turns up in the render",
    Rule.SINCE_IT_WAS_VALID: "tags on two nodes, of which another page's is invalidated as well",
    Rule.ABSENT_IS_NO_STAMP: "a page that is not there, whose tag does not exist",
    Rule.UNPROVEN_IS_FORGOTTEN: "a node is cut off",
}


def search(name: str, system: System) -> Result:
    """Return the result of a search, as deep as ``MODEL_DEPTH`` says, and print its number of states."""
    result = explore(replace(system, losses=system.losses + (DEPTH if system.losses else 0)), most=100_000_000)
    print(f"\n{name}: {result}")
    return result
