"""``simulate``: what a cluster of any size does, without starting one (``python -m cluster.simulation.command``)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from wsgi_isr.cache.tag_versions import Mode

from .figures import Figures, Spread
from .parameters import BadParameter, Parameters
from .plot import plot
from .run import simulate as run

Command = TypeVar("Command", bound=Callable[..., Any])

_USUAL = Parameters()


def _number(name: str, kind: type, text: str) -> Callable[[Command], Command]:
    field = name.removeprefix("--").replace("-", "_")
    return click.option(name, field, type=kind, default=getattr(_USUAL, field), show_default=True, help=text)


def _seconds(_context: click.Context, parameter: click.Parameter, text: str) -> float | None:
    if text == "never":
        return None
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter("a number of seconds, or never", param=parameter) from None


@click.command()
@_number("--instances", int, "Instances of the app.")
@_number("--workers", int, "Worker processes of each.")
@_number("--nodes", int, "memcached nodes.")
@_number("--pages", int, "Pages of the site.")
@_number("--zipf", float, "Exponent of popularity; 0: all alike.")
@_number("--rate", float, "Requests per second, in all.")
@click.option("--revalidate", default="60", show_default=True, callback=_seconds, help="Seconds, or never.")
@click.option("--expire", default="never", show_default=True, callback=_seconds, help="Seconds, or never.")
@_number("--coherence", float, "Seconds for which copies are served without asking.")
@_number("--render", float, "Seconds that a render takes.")
@_number("--failing", float, "Share of renders that fail.")
@_number("--invalidations", float, "Invalidations of a tag per second.")
@_number("--fan-out", int, "Pages with the same tag.")
@click.option("--mode", type=click.Choice([mode.value for mode in Mode]), default="expire", show_default=True)
@_number("--local-cache-bytes", int, "L1 of each process.")
@_number("--page-bytes", int, "Bytes of a page.")
@click.option("--cold", is_flag=True, help="Begin with nothing stored.")
@_number("--duration", float, "Seconds to simulate.")
@_number("--seed", int, "The same seed gives the same figures.")
@click.option("--follow", type=int, help="Processes to follow one by one; by default as many as take some seconds.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write a plot to this file.")
def simulate(as_json: bool, svg: Path | None, mode: str, **given: Any) -> None:
    """Simulate a cluster: thousands of processes and millions of pages, through the decisions of wsgi_isr."""
    try:
        parameters = Parameters(mode=Mode(mode), **given)
    except BadParameter as error:
        raise click.UsageError(str(error)) from None
    began = time.monotonic()
    show = sys.stderr.isatty() and not as_json

    def progress(now: float) -> None:
        if show:
            click.echo(f"\r{now:.0f} of {parameters.duration:.0f} s ", err=True, nl=False)

    figures = run(parameters, progress)
    if show:
        click.echo("\r" + " " * 30 + "\r", err=True, nl=False)
    if as_json:
        click.echo(json.dumps(figures.as_json(), indent=2))
    else:
        for line in table(figures):
            click.echo(line)
        click.echo(f"simulated {parameters.duration:g} s in {time.monotonic() - began:.1f} s")
    if svg is not None:
        try:
            svg.write_text(plot(figures), encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{svg} cannot be written: {error.strerror}") from error


def table(figures: Figures) -> Iterator[str]:
    """Yield the figures as lines of a table."""
    p = figures.parameters
    yield (
        f"{p.instances:,} instances of {p.workers} workers ({figures.followed:,} of {p.processes:,} processes "
        f"followed), {p.nodes} nodes, {p.pages:,} pages, {figures.requests:,.0f} requests/s"
    )
    yield ""
    yield f"{'':34}{'in all':>14}{'busiest node':>16}"
    for name, in_all, per_node in (
        ("epoch reads/s", figures.epoch_reads, figures.epoch_reads_per_node),
        ("page gets/s", figures.page_gets, figures.page_gets_per_node),
        ("commands/s", figures.trips, figures.trips_per_node),
        ("bytes/s on the wire", figures.bytes, figures.bytes_per_node),
    ):
        yield f"{name:34}{in_all:>14,.0f}{max(per_node):>16,.0f}"
    for name, value in (
        ("tag reads/s", figures.tag_reads),
        ("page sets/s", figures.page_sets),
        ("lock writes/s", figures.lock_writes),
        ("renders/s", figures.renders),
    ):
        yield f"{name:34}{value:>14,.1f}"
    yield ""
    served = figures.requests or 1.0
    yield "served: " + ", ".join(
        f"{100 * value / served:.2f} % {name}"
        for name, value in (
            ("from L1", figures.served_from_l1),
            ("from a node", figures.served_from_nodes),
            ("stale", figures.served_stale),
            ("waited", figures.waited),
        )
    )
    windows = ", ".join(f"{renders} in {count:,}" for renders, count in figures.renders_per_window.items())
    yield f"renders per window: {windows or 'no window'}" + (
        f"; {figures.renders_failed:,} failed" if figures.renders_failed else ""
    )
    yield f"L1: {figures.l1_pages:,.0f} pages in each process at the end"
    yield ""
    yield f"{'':34}{'median':>12}{'p99':>12}{'most':>12}"
    yield _row("herd, processes", figures.herd, "{:,.0f}")
    yield _row("stale beyond revalidate, s", figures.beyond)
    yield _row("visitors' wait, s", figures.wait)
    yield _row("invalidation to first process, s", figures.first_sees)
    yield _row("invalidation to last process, s", figures.last_sees)
    if p.invalidations:
        yield (
            f"fresh after an invalidation: {figures.outdated_hits:,} answers, "
            f"{figures.outdated_longest:.3f} s after it at the latest"
        )


def _row(name: str, spread: Spread, form: str = "{:,.3f}") -> str:
    shown = ["-" if value is None else form.format(value) for value in spread[1:]]
    return f"{name:34}" + "".join(f"{value:>12}" for value in shown)


if __name__ == "__main__":
    simulate()
