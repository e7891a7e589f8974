"""The releases of an app that have stored pages, as the store remembers them: a new one adopts the pages of the latest.

The record is one list for each app of a namespace, in the order in which processes of a release began to store pages,
latest last. A release that never stored a page is not in it, so that no other one adopts from it. The record is best
effort: without it, each page of a new release is made while its first visitor waits.
"""

from __future__ import annotations

from typing import Any

import msgpack

from ..errors import StoreError
from ..stores.base import Store
from .entry import Codec
from .keyspace import Keyspace
from .task import Task

#: Releases that are remembered.
MOST = 5
#: Characters of a name that is remembered.
LONGEST = 1024
#: Pages that are remembered as refused.
MOST_REFUSED = 4096
#: The option's word for: as the record says.
AUTO = "auto"

_UNICODE = "surrogatepass"  # a variable of the environment may hold any bytes


class Releases:
    """Which release a process belongs to, and which one it adopts pages from.

    :param release: of this process.
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
        self._is_noted = False
        #: Whether this release comes after the one that it adopts from.
        self._succeeds = True
        #: Pages of the other one that are not adopted any more.
        self._refused: set[str] = set()

    def former_page(self, task: Task) -> str | None:
        """Return where the release that is adopted from has a task's page; ``None`` without one."""
        if not self._is_settled:
            self._settle()
        return None if self._former is None or task.page in self._refused else self._former.page(task.text)

    def refused(self, task: Task) -> None:
        """Adopt a page no more that this release refuses, or does not have. The refusal is forgotten sooner than the
        page of the other release, which would then be served again.

        A predecessor's page is deleted. That of a release which may still be serving is left alone, and remembered
        by this process. :raises StoreError: it cannot be deleted.
        """
        former = self.former_page(task)
        if former is None:
            return
        if self._succeeds:
            self._store.delete(former)
            return
        if len(self._refused) >= MOST_REFUSED:
            self._refused.clear()
        self._refused.add(task.page)

    def _settle(self) -> None:
        try:
            known = self._read(self._store.get(self._key))
        except StoreError:
            return  # the next look-up asks again
        others = [name for name in known if name != self._release]
        # Side by side with a later one, or after a return from it, this release leaves the other's pages alone.
        self._succeeds = self._release not in known or known[-1] == self._release
        self._former = Keyspace(self._namespace, others[-1]) if others else None
        self._is_settled = True

    def stored(self) -> None:
        """Note that a page of this release was stored: from now on it is the latest."""
        if self._is_noted:
            return
        self._is_noted = True
        if len(self._release) > LONGEST:
            return
        if not self._is_settled:
            self._settle()  # from what was there before
        try:
            for _ in range(4):
                held = self._store.gets(self._key)
                known = self._read(held.value) if held is not None else []
                if known[-1:] == [self._release]:
                    return
                latest = [*(name for name in known if name != self._release), self._release][-MOST:]
                packed = self._codec.seal(msgpack.packb(latest, unicode_errors=_UNICODE), "releases")
                if held is None:
                    done = self._store.add(self._key, packed)
                else:
                    done = self._store.cas(self._key, packed, held.token)
                if done:
                    return
        except StoreError:
            pass

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
        return [name for name in stored if type(name) is str and len(name) <= LONGEST][-MOST:]
