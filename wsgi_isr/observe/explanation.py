"""The answer to a question about one URL (:meth:`wsgi_isr.ISR.explain`): values, for people and for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class RuleMatch(NamedTuple):
    """The rule of a page.

    :param pattern: the pattern, or ``*`` for the options of the site.
    :param why: why it matched.
    :param parameters: the parameters of the URL.
    """

    pattern: str
    why: str
    parameters: dict[str, str]


class KeyParts(NamedTuple):
    """The parts of a page's key.

    :param path: the public path.
    :param cookies: the names of the cookies in the key. Their values are not shown.
    :param left_out: the names of the query parameters of the request that are not part of the key.
    """

    scheme: str
    host: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    cookies: tuple[str, ...]
    left_out: tuple[str, ...]


class StoredPage(NamedTuple):
    """The stored answer.

    :param place: ``memory``, ``store`` or ``previous release``.
    :param status: the status line; empty for a hit-for-miss.
    :param refused: the reason of a hit-for-miss; empty for a page.
    :param size: bytes of the body.
    :param rendered_at: Unix time in seconds.
    :param age: seconds.
    :param revalidate: the age in seconds at which the page is stale; ``None`` for never.
    :param expire: the age in seconds at which the page is expired; ``None`` for never.
    :param source: the origin of the lifetime: ``rule``, ``header``, ``code``, ``data``, ``negative_ttl``,
        ``uncacheable_ttl``; empty where it is not known.
    :param validity: ``valid``, ``unknown``, ``stale``, ``expired`` or ``purged``, by all tags.
    :param data: the cached functions and fetches that the render used.
    """

    place: str
    status: str
    refused: str
    size: int
    rendered_at: float
    age: float
    revalidate: float | None
    expire: float | None
    source: str
    validity: str
    data: tuple[str, ...]


class Tag(NamedTuple):
    """A tag of a page.

    :param validity: as for a page, by this tag alone; empty where the page is not stored, or the node is away.
    :param invalidated_at: the Unix time of the last recorded invalidation in seconds; ``None`` without a record.
    :param invalidated_by: the person, request or program, and its process.
    :param mode: the mode of that invalidation, and the name that it gave.
    """

    name: str
    node: str
    validity: str
    invalidated_at: float | None
    invalidated_by: str
    mode: str


class Lock(NamedTuple):
    """The state of the renders of a page.

    :param state: ``free``, ``held``, ``back-off`` or ``unknown``.
    :param is_held_here: this process renders the page.
    :param failures: the renders in a row that failed.
    :param retry_in: seconds until the next attempt; ``None`` where it is not known.
    :param last_error: the reason and the first line of the last recorded error; empty without one.
    :param failed_at: its Unix time in seconds.
    """

    state: str
    is_held_here: bool
    failures: int
    retry_in: float | None
    last_error: str
    failed_at: float | None


class Line(NamedTuple):
    """A line of the timeline.

    :param kind: ``rendered``, ``refused``, ``failed``, ``stale`` or ``invalidated``.
    :param at: Unix time in seconds.
    :param times: the number of equal events: of stale answers, say.
    """

    kind: str
    at: float
    by: str
    seconds: float
    detail: str
    times: int


class Node(NamedTuple):
    """A node of the store."""

    name: str
    is_reachable: bool


class Explanation(NamedTuple):
    """The answer to a question about one URL, as a request at this moment would be answered.

    :param url: the URL, without the values of query parameters that are not part of the key.
    :param answer: the value of ``X-ISR`` that a request would get now.
    :param reason: the reason, a token.
    :param why: the reason as a sentence.
    :param then: the consequence: the render that begins or that the client waits for; empty without one.
    :param remedy: the line to write so that the page is cached; empty where nothing should change.
    :param rule: ``None`` where the host or the URL has none.
    :param key: ``None`` where the request is not for the cache; then all further values are empty.
    :param stored: ``None`` where nothing is stored.
    :param timeline: the last events, oldest first. It is best effort, and decides nothing.
    :param store: the location of the store, without secrets.
    :param problem: why the store could not be asked; empty if it could.
    """

    url: str
    method: str
    answer: str
    reason: str
    why: str
    then: str = ""
    remedy: str = ""
    rule: RuleMatch | None = None
    key: KeyParts | None = None
    stored: StoredPage | None = None
    tags: tuple[Tag, ...] = ()
    lock: Lock | None = None
    nodes: tuple[Node, ...] = ()
    timeline: tuple[Line, ...] = ()
    store: str = ""
    namespace: str = ""
    release: str = ""
    now: float = 0.0
    problem: str = ""

    @property
    def is_cacheable(self) -> bool:
        """Return whether the URL has a page of the cache that is not refused."""
        return self.key is not None and self.answer != "BYPASS"

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation for JSON: dicts, lists, texts and numbers."""
        plain: dict[str, Any] = _plain(self)
        return plain | {"cacheable": self.is_cacheable}

    def text(self) -> str:
        """Return the explanation for a terminal. Control characters are escaped: parts come from clients."""
        return "\n".join(map(shown, self._lines()))

    def _lines(self) -> Iterator[str]:
        yield f"{self.method} {self.url}"
        yield f"  now       {self.answer} ({self.reason}): {self.why}"
        if self.then:
            yield f"            {self.then}"
        if self.remedy:
            yield f"  write     {self.remedy}"
        if self.problem:
            yield f"  problem   {self.problem}"
        if self.rule is not None:
            yield f"  rule      {self.rule.pattern}: {self.rule.why}"
        if self.key is not None:
            yield from self._lines_of_key(self.key)
        if self.stored is not None:
            yield from self._lines_of_page(self.stored)
        elif self.key is not None:
            yield "  stored    nothing"
        for tag in self.tags:
            yield f"  tag       {tag.name}{self._state_of(tag)}"
        if self.lock is not None:
            yield from self._lines_of_lock(self.lock)
        if self.nodes:
            away = [node.name for node in self.nodes if not node.is_reachable]
            state = f"away: {', '.join(away)}" if away else "all reachable"
            yield f"  nodes     {', '.join(node.name for node in self.nodes)} ({state})"
        if self.store:
            release = f", release {self.release}" if self.release else ""
            yield f"  store     {self.store}, namespace {self.namespace}{release}"
        for number, line in enumerate(self.timeline):
            yield f"  {'timeline' if not number else '        '}  {self._ago(line.at):>12}  {_event(line)}"

    @staticmethod
    def _lines_of_key(key: KeyParts) -> Iterator[str]:
        query = "&".join(f"{name}={value}" for name, value in key.query)
        yield f"  key       {key.scheme}://{key.host}{key.path}{'?' if query else ''}{query}"
        for name, value in key.headers:
            yield f"            {name}: {value}"
        if key.cookies:
            yield f"            cookies: {', '.join(key.cookies)} (values are not shown)"
        if key.left_out:
            yield f"            not in the key: {', '.join(key.left_out)}"

    def _lines_of_page(self, page: StoredPage) -> Iterator[str]:
        what = f"no page, {page.refused}" if page.refused else f"{page.status}, {page.size:,} bytes"
        yield f"  stored    in {page.place}: {what}, by its tags {page.validity}"
        stale = f"stale at {_seconds(page.revalidate)}" if page.revalidate is not None else "never stale"
        expired = f"expired at {_seconds(page.expire)}" if page.expire is not None else "never expired by age"
        source = f" (lifetime from: {page.source})" if page.source else ""
        yield f"  age       {_seconds(page.age)}, {stale}, {expired}{source}"
        for name in page.data:
            yield f"  data      {name}"

    def _lines_of_lock(self, lock: Lock) -> Iterator[str]:
        here = ", by this process" if lock.is_held_here else ""
        retry = f", next attempt in {_seconds(lock.retry_in)}" if lock.retry_in is not None else ""
        failures = f", {lock.failures} failed in a row" if lock.failures else ""
        yield f"  lock      {lock.state}{here}{retry}{failures}"
        if lock.last_error:
            ago = f"{self._ago(lock.failed_at)}: " if lock.failed_at is not None else ""
            yield f"  error     {ago}{lock.last_error}"

    def _state_of(self, tag: Tag) -> str:
        state = f" ({tag.validity})" if tag.validity and tag.validity != "valid" else ""
        if tag.invalidated_at is None:
            return state
        return f"{state}, invalidated {self._ago(tag.invalidated_at)} by {tag.invalidated_by}: {tag.mode}"

    def _ago(self, at: float) -> str:
        return f"{_seconds(max(0.0, self.now - at))} ago"


def _event(line: Line) -> str:
    by = f" by {line.by}" if line.by else ""
    detail = f": {line.detail}" if line.detail else ""
    if line.kind == "stale":
        return f"{line.times} stale answer{'s' * (line.times > 1)}"
    if line.kind == "rendered":
        return f"rendered{by} in {1000 * line.seconds:.0f} ms{detail}"
    if line.kind == "failed":
        return f"failed{by}, next attempt after {_seconds(line.seconds)}{detail}"
    return f"{line.kind}{by}{detail}"


def _seconds(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def shown(text: str) -> str:
    """Return a text for a terminal: one line, with control and format characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
