"""The names of keys in the store, and the names of tags.

All names are built here. A page is a function of its key: :func:`.canonical` makes the environ of a render from the key
alone. So no data from one client's request is stored for others.
"""

from __future__ import annotations

import base64
import functools
import hashlib

from .entry import SCHEMA

#: The schema of tags and epochs. All versions of this package share both, and several versions run side by side during
#: a rolling deploy. The number goes up only for a change that no older version can read.
CONTROL_SCHEMA = 2
#: The number of tags whose names are remembered.
MAX_TAG_NAMES = 1024
#: The longest tag among them, in characters: a client may choose a part of a tag.
MAX_TAG = 256


class Keyspace:
    """Names in the store: schema, namespace, kind, and a hash of the key's text.

    Names are hashed because memcached takes 250 bytes and no spaces. The value holds the text itself, which is
    compared: a collision is a miss. A page belongs to one release. Tags and epochs belong to all releases, so that an
    invalidation during a rolling deploy reaches the pages of both.
    """

    def __init__(self, namespace: str, release: str = "") -> None:
        self._prefix = f"isr{SCHEMA}:{_digest(namespace, 6)}"
        self._control = f"isr{CONTROL_SCHEMA}:{_digest(namespace, 6)}"
        self._release = release
        # An entry may have a hundred tags, most of them those of its neighbours. Each name is a hash.
        self._tag_names = functools.lru_cache(MAX_TAG_NAMES)(self._tag_name)

    def page(self, key_text: str) -> str:
        """Return the name of a page."""
        return f"{self._prefix}:p:{_digest(self._release + chr(0) + key_text, 20)}"

    def data(self, key_text: str) -> str:
        """Return the name of a cached function's result."""
        return f"{self._prefix}:d:{_digest(self._release + chr(0) + key_text, 20)}"

    def tag(self, tag: str) -> str:
        """Return the name of a tag's version, from the tag's name or its stored form."""
        return self._tag_names(tag) if len(tag) <= MAX_TAG else self._tag_name(tag)

    def _tag_name(self, tag: str) -> str:
        stored = stored_tag(tag)
        return f"{self._control}:t:{stored if stored.startswith(_SLOT) else _digest(stored, 20)}"

    def edge_token(self, tag: str) -> str:
        """Return the name of a tag at a CDN, from the tag's name or its stored form: 12 letters, digits, - and _.

        Headers have limits, so tags are hashed. An invalidation names the very tokens that pages carry: the token of a
        slot where :func:`stored_tag` returns one. A collision purges a page too many.
        """
        text = f"{self._control}:{stored_tag(tag)}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=9, person=b"isr edge tag").digest()
        return base64.urlsafe_b64encode(digest).decode()

    @property
    def sites(self) -> str:
        """Return the name of the list of sites. (A page's key is JSON, and never this word.)"""
        return f"{self._prefix}:p:{_digest('sites', 20)}"

    def apps(self, copy: int) -> str:
        """Return the name of a copy of the records of a namespace's apps."""
        return f"{self._prefix}:p:{_digest(f'apps {copy}', 20)}"

    def releases(self, app: str) -> str:
        """Return the name of the list of an app's releases that have stored pages."""
        return f"{self._prefix}:p:{_digest(f'releases {app}', 20)}"

    def invalidated(self, stored: str) -> str:
        """Return the name of the record of a tag's last invalidations, from the tag's stored form."""
        return f"{self._prefix}:p:{_digest(f'invalidated {stored}', 20)}"

    @staticmethod
    def timeline(page: str) -> str:
        """Return the name of the record of a page's last events, which is on the node of the page."""
        return page + ":timeline"

    def history(self, name: str) -> str:
        """Return the name of a record in the history of a namespace; of the list of its instances for an empty one."""
        return f"{self._prefix}:p:{_digest(f'history {name}', 20)}"

    @staticmethod
    def namespaces(copy: int) -> str:
        """Return the name of a copy of the list of a store's namespaces. (No namespace is empty.)"""
        return f"isr{SCHEMA}:{_digest('', 6)}:p:{_digest(f'namespaces {copy}', 20)}"

    def epoch(self, node: str) -> str:
        """Return the name of a node's epoch, which is stored on that node."""
        return f"{self._control}:e:{node}"

    def switch(self, node: str) -> str:
        """Return the name of a node's copy of the switch (:mod:`.switch`), which is stored on that node."""
        return f"{self._control}:s:{node}"

    @staticmethod
    def lock(page: str) -> str:
        """Return the name of a page's lock."""
        return page + ":lock"

    @staticmethod
    def failures(page: str) -> str:
        """Return the name of the counter of a page's failed renders in a row."""
        return page + ":failures"


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


# The package gives tags to every page. Their own prefix keeps them apart from the tags of an app.
EVERYTHING = "all"

#: The control keys for the tags of paths, of prefixes and of single pieces of data. Clients determine the number of
#: these tags by the URLs that they send. A key for each tag would let a client fill the store, and evict the tags of
#: real pages. Any client may invalidate a path of its choice by a POST: a path never shares a key with a prefix, which
#: many pages have.
SLOTS = {"path:": range(0x8000), "prefix:": range(0x8000, 0xC000), "data:": range(0xC000, 0x10000)}
_IN_SLOTS = tuple(SLOTS)
_SLOT = "slot:"


def stored_tag(name: str) -> str:
    """Return the tag that entries carry for ``name``.

    Paths share one of :data:`SLOTS` with other paths; so do prefixes, and single pieces of data. Invalidating one of
    them invalidates the others in its slot. All other tags are exact.
    """
    if not name.startswith(_IN_SLOTS):
        return name
    slots = SLOTS[name[: name.index(":") + 1]]
    return f"{_SLOT}{slots[int(_digest(name, 8), 16) % len(slots)]:04x}"


def tag_name(tag: str) -> str:
    """Return the stored name of a tag that the app gave."""
    return f"tag:{tag}"


def is_given(stored: str) -> bool:
    """Return whether the app gave a stored tag: there can be any number of them."""
    return stored.startswith("tag:")


def path_tag(path: str) -> str:
    """Return the tag of the page at a public path."""
    return f"path:{path}"


def prefix_tag(path: str) -> str:
    """Return the tag of all pages at a public path and below it; whole segments count."""
    return "prefix:/" + path.strip("/")


def route_tag(pattern: str) -> str:
    """Return the tag of all pages of a rule."""
    return f"route:{pattern}"
