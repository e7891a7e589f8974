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
from urllib.parse import urljoin

from ..cache.lease import BACKOFF_PAUSE
from ..config.origin import Site
from ..errors import ConfigError, ISRError, RefreshError
from ..middleware.isr import ISR
from ..pages.resolver import Page
from . import html_links
from .html_links import spelled
from .job_queue import Job, JobQueue, Progress, Result
from .report import Problem, Report
from .site_client import Fail, SiteClient, Skip, TryLater, shown, spelled_out, url_of
from .sitemaps import pages_of_sitemap
from .static_site import NOTES, Answer, NoFile, StaticSite

#: Seconds past a page's timeout after which its thread is given up. The render itself is given up at its timeout.
GRACE = 2.0
#: The most redirects that are followed to a file that a page needs.
MAX_REDIRECTS = 5


class Prerender:
    """Renders the pages of the sources: one run, then :meth:`report`.

    :param jobs: pages that are rendered at a time, in threads; by default the number of processors, at least 2.
    :param force: render fresh pages as well, from data that is read from now on.
    :param crawl: follow the links of each page, until ``max_pages`` pages are known.
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
        max_pages: int = 100_000,
        folder: StaticSite | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rules = isr.configuration.rules
        self._client = SiteClient(isr, site)
        self._address = self._client.address
        self._force = force
        self._crawl = crawl
        self._max_pages = max_pages
        self._folder = folder
        self._monotonic = isr._engine.monotonic
        self._started = self._monotonic()
        self._queue = JobQueue(self._run_job, jobs or max(2, _processors()), self._monotonic, pause)
        # The lock guards all attributes below.
        self._lock = threading.Lock()
        self._jobs_by_path: dict[str, Job | None] = {}
        self._jobs_by_page: dict[str, Job] = {}
        self._assets: set[str] = set()
        self._skipped: list[Problem] = []
        self._failed: list[Problem] = []
        self._beyond = 0

    def run(self, paths: Iterable[str] = (), sitemaps: Iterable[str] = (), progress: Progress | None = None) -> Report:
        """Render the pages of all sources.

        :param paths: besides them, the paths that the rules list are rendered.
        :param sitemaps: files, or paths of the site.
        :param progress: called in this thread.
        """
        paths, sitemaps = list(paths), list(sitemaps)
        try:
            self._add_sources(paths, sitemaps)
            if self._folder is not None:
                self._write_not_found(self._folder)
            self._queue.join(progress or (lambda done, total, path: None))
        finally:
            self._queue.close()
        if self._folder is not None:
            try:
                sources = json.dumps([sorted(paths), sorted(sitemaps), self._crawl])
                self._folder.finish(self.report().ok, sources)
            except OSError as error:
                self._add_failure(NOTES, f"export: {shown(error)}")
        return self.report()

    @property
    def stopping(self) -> bool:
        """Return whether :meth:`stop` was called."""
        return self._queue.stopping

    def stop(self) -> None:
        """Start no more renders; those in progress end. A signal's handler may call this."""
        self._queue.stop()

    def report(self) -> Report:
        """Return the outcome so far."""
        folder = self._folder
        lost = dict(folder.lost) if folder is not None else {}
        jobs: dict[str, list[Job]] = defaultdict(list)
        for job in self._queue.jobs():
            outcome = job.result.outcome if job.result is not None else ""
            jobs["lost" if job.path in lost else outcome].append(job)
        with self._lock:
            skipped = [*self._skipped, *(job.problem for job in jobs["skipped"])]
            failed = [*self._failed, *(job.problem for job in jobs["failed"])]
        failed += [Problem(loser, f"export: its file is that of {winner}") for loser, winner in lost.items()]
        if hanging := self._queue.hung_everywhere:
            failed.append(Problem("everything", f"{hanging} renders hang; the rest was not tried"))
        return Report(
            site=self._address.at(self._address.mount),
            rendered=len(jobs["rendered"]),
            there=len(jobs["there"]),
            skipped=tuple(sorted(skipped)),
            failed=tuple(sorted(failed)),
            left=len(jobs[""]),
            beyond=self._beyond,
            interrupted=self.stopping,
            seconds=self._monotonic() - self._started,
            assets=len(jobs["asset"]),
            written=folder.written if folder is not None else 0,
            unchanged=folder.unchanged if folder is not None else 0,
            removed=folder.removed if folder is not None else 0,
        )

    # Sources -----------------------------------------------------------------------------------------

    def _add_sources(self, paths: list[str], sitemaps: list[str]) -> None:
        for path in paths:
            self._add(path)
        self._add_listed()
        for sitemap in sitemaps:
            self._add_sitemap(sitemap)
        if self._crawl:
            self._add(spelled(self._address.mount + "/"))

    def _add_listed(self) -> None:
        for policy in self._rules.policies.values():
            if policy.paths is None or self.stopping:
                continue
            try:
                listed = self._rules.listed(policy)
            except Exception as error:
                # An app's callable may raise anything. One query that fails must not exclude all other pages.
                reason = str(error) if isinstance(error, ConfigError) else shown(error)
                self._add_failure(f"rule {policy.name!r}: paths", reason)
                continue
            for path, query in listed if not self.stopping else ():
                self._add(spelled_out(self._address.mount + path) + (f"?{query}" if query else ""))

    def _add_sitemap(self, given: str) -> None:
        found = pages_of_sitemap(given, self._client)
        for path, sitemap in found.paths.items():
            self._add(path, linked=f"sitemap {sitemap}")
        for sitemap, reason in found.problems:
            self._add_failure(f"sitemap {sitemap}", reason)

    def _add(self, path: str, linked: str | None = None, crawled: bool = False) -> None:
        """Add a page, once for all its spellings. A crawl does not report links to uncacheable pages."""
        with self._lock:
            if path in self._jobs_by_path:
                if (job := self._jobs_by_path[path]) is not None:
                    job.note_link(linked)
                return
            self._jobs_by_path[path] = None
        try:
            page = self._client.page_at(path)
        except RefreshError as error:
            if error.reason == "not-listed":
                self._add_failure(path, error.reason, *([linked] if linked else []))
            elif not crawled:
                with self._lock:
                    self._skipped.append(Problem(path, error.reason))
            return
        except Exception as error:  # not a path; or an error of a rule's callable
            if not crawled:
                self._add_failure(path, str(error) if isinstance(error, ISRError) else shown(error))
            return
        with self._lock:
            job = self._jobs_by_page.get(page.task.page)
            if job is None:
                if crawled and len(self._jobs_by_page) >= self._max_pages:
                    self._beyond += 1
                    return
                # Another process's render, or a back-off, may take so long.
                retry_for = max(BACKOFF_PAUSE[1] * 1.25, page.task.limits.timeout + page.task.limits.lease)
                job = self._jobs_by_page[page.task.page] = Job(url_of(page), page, retry_for)
                self._queue.add(job)
            job.note_link(linked)
            self._jobs_by_path[path] = job

    def _add_asset(self, path: str, linked: str) -> None:
        with self._lock:
            if path in self._assets:
                return
            self._assets.add(path)
        job = Job(path, None, BACKOFF_PAUSE[1] * 1.25)
        job.note_link(linked)
        self._queue.add(job)

    def _add_failure(self, source: str, reason: str, *linked: str) -> None:
        with self._lock:
            self._failed.append(Problem(source, reason, linked))

    # One page ----------------------------------------------------------------------------------------

    def _run_job(self, job: Job) -> Result | None:
        """Return the result of a job, in a thread of the queue; ``None`` where it must run again later."""
        try:
            return Result(self._export_asset(job) if job.page is None else self._render(job, job.page))
        except TryLater:
            return None
        except BaseException as error:  # any exception of an app ends only its page
            return _result_of(error)

    def _render(self, job: Job, page: Page) -> str:
        """Return ``rendered`` or ``there``; raise any other outcome."""
        # A refresh waits for an older render of this process first.
        limits = page.task.limits
        job.deadline = self._monotonic() + limits.timeout + (limits.wait if self._force else 0.0) + GRACE
        rendered, content = self._client.renew(page) if self._force else self._client.get(page)
        job.deadline = float("inf")
        if int(content.status[:3]) >= 400:
            raise Fail(f"status-{content.status[:3]}")
        answer = Answer(int(content.status[:3]), content.headers, content.body)
        self._follow(job.path, answer)
        if self._folder is not None:
            self._folder.put(job.path, answer)
        return "rendered" if rendered else "there"

    def _follow(self, path: str, answer: Answer) -> None:
        """Add the references of a page, before the page counts as done."""
        if not self._crawl and self._folder is None:
            return
        try:
            found = _references(self._address.at(path), answer)
        except NoFile:
            return  # its encoding cannot be undone; its export reports that
        for link in found.links if self._crawl else ():
            if (linked := self._client.own_path(link)) is not None:
                self._add(linked, linked=path, crawled=True)
        for asset in found.assets if self._folder is not None else ():
            if (needed := self._client.own_path(asset)) is not None:
                self._add_asset(needed, path)

    # Files that pages need ---------------------------------------------------------------------------

    def _export_asset(self, job: Job) -> str:
        """Write a file that pages need, whether a rule covers it or not. Its query only names its version."""
        assert self._folder is not None
        path, name = job.path, job.path.partition("?")[0]
        with self._lock:
            page = self._jobs_by_path.get(name)
        if page is not None and name == path:
            return "page"  # this run renders it as a page
        limits = self._rules.policies["*"]
        job.deadline = self._monotonic() + 2 * limits.render_timeout + limits.lock_timeout + GRACE
        answer = self._client.fetch(path)
        for _ in range(MAX_REDIRECTS):
            if not 300 <= answer.code < 400:
                break
            target = self._client.own_path(urljoin(self._address.at(path), answer.header("location")))
            if target is None:
                raise Skip("it redirects to another site")
            path = target
            answer = self._client.fetch(path)
        job.deadline = float("inf")
        if answer.code not in (200, 203):
            raise Fail(f"status-{answer.code}")
        self._follow(path, answer)
        self._folder.put(name, answer)
        return "asset"

    def _write_not_found(self, folder: StaticSite) -> None:
        """Write the page that the app shows for missing paths."""
        path = spelled(self._address.mount + "/404.html")
        try:
            answer = self._client.fetch(path)
            if answer.code in (200, 404):
                folder.put_not_found(answer)
                self._follow(path, answer)
        except Exception as error:
            self._add_failure(path, f"export: {error if isinstance(error, (NoFile, Fail)) else shown(error)}")


def _references(url: str, answer: Answer) -> html_links.Found:
    """Return the references of the response for ``url``.

    :raises NoFile: its encoding cannot be undone.
    """
    if 300 <= answer.code < 400:
        return html_links.Found((urljoin(url, answer.header("location")),), ())
    if answer.is_html:
        body = answer.unpacked()
        return html_links.in_html(html_links.decoded_html(body, answer.header("content-type"))[0], url)
    if answer.is_css:
        return html_links.Found((), html_links.in_css(answer.unpacked().decode("utf-8", "replace"), url))
    return html_links.Found((), ())


def _result_of(error: BaseException) -> Result:
    """Return the result of a job that ended with an exception."""
    if isinstance(error, Skip):
        return Result("skipped", str(error))
    if isinstance(error, NoFile):
        return Result("failed" if error.failed else "skipped", f"export: {error}")
    return Result("failed", str(error) if isinstance(error, (Fail, ISRError)) else shown(error))


def _processors() -> int:
    """Return the number of processors that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
