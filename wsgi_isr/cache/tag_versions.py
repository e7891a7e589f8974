"""Tag versions and epochs: an invalidation reaches every copy of a page without touching one.

A tag is a control key with three nonces ``(any, hard, purge)``. An entry carries the versions that its tags had before
its render. An epoch is one nonce for each node, which every invalidation there replaces. While an epoch stays, no tag
on that node was invalidated, and none needs to be compared.

Nonces are compared for equality only, and never reused. There are no counters and no clocks. A lost key comes back with
a value that no entry carries.

The order of the steps below is the protocol. A model (``tests/model``) searches it exhaustively. Without any one of the
rules marked *needed*, the model serves a page older than an acknowledged invalidation as fresh.
"""

from __future__ import annotations

import enum
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ..errors import StoreError
from ..stores.base import Store
from .entry import TagSnapshot
from .switch import Switch
from .verdict import Validity

_NONCE = 12
_NONCES = 3 * _NONCE

#: Seconds after which a used tag is read again, so that the store does not evict it: the least and the most. In
#: between, so many tags are read in a second. A client can fill a store within the most.
READ_AGAIN, _READS = (5.0, 20.0), 200
#: The most tags with a known last read; the most that wait to be read with the epochs; the least read at once.
_MAX_KNOWN, _MAX_UNREAD, _READ_ALONG = 131072, 16384, 64

Epochs = Mapping[str, bytes | None]
"""Node to nonce; ``None`` for an unreachable node."""


class Mode(str, enum.Enum):
    """The use of the old page that an invalidation allows."""

    STALE = "stale"
    """The old page is served while it is regenerated."""
    EXPIRE = "expire"
    """The old page is served only where rendering fails."""
    PURGE = "purge"
    """The old page is never served again, even where rendering fails."""


ABSENT = b"-"
"""The version of a tag that does not exist. It is valid until the tag is created."""


class TagVersion(bytes):
    """A tag's value in the store: its three nonces, and its name, which reveals a collision of hashed keys.

    Entries carry the nonces alone. The version ``b""`` equals no value: it is for a tag that turned up beside an
    invalidation.
    """

    __slots__ = ()

    @classmethod
    def fresh(cls, tag: str) -> TagVersion:
        """Return a version with three new nonces."""
        return cls(os.urandom(3 * _NONCE) + tag.encode("utf-8", "surrogatepass"))

    def renewed(self, mode: Mode) -> TagVersion:
        """Return the version after an invalidation. The nonces of stronger modes stay."""
        new = {Mode.STALE: _NONCE, Mode.EXPIRE: 2 * _NONCE, Mode.PURGE: 3 * _NONCE}[mode]
        return TagVersion(os.urandom(new) + self[new:])

    def belongs_to(self, tag: str) -> bool:
        """Return whether these bytes are a version of ``tag``."""
        return self[_NONCES:] == tag.encode("utf-8", "surrogatepass") and len(self) >= _NONCES

    @property
    def nonces(self) -> bytes:
        """Return the part that entries carry."""
        return bytes(self[:_NONCES])


def compare(then: bytes, now: bytes | None) -> Validity:
    """Return the validity by one tag.

    A tag that is missing now counts as purged: the lost value may have been.

    :param then: the version that an entry carries.
    :param now: the tag's value in the store; ``None`` where it is missing.
    """
    if then == ABSENT:
        return Validity.VALID if now is None else Validity.PURGED
    if not then or now is None or len(now) < _NONCES:
        return Validity.PURGED
    now = now[:_NONCES]
    if then == now:
        return Validity.VALID
    if then[2 * _NONCE :] != now[2 * _NONCE :]:
        return Validity.PURGED
    return Validity.EXPIRED if then[_NONCE : 2 * _NONCE] != now[_NONCE : 2 * _NONCE] else Validity.STALE


class Capture(NamedTuple):
    """The tag versions and epochs from before a render.

    :param known: the versions (B) of the tags that exist.
    :param before: the epochs (E0).
    """

    known: dict[str, bytes]
    before: Epochs

    def snapshot(self, tags: Iterable[str]) -> TagSnapshot:
        """Return a tag snapshot for data that was read after the capture, but may not be stored.

        The snapshot is valid as long as the epochs and the versions of all ``tags`` stay.
        """
        tag_versions = tuple((tag, self.known.get(tag, b"")) for tag in tags)
        return TagSnapshot(
            tag_versions, tuple((node, nonce) for node, nonce in self.before.items() if nonce is not None)
        )


def claims(snapshot: TagSnapshot) -> dict[str, bytes]:
    """Return the tag versions of data that is not stored, for the page that uses the data.

    Where the data has no version of a tag, the version of the page counts.
    """
    return {tag: tag_version or ABSENT for tag, tag_version in snapshot.tags}


class Polled(NamedTuple):
    """Epochs, and the monotonic time in seconds at which they are too old to use."""

    epochs: Epochs
    lapses_at: float


class TagVersions:
    """The control plane of one process.

    :param tag_key: returns the name of a tag's key.
    :param epoch_key: returns the name of a node's epoch.
    :param coherence: the greatest age of polled epochs in seconds; 0 reads them on every request.
    :param monotonic: monotonic seconds, for that age.
    :param switch: read along with the epochs.
    """

    def __init__(
        self,
        store: Store,
        tag_key: Callable[[str], str],
        epoch_key: Callable[[str], str],
        *,
        coherence: float,
        monotonic: Callable[[], float],
        switch: Switch | None = None,
    ) -> None:
        self.switch = switch or Switch()
        self._store = store
        self._tag_key = tag_key
        self._epoch_key = epoch_key
        self._coherence = coherence
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._forgets = 0
        self._polling = threading.Lock()
        self._polled = Polled({}, float("-inf"))
        #: The keys of tags to read with the next epochs; the last read of each key in monotonic seconds.
        self._unread: dict[str, None] = {}
        self._read_at: dict[str, float] = {}

    # Epochs ------------------------------------------------------------------------------------------

    def epochs(self) -> Epochs:
        """Return the epochs, read no longer than ``coherence`` seconds ago."""
        return self.polled().epochs

    def polled(self) -> Polled:
        """Return the epochs, read no longer than ``coherence`` seconds ago, and the time until which they hold."""
        polled = self._polled
        if self._monotonic() < polled.lapses_at:
            return polled
        if self._coherence == 0:
            return Polled(self._read_epochs(), float("-inf"))
        # One thread reads. The others wait for its result: older epochs would exceed the bound. The result of a read
        # that takes longer than ``coherence`` still serves each thread that came before the read began.
        came = self._monotonic()
        with self._polling:
            polled = self._polled
            if self._monotonic() < polled.lapses_at or polled.lapses_at - self._coherence >= came:
                return polled
            return self._poll()

    def known(self) -> Polled | None:
        """Return the polled epochs while they hold, without reading; ``None`` afterwards."""
        polled = self._polled
        return polled if self._monotonic() < polled.lapses_at else None

    def ask(self) -> Epochs:
        """Return the epochs, read from now on."""
        if self._coherence == 0:
            return self._read_epochs()
        with self._polling:
            return self._poll().epochs

    def forget(self) -> None:
        """Let the polled epochs lapse, because this process has just invalidated tags."""
        with self._lock:
            self._forgets += 1
            self._polled = Polled(self._polled.epochs, float("-inf"))

    def _poll(self) -> Polled:
        # The clock is read before the store: the epochs are no older than that.
        asked, forgets = self._monotonic(), self._forgets
        epochs = self._read_epochs()
        if epochs == self._polled.epochs:
            epochs = self._polled.epochs  # the same object, which is compared by identity first
        # Race: this process invalidated tags during the read. Such epochs are used only once.
        with self._lock:
            lapses_at = asked + self._coherence if forgets == self._forgets else float("-inf")
            self._polled = polled = Polled(epochs, lapses_at)
        return polled

    @property
    def read_again(self) -> float:
        """Return the seconds after which a used tag is read again; more for more tags."""
        return min(max(len(self._read_at) / _READS, READ_AGAIN[0]), READ_AGAIN[1])

    def keep_alive(self, snapshot: TagSnapshot) -> None:
        """Have the tags of a served copy read with the next epochs, as no request compares them.

        A store evicts keys that no process reads. The copy would be purged at the next change of the epochs. Tags that
        do not exist have no key.
        """
        keys = [self._tag_key(tag) for tag, tag_version in snapshot.tags if tag_version not in (ABSENT, b"")]
        now, read_again = self._monotonic(), self.read_again
        with self._lock:
            if len(self._read_at) > _MAX_KNOWN:
                self._read_at.clear()
            for key in keys:
                if now >= self._read_at.setdefault(key, now) + read_again and len(self._unread) < _MAX_UNREAD:
                    self._unread[key] = None
                    self._read_at[key] = now

    def _read_epochs(self) -> Epochs:
        keys = {node: self._epoch_key(node) for node in self._store.nodes}
        with self._lock:
            alive = list(itertools.islice(self._unread, max(_READ_ALONG, len(self._unread) // 8)))
            for key in alive:
                del self._unread[key]
        along = self.switch.due(self._coherence, READ_AGAIN[0])
        found = self._store.get_many([*keys.values(), *alive, *along])
        self.switch.note(found, along, keys.values())
        epochs: dict[str, bytes | None] = {}
        for node, key in keys.items():
            if key in found.unreachable:
                epochs[node] = None
            else:
                epochs[node] = found.values.get(key) or self._begin_epoch(key)
        return epochs

    def _begin_epoch(self, key: str) -> bytes | None:
        """Return a new nonce for a lost epoch; ``None`` where the node is unreachable.

        No copy was ever checked at a new nonce. Another process may add one first, and the store may lose it at once.
        The node is still reachable then: any new nonce makes every copy compare its tags.
        """
        nonce = os.urandom(_NONCE)
        try:
            return nonce if self._store.add(key, nonce) else self._store.get(key) or nonce
        except StoreError:
            return None

    # Rendering ---------------------------------------------------------------------------------------

    def capture(self, tags: Iterable[str]) -> Capture:
        """Return the version of every tag that is known before any data is read **[needed]**, and the epochs.

        No tag is created: the page may turn out to be a 404, and clients can ask for any number of those. A tag that
        does not exist yet is treated like one that turns up in the render.
        """
        before = self.epochs()  # polled epochs are enough: their age costs another render at worst
        names = list(dict.fromkeys(tags))
        known = self._stamps_of(names)
        if len(known) < len(names):
            # Missing tags are proven by the epochs alone. An invalidation since the last poll would cost a second
            # render, so the epochs are read anew. So are the versions, which must not be older than the epochs
            # **[needed]**: data with older versions could go in and pass as valid at newer epochs.
            before = self._read_epochs()
            known = self._stamps_of(names)
        return Capture(known, before)

    def prove(
        self,
        capture: Capture,
        tags: Iterable[str],
        carried: Mapping[str, bytes] = MappingProxyType({}),
        mints: Callable[[str], bool] = lambda tag: True,
        absent: bytes = b"",
    ) -> TagSnapshot:
        """Return the tag snapshot of a render, after all data was read.

        :param tags: all tags, those that turned up in the render included.
        :param carried: the tags of cached data that was used, with the versions that the data carries. A version that
            differs from the captured one means an invalidation between data and render, whichever came first. One of
            the two is outdated, and so is the page.
        :param mints: returns whether a missing tag is created.
        :param absent: the version of a missing tag that is not created.
        """
        every = list(dict.fromkeys([*tags, *carried]))
        late = [tag for tag in every if tag not in capture.known]
        # First the late tag versions, then the epochs **[needed: in this order]**: the epochs then show an
        # invalidation between the two reads.
        late_stamps = self._stamps_of(late) if late else {}
        missing = [tag for tag in late if tag not in late_stamps]
        late_stamps |= {tag: self._begin_tag(tag, self._tag_key(tag)) for tag in missing if mints(tag)}
        after = self._read_epochs()
        # An unreachable node proves nothing, although None equals None.
        quiet = {node for node, nonce in after.items() if nonce is not None and capture.before.get(node) == nonce}
        stamped, proven = [], True
        for tag in every:
            is_quiet = self._node(tag) in quiet
            is_absent = tag not in capture.known and tag not in late_stamps
            if tag in capture.known:
                tag_version = capture.known[tag]
            elif is_absent:
                tag_version = absent
            else:
                # On any other node an invalidation went on beside the render. Whether it hit this tag, before or after
                # the data was read, is unknown **[needed]**. The next request renders again, and then the tag is known
                # beforehand.
                tag_version = late_stamps[tag] if is_quiet else b""
            if carried.get(tag, tag_version) not in (tag_version, ABSENT):
                tag_version, is_quiet = b"", False
            proven = proven and (is_quiet if is_absent else tag_version != b"")
            stamped.append((tag, tag_version))
        nodes = {self._node(tag) for tag, _ in stamped}
        valid_at = tuple((node, nonce) for node, nonce in after.items() if node in quiet & nodes and nonce is not None)
        return TagSnapshot(tuple(stamped), valid_at if proven else ())

    def _stamps_of(self, tags: Sequence[str]) -> dict[str, bytes]:
        """Return the current versions of those tags that exist; ``b""`` where the node is unreachable."""
        keys = {tag: self._tag_key(tag) for tag in tags}
        found = self._store.get_many(list(keys.values()))
        tag_versions: dict[str, bytes] = {}
        for tag, key in keys.items():
            value = found.values.get(key)
            if key in found.unreachable:
                tag_versions[tag] = b""
            elif value is not None and TagVersion(value).belongs_to(tag):
                tag_versions[tag] = TagVersion(value).nonces
        return tag_versions

    def _begin_tag(self, tag: str, key: str) -> bytes:
        """Create a missing or damaged tag; return its nonces or those of a faster process, ``b""`` after an error."""
        tag_version = TagVersion.fresh(tag)
        try:
            if self._store.add(key, tag_version):
                return tag_version.nonces
            held = self._store.gets(key)
            if held is not None and TagVersion(held.value).belongs_to(tag):
                return TagVersion(held.value).nonces
            return tag_version.nonces if held is not None and self._store.cas(key, tag_version, held.token) else b""
        except StoreError:
            return b""

    # Looking up --------------------------------------------------------------------------------------

    def validity(self, snapshot: TagSnapshot, epochs: Epochs, since: Epochs = MappingProxyType({})) -> Validity:
        """Return the validity of an entry at ``epochs``; see :meth:`compared`."""
        return self.compared(snapshot, epochs, since)[0]

    def compared(
        self, snapshot: TagSnapshot, epochs: Epochs, since: Epochs = MappingProxyType({})
    ) -> tuple[Validity, str]:
        """Return the validity of an entry at ``epochs``, and the first tag that makes it invalid, if any.

        :param epochs: read before this call **[needed]**. The compared tag versions are then at least as new as the
            epochs under which the validity is remembered.
        :param since: the epochs at which the whole entry was found valid **[needed]**. On a node with the same epoch,
            no tag is compared again.
        """
        valid_at = dict(snapshot.valid_at)
        quiet = {
            node for node, now in epochs.items() if now is not None and now in (valid_at.get(node), since.get(node))
        }
        if len(quiet) == len(epochs):
            return Validity.VALID, ""  # no tag is looked at: most look-ups end here
        # The names are made once: each is a hash, and an entry may have a hundred tags.
        keys = {tag: self._tag_key(tag) for tag, _ in snapshot.tags}
        homes = {tag: self._store.node_of(key) for tag, key in keys.items()}
        changed = [(tag, then) for tag, then in snapshot.tags if homes[tag] not in quiet]
        if not changed:
            return Validity.VALID, ""
        found = self._store.get_many([keys[tag] for tag, _ in changed])
        worst, proven, by = Validity.VALID, True, ""
        for tag, then in changed:
            if keys[tag] in found.unreachable:
                proven = False
            else:
                compared = compare(then, found.values.get(keys[tag]))
                if compared > worst:
                    worst, by = compared, tag
                proven = proven and epochs.get(homes[tag]) is not None
        # An entry that is expired by one tag is so, whichever node is unreachable. A stale one may be worse by the tags
        # of an unreachable node: the validity is unknown, and the response is marked.
        return (worst, by) if proven or worst >= Validity.EXPIRED else (Validity.UNKNOWN, by)

    def reachable(self, snapshot: TagSnapshot, epochs: Epochs) -> bool:
        """Return whether every node that holds one of the tags has answered with its epoch."""
        return all(epochs.get(self._node(tag)) is not None for tag, _ in snapshot.tags)

    def _node(self, tag: str) -> str:
        return self._store.node_of(self._tag_key(tag))

    # Invalidating ------------------------------------------------------------------------------------

    def missing(self, tags: Sequence[str]) -> list[str]:
        """Return those of ``tags`` that do not exist: no stored page carries them.

        The result is for a warning alone, since an invalidation creates the tags. The tags of an unreachable node count
        as existing.
        """
        keys = {tag: self._tag_key(tag) for tag in tags}
        found = self._store.get_many(list(keys.values()))
        return [tag for tag, key in keys.items() if key not in found.values and key not in found.unreachable]

    def invalidate(self, tags: Iterable[str], mode: Mode) -> dict[str, StoreError]:
        """Invalidate ``tags``, and return those that were not delivered, each with its error.

        Repetition is harmless.
        """
        by_node: dict[str, list[str]] = {}
        for tag in dict.fromkeys(tags):
            by_node.setdefault(self._node(tag), []).append(tag)
        failed: dict[str, StoreError] = {}
        for node, on_node in by_node.items():
            try:
                # **[needed]** A render may read old data from here on, and then the changed tag versions: the new epoch
                # tells it so.
                self._store.set(self._epoch_key(node), os.urandom(_NONCE))
                for tag in on_node:
                    self._renew(tag, mode)
                # **[needed]** A copy that was checked between the two epochs is checked again.
                self._store.set(self._epoch_key(node), os.urandom(_NONCE))
            except StoreError as error:
                failed |= dict.fromkeys(on_node, error)
        self.forget()
        return failed

    def _renew(self, tag: str, mode: Mode) -> None:
        key = self._tag_key(tag)
        if mode is Mode.PURGE:
            self._store.set(key, TagVersion.fresh(tag))  # no nonce has to stay
            return
        while True:
            held = self._store.gets(key)
            if held is None or not TagVersion(held.value).belongs_to(tag):
                # A lost tag counts as purged: all three nonces are new.
                if held is not None:
                    self._store.set(key, TagVersion.fresh(tag))
                    return
                if self._store.add(key, TagVersion.fresh(tag)):
                    return
            # **[needed]** The nonces that stay are written back by compare-and-swap: a blind write of a weak mode would
            # undo a concurrent invalidation of a stronger one.
            elif self._store.cas(key, TagVersion(held.value).renewed(mode), held.token):
                return
