"""A memcached node dies or hangs: visitors get pages; invalidations fail with an error and are delivered later."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.load import generator as load
from cluster.load.generator import Samples
from cluster.load.request import fetch
from cluster.supervisor.state import State
from tests.live.support.command import Command
from tests.live.support.waiting import until
from tests.support.numbered import APP, KEPT, RARE, RENEWED, Numbered, tag, version_of
from wsgi_isr import InvalidationError, invalidate, replay
from wsgi_isr.cache.invalidation import tag_names
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.pages.request_key import PageKey
from wsgi_isr.stores import open_store
from wsgi_isr.stores.nodes.wire import DEFAULTS

#: Visitors, and their requests per second, all together.
CONNECTIONS, RATE = 8, 150.0
#: Seconds of load before the fault, and during it; and until every process has noticed that a node is back.
QUIET, LASTS, NOTICED = 0.5, 2.5, 10.0


class Running:
    """A cluster of three nodes, two instances with a worker each, and the site that they serve."""

    def __init__(self, command: Command, state: State, site: Numbered) -> None:
        self.command = command
        self.site = site
        self.store = state.store
        self.port = int(state.url.rpartition(":")[2])
        self._names = {part.address: part.name for part in state.parts}
        opened = open_store(state.store)
        self._tag_key = Keyspace("default").tag
        self._node_of = opened.node_of
        opened.close()

    def address(self, row: int) -> str:
        """Return the address of the node that has the tag of a row."""
        return self._node_of(self._tag_key(tag_names(tags=[tag(row)])[0]))

    def node(self, row: int) -> str:
        """Return the cluster's name of the same node."""
        return self._names[self.address(row)]

    def two_apart(self) -> tuple[int, int]:
        """Return two rows whose tags are on different nodes. The page of the first is on another node than its tag:
        without the tag's node, the page is still stored and need not be rendered again."""
        rows = random.sample(range(1000), 200)
        lost = next(row for row in rows if self._home(row) != self.address(row))
        return lost, next(row for row in rows if self.node(row) != self.node(lost))

    def _home(self, row: int) -> str:
        page = PageKey("http", f"127.0.0.1:{self.port}", "", KEPT % row)
        return self._node_of(Keyspace("default").page(page.text))

    def version(self, row: int) -> tuple[str, int]:
        """Return the verdict and the shown version of a row, as a visitor gets them."""
        answer = fetch(self.port, KEPT % row)
        assert answer.status == 200
        return answer["X-ISR"], version_of(answer.body)

    @contextmanager
    def visited(self, first_new: int) -> Iterator[list[Samples]]:
        """Run visitors in the block: of pages that become stale every second, and of some new ones. Their answers are
        in the list after the block."""
        hot = [RENEWED % number for number in range(10)]
        new = [RARE % number for number in range(first_new, first_new + 10)]
        options: Any = {"connections": CONNECTIONS, "rate": RATE, "weights": [9.0] * len(hot) + [1.0] * len(new)}
        over, seen = threading.Event(), []
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(
                load.run, self.port, hot + new, seconds=60, meanwhile=lambda: not over.is_set(), **options
            )
            try:
                yield seen
            finally:
                over.set()
        seen.append(going.result())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    site = Numbered(tmp_path)
    # Without releases, so that the name of a page in the store is known here.
    command = Command(tmp_path, WSGI_ISR_RELEASE="none", **site.env)
    with command.running("--app", APP, "--nodes", "3") as state:
        yield Running(command, state, site)


@pytest.mark.parametrize(("strike", "mend"), [("kill", "restart"), ("pause", "resume")])
def test_a_node_that_is_away_costs_few_visitors_a_wait_and_no_invalidation_is_lost(
    strike: str, mend: str, running: Running, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    there, command = running, running.command
    lost, safe = there.two_apart()
    journal = str(tmp_path / "journal")
    first = {row: there.version(row)[1] for row in (lost, safe)}
    with there.visited(1000):
        time.sleep(LASTS)

    node, address = there.node(lost), there.address(lost)
    with there.visited(2000) as visits:
        time.sleep(QUIET)
        command.done(strike, node)
        struck = time.monotonic()
        for row in (lost, safe):
            there.site.commit(row)
        receipt = invalidate(tags=[tag(lost), tag(safe)], store=there.store, journal=journal)
        with pytest.raises(InvalidationError) as refused:
            receipt.raise_for_pending()
        time.sleep(max(0.0, struck + LASTS - time.monotonic()))
    samples = visits[0]
    # The error names the undelivered tag and its node; the other tag was delivered.
    assert list(refused.value.undelivered) == [f"tag:{tag(lost)}"]
    assert refused.value.delivered == (f"tag:{tag(safe)}",)
    assert address in str(refused.value)
    assert f"tag:{tag(lost)}" in Path(journal).read_text()
    assert there.version(safe)[1] == first[safe] + 1
    assert there.version(lost) == ("DEGRADED", first[lost])

    # No answer is an error. In each process, requests at the moment of the fault wait until the process notices it.
    assert samples.errors == {}
    assert "DEGRADED" in samples.verdicts.all
    waited = sum(seconds >= DEFAULTS.timeout for seconds in samples.seconds)
    assert waited <= 3 * CONNECTIONS, f"{waited} of {len(samples)} answers took longer than a node may take"
    assert len(samples) > 8 * CONNECTIONS

    command.done(mend, node)
    if strike == "pause":
        # The node continues with its old items, and has missed the invalidation.
        until(lambda: there.version(lost) == ("HIT", first[lost]), "a page that a node vouches for again", NOTICED)
    assert replay(store=there.store, journal=journal) == (f"tag:{tag(lost)}",)
    assert Path(journal).read_text() == ""
    until(lambda: there.version(lost) == ("HIT", first[lost] + 1), "the new page", NOTICED)
    figure(
        f"{strike}: {len(samples)} answers, {dict(Counter(samples.verdicts.all[n] for n in samples.verdict))}, "
        f"{waited} waited for a timeout, the longest for {max(samples.seconds) * 1000:.0f} ms"
    )
