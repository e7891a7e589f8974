"""Processes that read a cluster under faults and invalidate its pages, and the circumstances that excuse answers."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.stores import open_store

from ..parts.link import Link
from ..supervisor.supervise import Cluster
from .history import Circumstances, Invalidation, Outage, Read, Violation, check, refused
from .workload.site import ROWS, RULES, tag_of
from .workload.tethered import Tethered

#: The host name of the site in requests.
HOST = "chaos.test"
#: Visitors, and the longest pause of each; admins, and the mean of their pauses; and the longest time of a render.
#: Times are in seconds.
READERS, READERS_PAUSE, ADMINS, ADMINS_PAUSE, SLOW = 16, 0.02, 2, 0.15, 0.25
#: Seconds for which a process may avoid a node that is back: a breaker's probe in progress, the longest pause between
#: two probes with its jitter, the next probe, and a second for a busy machine.
UNNOTICED = 4.5
#: Seconds that a visitor waits for a page.
WAIT = 0.4
#: Seconds until every instance serves a new page: a visitor's wait for a render that began too early, then for one
#: that did not, and a second for a busy machine.
RENEWED = WAIT + 2 * SLOW + 1.0
#: Seconds that an instance waits for a node.
PATIENCE_WITH_NODES = 0.5


class Observers:
    """Readers and admins, and the circumstances that excuse answers meanwhile."""

    def __init__(self, cluster: Cluster, site: Path, coherence: float) -> None:
        self._cluster = cluster
        self._coherence = coherence
        self.reads: list[Read] = []
        self.invalidations: list[Invalidation] = []
        self.outages: list[Outage] = []
        self.watchdog = Watchdog(PATIENCE_WITH_NODES / 2)
        self.dark: list[tuple[float, float]] = []
        #: When renders may have been lost, by the number of the strike.
        self.losses: dict[int, tuple[float, float]] = {}
        self._checked = 0
        self._stack = ExitStack()
        store = open_store(cluster.store)
        self._node_of = {row: store.node_of(Keyspace("default").tag(tag_of(row))) for row in ROWS}
        store.close()
        broken = {"CLUSTER_IMPORT": os.environ["CLUSTER_IMPORT"]} if "CLUSTER_IMPORT" in os.environ else {}
        visiting = {
            "CLUSTER_PORTS": str(cluster.balancer.port),
            "CLUSTER_HOST": HOST,
            "CLUSTER_READERS": str(READERS),
            "CLUSTER_PAUSE": str(READERS_PAUSE),
        }
        administering = {
            **broken,
            "CLUSTER_DIRECTORY": str(site),
            "CLUSTER_PAUSE": str(ADMINS_PAUSE),
            "WSGI_ISR_STORE": cluster.store,
            "WSGI_ISR_JOURNAL": str(site / "journal"),
        }
        self._readers = Tethered("readers", "cluster.chaos.workload.readers", site, visiting, Read.parse)
        self._admins = [
            Tethered(f"admin{number}", "cluster.chaos.workload.admin", site, administering, Invalidation.parse)
            for number in range(ADMINS)
        ]

    def __enter__(self) -> Observers:
        with ExitStack() as stack:
            stack.enter_context(self.watchdog)
            stack.enter_context(self._readers)
            stack.callback(time.sleep, 0.5)  # readers must also see the last acknowledged invalidation
            for admin in self._admins:
                stack.enter_context(admin)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is None:
            self.look()

    def look(self) -> None:
        """Read the new output of all processes."""
        self._readers.look()
        for admin in self._admins:
            admin.look()
        self.reads = self._readers.lines
        self.invalidations = [invalidation for admin in self._admins for invalidation in admin.lines]

    def violations(self) -> list[Violation]:
        """Return all violations so far."""
        circumstances = self.circumstances()
        found = check(self.reads, self.invalidations, circumstances)
        return [*found, *refused(self.invalidations, circumstances)]

    def shows_a_violation(self) -> bool:
        """Return whether the reads since the last call show a violation."""
        self.look()
        new, self._checked = self.reads[self._checked :], len(self.reads)
        circumstances = self.circumstances()
        return bool(check(new, self.invalidations, circumstances) or refused(self.invalidations, circumstances))

    def circumstances(self) -> Circumstances:
        """Return the circumstances so far."""
        stalls = [
            Outage(link.address, began, ended + UNNOTICED)
            for began, ended in self.watchdog.stood_still
            for link in self._cluster.links
        ]
        outages = [*self.outages, *stalls]
        away = [(outage.start, outage.end) for outage in outages]
        return Circumstances(
            self._coherence,
            outages,
            self._node_of,
            # A visitor's own timeout is such a failure; RENEWED limits its time.
            renders_fail=True,
            dark=self.dark,
            patience=RENEWED,
            disturbed=[*away, *self.losses.values()],
            lifetimes={path: float(rule.revalidate) for path, rule in RULES.items() if rule.revalidate},
        )

    @contextmanager
    def away(self, *links: Link, port: int = 0) -> Iterator[None]:
        """Note in the block that the nodes behind ``links`` are unreachable. Their outage ends some time after the
        block, when every process has noticed the return. ``port`` limits the outage to one instance."""
        going = [Outage(link.address, time.monotonic(), math.inf, port) for link in links]
        self.outages += going
        try:
            yield
        finally:
            for outage in going:
                self.outages.remove(outage)
                self.outages.append(replace(outage, end=time.monotonic() + UNNOTICED))

    @contextmanager
    def darkness(self) -> Iterator[None]:
        """Note in the block that no instance lives."""
        began = time.monotonic()
        self.dark.append((began, math.inf))
        try:
            yield
        finally:
            self.dark[-1] = (began, time.monotonic())


class Watchdog:
    """Note when the machine stood still, or was too busy to run processes in time: no node was reachable then."""

    def __init__(self, tolerated: float) -> None:
        self._tolerated = tolerated
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.stood_still: list[tuple[float, float]] = []

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.02):
            now = time.monotonic()
            if now - last > self._tolerated:
                self.stood_still.append((last, now))
            last = now
