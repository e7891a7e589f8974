"""Two gunicorns that share one Redis server: pages, invalidations, and the server's end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.support.scripted import Scripted, everywhere, seen, warm
from tests.live.support.server import Gunicorn
from tests.live.support.waiting import until
from tests.support.redis import Redis
from wsgi_isr import invalidate

PAGE = "/about"
CACHED_SITE = "cluster.chaos.workload.cached_site:application"


@pytest.fixture
def redis() -> Iterator[Redis]:
    server = Redis(arguments=["--requirepass", "secret"])
    try:
        yield server
    finally:
        server.kill()


def test_two_instances_share_pages_and_invalidations_and_outlive_the_server(redis: Redis, tmp_path: Path) -> None:
    site = Scripted(tmp_path, f"redis://:secret@{redis.name}/1?timeout=2&deadline=5")
    with ExitStack() as stack:
        logs = [tmp_path / f"server{number}.log" for number in (1, 2)]
        servers = [stack.enter_context(Gunicorn(log, site.env, CACHED_SITE, preload=True)) for log in logs]
        warm(servers, PAGE, 1)
        version = site.database.commit(["about"])["about"]
        receipt = invalidate(paths=[PAGE], mode="purge", store=site.store)
        assert "secret" not in str(receipt)
        warm(servers, PAGE, version)

        redis.kill()
        assert {(status, number) for status, _, number in seen(everywhere(servers, PAGE))} == {(200, version)}
        redis.start()
        until(lambda: seen(everywhere(servers, PAGE)) == {(200, "HIT", version)}, "the server to be used again")
        for log in logs:
            assert "secret" not in log.read_text()
