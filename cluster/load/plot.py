"""Render a plot over time as SVG: answers by verdict, latency, renders, and faults of the parts.

Written by hand, because it is a few shapes, and a plotting library would be the largest dependency by far. A ``.png``
is the same picture, drawn by the Chromium that is installed for the tests anyway.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from ..errors import ClusterError
from .generator import CUT, UNLABELLED
from .renders import Render
from .report import Bucket, Report, Spell, buckets

#: From the bottom up: fresh, stale, waited for, not cacheable, failed.
COLOURS: Mapping[str, str] = {
    "HIT": "#3a7ca5",
    "STALE": "#9cc5e0",
    "MISS": "#f0b840",
    "EXPIRED": "#d9822b",
    "BYPASS": "#b5b9c0",
    UNLABELLED: "#d5d8dc",
    "DEGRADED": "#8e6bb0",
    "STALE-IF-ERROR": "#c06c9b",
    "5xx": "#d1373f",
    CUT: "#7c1d24",
}
INK, FAINT, GRID, FAULT = "#1f2933", "#66727f", "#e4e7eb", "#d1373f"
WIDTH, LEFT, RIGHT = 980, 74, 24
ROW = 20
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Plot:
    """The whole picture.

    :param began: the moment of its left edge.
    :param ended: the moment of its right edge.
    :param notes: lines below the title.
    :param marks: moments of violations with their descriptions, for the last row.
    """

    def __init__(
        self,
        title: str,
        notes: Sequence[str],
        began: float,
        ended: float,
        buckets: Sequence[Bucket],
        spells: Sequence[Spell],
        renders: Sequence[Render] = (),
        marks: Sequence[tuple[float, str]] = (),
    ) -> None:
        self._began, self._ended = began, max(ended, began + 0.001)
        self._buckets, self._spells, self._renders, self._marks = buckets, spells, renders, marks
        self._shapes: list[str] = []
        self._top = 30
        self._text(LEFT, self._top, title, size=17, weight=600)
        for note in notes:
            self._top += 19
            self._text(LEFT, self._top, note, size=12.5, colour=FAINT)
        self._top += 14
        lanes, bottom = self._top, self._top
        self._faults()
        bottom = self._top
        self._answers()
        self._latency()
        self._rendered()
        self._broken()
        self._time()
        self._shade(lanes, bottom)

    def svg(self) -> str:
        """Return the text of the file."""
        height = self._top + 16
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
            f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui, -apple-system, \'Segoe UI\', sans-serif">\n'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(self._shapes) + "\n</svg>\n"
        )

    # The panels, from the top down ---------------------------------------------------------------------

    def _faults(self) -> None:
        """Draw the faults: a row for each part, a bar for the duration of each fault."""
        if not self._spells:
            return
        self._heading("what was done")
        for part in sorted({spell.part for spell in self._spells}):
            middle = self._top + ROW / 2
            self._text(LEFT - 8, middle + 4, part, size=11, anchor="end")
            self._line(LEFT, middle, WIDTH - RIGHT, middle, GRID)
            last = 0.0
            for spell in (spell for spell in self._spells if spell.part == part):
                left, right = self._x(spell.began), self._x(spell.ended)
                if right - left < 3:
                    self._shapes.append(
                        f'<path d="M{left:.1f} {middle - 5:.1f}l5 5l-5 5l-5 -5z" fill="{FAULT}">'
                        f"<title>{escape(spell.fault)}</title></path>"
                    )
                    right = left + 5
                else:
                    self._rect(left, middle - 5, right - left, 10, FAULT, radius=3, title=spell.fault)
                wide = 6.2 * len(spell.fault)
                if right - left > wide + 8:
                    self._text((left + right) / 2, middle + 3.7, spell.fault, size=10.5, anchor="middle", colour="#fff")
                    last = right
                elif right + wide + 4 < WIDTH - RIGHT and left >= last:
                    self._text(right + 3, middle + 3.7, spell.fault, size=10.5, colour=FAULT, halo=True)
                    last = right + wide + 4
            self._top += ROW
        self._top += 8

    def _answers(self) -> None:
        """Draw answers per second, stacked by verdict."""
        self._heading("answers per second")
        width = self._width()
        present = [name for name in COLOURS if any(bucket.verdicts.get(name) for bucket in self._buckets)]
        present += sorted({name for b in self._buckets for name, n in b.verdicts.items() if n and name not in COLOURS})
        highest = max((sum(bucket.verdicts.values()) / width for bucket in self._buckets), default=0.0)
        ticks = _ticks(highest)
        height, top = 190.0, self._top
        scale = height / ticks[-1]
        for tick in ticks:
            self._grid(top + height - tick * scale, f"{tick:,g}")
        base = [0.0] * len(self._buckets)
        for name in present:
            upper = [low + b.verdicts.get(name, 0) / width for low, b in zip(base, self._buckets, strict=True)]
            self._area(base, upper, top + height, scale, COLOURS.get(name, "#888"), name)
            base = upper
        self._top += int(height) + 8
        self._legend([(name, COLOURS.get(name, "#888")) for name in present])

    def _latency(self) -> None:
        """Draw p50 and p99 in milliseconds, by powers of ten."""
        self._heading("latency, ms")
        values = [value * 1000 for bucket in self._buckets for value in (bucket.p50, bucket.p99) if value]
        low = math.floor(math.log10(min(values, default=1.0)))
        high = max(low + 1, math.ceil(math.log10(max(values, default=10.0))))
        height, top = 130.0, self._top

        def y(milliseconds: float) -> float:
            return top + height - height * (math.log10(max(milliseconds, 10.0**low)) - low) / (high - low)

        for power in range(low, high + 1):
            self._grid(y(10.0**power), f"{10.0**power:g}")
        kinds = (("p99", "#d9822b", [b.p99 for b in self._buckets]), ("p50", "#3a7ca5", [b.p50 for b in self._buckets]))
        for _, colour, series in kinds:
            points = [
                f"{self._x(bucket.began + self._width() / 2):.1f},{y(value * 1000):.1f}" if value else ""
                for bucket, value in zip(self._buckets, series, strict=True)
            ]
            for run in " ".join(point or "|" for point in points).split("|"):
                if run.strip():
                    self._shapes.append(
                        f'<polyline points="{run.strip()}" fill="none" stroke="{colour}" stroke-width="1.8" '
                        'stroke-linejoin="round" stroke-linecap="round"/>'
                    )
        self._top += int(height) + 8
        self._legend([(name, colour) for name, colour, _ in reversed(kinds)])

    def _rendered(self) -> None:
        """Draw a tick for each render, in the row of its instance."""
        shown = [render for render in self._renders if self._began <= render.ended <= self._ended]
        if not shown:
            return
        self._heading("renders")
        for instance in sorted({render.instance for render in shown}):
            middle = self._top + ROW / 2
            self._text(LEFT - 8, middle + 4, instance, size=11, anchor="end")
            self._line(LEFT, middle, WIDTH - RIGHT, middle, GRID)
            path = "".join(
                f"M{self._x(render.ended):.1f} {middle - 5:.1f}v10" for render in shown if render.instance == instance
            )
            self._shapes.append(f'<path d="{path}" stroke="{INK}" stroke-width="1.2" stroke-opacity="0.75"/>')
            self._top += ROW
        self._top += 8

    def _broken(self) -> None:
        """Draw the broken promises."""
        if not self._marks:
            return
        self._heading("broken promises")
        middle = self._top + ROW / 2
        self._line(LEFT, middle, WIDTH - RIGHT, middle, GRID)
        for at, what in self._marks[:2000]:
            x = self._x(at)
            self._shapes.append(
                f'<path d="M{x - 4:.1f} {middle - 4:.1f}l8 8m0 -8l-8 8" stroke="{FAULT}" stroke-width="2">'
                f"<title>{escape(what)}</title></path>"
            )
        self._top += ROW + 8

    def _time(self) -> None:
        seconds = self._ended - self._began
        self._line(LEFT, self._top, WIDTH - RIGHT, self._top, FAINT)
        for tick in _ticks(seconds, about=10):
            if tick <= seconds * 1.001:
                x = self._x(self._began + tick)
                self._line(x, self._top, x, self._top + 4, FAINT)
                self._text(x, self._top + 17, f"{tick:g} s", size=11, anchor="middle", colour=FAINT)
        self._top += 22

    def _shade(self, lanes: float, bottom: float) -> None:
        """Shade all panels for the duration of each fault."""
        shades = []
        for spell in self._spells:
            left, width = self._x(spell.began), self._x(spell.ended) - self._x(spell.began)
            shades.append(
                f'<rect x="{left:.1f}" y="{bottom:.1f}" width="{max(1.0, width):.1f}" '
                f'height="{self._top - 22 - bottom:.1f}" fill="{FAULT}" fill-opacity="{0.07 if width > 3 else 0.3}"/>'
            )
        self._shapes[:0] = shades

    # Elements of the panels ----------------------------------------------------------------------------

    def _width(self) -> float:
        """Return the seconds of a bucket."""
        if len(self._buckets) < 2:
            return self._ended - self._began
        return self._buckets[1].began - self._buckets[0].began

    def _x(self, at: float) -> float:
        return LEFT + (WIDTH - RIGHT - LEFT) * (at - self._began) / (self._ended - self._began)

    def _heading(self, text: str) -> None:
        self._top += 16
        self._text(LEFT, self._top, text, size=12.5, weight=600)
        self._top += 8

    def _legend(self, entries: Sequence[tuple[str, str]]) -> None:
        x = float(LEFT)
        self._top += 8
        for name, colour in entries:
            self._rect(x, self._top - 8, 10, 10, colour, radius=2)
            self._text(x + 15, self._top + 1, name, size=11)
            x += 30 + 7.2 * len(name)
        self._top += 8

    def _grid(self, y: float, label: str) -> None:
        self._line(LEFT, y, WIDTH - RIGHT, y, GRID)
        self._text(LEFT - 8, y + 4, label, size=11, anchor="end", colour=FAINT)

    def _area(
        self, lower: Sequence[float], upper: Sequence[float], bottom: float, scale: float, colour: str, name: str
    ) -> None:
        """Draw steps: a bucket is a count, so no value between two buckets was measured."""

        def edge(values: Sequence[float]) -> list[str]:
            return [
                f"{self._x(at):.1f},{bottom - value * scale:.1f}"
                for bucket, value in zip(self._buckets, values, strict=True)
                for at in (bucket.began, min(self._ended, bucket.began + self._width()))
            ]

        points = " ".join([*edge(upper), *reversed(edge(lower))])
        self._shapes.append(f'<polygon points="{points}" fill="{colour}"><title>{escape(name)}</title></polygon>')

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        anchor: str = "start",
        colour: str = INK,
        weight: int = 400,
        halo: bool = False,
    ) -> None:
        around = ' stroke="#fff" stroke-width="3" paint-order="stroke"' if halo else ""
        self._shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="{weight}"{around}>{escape(text)}</text>'
        )

    def _line(self, x: float, y: float, to_x: float, to_y: float, colour: str) -> None:
        self._shapes.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"/>')

    def _rect(
        self, x: float, y: float, width: float, height: float, colour: str, radius: float = 0, title: str = ""
    ) -> None:
        inside = f"<title>{escape(title)}</title>" if title else ""
        self._shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}" fill="{colour}">'
            f"{inside}</rect>"
        )


def _ticks(highest: float, about: int = 4) -> list[float]:
    """Return round numbers from 0 to at least ``highest``."""
    step = 10.0 ** math.floor(math.log10(max(highest, 1e-3) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * about >= highest)
    return [number * step for number in range(math.ceil(highest / step) + 1)] if highest else [0.0, 1.0]


def of_load(report: Report, app: str) -> str:
    """Render the plot of a load."""
    samples = report.samples
    figures = report.as_json()
    latency = figures["latency_ms"]
    notes = [
        f"{figures['requests']:,} requests by {report.connections} connections, {figures['per_second']:,} per second; "
        f"p50 {latency.get('p50', 0):g} ms, p99 {latency.get('p99', 0):g} ms; {report.failed:,} failed"
    ]
    if report.windows is not None and report.windows.windows:
        windows = report.windows
        notes.append(f"{windows.renders} renders in {windows.windows} windows: {windows.per_window:.2f} in each")
    series = buckets(samples, max(0.1, round(report.seconds / 120, 1)))
    return Plot(app, notes, samples.began, samples.ended, series, report.spells, report.renders).svg()


def write(svg: str, path: Path) -> None:
    """Write a file in the format of its suffix. :raises ClusterError: not writable, or no Chromium for a PNG."""
    try:
        if path.suffix == ".png":
            _draw(svg, path)
        else:
            path.write_text(svg, "utf-8")
    except OSError as error:
        raise ClusterError(f"{path} cannot be written: {error.strerror}") from error


def drawn_by() -> str | None:
    """Return the program that draws a PNG; ``None`` where there is none."""
    return next((found for name in CHROMIUM if (found := shutil.which(name))), None)


def _draw(svg: str, path: Path) -> None:
    chromium = drawn_by()
    if chromium is None:
        raise ClusterError(f"no Chromium draws {path.name} here: name a .svg file, or apt-get install chromium")
    height = svg.partition('height="')[2].partition('"')[0]
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "plot.html"
        page.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{svg}', "utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={name}/profile", "--force-device-scale-factor=2", "--virtual-time-budget=1000"]
        command += [f"--window-size={WIDTH},{height}", f"--screenshot={path.absolute()}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode or not path.exists():
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ClusterError(f"{chromium} did not draw {path}: {said[-1]}")
