"""Render the figures as one SVG: rates over time. It is a few lines of text, so no library is used."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .figures import Figures

_WIDTH, _HEIGHT = 900, 150
_LEFT, _TOP = 90, 46
_COLOURS = ("#1b6ca8", "#c8553d", "#4f772d", "#6b4e9b")


def plot(figures: Figures) -> str:
    """Render a panel for each rate, below a title with the parameters."""
    p = figures.parameters
    seconds = [second.at for second in figures.seconds]
    panels = (
        ("epoch reads/s", [second.epoch_reads for second in figures.seconds]),
        ("page gets/s", [second.page_gets for second in figures.seconds]),
        ("tag reads/s", [second.tag_reads for second in figures.seconds]),
        ("renders/s", [second.renders for second in figures.seconds]),
    )
    height = _TOP + len(panels) * (_HEIGHT + 40)
    title = (
        f"{p.instances:,} instances x {p.workers} workers, {p.nodes} nodes, {p.pages:,} pages, "
        f"{p.rate:,.0f} requests/s, coherence {p.coherence:g} s, {p.invalidations:g} invalidations/s"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="14">{escape(title)}</text>',
    ]
    for number, (name, values) in enumerate(panels):
        top = _TOP + number * (_HEIGHT + 40) + 20
        parts += _panel(name, seconds, values, top, _COLOURS[number])
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, seconds: Sequence[float], values: Sequence[float], top: int, colour: str) -> list[str]:
    right, bottom = _WIDTH - 20, top + _HEIGHT - 30
    most = max(values, default=0.0) or 1.0
    end = max(seconds, default=1.0)
    points = " ".join(
        f"{_LEFT + (right - _LEFT) * at / end:.1f},{bottom - (bottom - top) * value / most:.1f}"
        for at, value in zip(seconds, values, strict=True)
    )
    return [
        f'<path d="M{_LEFT} {top}V{bottom}H{right}" fill="none" stroke="#999"/>',
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{_LEFT}" y="{top - 6}" fill="{colour}">{escape(name)}</text>',
        f'<text x="{_LEFT - 6}" y="{top + 5}" text-anchor="end">{most:,.0f}</text>',
        f'<text x="{_LEFT - 6}" y="{bottom + 4}" text-anchor="end">0</text>',
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{end:g} s</text>',
    ]
