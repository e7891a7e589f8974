"""The parts of a picture: an SVG in the colours of a light or of a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


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

    def line(self, points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> None:
        path = "M" + " L".join(f"{x:.5g} {y:.5g}" for x, y in points)
        dash = f" stroke-dasharray='{dashes}'" if dashes else ""
        self.parts.append(f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='2'{dash}/>")

    def dot(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f"<circle cx='{x:.5g}' cy='{y:.5g}' r='3.5' fill='{colour}'/>")

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"
