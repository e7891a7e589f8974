"""The real parts with one rule left out of each, by the names of the model (:class:`tests.model.protocol.Rule`).

Most of the real code stays. A variant leaves out a verb on its way to the store, or the order of two calls.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest

from tests.model.gate import Gate
from tests.model.processes import Parts, TimedRegenerator
from tests.model.protocol import Rule
from wsgi_isr.cache import tag_versions as stamps_module
from wsgi_isr.cache.entries import Entries
from wsgi_isr.cache.entry import Entry, TagSnapshot
from wsgi_isr.cache.local_cache import CachedEntry
from wsgi_isr.cache.tag_versions import Capture, Epochs, Mode, TagVersion, TagVersions
from wsgi_isr.cache.verdict import Validity
from wsgi_isr.errors import StoreError
from wsgi_isr.stores.base import Many, Store, Token, Versioned, route

Carried = Mapping[str, bytes]
NOTHING: Mapping[str, bytes] = MappingProxyType({})
Mints = Callable[[str], bool]


def ALL(tag: str) -> bool:
    return True


VARIANTS: dict[Rule | Also, Callable[[pytest.MonkeyPatch], Parts]] = {}


class Also(enum.Enum):
    """Rules of the real code that the model does not have."""

    EPOCH_LOST_TWICE = "an epoch that is lost once more while it begins is missing, not unreachable"
    OWN_INVALIDATION = "a process that has invalidated something polls the epochs at once"
    CLOCKS_DIFFER = "that a page's render began later by its clock counts only if it is proven no worse"
    CARRIED_STAMPS = "a page takes over a stamp from its data only if it is the one that it had itself"
    STAMPS_AFTER_EPOCHS = "the stamps of a capture are not older than its epochs"
    REFRESH_MARKS = "a refresh marks the page as stale, so that no process goes on with its copy"


def _variant(rule: Rule | Also) -> Callable[[Callable[[pytest.MonkeyPatch], Parts]], None]:
    def add(make: Callable[[pytest.MonkeyPatch], Parts]) -> None:
        VARIANTS[rule] = make

    return add


def parts_with(**different: Any) -> Parts:
    """Return the parts of a process with some of them replaced."""
    parts: Parts = type("Variant", (Parts,), different)()
    return parts


class Forwarding(Store):
    """The gate, with some verbs changed by a subclass."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.nodes = gate.nodes

    def node_of(self, key: str) -> str:
        return self.gate.node_of(key)

    def get(self, key: str) -> Any:
        return self.gate.get(key)

    def get_many(self, keys: Sequence[str]) -> Many:
        return self.gate.get_many(keys)

    def gets(self, key: str) -> Versioned | None:
        return self.gate.gets(key)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self.gate.set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        return self.gate.add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        return self.gate.cas(key, value, token, ttl)

    def delete(self, key: str) -> bool:
        return self.gate.delete(key)

    def close(self) -> None:
        self.gate.close()


def _is_epoch(key: str) -> bool:
    return route(key).node is not None


class OneEpoch(Forwarding):
    """An invalidation that sets each epoch once instead of twice: before the tags, or after them."""

    before = True

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate)
        self._times = 0

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        if _is_epoch(key):
            self._times += 1
            if (self._times % 2 == 1) is not self.before:
                return
        super().set(key, value, ttl)


class OtherEpoch(OneEpoch):
    before = False


@_variant(Rule.EPOCH_BEFORE_TAGS)
def _without_epoch_before(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(store=lambda self, gate: OtherEpoch(gate))


@_variant(Rule.EPOCH_AFTER_TAGS)
def _without_epoch_after(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(store=lambda self, gate: OneEpoch(gate))


class BlindWrites(Forwarding):
    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        if not route(key).control:
            return super().cas(key, value, token, ttl)
        self.set(key, value)
        return True


@_variant(Rule.CAS_OF_WHAT_STAYS)
def _without_cas(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(store=lambda self, gate: BlindWrites(gate))


class CapturesLate(TagVersions):
    def capture(self, tags: Iterable[str]) -> Capture:
        return Capture(dict.fromkeys(tags, b""), {})

    def prove(self, capture: Capture, tags: Iterable[str], *given: Any) -> TagSnapshot:
        return super().prove(super().capture(capture.known), tags, *given)


@_variant(Rule.CAPTURE_BEFORE_DATA)
def _without_capture_before(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=CapturesLate)


class Proving(TagVersions):
    """Tag versions that record the epochs of each tag snapshot."""

    kept: Epochs | None = None
    last: Epochs = NOTHING

    def _read_epochs(self) -> Epochs:
        self.last = self.kept if self.kept is not None else super()._read_epochs()
        return self.last


class EpochsFirst(Proving):
    def prove(self, capture: Capture, tags: Iterable[str], *given: Any) -> TagSnapshot:
        self.kept = self._read_epochs()
        try:
            return super().prove(capture, tags, *given)
        finally:
            self.kept = None


@_variant(Rule.LATE_TAGS_BEFORE_EPOCHS)
def _without_late_tags_first(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=EpochsFirst)


class _Whatever(bytes):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = bytes.__hash__


class TakesLateTags(TagVersions):
    def prove(self, capture: Capture, tags: Iterable[str], *given: Any) -> TagSnapshot:
        same = dict.fromkeys(capture.before, _Whatever())
        return TagSnapshot(super().prove(Capture(capture.known, same), tags, *given).tags)


@_variant(Rule.INVALID_WHERE_EPOCHS_DIFFER)
def _without_invalid_stamps(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=TakesLateTags)


class ValidAtAnyEpoch(Proving):
    def prove(self, capture: Capture, tags: Iterable[str], *given: Any) -> TagSnapshot:
        snapshot = super().prove(capture, tags, *given)
        if not all(tag_version for _, tag_version in snapshot.tags):
            return snapshot
        return TagSnapshot(
            snapshot.tags, tuple((node, nonce) for node, nonce in self.last.items() if nonce is not None)
        )


@_variant(Rule.VALID_AT_WHERE_EPOCHS_AGREE)
def _without_agreement(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=ValidAtAnyEpoch)


class TagsFirst(Entries):
    """A comparison of tags is remembered under epochs that were read after it."""

    def judge(self, cached: CachedEntry, epochs: Epochs) -> Any:
        before = cached.checked
        judged = super().judge(cached, epochs)
        if cached.checked is not None and cached.checked is not before:
            cached.checked = (self.tag_versions.epochs(), cached.checked[1])
        return judged


@_variant(Rule.EPOCHS_BEFORE_TAGS)
def _without_epochs_first(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(entries=TagsFirst)


def _count_on(tag_version: TagVersion, mode: Mode) -> TagVersion:
    parts = [int(tag_version[place : place + 12]) for place in (0, 12, 24)]
    renewed = {Mode.STALE: 1, Mode.EXPIRE: 2, Mode.PURGE: 3}[mode]
    counted = [part + (place < renewed) for place, part in enumerate(parts)]
    return TagVersion("".join(f"{part:012}" for part in counted).encode() + tag_version[36:])


@_variant(Rule.TAG_NONCES)
def _with_counters(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(TagVersion, "fresh", classmethod(lambda cls, tag: cls(b"0" * 36 + tag.encode())))
    monkeypatch.setattr(TagVersion, "renewed", _count_on)
    return Parts()


class FirstEpoch(TagVersions):
    def _begin_epoch(self, key: str) -> bytes | None:
        first = b"first_epoch_"
        return first if self._store.add(key, first) else self._store.get(key)


@_variant(Rule.EPOCH_NONCES)
def _with_a_first_epoch(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=FirstEpoch)


@_variant(Rule.MISSING_IS_PURGED)
def _missing_is_expired(monkeypatch: pytest.MonkeyPatch) -> Parts:
    compare = stamps_module.compare
    monkeypatch.setattr(
        stamps_module, "compare", lambda then, now: Validity.EXPIRED if now is None else compare(then, now)
    )
    return Parts()


@_variant(Rule.CONTROL_KEYS_STAY)
def _with_moving_keys(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(control_keys_move=True)


class UnreachableIsAnEpoch(TagVersions):
    proving = False

    def _read_epochs(self) -> Epochs:
        epochs = super()._read_epochs()
        return _named(epochs) if self.proving else epochs

    def prove(self, capture: Capture, tags: Iterable[str], *given: Any) -> TagSnapshot:
        self.proving = True
        try:
            return super().prove(Capture(capture.known, _named(capture.before)), tags, *given)
        finally:
            self.proving = False


def _named(epochs: Epochs) -> Epochs:
    return {node: nonce or b"unreachable_" for node, nonce in epochs.items()}


@_variant(Rule.UNREACHABLE_PROVES_NOTHING)
def _with_an_unreachable_epoch(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=UnreachableIsAnEpoch)


class TrustsWhatStays(Entries):
    """Takes an entry compared at an epoch for valid, with any result of the comparison."""

    def judge(self, cached: CachedEntry, epochs: Epochs) -> Any:
        before = cached.checked
        if before is not None and before[0] != epochs:
            cached.checked = (before[0], Validity.VALID)
        return super().judge(cached, epochs)


@_variant(Rule.SINCE_IT_WAS_VALID)
def _with_whatever_stays(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(entries=TrustsWhatStays)


class AbsentIsAStamp(TagVersions):
    def prove(
        self, capture: Capture, tags: Iterable[str], carried: Carried = NOTHING, mints: Mints = ALL, absent: bytes = b""
    ) -> TagSnapshot:
        return super().prove(capture, tags, carried, mints, stamps_module.ABSENT)


@_variant(Rule.ABSENT_IS_NO_STAMP)
def _with_absent_as_a_stamp(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=AbsentIsAStamp)


class RemembersUnproven(Entries):
    def judge(self, cached: CachedEntry, epochs: Epochs) -> Any:
        judged = super().judge(cached, epochs)
        cached.checked = (epochs, judged.validity)
        return judged


@_variant(Rule.UNPROVEN_IS_FORGOTTEN)
def _with_unproven_remembered(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(entries=RemembersUnproven)


class UnreachableIfLostTwice(TagVersions):
    def _begin_epoch(self, key: str) -> bytes | None:
        nonce = os.urandom(12)
        try:
            return nonce if self._store.add(key, nonce) else self._store.get(key)
        except StoreError:
            return None


@_variant(Also.EPOCH_LOST_TWICE)
def _with_an_epoch_that_is_none(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=UnreachableIfLostTwice)


class NeverForgets(TagVersions):
    def forget(self) -> None:
        pass


@_variant(Also.OWN_INVALIDATION)
def _without_forgetting(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=NeverForgets)


class TrustsClocks(Entries):
    def is_better(self, ours: Entry, theirs: Entry) -> bool:
        return False


@_variant(Also.CLOCKS_DIFFER)
def _with_trusted_clocks(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(entries=TrustsClocks)


class MarksNothing(TimedRegenerator):
    def _mark(self, tag: str) -> dict[str, StoreError]:
        return {}


@_variant(Also.REFRESH_MARKS)
def _without_marking(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(regenerator=MarksNothing)


class StampsFirst(TagVersions):
    def capture(self, tags: Iterable[str]) -> Capture:
        capture = super().capture(tags)
        return capture._replace(before=self._read_epochs())


@_variant(Also.STAMPS_AFTER_EPOCHS)
def _with_stamps_first(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=StampsFirst)


class TakesWhatDataCarries(TagVersions):
    def prove(
        self, capture: Capture, tags: Iterable[str], carried: Carried = NOTHING, mints: Mints = ALL, absent: bytes = b""
    ) -> TagSnapshot:
        snapshot = super().prove(capture, tags, carried, mints, absent)
        return TagSnapshot(tuple((tag, carried.get(tag, tag_version)) for tag, tag_version in snapshot.tags))


@_variant(Also.CARRIED_STAMPS)
def _with_any_carried_stamp(_: pytest.MonkeyPatch) -> Parts:
    return parts_with(tag_versions=TakesWhatDataCarries)
