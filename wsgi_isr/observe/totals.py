"""``Totals``: the counts of a process, of an instance, or of several, as one closed value.

Every label is from a closed set, or from the configuration (:mod:`.counts`). Counts only grow, so the totals of several
processes add up, and the difference of two totals of one process is its work in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import msgpack

#: The upper bounds of the classes of a histogram, in seconds. A last class has no bound.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
#: The renders in progress that a total names. Their number is always complete.
MAX_IN_PROGRESS = 64
#: The longest label, in characters.
MAX_LABEL = 120
#: The most rows of a part (:meth:`Totals.parts`): a datagram has room for that many.
MAX_ROWS = 100

Labels = tuple[str, ...]


class Renders(NamedTuple):
    """Renders with the same labels.

    :param seconds: wall seconds.
    :param cpu_seconds: CPU seconds of the thread that rendered. Under gevent, other greenlets count as well.
    :param unchanged: the renders whose page had the same ETag as before.
    :param classes: the number of renders in each class of :data:`BOUNDS`.
    """

    number: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    unchanged: int = 0
    classes: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)


class Durations(NamedTuple):
    """Durations with the same labels.

    :param seconds: their sum.
    :param classes: the number of durations in each class of :data:`BOUNDS`.
    """

    number: int = 0
    seconds: float = 0.0
    classes: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)


class InProgress(NamedTuple):
    """A render in progress.

    :param began: Unix time in seconds.
    """

    rule: str
    trigger: str
    began: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts by labels, and some values of the moment. An instance is never changed.

    :param requests: answers by rule, result (the value of ``X-ISR``) and reason.
    :param renders: renders by rule, trigger and outcome.
    :param waits: the seconds that clients waited for a render, by rule.
    :param overdue: the age of served pages beyond the promised one in seconds, by rule.
    :param invalidations: invalidated names by kind, mode and outcome.
    :param store: operations by node, verb and outcome.
    :param data: calls of cached functions by function and result.
    :param restarts: ends of renderer processes by reason.
    :param marks: further counts by their name (``MARKS`` of :mod:`.counts`).
    :param in_progress: renders in progress, at most :data:`MAX_IN_PROGRESS`.
    :param running: the number of renders in progress, by rule.
    :param local_bytes: the bytes of local caches.
    :param nodes: whether each node of the store answers, as all processes see it.
    :param journal_pending: the names in the journal; ``None`` without one.
    :param processes: the number of processes that these totals are of.
    """

    requests: Mapping[Labels, int] = field(default_factory=dict)
    renders: Mapping[Labels, Renders] = field(default_factory=dict)
    waits: Mapping[Labels, Durations] = field(default_factory=dict)
    overdue: Mapping[Labels, Durations] = field(default_factory=dict)
    invalidations: Mapping[Labels, int] = field(default_factory=dict)
    store: Mapping[Labels, Durations] = field(default_factory=dict)
    data: Mapping[Labels, int] = field(default_factory=dict)
    restarts: Mapping[Labels, int] = field(default_factory=dict)
    marks: Mapping[Labels, int] = field(default_factory=dict)
    in_progress: tuple[InProgress, ...] = ()
    running: Mapping[Labels, int] = field(default_factory=dict)
    local_bytes: int = 0
    nodes: Mapping[str, bool] = field(default_factory=dict)
    journal_pending: int | None = None
    processes: int = 0

    @property
    def dropped(self) -> int:
        """Return the number of reports that did not reach the process that adds them up."""
        return self.marks.get(("dropped",), 0)

    def merge(self, other: Totals) -> Totals:
        """Return the totals of both."""
        tables = {name: _added(getattr(self, name), getattr(other, name)) for name in COUNTED}
        return Totals(
            **tables,
            in_progress=(self.in_progress + other.in_progress)[:MAX_IN_PROGRESS],
            running=_added(self.running, other.running),
            local_bytes=self.local_bytes + other.local_bytes,
            nodes={
                node: self.nodes.get(node, True) and other.nodes.get(node, True)
                for node in {**self.nodes, **other.nodes}
            },
            # The processes of a machine have one journal.
            journal_pending=max(
                (each for each in (self.journal_pending, other.journal_pending) if each is not None), default=None
            ),
            processes=self.processes + other.processes,
        )

    def since(self, earlier: Totals) -> Totals:
        """Return the counts since ``earlier`` totals of the same process, and the values of the moment."""
        tables: dict[str, Any] = {name: _difference(getattr(self, name), getattr(earlier, name)) for name in COUNTED}
        return Totals.combine(Totals(**tables), self)

    @classmethod
    def combine(cls, counts: Totals, moment: Totals) -> Totals:
        """Return the counts of one total with the values of the moment of another."""
        return cls(
            **{name: getattr(counts, name) for name in COUNTED}, **{name: getattr(moment, name) for name in MOMENTARY}
        )

    def counts(self) -> Totals:
        """Return the totals without the values of the moment."""
        return Totals(**{name: getattr(self, name) for name in COUNTED})

    def parts(self) -> Iterator[Totals]:
        """Yield totals that add up to these, of at most :data:`MAX_ROWS` rows; the first with the moment's values."""
        rows = [(name, labels) for name in COUNTED for labels in getattr(self, name)]
        momentary = {name: getattr(self, name) for name in MOMENTARY}
        for first in range(0, max(1, len(rows)), MAX_ROWS):
            tables: dict[str, Any] = {}
            for name, labels in rows[first : first + MAX_ROWS]:
                tables.setdefault(name, {})[labels] = getattr(self, name)[labels]
            yield Totals(**tables, **({} if first else momentary))

    def encode(self) -> bytes:
        """Return the totals as bytes."""
        tables = {name: [[*labels, value] for labels, value in getattr(self, name).items()] for name in _TABLES}
        moment = [self.local_bytes, self.nodes, self.journal_pending, self.processes, self.in_progress]
        packed: bytes = msgpack.packb([tables, moment], unicode_errors="surrogatepass")
        return packed

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Totals:
        """Return the totals in bytes from :meth:`encode`. Tables that this version does not know are left out.

        :raises ValueError: the bytes are damaged, or of another program.
        """
        try:
            tables, moment = msgpack.unpackb(data, use_list=False, unicode_errors="surrogatepass", strict_map_key=True)
            local_bytes, nodes, journal_pending, processes, in_progress = moment
            return cls(
                **{name: _table(name, tables[name]) for name in _TABLES if name in tables},
                in_progress=tuple(
                    InProgress(_label(rule), _label(trigger), float(began)) for rule, trigger, began in in_progress
                )[:MAX_IN_PROGRESS],
                local_bytes=_whole(local_bytes),
                nodes={_label(node): bool(up) for node, up in nodes.items()},
                journal_pending=None if journal_pending is None else _whole(journal_pending),
                processes=_whole(processes),
            )
        except Exception as error:  # msgpack raises half a dozen kinds; a wrong shape raises more
            raise ValueError(f"these bytes are no totals: {type(error).__name__}") from error


#: Fields that are values of the moment; all others only grow.
MOMENTARY = ("in_progress", "running", "local_bytes", "nodes", "journal_pending", "processes")
#: Fields whose counts only grow.
COUNTED = tuple(each.name for each in fields(Totals) if each.name not in MOMENTARY)
_TABLES = (*COUNTED, "running")
#: By field, the number of labels and the type of values; ``int`` where it is not listed.
_LABELS = {"waits": 1, "overdue": 1, "data": 2, "restarts": 1, "marks": 1, "running": 1}
_KINDS: dict[str, Any] = {"renders": Renders, "waits": Durations, "overdue": Durations, "store": Durations}


def merged(totals: Iterable[Totals]) -> Totals:
    """Return the sum of totals."""
    result = Totals()
    for each in totals:
        result = result.merge(each)
    return result


def class_of(seconds: float) -> int:
    """Return the number of the class of :data:`BOUNDS` that a duration belongs to."""
    return next((number for number, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))


def _added(one: Mapping[Labels, Any], other: Mapping[Labels, Any]) -> dict[Labels, Any]:
    result = dict(one)
    for labels, value in other.items():
        result[labels] = _sum(result[labels], value) if labels in result else value
    return result


def _sum(one: Any, other: Any) -> Any:
    if not isinstance(one, tuple):
        return one + other
    parts = map(_sum, one, other)
    return tuple(parts) if type(one) is tuple else type(one)(*parts)


def _difference(now: Mapping[Labels, Any], before: Mapping[Labels, Any]) -> dict[Labels, Any]:
    return {
        labels: _sum(value, _negative(before[labels])) if labels in before else value
        for labels, value in now.items()
        if value != before.get(labels)
    }


def _negative(value: Any) -> Any:
    return tuple(map(_negative, value)) if isinstance(value, tuple) else -value


def _table(name: str, rows: Iterable[Any]) -> dict[Labels, Any]:
    number, kind = _LABELS.get(name, 3), _KINDS.get(name)
    table = {}
    for *labels, value in rows:
        if len(labels) != number:
            raise ValueError(name)
        table[tuple(map(_label, labels))] = _whole(value) if kind is None else _read(kind, value)
    return table


def _read(kind: Any, value: Any) -> Any:
    *numbers, classes = value
    if len(classes) != len(BOUNDS) + 1 or any(type(each) not in (int, float) for each in numbers):
        raise ValueError(kind.__name__)
    return kind(*numbers, tuple(map(_whole, classes)))


def _label(text: Any) -> str:
    if type(text) is not str or len(text) > MAX_LABEL:
        raise ValueError("a label")
    return text


def _whole(number: Any) -> int:
    if type(number) is not int:
        raise ValueError("a count")
    return number
