"""The three modes with failing or slow renders, on real servers that share memcached nodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.support.scripted import Scripted, everywhere, seen, shown, warm
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Answer, ask
from tests.live.support.waiting import until
from tests.support.memcached import Memcached
from wsgi_isr import invalidate

PAGE = "/about"
CACHED_SITE = "cluster.chaos.workload.cached_site:application"
FAILURES = ["raise", "500 Internal Server Error", "503 Service Unavailable"]


@pytest.fixture
def site(tmp_path: Path, nodes: Sequence[Memcached]) -> Scripted:
    return Scripted(tmp_path, f"memcached://{','.join(node.name for node in nodes)}?timeout=5&deadline=10")


@pytest.fixture
def servers(site: Scripted, tmp_path: Path) -> Iterator[list[Gunicorn]]:
    """Run two instances of two workers, with the page in version 1 in every cache."""
    with ExitStack() as stack:
        logs = [tmp_path / f"server{number}.log" for number in (1, 2)]
        running = [stack.enter_context(Gunicorn(log, site.env, CACHED_SITE, preload=True)) for log in logs]
        warm(running, PAGE, 1)
        yield running


def change(site: Scripted, mode: str) -> int:
    """Commit the next version and invalidate; return the version."""
    version = site.database.commit(["about"])["about"]
    invalidate(paths=[PAGE], mode=mode, store=site.store)
    return version


@pytest.mark.parametrize("failure", FAILURES)
def test_expired_pages_are_served_and_labelled_while_rendering_fails(
    failure: str, site: Scripted, servers: list[Gunicorn]
) -> None:
    site.fail(failure)
    change(site, "expire")
    answers = everywhere(servers, PAGE)
    assert seen(answers) == {(200, "STALE-IF-ERROR", 1)}
    # A CDN must not keep a page that may be wrong.
    assert {answer.headers["cache-control"] for answer in answers} == {"max-age=0, must-revalidate"}
    assert {answer.headers["cache-status"].split("; ")[-1] for answer in answers} == {"detail=stale-if-error"}
    site.mend()
    warm(servers, PAGE, 2)


@pytest.mark.parametrize("failure", FAILURES)
def test_purged_pages_are_never_served_again_even_while_rendering_fails(
    failure: str, site: Scripted, servers: list[Gunicorn]
) -> None:
    site.fail(failure)
    change(site, "purge")
    answers = everywhere(servers, PAGE)
    # The app's own error, because there is no page to serve instead.
    assert {answer.status for answer in answers} == {int(failure.split()[0]) if failure[0] == "5" else 500}
    assert {shown(answer) for answer in answers} == {None}
    site.mend()
    warm(servers, PAGE, 2)


@pytest.mark.parametrize("failure", FAILURES)
def test_stale_pages_stay_stale_while_rendering_fails(failure: str, site: Scripted, servers: list[Gunicorn]) -> None:
    site.fail(failure)
    change(site, "stale")
    assert seen(everywhere(servers, PAGE)) == {(200, "STALE", 1)}
    site.mend()
    warm(servers, PAGE, 2)


def test_stale_after_expire_leaves_a_page_expired(site: Scripted, servers: list[Gunicorn]) -> None:
    site.fail("raise")
    change(site, "expire")
    change(site, "stale")
    assert seen(everywhere(servers, PAGE)) == {(200, "STALE-IF-ERROR", 1)}
    site.mend()
    warm(servers, PAGE, 3)


@pytest.mark.parametrize("weaker", ["stale", "expire"])
def test_nothing_after_a_purge_brings_a_page_back(weaker: str, site: Scripted, servers: list[Gunicorn]) -> None:
    site.fail("500 Internal Server Error")
    change(site, "purge")
    change(site, weaker)
    answers = everywhere(servers, PAGE)
    assert {(answer.status, shown(answer)) for answer in answers} == {(500, None)}
    site.mend()
    warm(servers, PAGE, 3)


def test_after_expire_and_stale_everybody_waits_for_the_new_page(site: Scripted, servers: list[Gunicorn]) -> None:
    site.hold()
    change(site, "expire")
    change(site, "stale")
    answers = _ask_while_held(site, servers)
    assert {(answer.status, shown(answer)) for answer in answers} == {(200, 3)}
    assert {answer.verdict for answer in answers} <= {"EXPIRED", "HIT"}
    warm(servers, PAGE, 3)


def test_after_stale_nobody_waits(site: Scripted, servers: list[Gunicorn]) -> None:
    site.hold()
    change(site, "stale")
    assert seen(everywhere(servers, PAGE)) == {(200, "STALE", 1)}
    site.wait_until_held()
    assert seen(everywhere(servers, PAGE)) == {(200, "STALE", 1)}
    site.release()
    warm(servers, PAGE, 2)


def _ask_while_held(site: Scripted, servers: list[Gunicorn]) -> list[Answer]:
    """Return the answers to visitors who came during the render."""
    answers: list[Answer] = []
    asking = [
        threading.Thread(target=lambda port=server.port: answers.append(ask(port, PAGE)))
        for server in servers
        for _ in range(4)
    ]
    for visitor in asking:
        visitor.start()
    site.wait_until_held()
    # Requests of each worker's visitors are in progress. A missing answer can only be observed by a timeout.
    with pytest.raises(AssertionError, match="in vain"):
        until(lambda: bool(answers), "an answer", timeout=0.5)
    site.release()
    for visitor in asking:
        visitor.join()
    return answers
