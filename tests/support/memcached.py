"""A memcached node for a test: one of :mod:`cluster.parts.memcached` that runs as soon as it is made."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.parts.memcached import Node
from cluster.parts.ports import HOST

__all__ = ["HOST", "Memcached"]


class Memcached(Node):
    """One node on a free port, which it keeps when it is started again.

    A machine without memcached fails the test: a skipped test would hide that the cluster is not tested.

    :param megabytes: memory for items.
    :param arguments: more arguments for the command line.
    """

    def __init__(self, megabytes: int = 256, arguments: Sequence[str] = ()) -> None:
        super().__init__("node", megabytes=megabytes, arguments=arguments)
        self.name = self.address  # the address in the URLs of stores
        self.start()
