"""Which page a request is for, and the request that renders it.

The one place where keys are built. A page is a function of its key: :func:`canonical` makes the
render's environ from the key and nothing else, so nothing that one visitor sent can be stored for
others.
"""

from __future__ import annotations

import hashlib

from .entry import SCHEMA

#: Of tags and epochs. They are those of all versions of this package, too, which may run beside each other in the
#: middle of a rolling deploy: it goes up only if they cannot be.
CONTROL_SCHEMA = 2


class Keyspace:
    """Names in the store: schema, namespace, plane, and a hash of the key's text.

    Names are hashed because memcached takes 250 bytes and no spaces; the text itself is kept in the
    value and compared, so that a collision is a miss. Pages belong to a release; tags and epochs to all
    releases, so that an invalidation in the middle of a rolling deploy reaches the pages of both.
    """

    def __init__(self, namespace: str, release: str = "") -> None:
        self._prefix = f"isr{SCHEMA}:{_digest(namespace, 6)}"
        self._control = f"isr{CONTROL_SCHEMA}:{_digest(namespace, 6)}"
        self._release = release

    def page(self, key_text: str) -> str:
        """Where a page is stored."""
        return f"{self._prefix}:p:{_digest(self._release + chr(0) + key_text, 20)}"

    def data(self, key_text: str) -> str:
        """Where what a cached function returned is stored."""
        return f"{self._prefix}:d:{_digest(self._release + chr(0) + key_text, 20)}"

    def tag(self, tag: str) -> str:
        """Return where the stamp of a tag is, given by its name or as it is stored."""
        stored = stored_tag(tag)
        return f"{self._control}:t:{stored if stored.startswith(_SLOT) else _digest(stored, 20)}"

    @property
    def sites(self) -> str:
        """Where it is kept for whom pages are made. (A page's key is JSON, and never this.)"""
        return f"{self._prefix}:p:{_digest('sites', 20)}"

    def apps(self, copy: int) -> str:
        """Return where a copy of the records of a namespace's apps is."""
        return f"{self._prefix}:p:{_digest(f'apps {copy}', 20)}"

    def releases(self, app: str) -> str:
        """Return where the releases are kept of the app of this name that have stored pages."""
        return f"{self._prefix}:p:{_digest(f'releases {app}', 20)}"

    @staticmethod
    def namespaces(copy: int) -> str:
        """Return where a copy of the list of all namespaces of a store is. (No namespace is empty.)"""
        return f"isr{SCHEMA}:{_digest('', 6)}:p:{_digest(f'namespaces {copy}', 20)}"

    def epoch(self, node: str) -> str:
        """Where a node's epoch is: on that node."""
        return f"{self._control}:e:{node}"

    @staticmethod
    def lock(page: str) -> str:
        """The lock of a page."""
        return page + ":lock"

    @staticmethod
    def failures(page: str) -> str:
        """How often in a row the page could not be rendered."""
        return page + ":failures"


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


# The package gives tags to every page. A prefix of their own keeps them apart from those of people.
EVERYTHING = "all"

#: How many control keys the tags of paths, of prefixes and of single pieces of data have. Their number is up to whoever
#: sends URLs. A key for each would let a client fill the store with them, and evict those of real pages. A POST of
#: anybody may invalidate a path of their choice: it must not share a key with a prefix, which many pages have.
SLOTS = {"path:": range(0x8000), "prefix:": range(0x8000, 0xC000), "data:": range(0xC000, 0x10000)}
_IN_SLOTS = tuple(SLOTS)
_SLOT = "slot:"


def stored_tag(name: str) -> str:
    """Return the tag that entries carry for ``name``.

    A path, a prefix and a single piece of data share one of :data:`SLOTS` slots with others of their kind: invalidating
    one of them renders those others once more as well. All other tags are exact.
    """
    if not name.startswith(_IN_SLOTS):
        return name
    slots = SLOTS[name[: name.index(":") + 1]]
    return f"{_SLOT}{slots[int(_digest(name, 8), 16) % len(slots)]:04x}"


def tag_name(tag: str) -> str:
    """The stored name of a tag that a person gave."""
    return f"tag:{tag}"


def is_given(stored: str) -> bool:
    """Return whether a stored tag is one that a person gave: there can be any number of them."""
    return stored.startswith("tag:")


def path_tag(path: str) -> str:
    """The tag of the page at a public path."""
    return f"path:{path}"


def prefix_tag(path: str) -> str:
    """The tag of everything at a public path and below it; whole segments count."""
    return "prefix:/" + path.strip("/")


def route_tag(pattern: str) -> str:
    """The tag of every page of a rule."""
    return f"route:{pattern}"
