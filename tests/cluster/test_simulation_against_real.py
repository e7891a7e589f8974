"""The simulator, compared with a real cluster of the same size: memcached, three gunicorns, six workers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import simulation
from cluster.simulation.parameters import Parameters
from cluster.simulation.run import invalidations, simulate
from cluster.simulation.site import Popularity
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import ask
from tests.support.memcached import Memcached
from wsgi_isr import invalidate
from wsgi_isr.cache.keyspace import Keyspace

#: A poll every quarter of a second. At thirty requests per second and worker, it hardly matters how evenly the kernel
#: hands connections to the workers of an instance; the simulator assumes an even distribution.
SMALL = Parameters(
    instances=3,
    workers=2,
    nodes=2,
    pages=30,
    zipf=1.0,
    rate=180.0,
    revalidate=3.0,
    coherence=0.25,
    render=0.1,
    invalidations=0.75,
    fan_out=10,
    page_bytes=1000,
    cold=True,
    duration=12.0,
)
CLIENTS = 12


class Load:
    """Visitors at a fixed rate, and invalidations beside them."""

    def __init__(self, parameters: Parameters, ports: list[int], store: str) -> None:
        self._p = parameters
        self._ports = ports
        self._store = store
        self._popularity = Popularity(parameters.pages, parameters.zipf)
        self._over = threading.Event()
        self.failed: list[str] = []

    def run(self) -> float:
        """Run the load and return its duration: the parameters' duration, or more on a busy machine."""
        self._began = time.monotonic()
        visitors = [threading.Thread(target=self._visit, args=(number,)) for number in range(CLIENTS)]
        invalidator = threading.Thread(target=self._invalidate)
        for thread in [*visitors, invalidator]:
            thread.start()
        for thread in visitors:
            thread.join()
        seconds = time.monotonic() - self._began
        self._over.set()
        invalidator.join()
        return seconds

    def _visit(self, number: int) -> None:
        rng = random.Random(number)
        for request in range(number, int(self._p.rate * self._p.duration), CLIENTS):
            self._over.wait(self._left(request / self._p.rate))  # the rate itself matters
            page = self._popularity.draw(rng, 1)[0]
            answer = ask(rng.choice(self._ports), f"/p/{page}")
            if answer.status != 200:
                self.failed.append(str(answer))

    def _invalidate(self) -> None:
        """Send the same invalidations as the simulation, as long as there are visitors."""
        for due, tag in invalidations(dataclasses.replace(self._p, duration=10 * self._p.duration)):
            if self._over.wait(self._left(due)):
                return
            invalidate(tags=[str(tag)], store=self._store)

    def _left(self, due: float) -> float:
        return max(0.0, self._began + due - time.monotonic())


def measured(parameters: Parameters, background: str, tmp_path: Path) -> tuple[Counter[str], float, list[str]]:
    """Return the counts of all processes of a real cluster, the duration in seconds, and the nodes."""
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
            "WSGI_ISR_BACKGROUND": background,
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
        seconds = load.run()
        assert load.failed == []
        assert [server.stop() for server in servers] == [0] * parameters.instances
        assert [line for server in servers for line in server.complaints()] == []
    counts: Counter[str] = Counter()
    for path in directory.iterdir():
        counts.update(json.loads(path.read_text()))
    return counts, seconds, [node.name for node in nodes]


def place_like(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Place the simulation's tags on the same nodes as the real ones. With only two nodes,
    from one to all of a page's seven tags may share the node of an invalidation: tag reads differ by more than half."""
    monkeypatch.setattr(simulation.nodes, "names", lambda _count: names)
    for module in (simulation.site, simulation.process, simulation.run):
        monkeypatch.setattr(module, "tag_key", Keyspace("default").tag)


#: The simulation renders in workers. A renderer process reads the page and its tags for itself, and its worker fetches
#: the new page; the simulation leaves both out. The difference depends on how long a renderer, which has a low
#: priority, waits for a core: meanwhile all processes look for the page. (On a busy machine, 1.66 times.)
PAGES_AND_TAGS = {"page gets", "tag reads"}


@pytest.mark.parametrize(("background", "beside"), [("threads", set()), ("auto", PAGES_AND_TAGS)])
def test_six_real_workers_read_epochs_and_render_as_often_as_simulated_ones(
    background: str,
    beside: set[str],
    tmp_path: Path,
    figure: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts, seconds, names = measured(SMALL, background, tmp_path)
    place_like(names, monkeypatch)
    assert seconds < 3 * SMALL.duration, "this machine is too busy for any rate"
    # Simulate as many requests as there were, in the time that they took.
    run = simulate(dataclasses.replace(SMALL, duration=seconds, rate=SMALL.rate * SMALL.duration / seconds))
    pairs = {
        "epoch reads": (counts["e"], run.epoch_reads * seconds),
        "renders": (counts["renders"], run.renders_in_all),
        "page gets": (counts["p"], run.page_gets * seconds),
        "tag reads": (counts["t"], run.tag_reads * seconds),
    }
    figure("; ".join(f"{name}: {real} real, {model:.0f} simulated" for name, (real, model) in pairs.items()))
    for name, (real, model) in pairs.items():
        assert model == pytest.approx(real, rel=0.2) or (name in beside and model < real)


def test_what_a_simulation_of_another_cluster_says_is_further_off_than_that() -> None:
    right = simulate(SMALL)
    for name, wrong in {"epoch_reads": {"coherence": 0.125}, "renders": {"revalidate": 5.0}}.items():
        other = simulate(dataclasses.replace(SMALL, **wrong))
        assert getattr(other, name) != pytest.approx(getattr(right, name), rel=0.2)
