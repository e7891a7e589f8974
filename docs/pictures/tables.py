"""The tables of figures in documents, made of a run of the benchmarks.

A document has a pair of comments around each: ``<!-- figures: NAME -->`` and ``<!-- end of figures -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from docs.pictures.charts import alternative
from docs.pictures.figures import benchmark, figures, medians, rows

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(ROOT / name for name in ("README.md", "docs/explanation/benchmarks.md", "docs/explanation/sizing.md"))
_PART = re.compile(r"(<!-- figures: ([a-z-]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
_ALTERNATIVE = re.compile(r'(?<=alt=")A fresh hit [^"]*(?=")|(?<=:alt: )A fresh hit .*')
#: Columns of the table of servers.
COLUMNS = ("sync", "gthread", "gevent", "granian", "wsgi_isr.gunicorn.Worker")
APPS = ("pages from L1", "bare function", "WhiteNoise", "Flask-Caching", "Django's cache")
WORKER = "wsgi_isr.gunicorn.Worker"


def renewed(path: Path) -> str:
    """Return the text of a document with the figures of the run."""
    text = _ALTERNATIVE.sub(lambda found: alternative(), path.read_text("utf-8"))
    return _PART.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column holds words, and whose others hold figures."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def run() -> str:
    """Return the machine and the versions."""
    versions = ", ".join(f"{name} {number}" for name, number in figures()["versions"].items())
    before, after = figures()["load"]
    return (
        f"The run was on {figures()['machine']}.\nThe load average was {before} at its begin and {after} at its end, "
        f"this run included.\nVersions: {versions}."
    )


def servers() -> str:
    """Return the requests in a second of CPU time: an app in each row, and a server in each column."""
    rates = medians("servers", 1)

    def cell(app: str, server: str) -> str:
        rate = rates.get(f"{server}, {app}")
        return "" if rate is None else f"{rate:,.0f}"

    lines = [[app, *(cell(app, server) for server in COLUMNS)] for app in APPS]
    return _table(["", *(f"`{server}`" for server in COLUMNS)], lines)


def ceilings() -> str:
    """Return our worker beside the servers that are no Python."""
    by_cpu, passing = medians("servers", 1), medians("servers", 0)
    names = [
        name for name in (f"{WORKER}, pages from L1", "nginx proxy_cache", "Varnish", "next start") if name in by_cpu
    ]
    lines = [
        [name, f"{by_cpu[name]:,.0f}", f"{by_cpu[name] / by_cpu['nginx proxy_cache']:.2f}", f"{passing[name]:,.0f}"]
        for name in names
    ]
    return _table(["server", "in a second of CPU time", "of nginx", "in a second that passes"], lines)


def behind() -> str:
    """Return the figures behind nginx."""
    passing, by_cpu, late = (rows("behind-nginx", table) for table in range(3))
    lines = [
        [
            label,
            f"{row['max']:,.0f}",
            f"{row['ratio']:.2g}",
            f"{by_cpu[label]['median']:,.0f}",
            f"{late[label]['median']:.0f} ms",
        ]
        for label, row in passing.items()
    ]
    head = ["app", "requests per second, at best", "of gthread", "in a second of its CPU time", "99th percentile"]
    return _table(head, lines)


def visitors() -> str:
    """Return what renders cost the visitors of a hot page."""
    tables = benchmark("visitors")["tables"]
    lines = []
    for rate, late in zip(tables[::2], tables[1::2], strict=True):
        kind = rate["title"].split(", ")[1].removesuffix(" worker")
        for row, wait in zip(rate["rows"], late["rows"], strict=True):
            figure = f"{row['max']:,.0f}", f"{row['ratio']:.2f}", f"{wait['median']:.1f} ms", f"{wait['ratio']:.1f}"
            lines.append([f"`{kind}`, {row['label']}", *figure])
    return _table(
        [
            "worker, and where pages are rendered",
            "requests per second, at best",
            "of none",
            "99th percentile",
            "of none",
        ],
        lines,
    )


def budgets() -> str:
    """Return every budget, with its figure."""
    lines = [
        [
            f"`{name}`",
            budget["text"],
            f"{'at least' if budget['at_least'] else 'at most'} {budget['limit']:g}",
            f"{budget['measured']:.3g}",
            "ok" if budget["met"] else "**MISSED**",
        ]
        for name, outcome in figures()["benchmarks"].items()
        for budget in outcome.get("budgets", ())
    ]
    table = _table(["benchmark", "figure", "budget", "measured", ""], lines)
    unable = [
        f"- `{name}`: {out.get('error') or out['wrong']}"
        for name, out in figures()["benchmarks"].items()
        if "tables" not in out
    ]
    return "\n\n".join([table, *(["\n".join(["Without figures:", "", *unable])] if unable else [])])


def page() -> str:
    """Return the bytes of a page in L1."""
    (series,) = benchmark("page-memory")["series"].values()
    counted, booked = series["counted by Python"], series["L1's own books"]
    lines = [
        [f"{length:,.0f}", f"{real:,.0f}", f"{book:,.0f}", f"{64 * 1024 * 1024 / book:,.0f}"]
        for (length, real), (_, book) in zip(counted, booked, strict=True)
    ]
    return _table(["bytes of a page", "of memory", "in L1's books", "pages in 64 MiB"], lines)


def evicted() -> str:
    """Return the hits of L1 by its size."""
    series = benchmark("eviction")["series"]
    sizes = [point[0] for point in next(iter(series.values()))["LRU"]]
    lines = [
        [f"{title}, {label}", *(f"{share:.0f}" for _, share in points)]
        for title, of_policy in series.items()
        for label, points in of_policy.items()
    ]
    return _table(["traffic, and policy", *(f"{size:g} MiB" for size in sizes)], lines)


TABLES: dict[str, Callable[[], str]] = {
    "run": run,
    "servers": servers,
    "ceilings": ceilings,
    "behind": behind,
    "visitors": visitors,
    "budgets": budgets,
    "page": page,
    "evicted": evicted,
}
