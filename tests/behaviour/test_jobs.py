"""Jobs of other processes, as a renderer runs them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tests.behaviour.conftest import MakeSite
from tests.behaviour.visitor import DEADLINE
from wsgi_isr import ISR
from wsgi_isr.cache.executor import Reply, Status
from wsgi_isr.cache.task import Attempt, pack, unpack


def test_a_refresh_for_another_process_holds_the_lock_in_its_name(make_site: MakeSite) -> None:
    """If the renderer dies, the process that has asked finds the lock, and turns it into a back-off."""
    held: list[bytes | None] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        held.append(site.store.get(site.isr._engine.keyspace.lock(page.task.page)))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x"]

    site = make_site(app=app, revalidate=60)
    page, owner = site.isr._pages.at("/a"), b"o" * 12
    task, attempt = unpack(pack(page.task, Attempt(refresh_tag="path:/a", owner=owner)))
    assert site.isr._engine.run_job(task, attempt).status is Status.STORED
    assert held[-1] is not None
    assert held[-1].startswith(owner)


def test_a_job_that_a_stopping_process_drops_is_answered_at_once(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        go.wait(DEADLINE)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x"]

    isr = ISR(app, revalidate=60, store=f"sqlite:///{tmp_path}/s.db", release=None, background_threads=1)
    engine, replies = isr._engine, dict[str, Reply]()

    def run(path: str) -> None:
        replies[path] = engine.run_job(isr._pages.at(path).task, Attempt())

    first, second = (threading.Thread(target=run, args=(path,)) for path in ("/a", "/b"))
    try:
        first.start()
        assert begun.wait(DEADLINE)
        second.start()
        pool = engine.cache._dispatcher._threads
        with pool._changed:  # until the second job waits in the queue
            assert pool._changed.wait_for(lambda: len(pool._jobs) == 1, DEADLINE) or pool._jobs
        engine.cache.stop(0)
        second.join(DEADLINE)
        assert replies["/b"].status is Status.BUSY
    finally:
        go.set()
        first.join(DEADLINE)
        isr.close()
