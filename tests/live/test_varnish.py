"""Varnish with xkey in front of three instances: an acknowledged invalidation is visible at the edge, under load."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.parts.proxy import Proxy
from tests.live.support.server import Gunicorn
from tests.live.support.waiting import until
from tests.support import numbered
from tests.support.memcached import Memcached
from tests.support.varnish import Varnish
from wsgi_isr import ISR
from wsgi_isr.cache import edges
from wsgi_isr.cache.journal import Journal
from wsgi_isr.cdn.purge import edges_of
from wsgi_isr.config.cdn import Cdn
from wsgi_isr.errors import StoreUnavailable

#: Threads that invalidate, rows of each, invalidations of each row, and threads that read.
WRITERS, ROWS, TIMES, READERS = 8, 5, 5, 6
#: Seconds for which an instance may serve its copies.
COHERENCE = 0.5


class Read(NamedTuple):
    """An answer of the edge.

    :param began: the monotonic time in seconds before the request.
    :param is_hit: the edge answered from its cache.
    """

    row: int
    version: int
    began: float
    is_hit: bool


class Client:
    """A connection to the edge."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=20)

    def read(self, row: int) -> Read:
        began = time.monotonic()
        self._connection.request("GET", numbered.KEPT % row)
        response = self._connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        assert not {"xkey", "cdn-cache-control"} & {name.lower() for name in response.headers}
        return Read(row, numbered.version_of(body), began, " " in response.headers["X-Varnish"])

    def close(self) -> None:
        self._connection.close()


class Edge(NamedTuple):
    """Three instances behind Varnish, and a process that invalidates.

    :param purges: the way of the purges to Varnish.
    """

    varnish: Varnish
    purges: Proxy
    rows: numbered.Numbered
    isr: ISR

    def read(self, row: int) -> Read:
        client = Client(self.varnish.port)
        try:
            return client.read(row)
        finally:
            client.close()


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edge]:
    rows = numbered.Numbered(tmp_path)
    with ExitStack() as stack:
        node = Memcached()
        stack.callback(node.kill)
        servers = []
        ports: list[int] = []
        env = {**rows.env, "WSGI_ISR_STORE": f"memcached://{node.address}", "WSGI_ISR_COHERENCE": str(COHERENCE)}
        # The instances need the ports of Varnish, and Varnish those of the instances.
        varnish = Varnish(tmp_path, ports)
        stack.callback(varnish.close)
        purges = Proxy(varnish.purge_port)
        stack.callback(purges.refuse)
        env |= {"WSGI_ISR_CDN": "varnish", "WSGI_ISR_CDN_PURGE_URL": f"http://{purges.name}/"}
        env |= {"WSGI_ISR_HOSTS": varnish.address, "WSGI_ISR_JOURNAL": str(tmp_path / "journal")}
        for name in ("one", "two", "three"):
            servers.append(stack.enter_context(Gunicorn(tmp_path / f"{name}.log", env, numbered.APP, is_asked=False)))
            ports.append(servers[-1].port)
        varnish.start()
        isr = ISR(
            numbered.site,
            {"/kept/<number>": {"revalidate": False, "tags": ["row:{number}"]}},
            store=f"memcached://{node.address}",
            coherence=COHERENCE,
            cdn="varnish",
            cdn_purge_url=[f"http://{purges.name}/"],
            hosts=[varnish.address],
            journal=str(tmp_path / "journal"),
        )
        stack.callback(isr.close, 20)
        yield Edge(varnish, purges, rows, isr)
        assert [server.complaints() for server in servers] == [[], [], []]


def test_each_of_200_invalidations_is_visible_at_the_edge_when_it_is_acknowledged(
    edge: Edge, figure: Callable[[str], None]
) -> None:
    numbers = range(WRITERS * ROWS)
    for row in numbers:
        edge.read(row)
        edge.read(row)
    #: For each row, the times at which a version was acknowledged.
    acknowledged: dict[int, list[tuple[float, int]]] = {row: [] for row in numbers}
    visible, seconds = Counter[bool](), []
    reads: list[list[Read]] = [[] for _ in range(READERS)]
    over = threading.Event()

    def load(mine: list[Read], seed: int) -> None:
        client, draw = Client(edge.varnish.port), random.Random(seed)
        while not over.is_set():
            mine.append(client.read(draw.choice(numbers)))
        client.close()

    def write(writer: int) -> None:
        client = Client(edge.varnish.port)
        for _ in range(TIMES):
            for row in numbers[writer::WRITERS]:
                version = edge.rows.commit(row, f"unfinished-{writer}")
                receipt = edge.isr.invalidate(tags=[numbered.tag(row)])
                assert receipt.pending == ()
                seconds.append(receipt.seconds)
                acknowledged[row].append((time.monotonic(), version))
                visible[client.read(row).version == version] += 1
        client.close()

    readers = [threading.Thread(target=load, args=(mine, seed)) for seed, mine in enumerate(reads)]
    for reader in readers:
        reader.start()
    try:
        with ThreadPoolExecutor(WRITERS) as writers:
            list(writers.map(write, range(WRITERS)))
        time.sleep(edges.LATE / 2)  # readers see what arrives late
    finally:
        over.set()
        for reader in readers:
            reader.join()
    every = [read for mine in reads for read in mine]
    stale = [
        read
        for read in every
        if read.version < max((version for at, version in acknowledged[read.row] if at <= read.began), default=1)
    ]
    hits = sum(read.is_hit for read in every) / len(every)
    assert visible == {True: WRITERS * ROWS * TIMES}
    assert stale == []
    assert [edge.read(row).version for row in numbers] == [TIMES + 1] * len(numbers)
    assert hits > 0.5
    figure(
        f"{visible[True]} of {visible.total()} invalidations visible at the edge when acknowledged, in "
        f"{sorted(seconds)[len(seconds) // 2]:.2f} s at the median (coherence {COHERENCE:g} s); none of {len(every)} "
        f"reads was stale; {hits:.0%} came from the edge"
    )


def test_an_edge_that_misses_a_purge_is_named_and_gets_it_from_the_journal(edge: Edge, tmp_path: Path) -> None:
    assert edge.read(1).version == 1
    assert until(lambda: edge.read(1).is_hit, "a hit of the edge")
    version = edge.rows.commit(1)
    edge.purges.refuse()
    receipt = edge.isr.invalidate(tags=[numbered.tag(1)])
    assert receipt.pending == (f"tag:{numbered.tag(1)}",)
    assert set(receipt.nodes) - set(receipt.acknowledged) == {f"cdn://varnish/{edge.purges.name}"}
    assert edge.read(1).version == 1
    edge.purges.listen()
    until(lambda: edge.read(1).version == version, "the purge from the journal")
    assert until(Journal(str(tmp_path / "journal")).is_empty, "an empty journal")


def test_a_visitor_with_a_session_is_not_served_by_the_edge(edge: Edge) -> None:
    edge.read(3)
    assert until(lambda: edge.read(3).is_hit, "a hit of the edge")
    connection = HTTPConnection("127.0.0.1", edge.varnish.port, timeout=20)
    connection.request("GET", numbered.KEPT % 3, headers={"Cookie": "session=1"})
    response = connection.getresponse()
    response.read()
    assert " " not in response.headers["X-Varnish"]
    connection.close()


def test_clients_cannot_purge(edge: Edge) -> None:
    connection = HTTPConnection("127.0.0.1", edge.varnish.port, timeout=20)
    connection.request("PURGE", "/", headers={"xkey-purge": "x"})
    assert connection.getresponse().status == 405
    connection.close()


def purge_with(varnish: Varnish, token: str) -> None:
    (server,) = edges_of(Cdn("varnish", "", (varnish.purge_url,), token), time.monotonic, time.sleep)
    with closing(server):
        server.purge(["x"], False)


def test_a_purge_needs_the_token_where_varnish_has_one(tmp_path: Path) -> None:
    varnish = Varnish(tmp_path, [1], token="t0ken")
    try:
        varnish.start()
        purge_with(varnish, "t0ken")
        for token in ("", "another"):
            with pytest.raises(StoreUnavailable, match="token is refused"):
                purge_with(varnish, token)
    finally:
        varnish.close()
