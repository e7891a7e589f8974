"""A browser reads its own write at once, over new connections and in each of four workers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from pathlib import Path

from tests.live.support.server import Gunicorn

#: Milliseconds between a write and a read, and writes for each.
PAUSES, WRITES = (0, 20, 50, 80), 10


def ask(port: int, method: str, path: str, jar: dict[str, str]) -> tuple[str, str, str]:
    """Send one request of a browser over a new connection; return verdict, worker and text."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())} if jar else {}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    for line in response.headers.get_all("Set-Cookie", []):
        jar.update({name: morsel.value for name, morsel in SimpleCookie(line).items()})
    connection.close()
    return response.headers["X-ISR"], response.headers["X-Worker"], body


def test_who_has_posted_reads_the_new_page_in_every_worker(
    tmp_path: Path, store: str, figure: Callable[[str], None]
) -> None:
    env = {"LIVE_POSTED": str(tmp_path / "posted"), "WSGI_ISR_STORE": store}
    (tmp_path / "posted").write_text("0")
    right, others_old, workers = Counter[int](), 0, Counter[str]()
    with Gunicorn(tmp_path / "log", env, "tests.live.support.written:application", workers=4) as server:
        for _ in range(40):
            workers[ask(server.port, "GET", "/", {})[1]] += 1
        for number in range(1, WRITES + 1):
            for pause in PAUSES:
                text, jar = f"{number}-{pause}", dict[str, str]()
                ask(server.port, "POST", f"/?{text}", jar)
                time.sleep(pause / 1000)  # the time itself matters
                _, worker, body = ask(server.port, "GET", "/", jar)
                workers[worker] += 1
                right[pause] += body == text
                others_old += ask(server.port, "GET", "/", {})[2] != text
        assert server.complaints() == []
        assert server.stop() == 0
    assert right == dict.fromkeys(PAUSES, WRITES)
    assert len(workers) == 4
    figure(
        f"{right.total()} of {WRITES * len(PAUSES)} readings by the writer were new, {PAUSES} ms after the write; "
        f"{others_old} of as many by others were not yet (coherence 1 s)"
    )
