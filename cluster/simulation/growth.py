"""``python -m cluster.simulation.growth``: print the tables of ``PLAN.md``, which show the costs of growth.

Each table multiplies one parameter; the last one multiplies all but the nodes together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click

from .figures import Figures
from .parameters import Parameters
from .run import simulate

#: A site of some size: 100 requests per second for each instance, one change per second that touches 100 pages.
BASE: dict[str, Any] = {
    "instances": 20,
    "workers": 4,
    "nodes": 3,
    "pages": 10_000,
    "rate": 2_000.0,
    "revalidate": 3600.0,
    "invalidations": 1.0,
    "fan_out": 100,
    "duration": 20.0,
    "follow": None,
}
FACTORS = (1, 10, 100, 1000)
#: Parameters that are multiplied together: instances bring their requests with them.
AXES: dict[str, tuple[str, ...]] = {
    "instances": ("instances", "rate"),
    "requests": ("rate",),
    "pages": ("pages",),
    "nodes": ("nodes",),
    "invalidations": ("invalidations",),
    "everything but nodes": ("instances", "rate", "pages", "invalidations"),
}

#: Possible remedies, with a hundred times the instances.
REMEDIES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "10 nodes": {"nodes": 10},
    "30 nodes": {"nodes": 30},
    "coherence 1 s": {"coherence": 1.0},
    "the same visitors on a tenth of the processes": {"instances": 200},
    "an invalidation in 10 s": {"invalidations": 0.1},
    "no invalidation": {"invalidations": 0.0},
}

HEAD = (
    "epoch reads/s",
    "tag reads/s",
    "page gets/s",
    "renders/s",
    "commands/s",
    "busiest node",
    "MB/s, busiest node",
    "L1 hits",
    "visitors who wait",
)


class Row(NamedTuple):
    """One cluster of a table."""

    factor: int
    parameters: Parameters


def rows(axis: str, base: Mapping[str, Any] = BASE) -> Iterator[Row]:
    """Yield the clusters of one table."""
    for factor in FACTORS:
        grown = {name: base[name] * factor for name in AXES[axis]}
        yield Row(factor, Parameters(**{**base, **grown}))


def shown(first: str, figures: Figures) -> str:
    """Return a line of a table, in Markdown."""
    cells = (
        first,
        _short(figures.epoch_reads),
        _short(figures.tag_reads),
        _short(figures.page_gets),
        _short(figures.renders),
        _short(figures.trips),
        _short(max(figures.trips_per_node)),
        f"{max(figures.bytes_per_node) / 1e6:,.1f}",
        f"{100 * figures.served_from_l1 / figures.requests:.0f} %",
        f"{100 * figures.waited / figures.requests:.1f} %",
    )
    return f"| {' | '.join(cells)} |"


def _short(number: float) -> str:
    """Return a number with three digits; a plan needs no more."""
    digits = 0 if number >= 100 else 1
    return f"{float(f'{number:.3g}'):,.{digits}f}"


def _head(title: str, first: str) -> str:
    return f"\n{title}:\n\n| {first} | {' | '.join(HEAD)} |\n| --- | {' | '.join(['---:'] * len(HEAD))} |"


def _line(first: str, parameters: Parameters) -> None:
    began = time.monotonic()
    click.echo(shown(first, simulate(parameters)))
    click.echo(f"{first}: {time.monotonic() - began:.0f} s", err=True)


@click.command()
@click.option("--axis", type=click.Choice([*AXES]), multiple=True, help="Only these tables.")
@click.option("--most", type=int, default=FACTORS[-1], show_default=True, help="The largest factor.")
def growth(axis: tuple[str, ...], most: int) -> None:
    """Print what grows when a cluster does, as Markdown. All of it takes some minutes."""
    for name in axis or AXES:
        click.echo(_head(name.capitalize(), "x"))
        for factor, parameters in rows(name):
            if factor <= most:
                _line(f"{factor:,}", parameters)
    if not axis:
        click.echo(_head("With 2,000 instances", ""))
        for name, change in REMEDIES.items():
            _line(name, Parameters(**{**BASE, "instances": 2000, "rate": 200_000.0, **change}))


if __name__ == "__main__":
    growth()
