"""gevent patches a worker after the fork: no lock from before the patch is held by a greenlet that yields."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.memcached import Memcached

#: Seconds after which a hung worker counts as stopped.
STOPPED = 20

FORKED = """
import os, signal
import wsgi_isr
{before}
pid = os.fork()
if pid:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
signal.alarm(15)  # a greenlet that stops the process would stop a timeout of gevent, too
from gevent import joinall, monkey, sleep, spawn
monkey.patch_all()
{after}
together = [spawn(work) for _ in range(8)]
joinall(together, raise_error=True)
print([job.value for job in together], flush=True)
os._exit(0)
"""

LIST = """
from wsgi_isr import ISR, Rule

def paths():
    sleep(0.05)
    return ["/there"]

isr = ISR(lambda environ, start_response: [], {"/<name>": Rule(paths=paths, dynamic_params=False, revalidate=60)})
"""

ASK = """
from werkzeug.test import Client
work = lambda: Client(isr).get("/missing").status_code
"""

DATA = """
@wsgi_isr.cached(revalidate=60)
def double(number):
    return 2 * number

work = lambda: double(21)
"""


def run(before: str, after: str, store: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {"WSGI_ISR_STORE": store, "WSGI_ISR_JOURNAL": "none", "PYTHONPATH": ":".join(sys.path)}
    code = FORKED.format(before=before, after=after)
    return subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=folder, capture_output=True, text=True, timeout=STOPPED
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(LIST, ASK, [404] * 8), ("", DATA, [42] * 8)], ids=["a list", "data of no app"]
)
def test_greenlets_go_on_while_one_of_them_waits(before: str, after: str, expected: list[int], tmp_path: Path) -> None:
    node = Memcached()
    try:
        done = run(before, after, f"memcached://{node.name}", tmp_path)
    finally:
        node.kill()
    assert done.stdout == f"{expected}\n", done.stderr
