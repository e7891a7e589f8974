"""Renders in each staleness window of a page, by four instances with two workers each.

The cluster is started as by ``python -m cluster``, under a load that never pauses. Every instance records its renders.
A window of a page begins when the page becomes stale, and ends when the next one does. One render in a window renews
the page, and each further render is superfluous.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from cluster.errors import CannotStart
from cluster.load import generator, renders
from cluster.supervisor.state import Directory
from cluster.supervisor.supervise import Cluster
from cluster.supervisor.topology import Topology
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table
from tests.support.numbered import APP, RENEWED, Numbered


class Size(NamedTuple):
    """The parts of the cluster, and the seconds of load."""

    instances: int
    workers: int
    seconds: float


FULL, QUICK = Size(4, 2, 12.0), Size(2, 1, 1.5)
#: Seconds that a render waits, and for which a page is fresh.
SLOW, REVALIDATE = 0.1, 1.0
PAGES, CONNECTIONS, RATE = 10, 32, 300.0


def run(size: Size) -> Report:
    if sys.platform != "linux":
        raise CannotRun("needs Linux: that is what cluster/ runs on")
    with tempfile.TemporaryDirectory() as name:
        site = Numbered(Path(name), SLOW, REVALIDATE)
        topology = Topology(1, size.instances, size.workers, APP, env=site.env)
        try:
            with Cluster(topology, Directory(Path(name, "cluster"))) as cluster:
                paths = [RENEWED % number for number in range(PAGES)]
                samples = generator.run(
                    cluster.balancer.port, paths, seconds=size.seconds, connections=CONNECTIONS, rate=RATE
                )
            made = renders.read(cluster.directory.renders)
        except CannotStart as error:
            raise CannotRun(str(error)) from None
    return _report(size, samples, made)


def _report(size: Size, samples: generator.Samples, made: list[renders.Render]) -> Report:
    if samples.errors:
        raise AssertionError(f"visitors got errors: {samples.errors}")
    windows = renders.windows(made, {render.key: render.lifetime for render in made})
    if windows.windows <= PAGES:
        raise AssertionError(f"{windows.windows} windows of {PAGES} pages: no page became stale")
    instances = len({render.instance for render in made})
    row = Row(f"{PAGES} pages, due every {REVALIDATE:g} s", [windows.per_window])
    title = f"{size.instances} instances of {size.workers} workers"
    return Report(
        [Table(title, "renders per staleness window", [row], row.label)],
        [Budget("renders per staleness window", windows.per_window, 1)],
        [
            f"{windows.renders} renders by {instances} instances in {windows.windows} windows, at most "
            f"{windows.largest} in one; {len(samples):,} requests, {RATE:g} in a second; "
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        ],
    )
