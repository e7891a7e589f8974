"""Decide which of several nodes holds a key: rendezvous hashing (Thaler and Ravishankar, 1998).

Each pair of node and key has a weight, and a key belongs on the node with the greatest one. So a node that comes or
goes moves only its own share of the keys. While a node is down, its keys are on the runner-up: the same node for all
processes, without communication.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


class Ring:
    """The nodes of a store, by name, independent of their order.

    pymemcache's ``RendezvousHash`` gives only the winner. It takes fifteen times as long, because it computes its hash
    in Python.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        # The hash of a name is computed once. It is copied and continued for each key.
        self._begun = [(name, hashlib.blake2b(name.encode() + b"\0", digest_size=8)) for name in self.names]

    def ranking(self, text: str) -> tuple[str, ...]:
        """Return all names, the node where ``text`` belongs first."""
        if len(self.names) == 1:
            return self.names
        encoded = text.encode()
        weights = []
        for name, begun in self._begun:
            weight = begun.copy()
            weight.update(encoded)
            weights.append((weight.digest(), name))
        return tuple(name for _, name in sorted(weights, reverse=True))
