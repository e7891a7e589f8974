"""The simulator, held against a real cluster of the same size: memcached, three gunicorns, six workers."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest

from cluster.simulation.figures import Figures
from cluster.simulation.parameters import Parameters
from cluster.simulation.run import simulate
from cluster.simulation.site import Popularity
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import ask
from tests.support.memcached import Memcached
from wsgi_isr import invalidate

#: A poll every quarter of a second: at forty requests per second and worker it hardly matters how evenly the kernel
#: hands connections to the workers of an instance, which the simulator takes for granted.
SMALL = Parameters(
    instances=3,
    workers=2,
    nodes=2,
    pages=30,
    zipf=1.0,
    rate=240.0,
    revalidate=2.0,
    coherence=0.25,
    render=0.1,
    invalidations=1.0,
    fan_out=10,
    page_bytes=1000,
    cold=True,
    duration=12.0,
)
CLIENTS = 12


class Load:
    """Visitors at a fixed rate, whatever becomes of their requests, and invalidations beside them."""

    def __init__(self, parameters: Parameters, ports: list[int], store: str) -> None:
        self._p = parameters
        self._ports = ports
        self._store = store
        self._popularity = Popularity(parameters.pages, parameters.zipf)
        self.failed: list[str] = []
        self.latest = 0.0

    def run(self) -> None:
        """For as long as the parameters say."""
        self._began = time.monotonic()
        threads = [threading.Thread(target=self._visit, args=(number,)) for number in range(CLIENTS)]
        threads.append(threading.Thread(target=self._invalidate))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _visit(self, number: int) -> None:
        rng = random.Random(number)
        total = int(self._p.rate * self._p.duration)
        for request in range(number, total, CLIENTS):
            self._wait(request / self._p.rate)
            page = self._popularity.draw(rng, 1)[0]
            answer = ask(rng.choice(self._ports), f"/p/{page}")
            if answer.status != 200:
                self.failed.append(str(answer))

    def _invalidate(self) -> None:
        rng = random.Random(0)
        for number in range(int(self._p.duration * self._p.invalidations)):
            self._wait((number + 0.5) / self._p.invalidations)
            invalidate(tags=[str(rng.randrange(self._p.tags))], store=self._store)

    def _wait(self, due: float) -> None:
        left = self._began + due - time.monotonic()
        self.latest = max(self.latest, -left)
        if left > 0:
            time.sleep(left)  # the rate itself is the point


def measured(parameters: Parameters, tmp_path: Path) -> tuple[Counter[str], Load]:
    """What all workers of a real cluster counted."""
    directory = tmp_path / "counts"
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        nodes = [Memcached() for _ in range(parameters.nodes)]
        for node in nodes:
            stack.callback(node.kill)
        store = "memcached://" + ",".join(node.name for node in nodes)
        env = {
            "LIVE_DIRECTORY": str(directory),
            "LIVE_STORE": store,
            "LIVE_TAGS": str(parameters.tags),
            "LIVE_SLOW": f"{parameters.render:g}",
            "LIVE_REVALIDATE": f"{parameters.revalidate:g}",
            "WSGI_ISR_COHERENCE": f"{parameters.coherence:g}",
        }
        servers = [
            stack.enter_context(
                Gunicorn(
                    tmp_path / f"{number}.log",
                    env,
                    "tests.cluster.support.counted:application",
                    workers=parameters.workers,
                )
            )
            for number in range(parameters.instances)
        ]
        load = Load(parameters, [server.port for server in servers], store)
        load.run()
        assert [server.stop() for server in servers] == [0] * parameters.instances
        assert [line for server in servers for line in server.complaints()] == []
    counts: Counter[str] = Counter()
    for path in directory.iterdir():
        counts.update(json.loads(path.read_text()))
    return counts, load


def test_six_real_workers_read_epochs_and_render_as_often_as_simulated_ones(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    counts, load = measured(SMALL, tmp_path)
    assert load.failed == []
    assert load.latest < 1.0, "this machine is too busy for the rate"
    runs = [simulate(Parameters(**{**vars(SMALL), "seed": seed})) for seed in range(1, 9)]

    def simulated(rate: Callable[[Figures], float]) -> float:
        return mean(rate(run) for run in runs) * SMALL.duration

    pairs = {
        "epoch reads": (counts["e"], simulated(lambda run: run.epoch_reads)),
        "renders": (counts["renders"], simulated(lambda run: run.renders)),
        "page gets": (counts["p"], simulated(lambda run: run.page_gets)),
        "tag reads": (counts["t"], simulated(lambda run: run.tag_reads)),
    }
    figure("; ".join(f"{name}: {real} real, {model:.0f} simulated" for name, (real, model) in pairs.items()))
    for real, model in pairs.values():
        assert model == pytest.approx(real, rel=0.2)


def test_what_a_simulation_of_another_cluster_says_is_further_off_than_that() -> None:
    right = simulate(SMALL)
    for name, wrong in {"epoch_reads": {"coherence": 0.18}, "renders": {"revalidate": 3.0}}.items():
        other = simulate(Parameters(**{**vars(SMALL), **wrong}))
        assert getattr(other, name) != pytest.approx(getattr(right, name), rel=0.2)
