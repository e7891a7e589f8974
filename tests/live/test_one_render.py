"""Many processes, one store, one crowd: a page is rendered once in each window, and no visitor waits for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from tests.live.support.origin import Origin, Render
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Answer, Crowd
from tests.live.support.waiting import until
from tests.live.support.windows import NOISE, check_one_render_in_each

REVALIDATE = 2.0
SLOW = 0.5
WINDOWS = 9
SECONDS = 20.0
#: Seconds for another process to notice that a stale page has been renewed.
RECHECK_PAUSE = 0.1


def test_two_instances_of_two_workers_render_once_in_each_window(
    origin: Origin, store: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    env = {**origin.env, "LIVE_SLOW": str(SLOW), "WSGI_ISR_STORE": store, "WSGI_ISR_REVALIDATE": f"{REVALIDATE:g}"}
    with Gunicorn(tmp_path / "one.log", env) as one, Gunicorn(tmp_path / "two.log", env) as two:
        workers = {*one.workers(), *two.workers()}
        renderers = {pid for server in (one, two) for pid in until(server.renderers, "its renderer")}
        began = time.monotonic()
        with Crowd([one.port, two.port], clients=64, pause=0.04) as crowd:
            time.sleep(SECONDS)  # the time itself matters
            until(lambda: len(origin.renders()) > WINDOWS, f"{WINDOWS} windows", timeout=15)
        seconds = time.monotonic() - began
        renders = origin.settled()
        assert (one.complaints(), two.complaints()) == ([], [])
        assert (one.stop(), two.stop()) == (0, 0)

    answers = crowd.answers
    assert crowd.errors() == []
    assert {render.pid for render in renders} <= workers | renderers
    assert {answer.worker for answer in answers} == workers

    windows = check_one_render_in_each(renders, answers, REVALIDATE)
    assert windows >= WINDOWS

    served = _served(answers, renders)
    # The first page was stored before it was first served.
    stored = min(answer.left for answer in answers)
    warm = [answer for answer in answers if answer.entered > stored]
    assert len(warm) > 0.9 * len(answers)
    assert {answer.verdict for answer in warm} == {"HIT", "STALE"}
    # A request that waited for at least half of a render came in the first half and left at its end. Only a process
    # without processor time for that long, at that very moment, could look like a waiting one.
    waited = [
        str(answer)
        for answer, render in product(answers, renders[1:])
        if answer.entered < _end(render) - SLOW / 2 and answer.left >= _end(render)
    ]
    assert waited == []
    inside = sorted(answer.left - answer.entered for answer in warm)
    assert inside[math.ceil(0.999 * len(inside)) - 1] < SLOW / 2

    lag = max(_lag(answer, render, renders) for answer, render in served)
    assert lag < RECHECK_PAUSE + NOISE, "a page was served long after the next one had been stored"
    slowest = max(answer.seconds for answer in answers if answer.began > stored)
    figure(
        f"{len(answers)} requests in {seconds:.1f} s ({len(answers) / seconds:.0f}/s), {windows} windows, "
        f"{len(renders)} renders by {len({render.pid for render in renders})} processes; after the first page was "
        f"stored, the longest answer took {slowest * 1000:.0f} ms, {inside[-1] * 1000:.1f} ms of them in the "
        f"cache (median {inside[len(inside) // 2] * 1e6:.0f} µs); an old page lived on for {lag * 1000:.0f} ms"
    )


def _served(answers: Sequence[Answer], renders: Sequence[Render]) -> list[tuple[Answer, Render]]:
    by_name = {render.name: render for render in renders}
    return [(answer, by_name[answer.render]) for answer in answers]


def _end(render: Render) -> float:
    assert render.ended is not None, f"{render} never ended"
    return render.ended


def _lag(answer: Answer, render: Render, renders: Sequence[Render]) -> float:
    """Return for how long after its successor's render this page was still served to newly arriving visitors."""
    successor = next((later for later in renders if later.began > render.began), None)
    return max(0.0, answer.entered - _end(successor)) if successor else 0.0
