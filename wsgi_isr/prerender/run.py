"""Render pages before the first request for them: the engine of ``wsgi-isr prerender``.

Each page is handled as for a client: a fresh page stays; any other is rendered under its lease and stored by
compare-and-swap. So a run may go on beside servers and other runs. It never replaces a newer page by an older one, and
a repeated run continues where the last one stopped.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urljoin

from ..cache.lease import BACKOFF_PAUSE
from ..cache.thread_pool import Pool
from ..config.origin import Site
from ..errors import ConfigError, ISRError, RefreshError
from ..middleware import ISR
from ..pages.resolver import Page
from . import html_links
from .html_links import spelled
from .site_client import Fail, Later, SiteClient, Skip, shown, spelled_out, url_of
from .sitemaps import pages_of_sitemap
from .static_site import NOTES, Answer, NoFile, StaticSite

#: Seconds between two checks for late renders, and between two calls of ``progress``.
TICK = 0.1
#: Seconds between two attempts for a page that another process renders, or that is in back-off.
AGAIN = 0.25
#: Seconds past a page's timeout after which its thread is given up. The render itself is given up at its timeout.
GRACE = 2.0
#: The most linking pages that a failure names.
LINKERS = 5

Progress = Callable[[int, int, str], object]
"""Called with the number of pages that are done, the number that are known, and one page in progress."""


class Problem(NamedTuple):
    """A page (or a source of pages) that failed, the reason, and some of the pages that link to it."""

    path: str
    reason: str
    linked_from: tuple[str, ...] = ()


class Report(NamedTuple):
    """The outcome for every page.

    ``left`` pages were not tried, because the run was ``interrupted``. ``beyond`` links were not followed, because
    there are too many. ``assets``, ``written``, ``unchanged`` and ``removed`` count the files of an export.
    """

    site: str
    rendered: int
    there: int
    skipped: tuple[Problem, ...]
    failed: tuple[Problem, ...]
    left: int
    beyond: int
    interrupted: bool
    seconds: float
    assets: int = 0
    written: int = 0
    unchanged: int = 0
    removed: int = 0

    @property
    def ok(self) -> bool:
        """Return whether the run is complete."""
        return not (self.failed or self.left or self.beyond or self.interrupted)


@dataclass(eq=False)
class _Job:
    """One page, or one file that a page needs (``page`` is ``None``)."""

    path: str
    page: Page | None
    linked: list[str] = field(default_factory=list)
    number: bytes = b""
    thread: threading.Thread | None = None
    #: The times at which its thread is given up, and until which further attempts are made; monotonic seconds.
    due: float = float("inf")
    until: float | None = None
    #: The outcome in one word, and the reason.
    word: str = ""
    reason: str = ""

    @property
    def problem(self) -> Problem:
        """Return the entry for the report."""
        return Problem(self.path, self.reason, tuple(self.linked))


class Prerender:
    """Renders the pages of the sources: one run, then :meth:`report`.

    :param jobs: pages that are rendered at a time, in threads; by default the number of processors, at least 2.
    :param force: render fresh pages as well, from data that is read from now on.
    :param crawl: follow the links of each page, until ``most`` pages are known.
    :param folder: a static site to write as well.
    :param pause: waits that many seconds.
    """

    def __init__(
        self,
        isr: ISR,
        site: Site,
        *,
        jobs: int | None = None,
        force: bool = False,
        crawl: bool = False,
        most: int = 100_000,
        folder: StaticSite | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rules = isr.configuration.rules
        self._maker = SiteClient(isr, site)
        self.here = self._maker.here
        self._jobs_at_once = jobs or max(2, _processors())
        self._force = force
        self._crawl = crawl
        self._most = most
        self._folder = folder
        self._progress: Progress = lambda done, total, path: None
        self._pause = pause
        self._monotonic = isr._engine.monotonic
        self._pool = Pool(self._work, self._jobs_at_once, sys.maxsize)
        # A plain attribute, because a signal's handler sets it: it may have interrupted code that holds an Event's
        # lock.
        self._stopping = False
        self._began = self._monotonic()
        # The condition guards all attributes below.
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._seen: dict[str, _Job | None] = {}
        self._by_page: dict[str, _Job] = {}
        self._assets_seen: set[str] = set()
        self._waiting = 0
        self._running: dict[_Job, None] = {}
        self._later: list[_Job] = []
        self._hung = 0
        self._skipped: list[Problem] = []
        self._failed: list[Problem] = []
        self._left = 0
        self._beyond = 0

    # From outside ------------------------------------------------------------------------------------

    def run(self, paths: Iterable[str] = (), sitemaps: Iterable[str] = (), progress: Progress | None = None) -> Report:
        """Render the pages of all sources.

        :param paths: besides them, the paths that the rules list are rendered.
        :param sitemaps: files, or paths of the site.
        :param progress: called in this thread.
        """
        self._progress = progress or self._progress
        paths, sitemaps = list(paths), list(sitemaps)
        try:
            for path in paths:
                self._add(path)
            self._add_listed()
            for sitemap in sitemaps:
                self._add_sitemap(sitemap)
            if self._crawl:
                self._add(spelled(self.here.mount + "/"))
            if self._folder is not None:
                self._write_not_found(self._folder)
            self._watch()
        finally:
            self._pool.stop(0)
        if self._folder is not None:
            try:
                sources = json.dumps([sorted(paths), sorted(sitemaps), self._crawl])
                self._folder.finish(self.report().ok, sources)
            except OSError as error:
                self._problem(NOTES, f"export: {shown(error)}")
        return self.report()

    @property
    def stopping(self) -> bool:
        """Return whether :meth:`stop` was called."""
        return self._stopping

    def stop(self) -> None:
        """Start no more renders; those in progress end. A signal's handler may call this."""
        self._stopping = True

    def report(self) -> Report:
        """Return the outcome so far."""
        folder = self._folder
        lost = dict(folder.lost) if folder is not None else {}
        with self._changed:
            words: dict[str, list[_Job]] = defaultdict(list)
            for job in self._jobs:
                words["lost" if job.path in lost else job.word].append(job)
            failed = [*self._failed, *(job.problem for job in words["failed"])]
            failed += [Problem(loser, f"export: its file is that of {winner}") for loser, winner in lost.items()]
            return Report(
                site=self.here.at(self.here.mount),
                rendered=len(words["rendered"]),
                there=len(words["there"]),
                skipped=tuple(sorted([*self._skipped, *(job.problem for job in words["skipped"])])),
                failed=tuple(sorted(failed)),
                left=len(words[""]),
                beyond=self._beyond,
                interrupted=self._stopping,
                seconds=self._monotonic() - self._began,
                assets=len(words["asset"]),
                written=folder.written if folder is not None else 0,
                unchanged=folder.unchanged if folder is not None else 0,
                removed=folder.removed if folder is not None else 0,
            )

    # Sources -----------------------------------------------------------------------------------------

    def _add_listed(self) -> None:
        for policy in self._rules.policies.values():
            if policy.paths is None or self._stopping:
                continue
            try:
                listed = self._rules.listed(policy)
            except Exception as error:
                # An app's callable may raise anything. One query that fails must not exclude all other pages.
                said = str(error) if isinstance(error, ConfigError) else shown(error)
                self._problem(f"rule {policy.name!r}: paths", said)
                continue
            for path, query in listed if not self._stopping else ():
                self._add(spelled_out(self.here.mount + path) + (f"?{query}" if query else ""))

    def _add_sitemap(self, given: str) -> None:
        found = pages_of_sitemap(given, self._maker)
        for path, sitemap in found.paths.items():
            self._add(path, linked=f"sitemap {sitemap}")
        for sitemap, reason in found.problems:
            self._problem(f"sitemap {sitemap}", reason)

    def _add(self, path: str, linked: str | None = None, crawled: bool = False) -> None:
        """Take on a page, once for all its spellings. A crawl does not report links to uncacheable pages."""
        with self._changed:
            if path in self._seen:
                _note_link(self._seen[path], linked)
                return
            self._seen[path] = None
        try:
            page = self._maker.page_at(path)
        except RefreshError as error:
            if error.reason == "not-listed":
                self._problem(path, error.reason, *([linked] if linked else []))
            elif not crawled:
                with self._changed:
                    self._skipped.append(Problem(path, error.reason))
            return
        except Exception as error:  # not a path; or an error of a rule's callable
            if not crawled:
                self._problem(path, str(error) if isinstance(error, ISRError) else shown(error))
            return
        with self._changed:
            job = self._by_page.get(page.task.page)
            if job is None:
                if crawled and len(self._by_page) >= self._most:
                    self._beyond += 1
                    return
                job = self._by_page[page.task.page] = _Job(url_of(page), page)
                self._begin(job)
            _note_link(job, linked)
            self._seen[path] = job

    def _add_asset(self, path: str, linked: str) -> None:
        with self._changed:
            if path in self._assets_seen:
                return
            self._assets_seen.add(path)
            self._begin(_Job(path, None, [linked]))

    def _problem(self, what: str, reason: str, *linked: str) -> None:
        with self._changed:
            self._failed.append(Problem(what, reason, linked))

    # The run -----------------------------------------------------------------------------------------

    def _begin(self, job: _Job) -> None:
        """Add a job; the caller holds the lock."""
        job.number = str(len(self._jobs)).encode()
        self._jobs.append(job)
        self._submit(job)

    def _submit(self, job: _Job) -> None:
        """Submit a job to the pool; the caller holds the lock."""
        self._waiting += 1
        if not self._pool.submit(job.number, on_done=self._drop):
            self._waiting -= 1
            self._left += 1

    def _watch(self) -> None:
        """Wait until all jobs are done, or until those in progress end after :meth:`stop`."""
        while True:
            if self._stopping:
                self._pool.stop(0)  # drops waiting jobs; takes no more
            with self._changed:
                busy = bool(self._waiting or self._running)
                if not busy and (self._stopping or not self._later):
                    break
                if busy:
                    self._changed.wait(TICK)
                late = [job for job in self._running if self._monotonic() >= job.due]
            for job in late:
                self._give_up(job)
            if not busy:
                self._again()
            self._tell()
        self._tell()

    def _again(self) -> None:
        """Submit the postponed pages again, until each has been waited for long enough."""
        self._pause(AGAIN)
        with self._changed:
            again, self._later = self._later, []
            for job in again:
                self._submit(job)

    def _tell(self) -> None:
        with self._changed:
            total = len(self._jobs)
            done = total - self._waiting - len(self._running) - len(self._later) - self._left
            job = next(iter(self._running), None)
        self._progress(done, total, job.path if job is not None else "")

    def _give_up(self, job: _Job) -> None:
        """Give up a render that hangs past its timeout: another thread replaces its thread."""
        with self._changed:
            if job not in self._running:
                return  # it has just ended
            del self._running[job]
            job.word, job.reason = "failed", "timeout"
            self._hung += 1
            all_hang = self._hung >= 2 * self._jobs_at_once  # the pool has no more threads to replace them
        if job.thread is not None:
            self._pool.write_off(job.thread)
        if all_hang:
            self._problem("everything", f"{self._hung} renders hang; the rest was not tried")
            self.stop()

    def _drop(self, has_run: bool | None) -> None:
        """Count a job that the stopping pool has dropped."""
        if has_run:
            return
        with self._changed:
            self._waiting -= 1
            self._left += 1
            self._changed.notify_all()

    def _work(self, number: bytes) -> bool:
        """Run one job, in a thread of the pool, and return ``True``."""
        with self._changed:
            job = self._jobs[int(number)]
            self._waiting -= 1
            if self._stopping:
                self._left += 1
                self._changed.notify_all()
                return True
            job.thread = threading.current_thread()
            self._running[job] = None
        outcome: BaseException | str
        try:
            outcome = self._export_asset(job) if job.page is None else self._make(job, job.page)
        except BaseException as error:  # any exception of an app ends only its page
            outcome = error
        self._end(job, outcome)
        return True

    def _end(self, job: _Job, outcome: BaseException | str) -> None:
        with self._changed:
            self._running.pop(job, None)
            if job.word:
                self._hung -= 1  # its thread was given up before
            elif isinstance(outcome, Later) and self._waits_for(job):
                self._later.append(job)
            else:
                job.word, job.reason = _said(outcome)
            self._changed.notify_all()

    def _waits_for(self, job: _Job) -> bool:
        """Return whether to try the page again: as long as another process's render, or a back-off, may take."""
        now = self._monotonic()
        if job.until is None:
            task = job.page.task if job.page is not None else None
            job.until = now + max(
                BACKOFF_PAUSE[1] * 1.25, task.limits.timeout + task.limits.lease if task is not None else 0.0
            )
        return now < job.until

    # One page ----------------------------------------------------------------------------------------

    def _make(self, job: _Job, page: Page) -> str:
        """Return ``rendered`` or ``there``; raise any other outcome."""
        # A refresh waits for an older render of this process first.
        job.due = self._monotonic() + page.task.limits.timeout + (page.task.limits.wait if self._force else 0.0) + GRACE
        rendered, content = self._maker.renew(page) if self._force else self._maker.get(page)
        job.due = float("inf")
        if int(content.status[:3]) >= 400:
            raise Fail(f"status-{content.status[:3]}")
        answer = Answer(int(content.status[:3]), content.headers, content.body)
        self._follow(job.path, answer)
        if self._folder is not None:
            self._folder.put(job.path, answer)
        return "rendered" if rendered else "there"

    def _follow(self, path: str, answer: Answer) -> None:
        """Take on the references of a page, before the page counts as done."""
        if not self._crawl and self._folder is None:
            return
        url = self.here.at(path)
        try:
            found = self._refers_to(url, answer)
        except NoFile:
            return  # its encoding cannot be undone; its export reports that
        for link in found.links if self._crawl else ():
            if (linked := self._maker.own_path(link)) is not None:
                self._add(linked, linked=path, crawled=True)
        for asset in found.assets if self._folder is not None else ():
            if (needed := self._maker.own_path(asset)) is not None:
                self._add_asset(needed, path)

    @staticmethod
    def _refers_to(url: str, answer: Answer) -> html_links.Found:
        if 300 <= answer.code < 400:
            return html_links.Found((urljoin(url, answer.header("location")),), ())
        if answer.is_html:
            body = answer.unpacked()
            return html_links.in_html(html_links.decoded_html(body, answer.header("content-type"))[0], url)
        if answer.is_css:
            return html_links.Found((), html_links.in_css(answer.unpacked().decode("utf-8", "replace"), url))
        return html_links.Found((), ())

    # Files that pages need ---------------------------------------------------------------------------

    def _export_asset(self, job: _Job) -> str:
        """Write a file that pages need, whether a rule covers it or not. Its query only names its version."""
        assert self._folder is not None
        path, name = job.path, job.path.partition("?")[0]
        with self._changed:
            page = self._seen.get(name)
        if page is not None and name == path:
            return "page"  # this run renders it as a page
        times = self._rules.policies["*"]
        job.due = self._monotonic() + 2 * times.render_timeout + times.lock_timeout + GRACE
        answer = self._maker.ask(path)
        for _ in range(5):
            if not 300 <= answer.code < 400:
                break
            there = self._maker.own_path(urljoin(self.here.at(path), answer.header("location")))
            if there is None:
                raise Skip("it redirects to another site")
            path = there
            answer = self._maker.ask(path)
        job.due = float("inf")
        if answer.code not in (200, 203):
            raise Fail(f"status-{answer.code}")
        self._follow(path, answer)
        self._folder.put(name, answer)
        return "asset"

    def _write_not_found(self, folder: StaticSite) -> None:
        """Write the page that the app shows for missing paths."""
        path = spelled(self.here.mount + "/404.html")
        try:
            answer = self._maker.ask(path)
            if answer.code in (200, 404):
                folder.put_not_found(answer)
                self._follow(path, answer)
        except Exception as error:
            self._problem(path, f"export: {error if isinstance(error, (NoFile, Fail)) else shown(error)}")


def _said(outcome: BaseException | str) -> tuple[str, str]:
    """Return the outcome of a job in one word, and the reason."""
    if isinstance(outcome, str):
        return outcome, ""
    if isinstance(outcome, Later):
        return "failed", "another process still renders it, or its last render failed a moment ago"
    if isinstance(outcome, Skip):
        return "skipped", str(outcome)
    if isinstance(outcome, NoFile):
        return "failed" if outcome.failed else "skipped", f"export: {outcome}"
    return "failed", str(outcome) if isinstance(outcome, (Fail, ISRError)) else shown(outcome)


def _processors() -> int:
    # The processors that this process may use, where the system tells.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _note_link(job: _Job | None, linked: str | None) -> None:
    if job is not None and linked is not None and linked not in job.linked and len(job.linked) < LINKERS:
        job.linked.append(linked)
