"""Three instances behind nginx: their totals equal what the clients have counted, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

from cluster.parts.nginx import Balancer
from tests.live.support.granian import Granian
from tests.live.support.origin import Origin
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import ask
from tests.live.support.waiting import PATIENCE, until
from tests.support.memcached import Memcached
from wsgi_isr.observe.aggregate import ask as totals_at
from wsgi_isr.observe.aggregate import history_of
from wsgi_isr.observe.history import summary
from wsgi_isr.observe.totals import Totals, merged
from wsgi_isr.stores import open_store

INSTANCES, CLIENTS, REQUESTS = 3, 6, 250
#: Requests of a killed worker in its last second, at most: each of two workers is killed once in two instances.
LOST = 400


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return the folder of the sockets. The test's own folder may have too long a path."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def env(origin: Origin, folder: Path) -> Mapping[str, str]:
    return {**origin.env, "WSGI_ISR_REVALIDATE": "0.3", "WSGI_ISR_MAX_RENDERS": "2", "TMPDIR": str(folder)}


@pytest.fixture
def memcached() -> Iterator[Memcached]:
    node = Memcached()
    yield node
    node.kill()


class Load:
    """Clients that ask until they have asked often enough, and count what they get."""

    def __init__(self, port: int) -> None:
        self.seen: Counter[str] = Counter()
        self.done = 0
        self._port = port
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        for turn in range(REQUESTS):
            path = "/?undeclared=1" if turn % 10 == number else f"/{turn % 3}"
            connection.request("GET", path, headers={"Host": "site.example"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            with self._lock:
                self.seen[response.headers["X-ISR"]] += 1
                self.done += 1
            time.sleep(0.002)
        connection.close()


def running(folder: Path) -> Totals:
    """Return the totals of all instances."""
    return merged(totals_at(str(place), timeout=5) for place in folder.glob("wsgi-isr-*"))


def results(totals: Totals) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, result, _), number in totals.requests.items():
        found[result] += number
    return +found


def recorded(folder: Path) -> bool:
    return len(list(folder.glob("wsgi-isr-*/totals"))) == INSTANCES


@pytest.mark.parametrize("worker_class", [None, "gthread", "gevent"], ids=["loop", "gthread", "gevent"])
@pytest.mark.parametrize("kills", [False, True], ids=["", "killed"])
def test_the_totals_are_what_the_clients_have_counted(
    kills: bool, worker_class: str | None, env: Mapping[str, str], tmp_path: Path, folder: Path, memcached: Memcached
) -> None:
    store = f"memcached://{memcached.name}?timeout=5&deadline=10"
    options = {"workers": 2, "worker_class": worker_class or "wsgi_isr.gunicorn.Worker", "is_asked": False}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                Gunicorn(
                    tmp_path / f"log{number}",
                    {**env, "WSGI_ISR_STORE": store},
                    preload=number == 0,
                    **options,  # type: ignore[arg-type]
                )
            )
            for number in range(INSTANCES)
        ]
        until(lambda: recorded(folder), "the recorders")
        addresses = {f"instance-{number}": f"127.0.0.1:{server.port}" for number, server in enumerate(servers)}
        balancer = Balancer("balancer", tmp_path / "balancer.log", tmp_path, addresses, 0, workers=1)
        balancer.start()
        stack.callback(balancer.close)
        stack.callback(balancer.stop)
        with Load(balancer.port) as load:
            if kills:
                until(lambda: load.done > CLIENTS * REQUESTS / 3, "a third of the load")
                os.kill(servers[1].workers()[0], signal.SIGKILL)
                for renderer in servers[2].renderers():
                    os.kill(renderer, signal.SIGKILL)
        seen = load.seen
        assert sum(seen.values()) == CLIENTS * REQUESTS

        def counted() -> bool:
            missing = seen - results(running(folder))
            return sum(missing.values()) <= (LOST if kills else 0)

        until(counted, "the last reports")
        totals = running(folder)
        if kills:
            # nginx asks another instance again, so a request may count in both.
            assert sum(results(totals).values()) >= sum(seen.values()) - LOST
            assert totals.restarts.get(("killed",), 0) >= 1
        else:
            assert results(totals) == seen
        until(lambda: running(folder).restarts.get(("max-renders",), 0) > 0, "a renderer that was replaced")
        rendered = sum(each.number for labels, each in totals.renders.items() if labels[2] == "stored")
        assert rendered > 3
        assert [server.stop() for server in servers] == [0] * INSTANCES
        assert [server.left() for server in servers] == [[]] * INSTANCES
    opened = open_store(store)
    records = history_of(opened, "default", 5)
    opened.close()
    assert len({record.instance.id for record in records}) == INSTANCES
    assert sum(results(summary(records, time.time())).values()) >= sum(results(totals).values())


@pytest.mark.parametrize("kind", [Gunicorn, Granian])
def test_the_recorder_outlives_all_others_and_none_is_left(
    kind: type[Gunicorn], env: Mapping[str, str], store: str, tmp_path: Path, folder: Path
) -> None:
    with kind(tmp_path / "log", {**env, "WSGI_ISR_STORE": store}, workers=1, is_asked=False) as server:
        until(lambda: list(folder.glob("wsgi-isr-*/totals")), "the recorder")
        ask(server.port)
        (recorder,) = server.called("isr-recorder")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            os.kill(recorder, number)
        time.sleep(0.2)
        assert server.called("isr-recorder") == [recorder]
        until(lambda: sum(results(running(folder)).values()) == 1, "the report")
        os.kill(recorder, signal.SIGKILL)
        until(lambda: server.called("isr-recorder") not in ([], [recorder]), "another recorder")
        ask(server.port)
        until(lambda: sum(results(running(folder)).values()) == 1, "the next report")
        assert server.stop() == 0
        assert server.left() == []
    assert list(folder.iterdir()) == []
