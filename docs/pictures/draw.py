"""Draws the pictures of the documentation: ``python -m docs.pictures.draw``, from the root of the repository.

Each picture is an SVG in two versions, for light and for dark pages. The charts, and the tables of figures in
documents, are made of ``benchmarks.json``. ``python -m tests.benchmarks --json docs/pictures/benchmarks.json`` writes
that file. A test compares the files with the output of this script.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docs.pictures import tables
from docs.pictures.charts import benchmarks, eviction
from docs.pictures.drawing import THEMES, Drawing, Theme

HERE = Path(__file__).parent


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


PICTURES: dict[str, Callable[[Theme], str]] = {
    "request": request,
    "timeline": timeline,
    "benchmarks": benchmarks,
    "eviction": eviction,
}


def pictures() -> dict[str, str]:
    """Return the text of every file, by its name."""
    return {f"{name}-{mode}.svg": draw(theme) for name, draw in PICTURES.items() for mode, theme in THEMES.items()}


if __name__ == "__main__":
    for name, text in pictures().items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(HERE / name)
    for path in tables.DOCUMENTS:
        path.write_text(tables.renewed(path), encoding="utf-8")
        print(path)
