"""The charts of a run of the benchmarks: bars, and lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from docs.pictures.drawing import Drawing, Theme
from docs.pictures.figures import benchmark, figures, medians, short

#: The bars of the servers: the labels of ``servers``, and their names in the chart.
SERVERS = {
    "wsgi_isr.gunicorn.Worker, pages from L1": "wsgi_isr.gunicorn.Worker",
    "nginx proxy_cache": "nginx proxy_cache",
    "Varnish": "Varnish",
    "granian, pages from L1": "granian, wsgi_isr",
    "granian, bare function": "granian, a bare function",
    "gthread, bare function": "gthread, a bare function",
    "gthread, WhiteNoise": "gthread, WhiteNoise",
    "gthread, Flask-Caching": "gthread, Flask-Caching",
    "gthread, Django's cache": "gthread, Django's cache",
    "next start": "Next.js, next start",
}
OURS = "wsgi_isr"


def benchmarks(theme: Theme) -> str:
    """Return the bar chart of the benchmarks ``hit`` and ``servers``."""
    hit, rates = medians("hit"), medians("servers", 1)
    shown = [
        ("wsgi_isr around Flask", hit["ISR around Flask"], theme.fresh),
        ("Flask-Caching, SimpleCache", hit["Flask-Caching, SimpleCache"], theme.passed),
        ("Django cache middleware, locmem", hit["Django cache middleware, locmem"], theme.passed),
        ("Flask view that does nothing", hit["bare Flask view"], theme.passed),
        ("WSGI function that does nothing", hit["bare WSGI function"], theme.passed),
    ]
    servers = [
        (name, rates[label], theme.fresh if OURS in name else theme.passed)
        for label, name in SERVERS.items()
        if label in rates
    ]
    height = 92 + 32 * (len(shown) + len(servers)) + 70
    d = Drawing(theme, 880, height, "Benchmarks: a fresh hit, and requests per second")
    y = 34
    d.text(20, y, "A fresh hit in the process, page of 20 KB: µs of CPU time, less is better", font_weight="600")
    y = _bars(d, y + 14, shown, lambda value: f"{value:.3g} µs")
    y += 30
    d.text(20, y, "Requests in a second of CPU time, one worker on one core: more is better", font_weight="600")
    y = _bars(d, y + 14, servers, lambda value: f"{value:,.0f}")
    d.text(20, y + 22, figures()["machine"], theme.faint, font_size="11")
    return d.svg()


def _bars(d: Drawing, y: float, rows: Sequence[tuple[str, float, str]], shown: Callable[[float], str]) -> float:
    longest = max(value for _, value, _ in rows)
    for label, value, colour in rows:
        d.text(270, y + 19, label, anchor="end", font_size="13")
        d.bar(282, y + 5, 500 * value / longest, 20, colour)
        d.text(282 + max(1.5, 500 * value / longest) + 8, y + 20, shown(value), font_size="13")
        y += 32
    return y


# Lines -----------------------------------------------------------------------------------------------

#: The size of a panel, and of the room around its plot.
PANEL, TALL, LEFT, ROOM = 430, 210, 44, 46


def eviction(theme: Theme) -> str:
    """Return the hits of four policies against the bytes of L1, a panel for each kind of traffic."""
    series = benchmark("eviction")["series"]
    policies = {
        "S3-FIFO (L1)": (theme.fresh, ""),
        "W-TinyLFU": (theme.stale, "7 4"),
        "CLOCK": (theme.waiting, "2 4"),
        "LRU": (theme.passed, ""),
    }
    lines = (len(series) + 1) // 2
    d = Drawing(theme, 2 * PANEL + 20, 64 + lines * TALL, "Hits in L1 of a site with 100,000 pages, by its size")
    d.text(20, 28, "Hits in L1, % of the requests, of a site with 100,000 pages of 40 KB", font_weight="600")
    x = 20.0
    for label, (colour, dashes) in policies.items():
        d.line([(x, 46), (x + 28, 46)], colour, dashes)
        d.text(x + 34, 50, label, font_size="12")
        x += 60 + 7 * len(label)
    for number, (title, of_policy) in enumerate(series.items()):
        left, top = 10 + PANEL * (number % 2) + LEFT, 62 + TALL * (number // 2)
        _panel(d, left, top, title, {label: (of_policy[label], *style) for label, style in policies.items()})
    return d.svg()


def _panel(
    d: Drawing, left: float, top: float, title: str, lines: dict[str, tuple[list[list[float]], str, str]]
) -> None:
    """Draw one plot: megabytes on a logarithmic axis, and per cent."""
    width, height = PANEL - LEFT - 24, TALL - ROOM - 12
    sizes = sorted({point[0] for points, _, _ in lines.values() for point in points})
    first, last = math.log(sizes[0]), math.log(sizes[-1])
    highest = 10 * math.ceil(max(point[1] for points, _, _ in lines.values() for point in points) / 10)

    def place(megabytes: float, share: float) -> tuple[float, float]:
        across = (math.log(megabytes) - first) / (last - first or 1)
        return left + width * across, top + 20 + height * (1 - share / highest)

    d.text(left, top + 12, title, font_size="13", font_weight="600")
    for share in range(0, highest + 1, 10 if highest <= 50 else 20):
        _, y = place(sizes[0], share)
        d.line([(left, y), (left + width, y)], d.theme.box)
        d.text(left - 8, y + 4, str(share), d.theme.faint, "end", font_size="11")
    for megabytes in sizes:
        d.text(place(megabytes, 0)[0], top + 38 + height, f"{megabytes:g} MiB", d.theme.faint, "middle", font_size="11")
    for points, colour, dashes in lines.values():
        d.line([place(*point) for point in points], colour, dashes)
        for point in points:
            d.dot(*place(*point), colour)


def alternative() -> str:
    """Return the words that stand for the bar chart where it cannot be seen."""
    hit, rates = medians("hit"), medians("servers", 1)
    worker, nginx = (rates[label] for label in ("wsgi_isr.gunicorn.Worker, pages from L1", "nginx proxy_cache"))
    return (
        f"A fresh hit takes {short(hit['ISR around Flask'])} µs in the process, Flask-Caching "
        f"{short(hit['Flask-Caching, SimpleCache'])} µs, Django's cache "
        f"{short(hit['Django cache middleware, locmem'])} µs. "
        f"A worker answers {worker / nginx:.2g} times nginx's requests."
    )
