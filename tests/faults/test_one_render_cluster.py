"""Several instances that share nothing but memcached nodes: a page is rendered once in each window."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.live.support.origin import Origin
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Crowd
from tests.live.support.waiting import until
from tests.live.support.windows import check_one_render_in_each
from tests.support.memcached import Memcached

INSTANCES, WORKERS = 4, 2
REVALIDATE = 1.5
SLOW = 0.4
WINDOWS = 6


def test_four_instances_of_two_workers_render_once_in_each_window(
    nodes: Sequence[Memcached], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    directory = tmp_path / "origin"
    directory.mkdir()
    origin = Origin(directory)
    env = {
        **origin.env,
        "LIVE_SLOW": str(SLOW),
        "WSGI_ISR_STORE": f"memcached://{','.join(node.name for node in nodes)}?timeout=5&deadline=10",
        "WSGI_ISR_REVALIDATE": f"{REVALIDATE:g}",
    }
    with ExitStack() as stack:
        logs = [tmp_path / f"server{number}.log" for number in range(INSTANCES)]
        servers = [stack.enter_context(Gunicorn(log, env, workers=WORKERS, preload=True)) for log in logs]
        processes = {pid for server in servers for pid in server.workers()}
        began = time.monotonic()
        with Crowd([server.port for server in servers], clients=32, pause=0.04) as crowd:
            until(lambda: len(origin.renders()) > WINDOWS, f"{WINDOWS} windows", timeout=60)
            # A superfluous render would be in the window that has just begun, too.
            until(lambda: origin.renders()[-1].ended, "the end of the last render")
            time.sleep(REVALIDATE / 2)
        seconds = time.monotonic() - began
        renders = origin.settled()
        assert [server.complaints() for server in servers] == [[]] * INSTANCES
        assert [server.stop() for server in servers] == [0] * INSTANCES

    answers = crowd.answers
    assert crowd.errors() == []
    assert {answer.worker for answer in answers} == processes
    windows = check_one_render_in_each(renders, answers, REVALIDATE)
    assert windows >= WINDOWS
    # Only the first visitors waited, because no page was stored.
    stored = renders[0].ended
    assert stored is not None
    waited = {answer.verdict for answer in answers if answer.entered > stored + 0.4}
    assert waited == {"HIT", "STALE"}
    figure(
        f"{len(answers)} requests to {len(processes)} processes in {seconds:.1f} s "
        f"({len(answers) / seconds:.0f}/s), {windows} windows, {len(renders)} renders "
        f"by {len({render.pid for render in renders})} processes"
    )
