"""``python -m cluster roll``: a new release begins with the pages of the previous one, and ends with its own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cluster.load.renders import read, windows
from cluster.parts.ports import answers
from tests.live.support.command import Command
from tests.live.support.visitor import SITE, Answer, ask
from tests.live.support.waiting import until
from tests.support.numbered import APP, RENEWED, Numbered, tag
from wsgi_isr import invalidate
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.pages.request_key import PageKey

REVALIDATE = 4.0
PAGES = [RENEWED % number for number in range(8)]
#: The page whose row changes in the middle of the deploy.
CHANGED = 3
#: Seconds for which a process may serve a copy without a check, plus some for a busy machine.
COHERENCE = 0.1 + 0.1


class Visitors:
    """Visitors who request one page after the other, and their answers in order."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self.seen: list[tuple[str, Answer]] = []

    @contextmanager
    def there(self, how_many: int = 3) -> Iterator[None]:
        """Send requests in the block."""
        with ThreadPoolExecutor(how_many) as pool:
            looking = [pool.submit(self._look, number) for number in range(how_many)]
            try:
                yield
            finally:
                self._over.set()
        for each in looking:
            each.result()

    def _look(self, at: int) -> None:
        while not self._over.wait(0.01):
            at += 1
            path = PAGES[at % len(PAGES)]
            self.seen.append((path, ask(self._port, path)))


def test_a_deploy_under_load_has_no_cold_herd_and_no_mixed_pages_and_misses_no_invalidation(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    site = Numbered(tmp_path, slow=0.1, revalidate=REVALIDATE)
    command = Command(tmp_path, WSGI_ISR_RELEASE="one", **site.env)
    with command.running("--app", APP, "--instances", "3") as state:
        port = int(state.url.rpartition(":")[2])
        ports = [int(part.address.rpartition(":")[2]) for part in state.parts if part.role == "gunicorn"]
        for path in PAGES:  # fresh, in every instance
            for instance in ports:
                assert _release(ask(instance, path)) == "one"
        visitors, changed = Visitors(port), RENEWED % CHANGED
        with visitors.there(), ThreadPoolExecutor(1) as terminal:
            roll = terminal.submit(command.done, "roll", "two")
            until(lambda: not answers(ports[1]), "a new instance, and the next one that is down", every=0.005)
            with _held(state.pid):  # the last instance keeps the old release meanwhile
                until(
                    lambda: any(_release(answer) == "two" for _, answer in visitors.seen), "a page of the new release"
                )
                version = site.commit(CHANGED)
                invalidate(tags=[tag(CHANGED)], store=state.store)
                told = time.monotonic()

                def see_it() -> set[str]:
                    seen = [answer for path, answer in visitors.seen if path == changed and answer.began > told]
                    return {_release(answer) for answer in seen if answer.page["version"] == version}

                until(lambda: see_it() == {"one", "two"}, "the new version in both releases")
            assert roll.result() == "every instance is of release two\n"
            rolled = time.monotonic()

            def is_renewed() -> bool:
                return all(_release(ask(instance, path)) == "two" for path in PAGES for instance in ports)

            until(is_renewed, "every page in the new release, everywhere")
            renewed = time.monotonic()
            until(lambda: visitors.seen[-1][1].began > renewed + 1, "more visitors")
        renders = read(command.directory.renders)

    seen = visitors.seen
    assert {answer.status for _, answer in seen} == {200}
    # Requests for a stored page got a stored one at once; only after the invalidation a visitor waited.
    assert {answer.verdict for path, answer in seen if path != changed} <= {"HIT", "STALE"}
    assert {answer.verdict for path, answer in seen if path == changed} <= {"HIT", "STALE", "EXPIRED"}

    # One render for each page and window; at most one more of the page that changed.
    keys = {Keyspace("default", "two").page(PageKey("http", SITE, "", path).text): path for path in PAGES}
    for key, path in keys.items():
        found = windows(renders, {key: REVALIDATE})
        assert found.renders >= 1, path
        assert found.largest <= (2 if path == changed else 1), (path, [r for r in renders if r.key == key])

    # The invalidation has reached the pages of both releases: no later answer has an older page.
    after = [answer for path, answer in seen if path == changed and answer.began > told + COHERENCE]
    assert {answer.page["version"] for answer in after} == {version}

    # Once renewed, a page is of the new release, from every instance.
    assert {_release(answer) for _, answer in seen if answer.began > renewed} == {"two"}
    verdicts = dict(Counter(answer.verdict for _, answer in seen))
    figure(
        f"{len(seen)} answers, {verdicts}; every page was of the new release {renewed - rolled:.1f} s after the roll, "
        f"by {sum(render.key in keys for render in renders)} renders"
    )


@contextmanager
def _held(supervisor: int) -> Iterator[None]:
    """Pause the rolling deploy in the block."""
    os.kill(supervisor, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)


def _release(answer: Answer) -> str:
    return str(answer.page["release"])
