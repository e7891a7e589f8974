"""Report the results of a load: as text, as JSON, and for a plot."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..supervisor.state import Directory
from . import generator as load
from . import renders
from .generator import Samples
from .renders import Crowded, Render, Windows

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
#: The events that begin a lasting fault of a part, each with the events that end the fault.
SPELLS: Mapping[str, frozenset[str]] = {
    "kill": frozenset({"restart"}),
    "ended": frozenset({"restart"}),
    "pause": frozenset({"resume", "restart", "kill"}),
    "cut": frozenset({"heal"}),
    "swallow": frozenset({"heal"}),
    "slow": frozenset({"heal"}),
    "press": frozenset({"relieve"}),
}
#: Seconds for which pages may still be lost after a fault has ended. By then, every process has noticed the end.
NOTICED = 5.0
#: Events that only end a fault.
ENDS = frozenset({"resume", "heal", "relieve"})


@dataclass(frozen=True)
class Spell:
    """A fault of a part from ``began`` to ``ended``; both are equal for a momentary fault."""

    fault: str
    part: str
    began: float
    ended: float


def spells(events: Iterable[Mapping[str, Any]], began: float, ended: float) -> list[Spell]:
    """Return the faults between ``began`` and ``ended``, from the events of :meth:`.Directory.noted`."""
    found: list[Spell] = []
    ongoing: dict[tuple[str, str], float] = {}
    for event in events:
        fault, part, at = event["what"], event["part"], event["at"]
        closed = [key for key in ongoing if key[1] == part and fault in SPELLS[key[0]]]
        found += [Spell(key[0], part, ongoing.pop(key), at) for key in closed]
        if fault in SPELLS:
            ongoing[fault, part] = event.get("began", at)
        elif not closed and fault not in ENDS:
            found.append(Spell(fault, part, event.get("began", at), at))
    found += [Spell(fault, part, at, ended) for (fault, part), at in ongoing.items()]
    overlapping = [spell for spell in found if spell.ended >= began and spell.began <= ended]
    return sorted(
        (Spell(s.fault, s.part, max(s.began, began), min(s.ended, ended)) for s in overlapping), key=lambda s: s.began
    )


@dataclass(frozen=True)
class Report:
    """The results of a load. Times are those of ``time.monotonic``."""

    samples: Samples
    connections: int
    renders: Sequence[Render]
    windows: Windows | None
    spells: Sequence[Spell]
    #: Each window with more than one render, and the noted events that may explain the further renders.
    crowded: Sequence[tuple[Crowded, Sequence[str]]] = ()

    @property
    def seconds(self) -> float:
        """Return the duration of the load in seconds."""
        return self.samples.ended - self.samples.began

    @property
    def failed(self) -> int:
        """Return the number of failed requests (5xx, or no complete answer) and of unexplained windows."""
        return sum(self.samples.errors.values()) + len(self.unexplained)

    @property
    def unexplained(self) -> Sequence[Crowded]:
        """Return the windows with more than one render for which no event was noted."""
        return [window for window, causes in self.crowded if not causes]

    @property
    def never_fresh(self) -> Sequence[str]:
        """Return the pages that were never served as new. Each render of such a page is a window."""
        if self.windows is None:
            return []
        return [path for path in self.samples.paths if path not in self.samples.fresh]

    def as_json(self) -> dict[str, Any]:
        """Return the report for JSON."""
        samples = self.samples
        return {
            "seconds": round(self.seconds, 3),
            "connections": self.connections,
            "pages": len(samples.paths),
            "requests": len(samples),
            "per_second": round(len(samples) / self.seconds, 1),
            "latency_ms": {name: round(value * 1000, 2) for name, value in percentiles(samples.seconds).items()},
            "verdicts": dict(load.counts(samples.verdict, samples.verdicts)),
            "instances": dict(load.counts(samples.instance, samples.instances)),
            "statuses": {str(status): samples.status.count(status) for status in sorted(set(samples.status))},
            "errors": samples.errors,
            "renders": {
                "all": len(self.renders),
                **(
                    {
                        "in_windows": self.windows.renders,
                        "windows": self.windows.windows,
                        "per_window": round(self.windows.per_window, 3),
                        "most_in_one": self.windows.largest,
                        "unexplained": [asdict(window) for window in self.unexplained],
                        "never_fresh": list(self.never_fresh),
                    }
                    if self.windows
                    else {}
                ),
            },
            "faults": [
                {
                    "what": spell.fault,
                    "part": spell.part,
                    "began": round(spell.began - samples.began, 3),
                    "ended": round(spell.ended - samples.began, 3),
                }
                for spell in self.spells
            ],
        }

    def __str__(self) -> str:
        figures = self.as_json()
        count = figures["requests"] or 1
        latency = "  ".join(f"{name} {value:g}" for name, value in figures["latency_ms"].items())
        lines = [
            f"{figures['requests']:,} requests for {figures['pages']} pages in {self.seconds:.1f} s "
            f"by {self.connections} connections: {figures['per_second']:,} per second",
            f"latency in ms     {latency}",
            *_table("verdicts", figures["verdicts"], count),
            *_table("statuses", dict(Counter(self.samples.status).most_common()), count),
            *_table("answered by", figures["instances"], count),
            f"renders           {self._rendered()}",
        ]
        lines += [f"                  {self._explained(*window)}" for window in self.crowded]
        if self.never_fresh:
            lines.append(f"never fresh       {', '.join(self.never_fresh)}")
        for spell in self.spells:
            lasting = f" for {spell.ended - spell.began:.1f} s" if spell.ended - spell.began > 0.05 else ""
            lines.append(f"at {spell.began - self.samples.began:5.1f} s        {spell.fault} {spell.part}{lasting}")
        lines += [f"error             {error}, {times} times" for error, times in figures["errors"].items()]
        return "\n".join(lines)

    def _rendered(self) -> str:
        if self.windows is None:
            return "none was noted: every page was passed to the app, or the app is not wrapped in ISR"
        if not self.windows.windows:
            return f"{len(self.renders)}; no window began meanwhile"
        figures = f"{self.windows.renders} in {self.windows.windows} windows: {self.windows.per_window:.2f} in each"
        return figures if self.windows.largest < 2 else f"{figures}, {self.windows.largest} at the most"

    def _explained(self, window: Crowded, causes: Sequence[str]) -> str:
        reason = ", ".join(causes) or "nothing was noted that explains it (invalidated by another process?)"
        return f"{window.renders} of {window.page} at {window.began - self.samples.began:.1f} s: {reason}"


def made_of(directory: Directory, samples: Samples, connections: int, host: str) -> Report:
    """Return the report of a load.

    :param directory: the directory of the cluster.
    :param host: the host name in the requests.
    """
    every, events = renders.read(directory.renders), directory.noted()
    lifetimes = renders.lifetimes(every, host, {path: path in samples.fresh for path in samples.paths})
    # Renders from before the load are included: they show whether a page was fresh or stale when the load began.
    windows = renders.windows(every, lifetimes, samples.began) if every else None
    during = [render for render in every if samples.began <= render.ended <= samples.ended]
    causes = [
        *(("invalidated", at, at) for at in invalidated(directory)),
        *((f"{s.fault} {s.part}", s.began, s.ended + NOTICED) for s in spells(events, -math.inf, math.inf)),
    ]
    crowded = [
        (window, sorted({cause for cause, began, ended in causes if began <= window.ended and window.began <= ended}))
        for window in renders.crowded(every, lifetimes, samples.began)
    ]
    return Report(samples, connections, during, windows, spells(events, samples.began, samples.ended), crowded)


def invalidated(directory: Directory) -> list[float]:
    """Return the times of the invalidations by instances. Invalidations by other processes are not recorded."""
    try:
        lines = directory.invalidations.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [float(json.loads(line)[0]) for line in lines]


def _table(title: str, counts: Mapping[Any, int], total: int) -> list[str]:
    rows = [
        f"{'(not said)' if name == '' else name} {count:,} ({100 * count / total:.3g} %)"
        for name, count in counts.items()
    ]
    return [f"{title:<18}{', '.join(rows)}"]


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """Return the values of :data:`PERCENTILES`, and an empty dict without values."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in PERCENTILES.items()}


@dataclass(frozen=True)
class Bucket:
    """The verdicts and latencies of the answers in one interval, which began at ``began``. Latencies are in seconds."""

    began: float
    verdicts: Mapping[str, int]
    p50: float
    p99: float


def buckets(samples: Samples, width: float) -> list[Bucket]:
    """Return a bucket for each interval of ``width`` seconds, empty intervals included."""
    found = []
    start = samples.began
    low = 0
    while start + width / 2 < samples.ended:
        high = bisect_left(samples.at, start + width, low)
        counts = dict.fromkeys([*samples.verdicts.all, "5xx"], 0)
        for number, status in zip(samples.verdict[low:high], samples.status[low:high], strict=True):
            counts["5xx" if status >= 500 else samples.verdicts.all[number]] += 1
        latency = percentiles(samples.seconds[low:high])
        found.append(Bucket(start, counts, latency.get("p50", 0.0), latency.get("p99", 0.0)))
        start, low = start + width, high
    return found
