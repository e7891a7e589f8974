"""The command ``wsgi-isr prerender``: run :class:`~wsgi_isr.prerender.run.Prerender`, and print its report."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from ..errors import ConfigError
from ..middleware.isr import ISR
from ..middleware.runtime import runtime
from ..prerender.job_queue import Progress
from ..prerender.report import Report
from ..prerender.run import Prerender
from ..prerender.site_client import address_of, check_shared
from ..prerender.static_site import StaticSite
from .common import app_of, json_option, reported, say, site_to_render, url_option
from .refresh import check_paths

#: The time between two lines of progress without a terminal, in seconds.
EVERY = 5.0
#: The maximum number of failures that are named, and of skipped pages that are named for each reason.
SHOWN, EXAMPLES = 50, 3


@click.command("prerender")
@click.argument("target", metavar="MODULE:APP")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--sitemap", "sitemaps", metavar="FILE_OR_PATH", multiple=True, help="Render the pages of a sitemap.")
@click.option("--crawl", is_flag=True, help="Follow links, from / and from each listed page.")
@click.option(
    "--most",
    "max_pages",
    metavar="N",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Limit of a crawl.",
)
@click.option("--jobs", metavar="N", type=click.IntRange(1), help="Render N pages at a time.  [default: processors]")
@click.option("--force", is_flag=True, help="Render fresh pages as well.")
@click.option("--export", "folder", metavar="DIR", help="Write a static site to this directory.")
@url_option
@click.option("--quiet", is_flag=True, help="Print only errors.")
@json_option
def prerender_command(
    target: str,
    paths: Sequence[str],
    sitemaps: Sequence[str],
    url: str | None,
    folder: str | None,
    quiet: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Render pages before the first request.

    The pages are those in the `paths` of rules, at each PATH, in sitemaps and behind links. Fresh pages stay, so a
    second run continues where the first one stopped. Exits with 1, and names the pages, if pages are left or failed.
    """
    with reported(as_json):
        check_paths(paths)
        with app_of(target) as isr, runtime.acting_as("prerender"):
            prerender = _set_up(isr, url, folder, quiet, how, paths, sitemaps)
            with _progress(prerender, quiet) as progress, _stopped_by_signals(prerender):
                try:
                    report = prerender.run(paths, sitemaps, progress)
                except KeyboardInterrupt:
                    _end_at_once(isr, prerender, folder, quiet, as_json)
        _say(report, folder, quiet, as_json)
    sys.exit(0 if report.ok else 1)


def _set_up(
    isr: ISR,
    url: str | None,
    folder: str | None,
    quiet: bool,
    how: dict[str, Any],
    paths: Sequence[str],
    sitemaps: Sequence[str],
) -> Prerender:
    """Return the run.

    :raises ConfigError: no page is named, or no other process would see the pages.
    """
    listed = any(policy.paths is not None for policy in isr.configuration.rules.policies.values())
    if not (paths or sitemaps or how["crawl"] or listed):
        raise ConfigError("prerender", "no page is named", "write paths= in a rule, or --crawl, --sitemap or PATHs")
    shared = True
    try:
        check_shared(isr)
    except ConfigError:
        if folder is None:
            raise
        shared = False
    site = site_to_render(isr, url, quiet=quiet or not shared)
    return Prerender(isr, site, folder=StaticSite(folder, address_of(site)) if folder is not None else None, **how)


# While it runs ---------------------------------------------------------------------------------------


@contextmanager
def _stopped_by_signals(prerender: Prerender) -> Iterator[None]:
    """Handle signals in the block: the first stops the run after the renders in progress, the second at once."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        if prerender.stopping:
            raise KeyboardInterrupt
        prerender.stop()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_once(isr: ISR, prerender: Prerender, folder: str | None, quiet: bool, as_json: bool) -> NoReturn:
    # Leases are released, so that no process waits until they lapse. Renders are not joined: an orderly exit would run
    # handlers that the app has registered.
    isr.close(0)
    _say(prerender.report(), folder, quiet, as_json)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def _progress(prerender: Prerender, quiet: bool) -> Iterator[Progress]:
    """Yield a function that shows progress: as a bar on a terminal, otherwise in lines."""
    if quiet:
        yield lambda done, total, path: None
    elif sys.stderr.isatty():
        began = time.monotonic()
        bar: Any = click.progressbar(
            length=1, label="prerender", show_pos=True, show_percent=True, item_show_func=str, width=24, file=sys.stderr
        )
        with bar:

            def show(done: int, total: int, path: str) -> None:
                # Links that are found during the run raise the total.
                bar.length, bar.finished = max(1, total), False
                if prerender.stopping:
                    bar.label = "stopping "
                rate = done / max(0.001, time.monotonic() - began)
                bar.update(done - bar.pos, f"{rate:.0f}/s")

            yield show
    else:
        yield lines(prerender, lambda line: click.echo(line, err=True), time.monotonic)


def lines(prerender: Prerender, write: Callable[[str], object], clock: Callable[[], float]) -> Progress:
    """Return a function that writes progress in lines, :data:`EVERY` few seconds and when the run is stopped."""
    began = last = clock()
    stopping = False

    def show(done: int, total: int, path: str) -> None:
        nonlocal last, stopping
        if prerender.stopping and not stopping:
            stopping = True
            write("stopping: renders in progress still end; a second signal stops them at once")
        now = clock()
        if now - last < EVERY:
            return
        last = now
        rate = done / (now - began)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        at = f", at {path}" if path else ""
        write(f"prerender: {done}/{total} ({100 * done // max(1, total)}%), {rate:.1f}/s{left}{at}")

    return show


# Afterwards ------------------------------------------------------------------------------------------


def _say(report: Report, folder: str | None, quiet: bool, as_json: bool) -> None:
    if as_json:
        problems = {name: [problem._asdict() for problem in getattr(report, name)] for name in ("skipped", "failed")}
        say({"ok": report.ok, **report._asdict(), **problems}, "", as_json)
        return
    for problem in report.failed[:SHOWN]:
        linked = f" (linked from {', '.join(problem.linked_from)})" if problem.linked_from else ""
        click.echo(f"failed: {problem.path}: {problem.reason}{linked}", err=True)
    if len(report.failed) > SHOWN:
        click.echo(f"failed: {len(report.failed) - SHOWN} more; --json names all", err=True)
    if report.beyond:
        click.echo(f"{report.beyond} links were not followed: write a greater --most N", err=True)
    if report.interrupted:
        click.echo(f"stopped, with {report.left} known pages left; run it again to continue", err=True)
    elif report.left:
        click.echo(f"{report.left} pages were left: no thread could be started", err=True)
    if not quiet:
        for line in _summary(report, folder):
            click.echo(line)


def _summary(report: Report, folder: str | None) -> Iterator[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for problem in report.skipped:
        reasons[problem.reason].append(problem.path)
    for reason, paths in sorted(reasons.items()):
        more = f", and {len(paths) - EXAMPLES} more" if len(paths) > EXAMPLES else ""
        yield f"skipped, {reason}: {', '.join(paths[:EXAMPLES])}{more}"
    if folder is not None:
        files = report.written + report.unchanged
        gone = f", and {report.removed} of an earlier export removed" if report.removed else ""
        yield f"{folder}: {files} files, {report.written} of them new or changed{gone}"
    counts = f"{report.rendered} rendered, {report.there} already there, {len(report.skipped)} skipped"
    yield f"{report.site}: {counts}, {len(report.failed)} failed, in {report.seconds:.1f} s"
