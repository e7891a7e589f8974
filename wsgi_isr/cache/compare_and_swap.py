"""Change a small record that several processes share."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import StoreError
from ..stores.base import Store

#: Attempts of a process, each after another process was faster.
_ATTEMPTS = 4


def update(store: Store, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
    """Replace the bytes of ``key``, without overwriting another process's change. Best effort.

    Nothing is written after four lost races, or while the store fails.

    :param change: gets the stored bytes or ``None``, and returns the new bytes, or ``None`` to leave them.
    """
    try:
        for _ in range(_ATTEMPTS):
            held = store.gets(key)
            new = change(held.value if held is not None else None)
            if new is None:
                return
            if store.add(key, new) if held is None else store.cas(key, new, held.token):
                return
    except StoreError:
        pass
