"""The metrics of an instance in the text format of Prometheus (the extra ``prometheus``).

A collector makes the metrics of one :class:`~.totals.Totals`. The multiprocess mode of prometheus_client is not used:
its files are named after process ids, which renderers use again, and the files of dead processes stay.
"""

from __future__ import annotations

import functools
import itertools
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from .counts import ANSWERS, DELIVERIES, KINDS, MODES, NO_RULE, OTHER, RESTARTS, RESULTS, VERBS
from .totals import BOUNDS, Durations, Labels, Renders, Totals

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

#: The type of the response with these metrics.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "wsgi_isr_"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
#: Triggers and outcomes whose series exist from the start, for each rule.
_FROM_THE_START = (("miss", "time", "tag"), ("stored", "failed"))


class Metric(NamedTuple):
    """A metric.

    :param name: its name without the prefix; of a counter, without ``_total``.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def full_name(self) -> str:
        """Return the name as Prometheus shows it."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == COUNTER else ''}"


METRICS = tuple(
    Metric(*each)
    for each in (
        ("requests", COUNTER, ("rule", "result", "reason"), "Answers, by rule, X-ISR and reason."),
        ("renders", COUNTER, ("rule", "trigger", "outcome"), "Renders of pages."),
        ("renders_unchanged", COUNTER, ("rule",), "Renders whose page had the same ETag as before."),
        ("render_duration_seconds", HISTOGRAM, ("rule",), "Wall time of renders, storing included."),
        ("render_cpu_seconds", COUNTER, ("rule",), "CPU time of the threads that rendered."),
        ("renders_in_progress", GAUGE, ("rule",), "Renders in progress."),
        ("wait_seconds", HISTOGRAM, ("rule",), "Time for which clients waited for a render."),
        ("overdue_seconds", HISTOGRAM, ("rule",), "Age beyond revalidate of old pages that were sent."),
        ("invalidations", COUNTER, ("kind", "mode", "outcome"), "Invalidated names."),
        ("journal_pending", GAUGE, (), "Names in the journal that a node has missed."),
        ("background_rejected", COUNTER, (), "Background renders that no thread or process took."),
        ("leases_lost", COUNTER, (), "Leases that lapsed during a render."),
        (
            "store_operation_duration_seconds",
            HISTOGRAM,
            ("node", "verb", "outcome"),
            "Time of store operations.",
        ),
        ("store_node_up", GAUGE, ("node",), "1 if the node answers, as all processes see it."),
        ("local_cache_bytes", GAUGE, (), "Bytes of the local caches (L1) of all processes."),
        ("local_cache_evictions", COUNTER, (), "Entries that left a local cache for lack of room."),
        ("renderer_restarts", COUNTER, ("reason",), "Ends of renderer processes."),
        ("data_requests", COUNTER, ("function", "result"), "Calls of cached functions."),
        ("unreadable", COUNTER, (), "Stored values that were damaged, forged or of another version."),
        ("internal_errors", COUNTER, (), "Errors of the cache, or of a callable of a rule."),
        ("processes", GAUGE, (), "Processes whose counts these are."),
        ("build_info", GAUGE, ("version", "python"), "1, with the versions as labels."),
        ("telemetry_dropped", COUNTER, (), "Reports that found no room; the next one has their counts."),
    )
)
#: The counts in :attr:`.Totals.marks`, by metric.
_MARKS = {"local_cache_evictions": "evictions", "telemetry_dropped": "dropped"}


def exposition(totals: Totals) -> bytes:
    """Return the metrics of totals, as Prometheus reads them.

    :raises ConfigError: prometheus-client is not installed.
    """
    client = _client()
    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(Collector(totals))
    text: bytes = client.generate_latest(registry)
    return text


class Collector:
    """A collector of prometheus_client.

    :param totals: what it collects.
    """

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Family]:
        """Yield a family of samples for each metric."""
        core = _client().core
        kinds = {
            COUNTER: core.CounterMetricFamily,
            GAUGE: core.GaugeMetricFamily,
            HISTOGRAM: core.HistogramMetricFamily,
        }
        for metric in METRICS:
            family = kinds[metric.kind](PREFIX + metric.name, metric.help, labels=metric.labels)
            for labels, value in self._samples(metric):
                if metric.kind == HISTOGRAM:
                    family.add_metric(labels, _buckets(value.classes), value.seconds)
                else:
                    family.add_metric(labels, value)
            yield family

    def _samples(self, metric: Metric) -> Iterable[tuple[Labels, Any]]:
        """Return the labels and the values of a metric. Known series exist from the start, with 0."""
        totals, name = self._totals, metric.name
        known: set[Labels] = {labels[:1] for labels in totals.requests} - {(OTHER,), (NO_RULE,)}
        if name == "requests":
            start = {(*rule, result, "") for rule in known for result in RESULTS}
            return _with(start, totals.requests, 0)
        if name == "renders":
            start = {(*rule, *rest) for rule in known for rest in itertools.product(*_FROM_THE_START)}
            return _with(start, {labels: each.number for labels, each in totals.renders.items()}, 0)
        if name in _BY_RULE:
            return _with(known, _by_rule(totals.renders, _BY_RULE[name]), 0)
        if name == "render_duration_seconds":
            return _with(known, _durations(totals.renders), Durations())
        if name == "renders_in_progress":
            return _with(known, totals.running, 0)
        if name in ("wait_seconds", "overdue_seconds"):
            return _with(known, totals.waits if name == "wait_seconds" else totals.overdue, Durations())
        if name == "invalidations":
            return _with(set(itertools.product(KINDS, MODES, DELIVERIES)), totals.invalidations, 0)
        if name == "store_operation_duration_seconds":
            return _with(set(itertools.product(totals.nodes, VERBS, ANSWERS)), totals.store, Durations())
        if name == "store_node_up":
            return [((node,), int(is_up)) for node, is_up in totals.nodes.items()]
        if name == "renderer_restarts":
            return _with({(reason,) for reason in RESTARTS}, totals.restarts, 0)
        if name == "data_requests":
            return totals.data.items()
        if name == "build_info":
            return [((_version(), platform.python_version()), 1)]
        return [((), self._single(name))]

    def _single(self, name: str) -> int:
        """Return the value of a metric without labels."""
        if name == "journal_pending":
            return self._totals.journal_pending or 0
        if name == "local_cache_bytes":
            return self._totals.local_bytes
        if name == "processes":
            return self._totals.processes
        return self._totals.marks.get((_MARKS.get(name, name),), 0)


#: Metrics that add up a field of :class:`.Renders` for each rule.
_BY_RULE = {"renders_unchanged": "unchanged", "render_cpu_seconds": "cpu_seconds"}


def _by_rule(renders: Mapping[Labels, Renders], field: str) -> dict[Labels, float]:
    sums: dict[Labels, float] = {}
    for (rule, _, _), each in renders.items():
        sums[(rule,)] = sums.get((rule,), 0) + getattr(each, field)
    return sums


def _durations(renders: Mapping[Labels, Renders]) -> dict[Labels, Durations]:
    sums: dict[Labels, Durations] = {}
    for (rule, _, _), each in renders.items():
        old = sums.get((rule,), Durations())
        classes = tuple(map(int.__add__, old.classes, each.classes))
        sums[(rule,)] = Durations(old.number + each.number, old.seconds + each.seconds, classes)
    return sums


def _with(start: set[Labels], table: Mapping[Labels, Any], zero: Any) -> Iterable[tuple[Labels, Any]]:
    return sorted({**dict.fromkeys(start, zero), **table}.items())


def _buckets(classes: Iterable[int]) -> list[tuple[str, int]]:
    """Return the cumulative buckets that Prometheus expects."""
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    return list(zip(bounds, itertools.accumulate(classes), strict=True))


@functools.cache
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("wsgi_isr")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def _client() -> Any:
    try:
        import prometheus_client
        import prometheus_client.core
    except ImportError as error:
        remedy = "pip install 'wsgi_isr[prometheus]'"
        raise ConfigError("prometheus", "prometheus-client is not installed", remedy) from error
    return prometheus_client
