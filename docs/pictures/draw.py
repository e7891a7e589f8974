"""Draws the pictures of the documentation: ``python docs/pictures/draw.py``.

Each picture is an SVG in two versions, for light and for dark pages. The bar chart reads ``benchmarks.json``, which
``python -m tests.benchmarks hit gunicorn --json docs/pictures/benchmarks.json`` writes. A test compares the files with
the output of this script.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
FIGURES = HERE / "benchmarks.json"


class Theme(NamedTuple):
    """Colours of one version."""

    paper: str
    ink: str
    faint: str
    box: str
    fresh: str
    stale: str
    waiting: str
    passed: str


LIGHT = Theme("#ffffff", "#1f2328", "#59636e", "#f6f8fa", "#1a7f37", "#9a6700", "#cf222e", "#59636e")
DARK = Theme("#0d1117", "#e6edf3", "#9198a1", "#161b22", "#3fb950", "#d29922", "#f85149", "#9198a1")
THEMES = {"light": LIGHT, "dark": DARK}
FONT = "font-family='-apple-system,Segoe UI,Helvetica,Arial,sans-serif'"


class Drawing:
    """The parts of an SVG, in the order in which they are painted."""

    def __init__(self, theme: Theme, width: int, height: int, title: str) -> None:
        self.theme = theme
        self.parts = [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
            f"role='img' aria-label='{escape(title, quote=True)}' {FONT} font-size='14'>",
            f"<title>{escape(title)}</title>",
            f"<rect width='{width}' height='{height}' rx='8' fill='{theme.paper}'/>",
            "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
            f"orient='auto'><path d='M0 0 10 5 0 10z' fill='{theme.faint}'/></marker></defs>",
        ]

    def text(self, x: float, y: float, words: str, colour: str = "", anchor: str = "start", **more: str) -> None:
        extra = "".join(f" {name.replace('_', '-')}='{value}'" for name, value in more.items())
        fill = colour or self.theme.ink
        self.parts.append(
            f"<text x='{x:g}' y='{y:g}' fill='{fill}' text-anchor='{anchor}'{extra}>{escape(words)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, lines: Sequence[str], edge: str = "") -> None:
        self.parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='6' fill='{self.theme.box}' "
            f"stroke='{edge or self.theme.faint}' stroke-width='1.5'/>"
        )
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            if number == 0:
                self.text(x + width / 2, top, line, anchor="middle", font_weight="600")
            else:
                self.text(x + width / 2, top + 18 * number, line, self.theme.faint, "middle", font_size="12")

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = " stroke-dasharray='5 4'" if dashed else ""
        stroke = f"stroke='{self.theme.faint}' stroke-width='1.5'{dash}"
        self.parts.append(f"<path d='{path}' fill='none' {stroke} marker-end='url(#head)'/>")

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{max(1.5, width):.5g}' height='{height:g}' rx='3' fill='{colour}'/>"
        )

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def request(theme: Theme) -> str:
    """Return the way of a request."""
    d = Drawing(theme, 880, 330, "The way of a request: match, key, look up, judge, then serve or render")
    for x, lines in (
        (20, ("visitor", "GET /blog/a")),
        (165, ("match", "which rule?")),
        (310, ("key", "what is declared")),
        (475, ("look up", "L1, then the store")),
        (640, ("judge", "age and tags")),
    ):
        d.box(x, 30, 125 if x not in (310, 475) else 145, 56, lines)
    for start, end in ((145, 165), (290, 310), (455, 475), (620, 640)):
        d.arrow((start, 58), (end, 58))
    verdicts = (
        (165, "BYPASS", "the app answers", theme.passed),
        (340, "HIT", "served from the cache", theme.fresh),
        (515, "STALE", "the old page, at once", theme.stale),
        (690, "MISS, EXPIRED", "the visitor waits", theme.waiting),
    )
    for x, word, words, colour in verdicts:
        d.box(x, 150, 165, 56, (word, words), colour)
    d.arrow((227, 86), (227, 150))
    d.arrow((702, 86), (702, 120), (422, 120), (422, 150))
    d.arrow((702, 120), (597, 120), (597, 150))
    d.arrow((702, 120), (772, 120), (772, 150))
    d.text(240, 110, "not for the cache", theme.faint, font_size="12")
    d.box(515, 255, 340, 56, ("one render in the cluster", "from the key alone, stored with tag versions"))
    d.arrow((597, 206), (597, 255), dashed=True)
    d.text(608, 236, "in the background", theme.faint, font_size="12")
    d.arrow((772, 206), (772, 255))
    d.box(165, 255, 165, 56, ("the app", "their own request"))
    d.arrow((247, 206), (247, 255))
    return d.svg()


def timeline(theme: Theme) -> str:
    """Return the life of a page: fresh, stale, regenerated, expired."""
    d = Drawing(
        theme, 880, 300, "The life of a page with revalidate=60 and expire=3600: fresh, stale, regenerated, expired"
    )
    d.text(20, 34, "revalidate=60", font_weight="600")
    y = 92
    d.bar(40, y, 300, 26, theme.fresh)
    d.bar(344, y, 200, 26, theme.stale)
    d.bar(548, y, 300, 26, theme.fresh)
    for x, words in ((190, "fresh"), (444, "stale"), (698, "fresh again")):
        d.text(x, y + 18, words, theme.paper, "middle", font_weight="600")
    d.text(40, y + 46, "rendered", theme.faint, font_size="12")
    d.text(344, y + 46, "60 s", theme.faint, font_size="12")
    for x, word, colour in (
        (120, "HIT", theme.fresh),
        (260, "HIT", theme.fresh),
        (430, "STALE", theme.stale),
        (640, "HIT", theme.fresh),
    ):
        d.arrow((x, 66), (x, y - 2))
        d.text(x, 58, word, colour, "middle", font_weight="600")
    d.box(436, 140, 108, 30, ("one render",))
    d.arrow((430, y + 26), (430, 155), (436, 155), dashed=True)
    d.arrow((544, 155), (560, 155), (560, y + 28), dashed=True)
    d.text(570, 160, "takes the place of the old page", theme.faint, font_size="12")
    d.text(20, 212, "expire=3600, and no visitor for an hour", font_weight="600")
    y = 250
    d.bar(40, y, 90, 26, theme.fresh)
    d.bar(134, y, 396, 26, theme.stale)
    d.bar(534, y, 110, 26, theme.waiting)
    d.bar(648, y, 200, 26, theme.fresh)
    for x, words in ((85, "fresh"), (332, "stale"), (589, "expired"), (748, "fresh again")):
        d.text(x, y + 18, words, theme.paper, "middle", font_weight="600")
    d.arrow((620, 226), (620, y - 2))
    d.text(620, 218, "EXPIRED: waits for the new page", theme.waiting, "middle", font_weight="600")
    return d.svg()


def benchmarks(theme: Theme) -> str:
    """Return the bar chart of the benchmarks ``hit`` and ``gunicorn``."""
    figures: dict[str, Any] = json.loads(FIGURES.read_text("utf-8"))
    (hit,) = figures["benchmarks"]["hit"]["tables"]
    rows = {row["label"]: row["median"] for row in hit["rows"]}
    shown = [
        ("wsgi_isr around Flask", rows["ISR around Flask"], theme.fresh),
        ("Flask-Caching, SimpleCache", rows["Flask-Caching, SimpleCache"], theme.passed),
        ("Django cache middleware, locmem", rows["Django cache middleware, locmem"], theme.passed),
        ("Flask view that does nothing", rows["bare Flask view"], theme.passed),
        ("WSGI function that does nothing", rows["bare WSGI function"], theme.passed),
    ]
    servers = figures["benchmarks"]["gunicorn"]["tables"]
    d = Drawing(
        theme, 880, 92 + 32 * (len(shown) + len(servers)) + 70, "Benchmarks: a fresh hit, and requests per second"
    )
    y = 34
    d.text(20, y, "A fresh hit in the process, page of 20 KB: µs of CPU time, less is better", font_weight="600")
    y = _bars(d, y + 14, shown, lambda value: f"{value:.3g} µs")
    y += 30
    d.text(
        20, y, "Requests per second of one gunicorn worker, share of a bare function: more is better", font_weight="600"
    )
    shares = [(table["title"].removeprefix("gunicorn, "), _share(table), theme.fresh) for table in servers]
    y = _bars(d, y + 14, shares, lambda value: f"{value:.2f}")
    d.text(20, y + 22, figures["machine"], theme.faint, font_size="11")
    return d.svg()


def _share(table: dict[str, Any]) -> float:
    return float(next(row["ratio"] for row in table["rows"] if row["label"] == "pages from L1"))


def _bars(d: Drawing, y: float, rows: Sequence[tuple[str, float, str]], shown: Callable[[float], str]) -> float:
    longest = max(value for _, value, _ in rows)
    for label, value, colour in rows:
        d.text(270, y + 19, label, anchor="end", font_size="13")
        d.bar(282, y + 5, 500 * value / longest, 20, colour)
        d.text(282 + max(1.5, 500 * value / longest) + 8, y + 20, shown(value), font_size="13")
        y += 32
    return y


PICTURES: dict[str, Callable[[Theme], str]] = {"request": request, "timeline": timeline, "benchmarks": benchmarks}


def pictures() -> dict[str, str]:
    """Return the text of every file, by its name."""
    return {f"{name}-{mode}.svg": draw(theme) for name, draw in PICTURES.items() for mode, theme in THEMES.items()}


if __name__ == "__main__":
    for name, text in pictures().items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(HERE / name)
