"""The protocol of invalidation as a model of the specification alone.

Each rule can be switched off by its name; ``test_protocol.py`` shows the fault that follows. Nonces are texts. The
value of a tag is ``(any, hard, purge)``, that of an entry ``(version of its data, tag versions, valid at)``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tests.model import gate as words
from tests.model.explorer import System
from tests.model.gate import Gate, Program
from wsgi_isr.errors import StoreUnavailable

PAGE = "isr:model:p:page"


class Rule(enum.Enum):
    """A rule that can be left out. Its value is its text."""

    EPOCH_BEFORE_TAGS = "an invalidation renews the epoch before the tags"
    EPOCH_AFTER_TAGS = "an invalidation renews the epoch after the tags"
    CAS_OF_WHAT_STAYS = "what stays of a tag is written back by compare-and-swap"
    CAPTURE_BEFORE_DATA = "known tags are captured before the data is read"
    LATE_TAGS_BEFORE_EPOCHS = "late tags are read before the epochs they are held against"
    INVALID_WHERE_EPOCHS_DIFFER = "a late tag's stamp is invalid where the epoch has changed"
    VALID_AT_WHERE_EPOCHS_AGREE = "an entry is valid at an epoch only if that has not changed since the capture"
    EPOCHS_BEFORE_TAGS = "a look-up reads the epochs before the tags"
    TAG_NONCES = "a tag's nonces are never used again"
    EPOCH_NONCES = "an epoch's nonce is never used again"
    MISSING_IS_PURGED = "a missing tag counts as purged"
    CONTROL_KEYS_STAY = "control keys never move to another node"
    UNREACHABLE_PROVES_NOTHING = "an epoch that cannot be read equals no other, not even one of its kind"
    SINCE_IT_WAS_VALID = "an epoch that stays speaks for an entry only if that was valid when it was read"
    ABSENT_IS_NO_STAMP = "that a tag does not exist is no stamp for a page: it may have been invalidated, and then lost"
    UNPROVEN_IS_FORGOTTEN = "that an entry could not be proven is not remembered at an epoch"


class Entry(NamedTuple):
    version: int
    tag_versions: tuple[tuple[str, Any], ...]
    valid_at: tuple[tuple[str, str], ...]


class Capture(NamedTuple):
    known: dict[str, Any]
    before: dict[str, str | None]


#: The validity of an entry, from the best to the worst. UNPROVEN is served marked as such.
VALID, UNPROVEN, SOFT, HARD, PURGED = range(5)
_SERVED = {VALID: words.FRESH, UNPROVEN: words.UNPROVEN, SOFT: words.STALE, HARD: words.RETAINED}

#: The tag version that no other one equals.
INVALID = ()
#: The tag version of a tag that did not exist, for a rule that is left out.
ABSENT = ("absent",)


def tag_key(tag: str) -> str:
    return f"isr:model:t:{tag}"


def epoch_key(node: str) -> str:
    return f"isr:model:e:{node}"


class Protocol:
    """The control plane of one process, without the rules in ``off``."""

    def __init__(self, gate: Gate, off: frozenset[Rule] = frozenset()) -> None:
        self.gate = gate
        self.off = off

    # Epochs and tags ---------------------------------------------------------------------------------

    def epochs(self) -> dict[str, str | None]:
        return {node: self._epoch(epoch_key(node)) for node in self.gate.nodes}

    def _epoch(self, key: str) -> str | None:
        try:
            nonce: str = self._get_or_add(key, "first" if Rule.EPOCH_NONCES in self.off else self.gate.nonce())
            return nonce
        except StoreUnavailable:
            return None

    def _get_or_add(self, key: str, new: Any) -> Any:
        while True:
            value = self.gate.get(key)
            if value is not None:
                return value
            if self.gate.add(key, new):
                return new

    def _tag_versions(self, tags: Iterable[str]) -> dict[str, Any]:
        """Return the tag versions of the tags that exist."""
        tag_versions: dict[str, Any] = {}
        for tag in tags:
            try:
                tag_version = self.gate.get(tag_key(tag))
            except StoreUnavailable:
                tag_version = INVALID
            if tag_version is not None:
                tag_versions[tag] = tag_version
        return tag_versions

    def _mint(self, tag: str) -> Any:
        try:
            return self._get_or_add(tag_key(tag), self._new_stamp())
        except StoreUnavailable:
            return INVALID

    def _new_stamp(self) -> Any:
        if Rule.TAG_NONCES in self.off:
            return (0, 0, 0)
        return (self.gate.nonce(), self.gate.nonce(), self.gate.nonce())

    # Invalidate --------------------------------------------------------------------------------------

    def invalidate(self, tags: Iterable[str], mode: str) -> list[str]:
        """Invalidate tags, and return those that were delivered."""
        by_node: dict[str, list[str]] = {}
        for tag in tags:
            by_node.setdefault(self.gate.node_of(tag_key(tag)), []).append(tag)
        delivered = []
        for node, on_node in by_node.items():
            try:
                if Rule.EPOCH_BEFORE_TAGS not in self.off:
                    self.gate.set(epoch_key(node), self.gate.nonce())
                for tag in on_node:
                    self._revalidate(tag_key(tag), mode)
                if Rule.EPOCH_AFTER_TAGS not in self.off:
                    self.gate.set(epoch_key(node), self.gate.nonce())
            except StoreUnavailable:
                continue
            delivered += on_node
        return delivered

    def _revalidate(self, key: str, mode: str) -> None:
        if mode == "purge" and Rule.TAG_NONCES not in self.off:
            self.gate.set(key, self._new_stamp())
            return
        while True:
            held = self.gate.gets(key)
            if held is None:
                if self.gate.add(key, self._new_stamp()):
                    return
                continue
            tag_version: Any = held.value
            new = {"stale": 1, "expire": 2, "purge": 3}[mode]
            fresh = [part + 1 for part in tag_version] if Rule.TAG_NONCES in self.off else list(self._new_stamp())
            renewed = (*fresh[:new], *tag_version[new:])
            if Rule.CAS_OF_WHAT_STAYS in self.off:
                self.gate.set(key, renewed)
                return
            if self.gate.cas(key, renewed, held.token):
                return

    # Render ------------------------------------------------------------------------------------------

    def capture(self, tags: Iterable[str]) -> Capture:
        tags = list(tags)
        before = self.epochs()
        known = self._tag_versions(tags)
        if len(known) < len(tags):
            before = self.epochs()
            known = self._tag_versions(tags)
        return Capture(known, before)

    def prove(self, capture: Capture, tags: Iterable[str], version: int, mints: bool = True) -> Entry:
        """Return an entry with its tag snapshot. Without ``mints`` (a 404), no tag is created."""
        tags = list(tags)
        after: Mapping[str, str | None] = {}
        if Rule.LATE_TAGS_BEFORE_EPOCHS in self.off:
            after = self.epochs()
        wanted = [tag for tag in tags if tag not in capture.known]
        late = self._tag_versions(wanted)
        if mints:
            late |= {tag: self._mint(tag) for tag in wanted if tag not in late}
        if Rule.LATE_TAGS_BEFORE_EPOCHS not in self.off:
            after = self.epochs()

        def quiet(node: str) -> bool:
            same = after[node] == capture.before[node]
            return same and (after[node] is not None or Rule.UNREACHABLE_PROVES_NOTHING in self.off)

        tag_versions, proven = {}, True
        for tag in tags:
            accepted = quiet(self.gate.node_of(tag_key(tag))) or Rule.INVALID_WHERE_EPOCHS_DIFFER in self.off
            if tag in capture.known:
                tag_versions[tag] = capture.known[tag]
            else:
                tag_versions[tag] = late.get(tag, INVALID) if accepted else INVALID
            proven = proven and (tag_versions[tag] != INVALID or (accepted and tag in wanted and tag not in late))
            if Rule.ABSENT_IS_NO_STAMP in self.off and tag in wanted and tag not in late:
                tag_versions[tag] = ABSENT
        valid_at = [
            (node, nonce)
            for node, nonce in after.items()
            if nonce is not None and (quiet(node) or Rule.VALID_AT_WHERE_EPOCHS_AGREE in self.off)
        ]
        return Entry(version, tuple(tag_versions.items()), tuple(valid_at) if proven else ())

    # Look up -----------------------------------------------------------------------------------------

    def validity(self, entry: Entry, epochs: Mapping[str, str | None], since: Mapping[str, str | None]) -> int:
        """Return the validity of ``entry`` as of ``epochs``, read before this. At ``since`` it was valid."""
        valid_at = dict(entry.valid_at)
        worst, proven = VALID, True
        for tag, then in entry.tag_versions:
            node = self.gate.node_of(tag_key(tag))
            if epochs[node] is not None and epochs[node] in (valid_at.get(node), since.get(node)):
                continue
            if epochs[node] is None:
                proven = False
                continue
            try:
                now = self.gate.get(tag_key(tag))
            except StoreUnavailable:
                proven = False
                continue
            worst = max(worst, self._compare(then, now))
        return worst if proven or worst >= HARD else UNPROVEN

    def _compare(self, then: Any, now: Any) -> int:
        if then == ABSENT:
            return VALID if now is None else PURGED
        if now is None:
            return PURGED if Rule.MISSING_IS_PURGED not in self.off else HARD
        if then == INVALID or then[2] != now[2]:
            return PURGED
        if then[1] != now[1]:
            return HARD
        return VALID if then == now else SOFT


# Programs ----------------------------------------------------------------------------------------------

Off = frozenset[Rule]
Maker = Callable[[Off], Program]


def invalidator(*tags: str, mode: str = "expire", attempts: int = 1) -> Maker:
    """Commit new data, then invalidate ``tags``: up to ``attempts`` times, until a tag is delivered."""

    def program(off: Off, gate: Gate) -> None:
        version = gate.commit()
        if any(Protocol(gate, off).invalidate(tags, mode) for _ in range(attempts)):
            gate.acknowledge(mode, version)

    return lambda off: lambda gate: program(off, gate)


def bystander(*tags: str) -> Maker:
    """Invalidate tags of other pages."""

    def program(off: Off, gate: Gate) -> None:
        Protocol(gate, off).invalidate(tags, "expire")

    return lambda off: lambda gate: program(off, gate)


def renderer(known: Iterable[str], late: Iterable[str] = (), mints: bool = True) -> Maker:
    """Render the page in any case, and store it unless another program stored one meanwhile.

    Without ``mints`` the page is a 404, for which no tag is created.
    """

    def program(off: Off, gate: Gate) -> None:
        control = Protocol(gate, off)
        try:
            held = gate.gets(PAGE)
        except StoreUnavailable:
            held = None
        if Rule.CAPTURE_BEFORE_DATA in off:
            version = gate.read()
            capture = control.capture(known)
        else:
            capture = control.capture(known)
            version = gate.read()
        entry = control.prove(capture, [*known, *late], version, mints)
        try:
            if held is None:
                gate.add(PAGE, entry)
            else:
                gate.cas(PAGE, entry, held.token)
        except StoreUnavailable:
            pass  # not stored

    return lambda off: lambda gate: program(off, gate)


def reader(visits: int = 1, polls: int | None = None) -> Maker:
    """Serve visitors of a process with an L1 entry, one after the other.

    Renders fail, so that a visitor gets an expired page. The process reads the epochs at every visit, or at every
    ``polls``-th. An answer must include all that was acknowledged before the last read.
    """

    def program(off: Off, gate: Gate) -> None:
        control = Protocol(gate, off)
        entry: Entry | None = None
        epochs: Mapping[str, str | None] = {}
        checked: tuple[Mapping[str, str | None], int] = ({}, PURGED)
        for visit in range(visits):
            if visit % (polls or 1) == 0:
                gate.begin()
                epochs = control.epochs()
            remembered = checked[1] == VALID or (checked[1] == UNPROVEN and Rule.UNPROVEN_IS_FORGOTTEN in off)
            if entry is None or checked[0] != epochs or not remembered:
                try:
                    stored = gate.get(PAGE)
                except StoreUnavailable:
                    stored = None
                if stored is not None and stored != entry:
                    entry, checked = stored, ({}, PURGED)
                if entry is None:
                    continue
                was_valid = checked[1] == VALID or Rule.SINCE_IT_WAS_VALID in off
                checked = (epochs, control.validity(entry, epochs, checked[0] if was_valid else {}))
                if Rule.EPOCHS_BEFORE_TAGS in off:
                    checked = (control.epochs(), checked[1])
            if checked[1] != PURGED:
                gate.serve(_SERVED[checked[1]], entry.version)

    return lambda off: lambda gate: program(off, gate)


# Systems -----------------------------------------------------------------------------------------------


def on_two_nodes(key: str) -> str:
    """Return the node of a key: tag ``a``, page and lock on n1; tags ``b``, ``c`` on n2; epochs as named."""
    name = key.split(":")[3]
    return {"a": "n1", "b": "n2", "c": "n2", "page": "n1"}.get(name, name)


def system(
    programs: Mapping[str, Maker],
    off: Off = frozenset(),
    setup: Maker | None = None,
    **options: Any,
) -> System:
    """Return the system of the programs, without the rules that are off."""
    if options.get("nodes"):
        options.setdefault("home", on_two_nodes)
    return System(
        {name: program(off) for name, program in programs.items()},
        setup(off) if setup is not None else None,
        control_keys_move=Rule.CONTROL_KEYS_STAY in off,
        show=show,
        **options,
    )


def show(key: str, value: Any) -> str:
    """Return a key or a value as text for traces."""
    if key == "key":
        plane, _, name = value.removeprefix("isr:model:").partition(":")
        return {"p": "page", "t": f"tag {name}", "e": f"epoch of {name}"}[plane]
    if isinstance(value, Entry):
        tag_versions = ", ".join(
            f"{tag}={show('', tag_version) or 'invalid'}" for tag, tag_version in value.tag_versions
        )
        valid_at = ", ".join(f"{node}={show('', nonce)}" for node, nonce in value.valid_at)
        return f"v{value.version} [{tag_versions}; valid at {valid_at or 'none'}]"
    if isinstance(value, tuple):
        return "/".join(show("", part) for part in value)
    return "missing" if value is None else str(value).rstrip("_")
