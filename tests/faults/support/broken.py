"""The protocol with one of its rules left out, for a history that must show the violation.

Each entry of :data:`BREAK` changes the classes of the calling process, before an ``ISR`` is made there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from wsgi_isr.cache.entry import TagSnapshot
from wsgi_isr.cache.tag_versions import Capture, Mode, TagVersion, TagVersions
from wsgi_isr.errors import StoreError
from wsgi_isr.stores.nodes.node import Node
from wsgi_isr.stores.nodes.store import NodeStore


class CapturesAfterwards(TagVersions):
    """Render 4: the versions of the tags are read after the data."""

    def capture(self, tags: Iterable[str]) -> Capture:
        return Capture({}, {})

    def prove(self, capture: Capture, tags: Iterable[str], *given: Any) -> TagSnapshot:
        every = list(tags)
        return super().prove(super().capture(every), every, *given)


class RenewsOneEpoch(TagVersions):
    """Invalidate 3: the epochs are not renewed a second time."""

    def invalidate(self, tags: Iterable[str], mode: Mode) -> dict[str, StoreError]:
        every = list(tags)
        try:
            for node in {self._node(tag) for tag in every}:
                self._store.set(self._epoch_key(node), os.urandom(12))
            for tag in every:
                self._renew(tag, mode)
        except StoreError as error:
            return dict.fromkeys(every, error)
        self.forget()
        return {}


class TrustsLateTags(TagVersions):
    """Render 7: a tag that appears during the render gets its current version, despite invalidations meanwhile."""

    def prove(self, capture: Capture, tags: Iterable[str], *given: Any) -> TagSnapshot:
        every = list(tags)
        late = self._stamps_of([tag for tag in every if tag not in capture.known])
        return TagSnapshot(tuple((tag, capture.known.get(tag) or late[tag]) for tag in every), ())


class WritesSoftlyBlind(TagVersions):
    """Invalidate 2: the rest of a tag is written back, over any change since it was read."""

    def _renew(self, tag: str, mode: Mode) -> None:
        if mode is Mode.STALE and (held := self._store.gets(self._tag_key(tag))) is not None:
            self._store.set(self._tag_key(tag), TagVersion(held.value).renewed(mode))
        else:
            super()._renew(tag, mode)


def _use(tag_versions: type[TagVersions]) -> None:
    import_module("wsgi_isr.middleware.isr")  # imports all modules that create TagVersions
    names = [name for name, module in sys.modules.items() if getattr(module, "TagVersions", None) is TagVersions]
    users = {name for name in names if name.startswith("wsgi_isr.")} - {"wsgi_isr.cache.tag_versions"}
    assert users > {"wsgi_isr.cache.invalidation"}, f"who looks up is not among {users}"
    for name in users:
        sys.modules[name].TagVersions = tag_versions  # type: ignore[attr-defined]


def _move_control_keys() -> None:
    """Move control keys to the next node while theirs is down, as data keys do."""

    def places(self: NodeStore, key: str) -> tuple[Node, ...]:
        first = self.node_of(key)
        return tuple(self._nodes[name] for name in (first, *(name for name in self.nodes if name != first)))

    NodeStore._find_nodes = places  # type: ignore[method-assign]


def _trust_all_runs() -> None:
    """Read control keys of Redis that an older run of the server has written, from a snapshot."""
    commands = import_module("wsgi_isr.stores.redis.commands")
    unpack = commands.unpack
    commands.unpack = lambda _key, run, item: unpack("", run, item)  # type: ignore[attr-defined]


#: For each rule, the function that breaks it.
BREAK: Mapping[str, Callable[[], None]] = {
    "capture before the data is read": lambda: _use(CapturesAfterwards),
    "renew the epochs a second time": lambda: _use(RenewsOneEpoch),
    "trust late tags only where no epoch changed": lambda: _use(TrustsLateTags),
    "write soft invalidations by compare-and-swap": lambda: _use(WritesSoftlyBlind),
    "control keys never move": _move_control_keys,
    "control keys end with the run of their server": _trust_all_runs,
}
