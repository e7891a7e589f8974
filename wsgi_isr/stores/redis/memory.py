"""The memory of a server: a bound, and a policy for the time when it is full.

``volatile-...`` fits best. Pages and data have an expiry and are evicted; tags and epochs have none and stay. With
``allkeys-...``, tags are evicted as well, which costs renders. Without eviction, a full server refuses writes.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

_log = logging.getLogger("wsgi_isr.store")

_REMEDY = "write in its configuration: maxmemory 512mb, and maxmemory-policy volatile-lru"


class Facts(NamedTuple):
    """Facts that a server reports about itself.

    :param run: 8 bytes that differ after a restart, and on each replica.
    :param limit: ``maxmemory``, in bytes; 0 for none.
    :param policy: ``maxmemory-policy``; empty if the server does not tell.
    :param is_cluster: whether the server is a node of a Cluster.
    """

    run: bytes
    limit: int
    policy: str
    is_cluster: bool = False


def problem_of(facts: Facts) -> str:
    """Return the setting that an administrator should change, and the lines to write; ``""`` for none."""
    if not facts.policy:
        return ""
    if facts.policy == "noeviction":
        return f"maxmemory-policy is noeviction, so a full server refuses pages and invalidations: {_REMEDY}"
    if facts.limit == 0:
        return f"maxmemory is 0, so pages may take all memory of the machine: {_REMEDY}"
    return ""


class Examiner:
    """Log the problem of each server, once."""

    def __init__(self) -> None:
        self._examined: set[str] = set()

    def __call__(self, name: str, facts: Facts) -> None:
        if name not in self._examined:
            self._examined.add(name)
            if problem := problem_of(facts):
                _log.warning("redis node %s: %s", name, problem)
