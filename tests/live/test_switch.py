"""``wsgi-isr off`` under gunicorn with two workers: at once, across a restart, until its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.live.support.origin import Origin
from tests.live.support.server import FROM_OUTSIDE, ROOT, Gunicorn
from tests.live.support.visitor import Crowd
from tests.live.support.waiting import until

COHERENCE = 0.1
#: Seconds between a request's entry into the cache and the switch's, at most: the worker may have lost the processor.
SLACK = 0.15


@pytest.fixture
def env(origin: Origin, store: str) -> Mapping[str, str]:
    return {**origin.env, "WSGI_ISR_STORE": store, "WSGI_ISR_REVALIDATE": "3600"}


def run(env: Mapping[str, str], *arguments: str) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
    command = [sys.executable, "-c", "from wsgi_isr.commands.main import main; main()", *arguments]
    subprocess.run(command, env={**outside, **env, "PYTHONPATH": str(ROOT)}, check=True, timeout=60)


def test_off_takes_effect_within_coherence_survives_a_restart_and_ends_by_itself(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", env) as server:
        with Crowd([server.port], clients=8) as crowd:
            for worker in server.workers():
                until(partial(crowd.answered_by, worker, "HIT"), f"a hit by worker {worker}")
            run(env, "off")
            turned = time.monotonic()
            for worker in server.workers():
                until(partial(crowd.answered_by, worker, "BYPASS"), f"an answer of the app in worker {worker}")
            until(lambda: time.monotonic() > turned + 1, "a second")
        late = [answer.verdict for answer in crowd.answers if answer.entered > turned + COHERENCE + SLACK]
        assert set(late) == {"BYPASS"}
        assert len(late) > 20

        before = server.workers()
        run(env, "off", "--for", "6s")
        server.signal(signal.SIGHUP)
        until(lambda: not {*server.workers()} & {*before} and len(server.workers()) == 2, "new workers")
        with Crowd([server.port], clients=8) as crowd:
            new = server.workers()
            for worker in new:
                until(partial(crowd.answered_by, worker, "BYPASS"), f"an answer of the app in worker {worker}")
            for worker in new:
                until(partial(crowd.answered_by, worker, "HIT"), f"a hit by worker {worker} after the end")
            until(lambda: server.log.read_text("utf-8").count("the switch has ended") == 2, "a line of each worker")
        assert crowd.errors() == []
        assert server.stop() == 0
    assert server.log.read_text("utf-8").count("the cache is switched off") == 4, "one line of each worker, old and new"


def test_the_option_in_a_file_is_read_again_on_sighup(env: Mapping[str, str], tmp_path: Path) -> None:
    config = tmp_path / "isr.toml"
    config.write_text("off = false\n")
    with Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_CONFIG": str(config)}) as server:
        with Crowd([server.port], clients=4) as crowd:
            for worker in server.workers():
                until(partial(crowd.answered_by, worker, "HIT"), f"a hit by worker {worker}")
            config.write_text("off = true\n")
            before = server.workers()
            server.signal(signal.SIGHUP)
            until(lambda: not {*server.workers()} & {*before} and len(server.workers()) == 2, "new workers")
            for worker in server.workers():
                until(partial(crowd.answered_by, worker, "BYPASS"), f"an answer of the app in worker {worker}")
        assert server.stop() == 0
