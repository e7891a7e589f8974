"""The other side: a strict WSGI server in a few lines, the site that it serves, and its clock."""

from __future__ import annotations

import io
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.validate import validator

import pytest
from werkzeug.datastructures import Headers
from werkzeug.middleware.lint import LintMiddleware

from tests.behaviour.origin import DEADLINE, Environ
from wsgi_isr import ISR
from wsgi_isr.cache.entry import Content
from wsgi_isr.cache.thread_pool import Pool
from wsgi_isr.config.lifetime import Lifetime
from wsgi_isr.events import Event
from wsgi_isr.pages.fingerprint import fingerprint_of
from wsgi_isr.pages.resolver import Page
from wsgi_isr.stores.memory import MemoryStore

#: Parsed Cache-Control of an answer that every cache and browser revalidates each time.
ASKED_EACH_TIME = {"max-age": "0", "must-revalidate": ""}
LABELS = {"HIT", "STALE", "MISS", "EXPIRED", "BYPASS", "STALE-IF-ERROR", "DEGRADED"}

#: Validators on both sides of the middleware. wsgiref's validator raises; werkzeug's linter warns, and a
#: warning is an error here. "nobody" is for requests that no correct server would make.
WATCHERS: dict[str, Callable[[Any], Any]] = {
    "wsgiref": validator,
    "werkzeug": LintMiddleware,
    "nobody": lambda app: app,
}


class Clock:
    """A clock that moves only when told to: Unix time, monotonic time and pauses in one."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        self.paused: list[float] = []
        self.on_pause: Callable[[float], None] | None = None

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def pause(self, seconds: float) -> None:
        """Call ``on_pause``, then let the time pass at once, instead of sleeping."""
        self.paused.append(seconds)
        if self.on_pause is not None:
            self.on_pause(seconds)
        self.now += seconds


@dataclass
class Seen:
    """The answer that a visitor got."""

    status: str
    headers: Headers
    body: bytes

    @property
    def code(self) -> int:
        return int(self.status[:3])

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def label(self) -> str:
        return self.headers["X-ISR"]

    @property
    def cache_status(self) -> str:
        return self.headers["Cache-Status"]

    @property
    def age(self) -> int:
        return int(self.headers["Age"])

    @property
    def directives(self) -> dict[str, str]:
        """Return Cache-Control, parsed."""
        pairs = (part.strip().partition("=") for part in self.headers.get("Cache-Control", "").split(","))
        return {name.lower(): value for name, _, value in pairs}


@dataclass
class Conversation:
    """One request as a server sees it, part by part. ``answer()`` reads it to its end."""

    app: Any
    environ: Environ
    exact_length: bool = True
    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    sent: bool = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if exc_info is not None:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status:
            raise AssertionError("start_response was called a second time, without exc_info")
        self.status, self.headers = status, list(headers)
        # A server may change the list (PEP 3333, "The start_response() Callable"). This finds a middleware that
        # hands out the same list twice.
        headers.clear()
        return self._take

    def _take(self, data: bytes) -> None:
        assert self.status, "a body before start_response"
        if data:
            self.sent = True
            self.chunks.append(data)

    def begin(self) -> Conversation:
        self._iterable: Iterable[bytes] = self.app(self.environ, self.start_response)
        self._iterator = iter(self._iterable)
        return self

    def read_part(self) -> bytes | None:
        """Return the next part of the body, or None at its end."""
        part = next(self._iterator, None)
        if part is not None:
            self._take(part)
        return part

    def close(self) -> None:
        close = getattr(self._iterable, "close", None)
        if close is not None:
            close()

    def answer(self) -> Seen:
        self.begin()
        try:
            while self.read_part() is not None:
                pass
        except BaseException:
            self.close()
            raise
        self.close()
        assert self.status, "start_response was never called"
        seen = Seen(self.status, Headers(self.headers), b"".join(self.chunks))
        self._check(seen)
        return seen

    def _check(self, seen: Seen) -> None:
        """Check the facts that hold for every answer."""
        assert len(seen.headers.getlist("X-ISR")) == 1, seen.headers
        assert seen.label in LABELS
        assert seen.headers.getlist("Cache-Status")[-1].startswith("wsgi-isr;")
        if seen.code in (204, 304):
            assert seen.body == b""
        elif self.exact_length and self.environ["REQUEST_METHOD"] != "HEAD":
            length = seen.headers.get("Content-Length")
            assert length is None or int(length) == len(seen.body)


class Errors(io.StringIO):
    """A server's error stream; closed once its request is over, as on servers that have one per request."""


def make_environ(
    path: str = "/",
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    cookie: str = "",
    body: bytes = b"",
    host: str | None = "example.org",
    scheme: str = "http",
    script_name: str = "",
    extra: Mapping[str, Any] | None = None,
) -> Environ:
    """Return the environ of a request (PEP 3333). ``path`` is percent-encoded, and may end in a query."""
    path, _, query = path.partition("?")
    environ: Environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": script_name,
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "443" if scheme == "https" else "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if host is not None:
        environ["HTTP_HOST"] = host
    if body:
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
    if cookie:
        environ["HTTP_COOKIE"] = cookie
    for name, value in (headers or {}).items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    environ.update(extra or {})
    return environ


class Visit:
    """A request in progress in a thread of its own."""

    def __init__(self, ask: Callable[[], Seen]) -> None:
        self._seen: Seen | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()

    def _run(self, ask: Callable[[], Seen]) -> None:
        try:
            self._seen = ask()
        except BaseException as error:
            self._error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Seen:
        self._thread.join(DEADLINE)
        assert self.over, "the visitor still waits"
        if self._error is not None:
            raise self._error
        assert self._seen is not None
        return self._seen


class Jobs:
    """The number of background renders that were accepted and have not ended."""

    def __init__(self) -> None:
        self._open = 0
        self._changed = threading.Condition()

    def count(self, step: int) -> None:
        with self._changed:
            self._open += step
            self._changed.notify_all()

    def wait(self, held: int = 0) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: self._open <= held, DEADLINE)
        assert done, f"{self._open} background renders did not come to their end"

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count the jobs of every pool. No event tells of a job that ends without a render."""
        submit = Pool.submit

        def counted_submit(pool: Pool[Any], job: Any, urgent: bool = False, on_done: Any = None) -> bool:
            def counted_done(result: Any) -> None:
                try:
                    if on_done is not None:
                        on_done(result)
                finally:
                    self.count(-1)

            self.count(+1)
            taken = submit(pool, job, urgent, counted_done)
            if not taken:
                self.count(-1)
            return taken

        monkeypatch.setattr(Pool, "submit", counted_submit)


class Site:
    """The middleware around an app, with a validator on both sides and a scripted clock."""

    def __init__(
        self,
        app: Any,
        rules: Any = None,
        *,
        clock: Clock,
        jobs: Jobs,
        watcher: str = "wsgiref",
        **options: Any,
    ) -> None:
        self.clock = clock
        self.jobs = jobs
        self.events: list[Event] = []
        self._happened = threading.Condition()
        options.setdefault("store", MemoryStore(clock=clock))
        self.store = options["store"]
        self.isr = ISR(WATCHERS[watcher](app), rules, clock=clock, monotonic=clock, pause=clock.pause, **options)
        self.isr.subscribe(self._note)
        self._watcher = watcher

    def _note(self, event: Event) -> None:
        with self._happened:
            self.events.append(event)
            self._happened.notify_all()

    def happened(self, kind: type[Event]) -> list[Any]:
        """Return the events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def wait_for(self, kind: type[Event], count: int = 1) -> None:
        with self._happened:
            enough = self._happened.wait_for(lambda: len(self.happened(kind)) >= count, DEADLINE)
        assert enough, f"{kind.__name__} did not happen {count} times: {self.events}"

    def lifetime(self, path: str = "/", **request: Any) -> Lifetime:
        """Return for how long the stored page is fresh, and when it expires, as ages in seconds."""
        live = self.isr._engine
        environ = make_environ(path, **request)
        page = self.isr._pages.match(environ, fingerprint_of(environ), live.tag_versions.epochs, False)
        assert isinstance(page, Page), page
        entry = live.cache.kept(page.task)
        assert entry is not None, f"no page is stored for {path}"
        assert isinstance(entry.content, Content), entry.content
        return Lifetime(entry.revalidate, entry.expire)

    def begin(self, path: str = "/", *, exact_length: bool = True, **request: Any) -> Conversation:
        """Begin a request whose answer is not read yet: see :class:`Conversation`."""
        return self.conversation(make_environ(path, **request), exact_length=exact_length).begin()

    def conversation(self, environ: Environ, *, exact_length: bool = True) -> Conversation:
        return Conversation(WATCHERS[self._watcher](self.isr), environ, exact_length)

    def visit(self, path: str = "/", *, exact_length: bool = True, **request: Any) -> Seen:
        """Send one request, and return its whole answer."""
        return self.conversation(make_environ(path, **request), exact_length=exact_length).answer()

    def start_visit(self, path: str = "/", **request: Any) -> Visit:
        """Send one request in a thread of its own."""
        return Visit(lambda: self.visit(path, **request))

    def settle(self, held: int = 0) -> None:
        """Wait until no background render is in progress, except those ``held`` at a gate."""
        self.jobs.wait(held)

    def visit_and_settle(self, path: str = "/", **request: Any) -> Seen:
        seen = self.visit(path, **request)
        self.settle()
        return seen


def all_at_once(visitors: int, ask: Callable[[int], Seen]) -> list[Seen]:
    """Return the results of ``ask(0)`` to ``ask(visitors - 1)``, each in a thread. All begin together."""
    barrier = threading.Barrier(visitors)
    numbers = itertools.count()

    def one() -> Seen:
        number = next(numbers)
        barrier.wait(DEADLINE)
        return ask(number)

    visits = [Visit(one) for _ in range(visitors)]
    return [visit.result() for visit in visits]
