"""Totals as a table for people, and as values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .counts import RESULTS
from .history import Instance
from .totals import Labels, Totals

#: Results of pages that came from the cache.
FROM_CACHE = frozenset({"HIT", "STALE", "STALE-IF-ERROR", "DEGRADED"})
#: The most rules, nodes and instances of a table.
_MOST = 30


def hit_ratio(totals: Totals, rule: str | None = None) -> float | None:
    """Return the part of the cacheable requests that was answered from the cache; ``None`` without such requests.

    A request that was passed on (``BYPASS``) is not cacheable.

    :param rule: look at this rule alone.
    """
    counted = [(each, number) for each, number in totals.requests.items() if rule in (None, each[0])]
    cacheable = sum(number for (_, result, _), number in counted if result != "BYPASS")
    hits = sum(number for (_, result, _), number in counted if result in FROM_CACHE)
    return hits / cacheable if cacheable else None


def as_dict(totals: Totals, instances: Iterable[Instance], now: float, unknown: Sequence[str]) -> dict[str, Any]:
    """Return totals for JSON.

    :param now: Unix time in seconds.
    :param unknown: sentences on what these totals do not say.
    """
    return {
        "ok": True,
        "hit_ratio": hit_ratio(totals),
        "requests": _rows(totals.requests, "rule", "result", "reason"),
        "renders": [
            {
                **dict(zip(("rule", "trigger", "outcome"), labels, strict=True)),
                "number": each.number,
                "seconds": each.seconds,
                "cpu_seconds": each.cpu_seconds,
                "unchanged": each.unchanged,
            }
            for labels, each in sorted(totals.renders.items())
        ],
        "in_progress": [each._asdict() for each in totals.in_progress],
        "invalidations": _rows(totals.invalidations, "kind", "mode", "outcome"),
        "data": _rows(totals.data, "function", "result"),
        "restarts": _rows(totals.restarts, "reason"),
        "marks": {name: number for (name,), number in sorted(totals.marks.items())},
        "local_bytes": totals.local_bytes,
        "journal_pending": totals.journal_pending,
        "nodes": [_node(totals, node) for node in sorted(totals.nodes)],
        "instances": [{**each._asdict(), "alive": each.is_alive(now)} for each in instances],
        "not_known": list(unknown),
    }


def as_text(totals: Totals, instances: Sequence[Instance], now: float, unknown: Sequence[str], heading: str) -> str:
    """Return totals as text; the parameters are those of :func:`as_dict`.

    :param heading: the first line.
    """
    requests = sum(totals.requests.values())
    ratio = hit_ratio(totals)
    lines = [heading, "", f"requests   {requests:,}; of the cacheable ones from the cache: {_percent(ratio)}"]
    lines += ["", *_rules(totals)] if requests else []
    lines += ["", *_renders(totals)]
    lines += [f"invalidated {sum(totals.invalidations.values()):,} names; in the journal: {_number(totals)}"]
    lines += ["", *(_node_line(_node(totals, node)) for node in sorted(totals.nodes)[:_MOST])] if totals.nodes else []
    shown = sorted(instances, key=lambda each: -each.seen)[:_MOST]
    lines += ["", *(_instance_line(each, now) for each in shown)] if shown else []
    lines += ["", *(f"not known: {sentence}" for sentence in unknown)] if unknown else []
    return "\n".join(lines)


def _rules(totals: Totals) -> Iterable[str]:
    table: dict[str, dict[str, int]] = {}
    for (rule, result, _), number in totals.requests.items():
        if number:
            row = table.setdefault(rule, dict.fromkeys(RESULTS, 0))
            row[result] = row.get(result, 0) + number
    # Rules are patterns from the configuration; the longest ones are cut.
    width = min(40, max(map(len, table)))
    yield "  ".join([f"{'rule':{width}}", "  from cache", *(f"{result.lower():>9}" for result in RESULTS)])
    for rule, row in sorted(table.items(), key=lambda each: -sum(each[1].values()))[:_MOST]:
        numbers = (f"{row[result]:>{max(9, len(result))},}" for result in RESULTS)
        yield "  ".join([f"{rule[:width]:{width}}", f"{_percent(hit_ratio(totals, rule)):>12}", *numbers])


def _renders(totals: Totals) -> Iterable[str]:
    every = list(totals.renders.items())
    number = sum(each.number for _, each in every)
    failed = sum(each.number for labels, each in every if labels[2] == "failed")
    unchanged = sum(each.unchanged for _, each in every)
    mean = f", {sum(each.seconds for _, each in every) / number:.3f} s each" if number else ""
    running = sum(totals.running.values())
    yield f"renders    {number:,}{mean}; failed: {failed:,}; same as before: {unchanged:,}; in progress: {running:,}"


def _node(totals: Totals, node: str) -> dict[str, Any]:
    table = [(labels, each) for labels, each in totals.store.items() if labels[0] == node]
    number = sum(each.number for _, each in table)
    failed = sum(each.number for labels, each in table if labels[2] == "failed")
    seconds = sum(each.seconds for _, each in table)
    mean = seconds / number if number else None
    return {"node": node, "up": totals.nodes[node], "operations": number, "failed": failed, "mean_seconds": mean}


def _node_line(node: dict[str, Any]) -> str:
    mean = "" if node["mean_seconds"] is None else f", {1000 * node['mean_seconds']:.2f} ms each"
    state = "up" if node["up"] else "DOWN"
    return f"node       {node['node']}: {state}; {node['operations']:,} operations{mean}; failed: {node['failed']:,}"


def _instance_line(instance: Instance, now: float) -> str:
    state = f"seen {max(0.0, now - instance.seen):.0f} s ago" if instance.is_alive(now) else "gone"
    return f"{instance.kind:10} {instance.name}: {state}"


def _rows(table: Any, *names: str) -> list[dict[str, Any]]:
    rows: list[tuple[Labels, int]] = sorted(table.items())
    return [{**dict(zip(names, labels, strict=True)), "number": number} for labels, number in rows if number]


def _number(totals: Totals) -> str:
    return "-" if totals.journal_pending is None else f"{totals.journal_pending:,}"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"
