"""Scripted parts for tests of the cache.

The clock stands still. The origin counts its renders and can be held at a gate. The store fails on demand. A process is
made of these.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from wsgi_isr.cache.entries import Entries
from wsgi_isr.cache.entry import Codec, Content
from wsgi_isr.cache.executor import Executor, Job, OnDone
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.lease import LeaseKeepAlive, Leases
from wsgi_isr.cache.local_cache import Local
from wsgi_isr.cache.lookup import Cache
from wsgi_isr.cache.regenerate import Regenerator
from wsgi_isr.cache.releases import Releases
from wsgi_isr.cache.tag_versions import TagVersions
from wsgi_isr.cache.task import Answer, Limits, Product, Served, Task
from wsgi_isr.cache.verdict import Storable
from wsgi_isr.config.lifetime import Lifetime
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.events import Event, Events
from wsgi_isr.stores.base import Many, Store, Token, Versioned
from wsgi_isr.stores.memory import MemoryStore

T = TypeVar("T")

#: Seconds after which a wait fails. No passing test waits for so long.
NEVER = 10.0


class Clock:
    """A clock that moves only when told to. It serves as Unix time and as monotonic time."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Gate:
    """A point of the script where a thread stops until the test opens the gate."""

    def __init__(self, then: Any = None) -> None:
        self.then = then
        self._entered = threading.Event()
        self._opened = threading.Event()

    def enter(self) -> Any:
        self._entered.set()
        assert self._opened.wait(NEVER), "the gate was never opened"
        return self.then

    def reached(self) -> None:
        assert self._entered.wait(NEVER), "nobody came to the gate"

    def open(self) -> None:
        self._opened.set()


def page(body: str = "v1", revalidate: float | None = 10, expire: float | None = None) -> Storable:
    """Return the result of a render with this body, to be stored."""
    content = Content("200 OK", (("Content-Type", "text/plain"),), body.encode(), "tag-" + body)
    return Storable(content, Lifetime(revalidate, expire))


class Origin:
    """The ``produce`` of a :class:`Cache`.

    It returns the products of ``script`` one after the other, then numbered pages: ``v1`` is the first render. An
    exception in the script is raised. A :class:`Gate` holds the render.
    """

    def __init__(self, *script: Any, revalidate: float | None = 10, expire: float | None = None) -> None:
        self.script: deque[Any] = deque(script)
        self.tasks: list[Task] = []
        #: Called in the middle of each render.
        self.on_render: Callable[[], object] = lambda: None
        self._lifetime = (revalidate, expire)
        self._lock = threading.Lock()

    @property
    def renders(self) -> int:
        return len(self.tasks)

    def __call__(self, task: Task) -> Product:
        with self._lock:
            self.tasks.append(task)
            answer = self.script.popleft() if self.script else None
            number = len(self.tasks)
        self.on_render()
        if isinstance(answer, Gate):
            answer = answer.enter()
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            return page(f"v{number}", *self._lifetime)
        product: Product = answer
        return product


class Troubled(Store):
    """Another store, with faults.

    Verbs in ``failing`` raise ``StoreUnavailable``. ``before`` and ``after`` hold one-time interruptions by verb and
    key, which run at that point in the calling thread.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.max_value = inner.max_value
        self.nodes = inner.nodes
        self.failing: set[str] = set()
        self.before: dict[tuple[str, str], Callable[[], object]] = {}
        self.after: dict[tuple[str, str], Callable[[], object]] = {}
        self.calls: list[tuple[str, str]] = []

    def count(self, verb: str, key: str) -> int:
        return self.calls.count((verb, key))

    def _do(self, verb: str, key: str, call: Callable[[], T]) -> T:
        self.calls.append((verb, key))
        if verb in self.failing:
            raise StoreUnavailable("node-1", "timed out")
        if interruption := self.before.pop((verb, key), None):
            interruption()
        result = call()
        if interruption := self.after.pop((verb, key), None):
            interruption()
        return result

    def get(self, key: str) -> bytes | None:
        return self._do("get", key, lambda: self.inner.get(key))

    def get_many(self, keys: Sequence[str]) -> Many:
        try:
            return self._do("get_many", " ".join(keys), lambda: self.inner.get_many(keys))
        except StoreUnavailable as error:
            return Many({}, dict.fromkeys(keys, error))

    def gets(self, key: str) -> Versioned | None:
        return self._do("gets", key, lambda: self.inner.gets(key))

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._do("set", key, lambda: self.inner.set(key, value, ttl))

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        return self._do("add", key, lambda: self.inner.add(key, value, ttl))

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        return self._do("cas", key, lambda: self.inner.cas(key, value, token, ttl))

    def delete(self, key: str) -> bool:
        return self._do("delete", key, lambda: self.inner.delete(key))

    def close(self) -> None:
        self.inner.close()


def unavailable() -> None:
    """Raise, as an interruption of :class:`Troubled`: the verb was applied, but its answer was lost."""
    raise StoreUnavailable("node-1", "timed out")


class OneFormer(Releases):
    """Releases whose former release has stored every page under the key ``page``."""

    def __init__(self, page: str) -> None:
        self._page = page

    def former_page(self, task: Task) -> str:
        return self._page

    def refuse(self, task: Task) -> None:
        pass

    def record(self) -> None:
        pass


class Elsewhere:
    """The renderers of a process, scripted: ``submit`` is the executor of a test, or refuses every job."""

    def __init__(self) -> None:
        self.executor: Executor | None = None

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        if self.executor is None or not self.executor.submit(job, urgent, on_done):
            return False
        job.flight.send()
        return True


class Process:
    """One process of a cluster: a :class:`Cache` with an L1 of its own, on a shared store.

    Its keep-alive has no thread: a test calls :meth:`tick`.
    """

    def __init__(
        self,
        clock: Clock,
        store: Store,
        origin: Callable[[Task], Product],
        *,
        pause: Callable[[float], None] | None = None,
        threads: int = 2,
        queue: int = 8,
        former: str | None = None,
    ) -> None:
        self.seen: list[Event] = []
        self.local = Local(1 << 20)
        self.joined = threading.Event()
        self.joins = threading.Semaphore(0)
        events = Events(self.seen.append)
        keys = Keyspace("site")
        self.tag_versions = TagVersions(store, keys.tag, keys.epoch, coherence=0.1, monotonic=clock)
        self.keep_alive = LeaseKeepAlive(clock, events)
        self.keep_alive._thread = threading.current_thread()
        self.leases = Leases(store, Keyspace.lock, Keyspace.failures, events, self.keep_alive.let_go)
        releases = None if former is None else OneFormer(former)
        self.entries = Entries(store, self.local, self.tag_versions, Codec(), events, clock, clock, releases)
        self.regenerator = Regenerator(
            self.entries, self.leases, self.keep_alive, origin, lambda task: ["all"], uncacheable_ttl=60
        )
        self.elsewhere = Elsewhere()
        self.cache = Cache(
            self.entries,
            self.regenerator,
            renderers=self.elsewhere,
            threads=threads,
            queue=queue,
            pause=pause or clock.advance,
        )
        self.dispatcher = self.cache._dispatcher
        self.flights = self.dispatcher.flights
        join_or_create = self.flights.join_or_create

        def spy(key: str, instead_of: Any = None) -> Any:
            flight, is_leader = join_or_create(key, instead_of)
            if not is_leader:
                self.joined.set()
                self.joins.release()
            return flight, is_leader

        self.flights.join_or_create = spy  # type: ignore[method-assign]

    def get(self, task: Task | None = None, **options: Any) -> Answer:
        return self.cache.get(task or task_of(), **options)

    def settle(self, task: Task | None = None) -> None:
        """Wait until this process has no render of the page in progress."""
        flight = self.flights.get((task or task_of()).page)
        assert flight is None or flight.wait(NEVER) is not None, "the render never ended"

    def tick(self) -> None:
        """Run one round of the keep-alive's thread."""
        self.keep_alive.tick()

    def events(self, kind: type[T]) -> list[T]:
        return [event for event in self.seen if isinstance(event, kind)]


class Cluster:
    """Processes on one memory store, with one clock."""

    def __init__(self, origin: Origin | None = None) -> None:
        self.clock = Clock()
        self.store = MemoryStore(clock=self.clock)
        self.origin = origin or Origin()

    def process(self, store: Store | None = None, **options: Any) -> Process:
        return Process(self.clock, store or self.store, self.origin, **options)


def task_of(name: str = "/", **options: Any) -> Task:
    """Return the task of the page ``name``.

    :param options: limits of the task.
    """
    limits = Limits(**{"timeout": 30.0, "wait": 10.0, "lease": 10.0, **options})
    return Task("isr:p:" + name, f'["{name}"]', "*", limits)


def body(answer: Answer) -> str:
    """Return the text of a page that was served."""
    assert isinstance(answer, Served), answer
    content = answer.cached.entry.content
    assert isinstance(content, Content)
    return content.body.decode()


def shown(answer: Answer) -> tuple[str, str]:
    """Return label and text of a page that was served."""
    assert isinstance(answer, Served), answer
    return answer.label, body(answer)


def start(call: Callable[[], T]) -> Future[T]:
    """Begin ``call`` in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
