"""``kill -9`` of the process that renders: its lease expires, or ends early if the loss is noticed, and another process
renders."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.support.origin import Origin
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Crowd, ask
from tests.live.support.waiting import until
from wsgi_isr.cache.lease import BACKOFF_PAUSE

#: Seconds: the rule's timeout, and so its lease, which is renewed at every third of it.
LEASE = 3.0
RENEWED_EVERY = LEASE / 3
#: Seconds for two looks at the store, and for two busy cores.
NOISE = 0.8


@pytest.fixture
def env(origin: Origin, store: str) -> dict[str, str]:
    return {
        **origin.env,
        "WSGI_ISR_STORE": store,
        "WSGI_ISR_REVALIDATE": "0.5",
        "WSGI_ISR_RENDER_TIMEOUT": f"{LEASE:g}",
    }


@pytest.mark.parametrize("background", ["threads", "auto"])
@pytest.mark.parametrize("after", [0.1, 1.5], ids=["at-once", "after-a-renewal"])
def test_a_stale_page_whose_renderer_is_killed_is_new_at_most_one_lease_later(
    after: float, background: str, origin: Origin, env: dict[str, str], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    with Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_BACKGROUND": background}) as server:
        old = ask(server.port)
        origin.hold()
        with Crowd([server.port], clients=8) as crowd:
            victim = origin.held()
            time.sleep(after)
            # Between two requests, so that no visitor's connection dies with the process.
            with crowd.quiet():
                server.kill(victim)
                killed = time.monotonic()
            origin.release()
            new = until(lambda: crowd.first(lambda answer: answer.render != old.render), "a new page")
        _, lost, successor = origin.settled()[:3]
        server.wait_for_workers()  # a new worker replaces the killed one
        assert server.stop() == 0

    assert crowd.errors() == []
    # No visitor waited: until there was a new page, all got the old one at once.
    before = [answer for answer in crowd.answers if answer.ended < new.ended]
    assert {(answer.verdict, answer.render) for answer in before if answer.began > lost.began} == {
        ("STALE", old.render)
    }
    assert (lost.pid, lost.ended) == (victim, None)
    assert (successor.pid != victim, successor.name) == (True, new.render)
    assert new.ended - killed < LEASE + NOISE
    if background == "threads":
        # While the lease lasted, no other process rendered.
        held_until = held_at_most = lost.began + LEASE + after // RENEWED_EVERY * RENEWED_EVERY
    else:
        # The submitter of the job noticed the loss and knew the owner of the lock: the lock became a back-off.
        held_until, held_at_most = killed + BACKOFF_PAUSE[0], killed + 1.25 * BACKOFF_PAUSE[0]
    assert held_until - 0.1 < successor.began < held_at_most + NOISE
    figure(f"{len(before)} times 200; new {new.ended - killed:.2f} s after the kill; the lease is {LEASE:g} s")


def test_visitors_of_a_page_that_never_was_get_it_one_lease_after_its_renderer_is_killed(
    origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    # A sync worker has one visitor at a time; the others are with the other worker, or in the queue.
    with Gunicorn(tmp_path / "log", env, worker_class="sync") as server:
        origin.hold()
        with Crowd([server.port], clients=8, rounds=1) as crowd:
            victim = origin.held()
            server.kill(victim)
            killed = time.monotonic()
            origin.release()
        lost, successor = origin.settled()
        assert server.stop() == 0

    assert len(crowd.answers) == 8
    assert len(crowd.errors()) == 1, "more than the visitor who was with the killed process"
    assert {answer.render for answer in crowd.answers if answer.status == 200} == {successor.name}
    assert (lost.pid, lost.ended) == (victim, None)
    assert successor.pid != victim
    assert max(answer.ended for answer in crowd.answers) - killed < LEASE + NOISE
