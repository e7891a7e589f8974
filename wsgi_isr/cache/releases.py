"""The releases of an app that have stored pages: a new release adopts the pages of the latest one.

The record in the store is one list for each app of a namespace. Its order is the order in which releases began to store
pages, latest last. A release that never stored a page is not in the list, and no other release adopts from it. The
record is best effort: without it, the first client of each page of a new release waits for a render.
"""

from __future__ import annotations

from typing import Any

import msgpack

from ..errors import StoreError
from ..stores.base import Store
from .compare_and_swap import update
from .entry import Codec
from .keyspace import Keyspace
from .task import Task

#: The most releases in the record.
MAX_RELEASES = 5
#: The most characters of a release's name in the record.
MAX_NAME = 1024
#: The most pages that a process remembers as refused.
MAX_REFUSED = 4096
#: The option's value to adopt from the release that the record names.
AUTO = "auto"

_UNICODE = "surrogatepass"  # a variable of the environment may hold any bytes


class Releases:
    """The release of a process, and the release that it adopts pages from.

    :param release: the release of this process.
    :param adopt: the release to adopt from, ``"auto"`` for the one that the record names, ``None`` for none.
    :param app: the name of the app, which tells it from others in the same namespace.
    """

    def __init__(self, release: str, adopt: str | None, namespace: str, store: Store, codec: Codec, app: str) -> None:
        self._release = release
        self._namespace = namespace
        self._store = store
        self._codec = codec
        self._key = Keyspace(namespace).releases(app)
        self._former = None if adopt is None or adopt == AUTO else Keyspace(namespace, adopt)
        self._is_settled = adopt != AUTO
        self._is_recorded = False
        #: Whether this release comes after the one that it adopts from.
        self._succeeds = True
        #: Pages of the other release that are not adopted any more.
        self._refused: set[str] = set()

    def former_page(self, task: Task) -> str | None:
        """Return the name of a task's page in the release that is adopted from; ``None`` without one."""
        if not self._is_settled:
            self._settle()
        return None if self._former is None or task.page in self._refused else self._former.page(task.text)

    def refuse(self, task: Task) -> None:
        """Stop adopting a page that this release refuses to cache, or does not have.

        A hit-for-miss or a 404 lapses sooner than the page of the other release, which would then be served again. The
        page of a predecessor is deleted. The page of a release that may still be serving stays, and this process
        remembers it.

        :raises StoreError: the page cannot be deleted.
        """
        former = self.former_page(task)
        if former is None:
            return
        if self._succeeds:
            self._store.delete(former)
            return
        if len(self._refused) >= MAX_REFUSED:
            self._refused.clear()
        self._refused.add(task.page)

    def _settle(self) -> None:
        try:
            known = self._read(self._store.get(self._key))
        except StoreError:
            return  # the next look-up asks again
        others = [name for name in known if name != self._release]
        # Beside a later release, or after a rollback from it, this release does not delete the other's pages.
        self._succeeds = self._release not in known or known[-1] == self._release
        self._former = Keyspace(self._namespace, others[-1]) if others else None
        self._is_settled = True

    def record(self) -> None:
        """Record this release as the latest one, since it has stored a page."""
        if self._is_recorded:
            return
        self._is_recorded = True
        if len(self._release) > MAX_NAME:
            return
        if not self._is_settled:
            self._settle()  # before this release is in the record
        update(self._store, self._key, self._with_own)

    def _with_own(self, data: bytes | None) -> bytes | None:
        known = self._read(data)
        if known[-1:] == [self._release]:
            return None
        latest = [*(name for name in known if name != self._release), self._release][-MAX_RELEASES:]
        return self._codec.seal(msgpack.packb(latest, unicode_errors=_UNICODE), "releases")

    def _read(self, data: bytes | None) -> list[str]:
        """Return the names in ``data``; damaged bytes hold none."""
        if data is None:
            return []
        try:
            unsealed = self._codec.unseal(data, "releases")
            stored: Any = msgpack.unpackb(unsealed, unicode_errors=_UNICODE)
        except Exception:  # msgpack raises half a dozen kinds
            return []
        if type(stored) is not list:
            return []
        return [name for name in stored if type(name) is str and len(name) <= MAX_NAME][-MAX_RELEASES:]
