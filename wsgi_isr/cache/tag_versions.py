"""Tag stamps and epochs: how an invalidation reaches every copy of a page without touching one.

A tag is a control key with three nonces ``(any, hard, purge)``; an entry carries the stamps that its
tags had before it was rendered. An epoch is one nonce for each node, renewed by every invalidation
there: while it stays, nothing on that node was invalidated and nothing needs to be compared.

Nonces are compared for equality only, and never reused: there are no counters and no clocks, and a key
that was lost comes back with a value that nothing was ever stamped with.

The order of the steps below is the protocol. It was searched exhaustively as a model
(``tests/model``); each rule marked *needed* was left out in turn, and each time a page older than an
acknowledged invalidation was served as fresh.
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
from .verdict import Validity

_NONCE = 12
_NONCES = 3 * _NONCE

#: Seconds after which a tag that is in use is read again, for the store not to take it for unused: the least, the most,
#: and how many tags are read in a second in between. A client can fill a store within the most.
READ_AGAIN, _READS = (5.0, 20.0), 200
#: Tags of which that is known, those that wait to be read along with epochs, and the least of these read at once.
_MAX_KNOWN, _MAX_UNREAD, _READ_ALONG = 131072, 16384, 64

Epochs = Mapping[str, bytes | None]
"""Node to nonce; ``None`` for a node that cannot be reached."""


class Mode(str, enum.Enum):
    """What an invalidation allows to be done with the old page."""

    STALE = "stale"
    """Serve it once more while renewing."""
    EXPIRE = "expire"
    """Nobody gets it, unless rendering fails."""
    PURGE = "purge"
    """Nobody ever gets it again, even then."""


ABSENT = b"-"
"""The stamp of a tag that did not exist. It is valid as long as the tag does not."""


class TagVersion(bytes):
    """A tag's value in the store: its three nonces, and its name, so that a collision of hashed keys is seen.

    Entries carry the nonces alone. ``b""`` is the stamp that nothing equals: of a tag that turned up while an
    invalidation went on.
    """

    __slots__ = ()

    @classmethod
    def fresh(cls, tag: str) -> TagVersion:
        """Three new nonces."""
        return cls(os.urandom(3 * _NONCE) + tag.encode("utf-8", "surrogatepass"))

    def renewed(self, mode: Mode) -> TagVersion:
        """What stays stays; the rest is new."""
        new = {Mode.STALE: _NONCE, Mode.EXPIRE: 2 * _NONCE, Mode.PURGE: 3 * _NONCE}[mode]
        return TagVersion(os.urandom(new) + self[new:])

    def belongs_to(self, tag: str) -> bool:
        """Whether these bytes are a stamp of ``tag``."""
        return self[_NONCES:] == tag.encode("utf-8", "surrogatepass") and len(self) >= _NONCES

    @property
    def nonces(self) -> bytes:
        """What entries carry of it."""
        return bytes(self[:_NONCES])


def compare(then: bytes, now: bytes | None) -> Validity:
    """Return what became of one tag, from the stamp that an entry carries and the tag's value in the store.

    A tag that is missing now was invalidated in the strongest way for all that is known, and counts so.
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
    """What was read before a render: the stamps ``known`` (B) of tags that exist, and the epochs ``before`` (E0)."""

    known: dict[str, bytes]
    before: Epochs

    def proof(self, tags: Iterable[str]) -> TagSnapshot:
        """Return a proof for what was read after the capture, but may not be stored.

        It lasts as long as the epochs stay, and as the stamps of all ``tags`` do.
        """
        stamps = tuple((tag, self.known.get(tag, b"")) for tag in tags)
        return TagSnapshot(stamps, tuple((node, nonce) for node, nonce in self.before.items() if nonce is not None))


def claims(proof: TagSnapshot) -> dict[str, bytes]:
    """Return the tags of data that is not kept, for the page that it goes into. Where the data has no stamp, that of
    the page counts."""
    return {tag: stamp or ABSENT for tag, stamp in proof.tags}


class Polled(NamedTuple):
    """Epochs, and the monotonic time from which on they are too old to answer with."""

    epochs: Epochs
    lapses_at: float


class TagVersions:
    """The control plane of one process.

    :param tag_key: the name of a tag's key. :param epoch_key: the name of a node's epoch.
    :param coherence: how old polled epochs may be, in seconds; 0 asks on every request.
    :param monotonic: seconds, for that.
    """

    def __init__(
        self,
        store: Store,
        tag_key: Callable[[str], str],
        epoch_key: Callable[[str], str],
        *,
        coherence: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._tag_key = tag_key
        self._epoch_key = epoch_key
        self._coherence = coherence
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._forgets = 0
        self._polling = threading.Lock()
        self._polled = Polled({}, float("-inf"))
        #: Keys of tags to be read with the next epochs, and when each was last, in monotonic seconds.
        self._unread: dict[str, None] = {}
        self._read_at: dict[str, float] = {}

    # Epochs ------------------------------------------------------------------------------------------

    def epochs(self) -> Epochs:
        """The epochs, read no longer than ``coherence`` seconds ago."""
        return self.polled().epochs

    def polled(self) -> Polled:
        """The same, with the time until which they are good."""
        polled = self._polled
        if self._monotonic() < polled.lapses_at:
            return polled
        if self._coherence == 0:
            return Polled(self._read_epochs(), float("-inf"))
        # One thread asks. The others wait for its answer: theirs may not be older than the bound.
        with self._polling:
            if self._monotonic() < self._polled.lapses_at:
                return self._polled
            return self._poll()

    def ask(self) -> Epochs:
        """The epochs, read from now on."""
        if self._coherence == 0:
            return self._read_epochs()
        with self._polling:
            return self._poll().epochs

    def forget(self) -> None:
        """Ask again at the next opportunity: this process has just invalidated something itself."""
        with self._lock:
            self._forgets += 1
            self._polled = Polled(self._polled.epochs, float("-inf"))

    def _poll(self) -> Polled:
        # The time is taken before the question: an answer is as old as that at most.
        asked, forgets = self._monotonic(), self._forgets
        epochs = self._read_epochs()
        if epochs == self._polled.epochs:
            epochs = self._polled.epochs  # the same object: copies checked at it are recognised by identity
        # An invalidation of our own while we asked: this answer is not to be used a second time.
        with self._lock:
            lapses_at = asked + self._coherence if forgets == self._forgets else float("-inf")
            self._polled = polled = Polled(epochs, lapses_at)
        return polled

    @property
    def read_again(self) -> float:
        """Return the seconds after which a tag that is in use is read again. They grow with the number of tags."""
        return min(max(len(self._read_at) / _READS, READ_AGAIN[0]), READ_AGAIN[1])

    def keep_alive(self, proof: TagSnapshot) -> None:
        """Have the tags of a copy that is served without being compared read along with the next epochs.

        A store takes keys that no process reads for unused, and evicts them: the copy would be missing at the next
        change of the epochs. Tags that do not exist have no key.
        """
        keys = [self._tag_key(tag) for tag, stamp in proof.tags if stamp not in (ABSENT, b"")]
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
        found = self._store.get_many([*keys.values(), *alive])
        epochs: dict[str, bytes | None] = {}
        for node, key in keys.items():
            if key in found.unreachable:
                epochs[node] = None
            else:
                epochs[node] = found.values.get(key) or self._begin_epoch(key)
        return epochs

    def _begin_epoch(self, key: str) -> bytes | None:
        """A lost epoch comes back as one that no copy was checked at.

        Where somebody else was faster and it is lost once more, it is still not *unreachable*: any new
        nonce says what is to be said, that nothing is known.
        """
        nonce = os.urandom(_NONCE)
        try:
            return nonce if self._store.add(key, nonce) else self._store.get(key) or nonce
        except StoreError:
            return None

    # Rendering ---------------------------------------------------------------------------------------

    def capture(self, tags: Iterable[str]) -> Capture:
        """Before any data is read **[needed]**: the stamps of every tag known beforehand.

        Nothing is minted: what is rendered may turn out to be a 404, and clients can ask for any number of those. A tag
        that does not exist yet is treated as one that turns up in the render.
        """
        before = self.epochs()  # may be a polled value: that only errs towards another render
        names = list(dict.fromkeys(tags))
        known = self._stamps_of(names)
        if len(known) < len(names):
            # The tags that are missing are held against the epochs alone: an invalidation of a moment ago, which a
            # polled value does not know of, would cost a second render. The stamps are read anew, for they must not be
            # older than the epochs **[needed]**: data that has those stamps may go in, and would be valid at these.
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
        """After the data was read: stamps for all ``tags``, those included that turned up meanwhile.

        :param carried: tags of cached data that went in, with the stamps that it carries. Where one is not the
            stamp known here, an invalidation lies between the data and the render, whichever came first: one
            of the two is outdated, and so is what was made of both.
        :param mints: whether a tag that does not exist comes into being. :param absent: the stamp of one that does not.
        """
        every = list(dict.fromkeys([*tags, *carried]))
        late = [tag for tag in every if tag not in capture.known]
        # First the late stamps, then the epochs **[needed: in this order]**: an invalidation between the
        # two is then seen in the epochs.
        late_stamps = self._stamps_of(late) if late else {}
        missing = [tag for tag in late if tag not in late_stamps]
        late_stamps |= {tag: self._begin_tag(tag, self._tag_key(tag)) for tag in missing if mints(tag)}
        after = self._read_epochs()
        # None equals None, but an epoch that could not be read proves nothing.
        quiet = {node for node, nonce in after.items() if nonce is not None and capture.before.get(node) == nonce}
        stamped, proven = [], True
        for tag in every:
            is_quiet = self._node(tag) in quiet
            is_absent = tag not in capture.known and tag not in late_stamps
            if tag in capture.known:
                stamp = capture.known[tag]
            elif is_absent:
                stamp = absent
            else:
                # Elsewhere an invalidation went on beside the render. Whether it was of this tag, and before or
                # after the data was read, cannot be told **[needed]**: the next request renders once
                # more, with the tag known beforehand.
                stamp = late_stamps[tag] if is_quiet else b""
            if carried.get(tag, stamp) not in (stamp, ABSENT):
                stamp, is_quiet = b"", False
            proven = proven and (is_quiet if is_absent else stamp != b"")
            stamped.append((tag, stamp))
        nodes = {self._node(tag) for tag, _ in stamped}
        valid_at = tuple((node, nonce) for node, nonce in after.items() if node in quiet & nodes and nonce is not None)
        return TagSnapshot(tuple(stamped), valid_at if proven else ())

    def _stamps_of(self, tags: Sequence[str]) -> dict[str, bytes]:
        """The stamps now of those that exist; ``b""`` where the node cannot be asked."""
        keys = {tag: self._tag_key(tag) for tag in tags}
        found = self._store.get_many(list(keys.values()))
        stamps: dict[str, bytes] = {}
        for tag, key in keys.items():
            value = found.values.get(key)
            if key in found.unreachable:
                stamps[tag] = b""
            elif value is not None and TagVersion(value).belongs_to(tag):
                stamps[tag] = TagVersion(value).nonces
        return stamps

    def _begin_tag(self, tag: str, key: str) -> bytes:
        """New nonces for a tag that is missing or damaged, unless another process is faster."""
        stamp = TagVersion.fresh(tag)
        try:
            if self._store.add(key, stamp):
                return stamp.nonces
            held = self._store.gets(key)
            if held is not None and TagVersion(held.value).belongs_to(tag):
                return TagVersion(held.value).nonces
            return stamp.nonces if held is not None and self._store.cas(key, stamp, held.token) else b""
        except StoreError:
            return b""

    # Looking up --------------------------------------------------------------------------------------

    def standing(self, proof: TagSnapshot, epochs: Epochs, since: Epochs = MappingProxyType({})) -> Validity:
        """What has happened to an entry, as of ``epochs``, which were read before this is called
        **[needed]**: what is compared is then at least as new as what it is remembered under.

        :param since: epochs at which it was found to be valid as a whole **[needed]**. Of a node whose epoch is still
            the same, nothing has to be compared again.
        """
        # Each name is a hash, and there may be a hundred of them: they are made once.
        keys = {tag: self._tag_key(tag) for tag, _ in proof.tags}
        homes = {tag: self._store.node_of(key) for tag, key in keys.items()}
        valid_at = dict(proof.valid_at)
        quiet = {
            node for node, now in epochs.items() if now is not None and now in (valid_at.get(node), since.get(node))
        }
        changed = [(tag, then) for tag, then in proof.tags if homes[tag] not in quiet]
        if not changed:
            return Validity.VALID
        found = self._store.get_many([keys[tag] for tag, _ in changed])
        worst, proven = Validity.VALID, True
        for tag, then in changed:
            if keys[tag] in found.unreachable:
                proven = False
            else:
                worst = max(worst, compare(then, found.values.get(keys[tag])))
                proven = proven and epochs.get(homes[tag]) is not None
        # What is known to be invalid is so, whatever else cannot be asked. Known to be soft is not enough: what
        # cannot be asked may be worse, and the answer must say so.
        return worst if proven or worst >= Validity.EXPIRED else Validity.UNKNOWN

    def reachable(self, proof: TagSnapshot, epochs: Epochs) -> bool:
        """Whether every node that holds one of the tags could be asked for its epoch."""
        return all(epochs.get(self._node(tag)) is not None for tag, _ in proof.tags)

    def _node(self, tag: str) -> str:
        return self._store.node_of(self._tag_key(tag))

    # Invalidating ------------------------------------------------------------------------------------

    def missing(self, tags: Sequence[str]) -> list[str]:
        """Return those of ``tags`` that do not exist: no stored page carries them.

        For a warning alone: an invalidation creates them. Where a node cannot be asked, its tags count as existing.
        """
        keys = {tag: self._tag_key(tag) for tag in tags}
        found = self._store.get_many(list(keys.values()))
        return [tag for tag, key in keys.items() if key not in found.values and key not in found.unreachable]

    def invalidate(self, tags: Iterable[str], mode: Mode) -> dict[str, StoreError]:
        """Invalidate ``tags``; returns those that were not delivered, and why. Repeating is harmless."""
        by_node: dict[str, list[str]] = {}
        for tag in dict.fromkeys(tags):
            by_node.setdefault(self._node(tag), []).append(tag)
        failed: dict[str, StoreError] = {}
        for node, on_node in by_node.items():
            try:
                # **[needed]** A render that reads old data from here on, and stamps itself after the tags
                # have changed, sees that the epoch is another one.
                self._store.set(self._epoch_key(node), os.urandom(_NONCE))
                for tag in on_node:
                    self._renew(tag, mode)
                # **[needed]** Copies that were checked between the two are checked again.
                self._store.set(self._epoch_key(node), os.urandom(_NONCE))
            except StoreError as error:
                failed |= dict.fromkeys(on_node, error)
        self.forget()
        return failed

    def _renew(self, tag: str, mode: Mode) -> None:
        key = self._tag_key(tag)
        if mode is Mode.PURGE:
            self._store.set(key, TagVersion.fresh(tag))  # nothing has to stay
            return
        while True:
            held = self._store.gets(key)
            if held is None or not TagVersion(held.value).belongs_to(tag):
                # Lost knowledge counts as the strongest: all three are new.
                if held is not None:
                    self._store.set(key, TagVersion.fresh(tag))
                    return
                if self._store.add(key, TagVersion.fresh(tag)):
                    return
            # **[needed]** What stays is written back only if nobody changed it since: a blind soft write
            # would undo a concurrent hard one.
            elif self._store.cas(key, TagVersion(held.value).renewed(mode), held.token):
                return
