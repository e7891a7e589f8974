"""Jobs for another process: the client's side of the socket, and the cache's use of the replies."""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.unit.scripted import NEVER, Cluster, Gate, Origin, Process, Troubled, page, shown, start, task_of
from wsgi_isr.cache import renderer_pool
from wsgi_isr.cache.entry import Codec, Content
from wsgi_isr.cache.executor import Job, OnDone, Reply, Status
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.lease import BackingOff, Lease
from wsgi_isr.cache.lookup import Cache
from wsgi_isr.cache.renderer_pool import LATER, MAX_JOB, URGENT, Remote, encode
from wsgi_isr.cache.single_flight import Flights
from wsgi_isr.cache.tag_versions import Mode
from wsgi_isr.cache.task import Attempt, Failed, Outcome, Regenerated, Served, Task, Unknown, pack, unpack
from wsgi_isr.cache.verdict import Failure
from wsgi_isr.config.wrapping import APP_DIGEST_BYTES
from wsgi_isr.errors import InvalidationError
from wsgi_isr.events import InternalError, RenderFailed, StoreFailed

SITE = b"s" * APP_DIGEST_BYTES
TASK = task_of()


# The client ----------------------------------------------------------------------------------------------


class Renderers:
    """Both sockets, and the renderers behind them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.listeners: dict[str, socket.socket] = {}

    def listen(self, name: str = LATER, backlog: int = 8) -> None:
        Path(self.folder, name).unlink(missing_ok=True)
        listener = self.listeners[name] = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.folder}/{name}")
        listener.listen(backlog)
        listener.settimeout(NEVER)

    def accept(self, name: str = LATER) -> tuple[socket.socket, bytes]:
        """Return the next job, and the connection that it came over."""
        connection, _ = self.listeners[name].accept()
        connection.settimeout(NEVER)
        message = b"".join(iter(lambda: connection.recv(65536), b""))
        connection.sendall(renderer_pool.ACCEPTED)
        return connection, message

    def close(self) -> None:
        for listener in self.listeners.values():
            listener.close()


@pytest.fixture
def renderers() -> Iterator[Renderers]:
    folder = tempfile.mkdtemp(prefix="t-", dir="/tmp")  # the path of a socket has to be short
    made = Renderers(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture
def client(renderers: Renderers) -> Iterator[Remote]:
    made = Remote(renderers.folder, SITE)
    yield made
    made.close()


class Heard:
    """A callback ``on_done`` that a test can wait for."""

    def __init__(self) -> None:
        self.replies: list[Reply | None] = []
        self._called = threading.Event()

    def __call__(self, reply: Reply | None) -> None:
        self.replies.append(reply)
        self._called.set()

    def reply(self) -> Reply | None:
        assert self._called.wait(NEVER), "nothing was heard"
        assert len(self.replies) == 1
        return self.replies[0]


def job_of(name: str = "job", **limits: float) -> Job:
    """Return a job for the page ``name``, which takes at most 30 seconds by default."""
    flights: Flights[Outcome] = Flights()
    task = task_of(name, **{"timeout": 30.0, "wait": 0.0, **limits})
    return Job(task, Attempt(), flights.join_or_create(task.page)[0])


JOB = job_of()


def message_of(job: Job) -> bytes:
    return SITE + pack(job.task, job.attempt)


def unheard(reply: Reply | None) -> None:
    raise AssertionError(f"nothing was sent, and yet: {reply!r}")


def test_a_job_goes_out_with_its_site_and_one_word_comes_back(renderers: Renderers, client: Remote) -> None:
    renderers.listen()
    heard = Heard()
    assert client.submit(JOB, False, heard)
    connection, message = renderers.accept()
    assert message == message_of(JOB)
    with connection:
        connection.sendall(encode(Reply(Status.FOUND)))
    assert heard.reply() == Reply(Status.FOUND)


def test_what_a_visitor_waits_for_goes_another_way(renderers: Renderers, client: Remote) -> None:
    renderers.listen(URGENT)
    heard = Heard()
    assert client.submit(JOB, True, heard)
    connection, message = renderers.accept(URGENT)
    with connection:
        connection.sendall(encode(Reply(Status.FOUND)))
    assert message == message_of(JOB)
    assert heard.reply() == Reply(Status.FOUND)


def test_many_are_under_way_at_once_and_each_hears_its_own(renderers: Renderers, client: Remote) -> None:
    renderers.listen(backlog=64)
    heard = [Heard() for _ in range(50)]
    for number, each in enumerate(heard):
        assert client.submit(job_of(str(number)), False, each)
    taken = [renderers.accept() for _ in heard]
    for connection, message in reversed(taken):
        with connection:
            task, _ = unpack(message[APP_DIGEST_BYTES:])
            connection.sendall(encode(Reply(Status.FAILED, reason=f"word for {task.page}")))
    pages = [task_of(str(number)).page for number in range(50)]
    assert [each.reply() for each in heard] == [Reply(Status.FAILED, reason=f"word for {page}") for page in pages]


def test_a_renderer_that_dies_is_heard_of_at_once(renderers: Renderers, client: Remote) -> None:
    renderers.listen()
    heard = Heard()
    client.submit(JOB, False, heard)
    renderers.accept()[0].close()
    assert heard.reply() == Reply(Status.DIED)


def test_who_dies_with_jobs_in_its_queue_has_not_begun_them(renderers: Renderers, client: Remote) -> None:
    renderers.listen()
    heard = Heard()
    client.submit(JOB, False, heard)
    renderers.close()
    assert heard.reply() == Reply(Status.UNKNOWN)


def test_a_word_that_takes_too_long_is_not_waited_for(renderers: Renderers, client: Remote) -> None:
    renderers.listen()
    heard = Heard()
    assert client.submit(job_of(timeout=0.5), False, heard)
    connection, _ = renderers.accept()
    assert heard.reply() is None
    connection.close()


@pytest.mark.parametrize("first", [False, True])
def test_a_job_that_nobody_accepts_in_a_moment_is_taken_back(
    renderers: Renderers, client: Remote, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer_pool, "ACCEPT_IN", (0.0, 0.0))
    renderers.listen(URGENT if first else LATER)
    heard = Heard()
    assert client.submit(JOB, first, heard)
    assert heard.reply() == Reply(Status.UNKNOWN)


def test_a_renderer_that_says_two_things_at_once_is_understood(renderers: Renderers, client: Remote) -> None:
    renderers.listen()
    heard = Heard()
    assert client.submit(JOB, False, heard)
    connection, _ = renderers.listeners[LATER].accept()
    with connection:
        connection.sendall(renderer_pool.ACCEPTED + encode(Reply(Status.BACKING_OFF)))
    assert heard.reply() == Reply(Status.BACKING_OFF)


def test_what_listens_to_words_may_end_and_the_next_job_begins_another_one(
    renderers: Renderers, client: Remote, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renderers.listen()
    heard, again = Heard(), Heard()
    with monkeypatch.context() as broken:
        broken.setattr(renderer_pool._Sent, "read", lambda self, connection: 1 / 0)
        assert client.submit(JOB, False, heard)
        connection, _ = renderers.accept()
        assert heard.reply() is None
        connection.close()
    assert "has ended" in caplog.text
    assert client.submit(JOB, False, again)
    connection, _ = renderers.accept()
    with connection:
        connection.sendall(encode(Reply(Status.FOUND)))
    assert again.reply() == Reply(Status.FOUND)


def test_without_descriptors_for_listening_a_job_is_refused(
    renderers: Renderers, client: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(24, "Too many open files")

    renderers.listen()
    with monkeypatch.context() as broken:
        broken.setattr("selectors.DefaultSelector", none_left)
        assert not client.submit(JOB, False, unheard)
    heard = Heard()
    assert client.submit(JOB, False, heard)


def test_after_the_end_nothing_is_sent_and_who_waits_hears_of_it(renderers: Renderers, client: Remote) -> None:
    renderers.listen()
    heard = Heard()
    client.submit(JOB, False, heard)
    client.close()
    assert heard.reply() is None
    assert not client.submit(JOB, False, unheard)


def test_who_hears_of_the_end_while_a_word_comes_hears_one_of_them(renderers: Renderers) -> None:
    class Ended(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            client.close()
            return super().recv(size, flags)

    class Client(Remote):
        def _send(self, message: bytes, name: str) -> socket.socket:
            return Ended(fileno=super()._send(message, name).detach())

    client = Client(renderers.folder, SITE)
    renderers.listen()
    heard = Heard()
    assert client.submit(JOB, False, heard)
    listening = [thread for thread in threading.enumerate() if thread.name == "wsgi-isr-remote"]
    connection, _ = renderers.accept()
    with connection:
        for thread in listening:
            thread.join(NEVER)
    assert heard.reply() is None


def test_where_nobody_listens_it_is_said_once_and_once_more_after_a_minute_of_work(
    renderers: Renderers, client: Remote, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        assert not client.submit(JOB, False, unheard)
    renderers.listen()
    heard = Heard()
    assert client.submit(JOB, False, heard)
    renderers.close()
    assert not client.submit(JOB, False, unheard)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("wsgi_isr", logging.WARNING)
    assert "are gone (No such file or directory)" in record.getMessage()

    monkeypatch.setattr(renderer_pool, "WARN_AGAIN", 0.0)
    assert not client.submit(JOB, False, unheard)
    assert len(caplog.records) == 1, "it has not been well since"
    renderers.listen()
    assert client.submit(JOB, False, lambda reply: None)
    renderers.close()
    assert not client.submit(JOB, False, unheard)
    assert len(caplog.records) == 2


def test_a_full_queue_refuses_at_once(renderers: Renderers, client: Remote, caplog: pytest.LogCaptureFixture) -> None:
    renderers.listen(backlog=1)
    taken = 0
    while client.submit(JOB, False, lambda reply: None):
        taken += 1
        assert taken < 10
    assert taken >= 1
    assert [record.getMessage() for record in caplog.records] == [
        "the renderer processes are busy: pages are rendered in threads of this process meanwhile"
    ]


def _padded(size: int) -> Job:
    """Return a job whose message has ``size`` bytes."""
    some = JOB._replace(task=JOB.task._replace(text="x" * 60_000))
    return JOB._replace(task=JOB.task._replace(text="x" * (60_000 + size - len(message_of(some)))))


def test_a_job_that_is_too_large_for_the_way_stays_here_without_a_word(
    renderers: Renderers, client: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    renderers.listen()
    longest = _padded(MAX_JOB)
    assert not client.submit(_padded(MAX_JOB + 1), False, unheard)
    assert client.submit(longest, False, lambda reply: None)
    connection, message = renderers.accept()
    connection.close()
    assert len(message) == MAX_JOB
    assert caplog.records == []


@pytest.mark.parametrize(("where", "error"), [("socket", OSError(24, "too many")), ("socketpair", OSError(24, "too"))])
def test_without_descriptors_the_job_is_refused_and_nobody_waits_for_it(
    where: str, error: Exception, renderers: Renderers, client: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderers.listen()

    def none_left(*_arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, where, none_left)
    assert not client.submit(JOB, False, unheard)


def test_nor_without_a_thread(renderers: Renderers, client: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    renderers.listen()

    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert not client.submit(JOB, False, unheard)
    monkeypatch.undo()
    assert client.submit(JOB, False, lambda reply: None)


# The cache's use of a reply ----------------------------------------------------------------------------------


class Sent:
    """An executor that accepts every job, and does nothing."""

    def __init__(self, process: Process, takes: bool = True) -> None:
        self.takes = takes
        self.jobs: list[tuple[Job, bool, OnDone]] = []
        process.elsewhere.executor = self

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        if self.takes:
            self.jobs.append((job, urgent, on_done))
        return self.takes


class Answering:
    """An executor made of a function that gets a job and the callback for the reply."""

    def __init__(self, process: Process, run: Callable[[Job, OnDone], object]) -> None:
        self._run = run
        process.elsewhere.executor = self

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        self._run(job, on_done)
        return True


def run_here(process: Process, attempt: Attempt = Attempt()) -> Reply:  # noqa: B008 - immutable
    """Run the task in ``process``, as a job of another process."""
    return process.cache.run_job(TASK, attempt)


class Scene:
    """A process that serves a stale page, a renderer, and the jobs sent between them."""

    def __init__(self, *script: Any, age: float = 15, expire: float | None = None) -> None:
        self.cluster = Cluster(Origin(*script, expire=expire))
        self.store = Troubled(self.cluster.store)
        self.serving = self.cluster.process(self.store)
        self.rendering = self.cluster.process()
        assert shown(self.serving.get()) == ("MISS", "v1")
        self.cluster.clock.advance(age)
        self.sent = Sent(self.serving)

    def do(self) -> Reply:
        """Let the renderer do the one job that was sent. Return its reply, which is not delivered yet."""
        job = self.sent.jobs[-1][0]
        return self.rendering.cache.run_job(job.task, job.attempt)

    def tell(self, reply: Reply | None) -> None:
        self.sent.jobs[-1][2](reply)


def test_a_stale_page_is_rendered_by_the_other_process_alone() -> None:
    scene = Scene()
    assert shown(scene.serving.get()) == ("STALE", "v1")
    ((job, urgent, _),) = scene.sent.jobs
    assert (job.task, urgent) == (TASK, False)
    reply = scene.do()
    assert reply.status is Status.STORED
    scene.tell(reply)
    assert shown(scene.serving.get()) == ("HIT", "v2")
    assert scene.cluster.origin.renders == 2


def test_while_it_is_under_way_it_is_not_sent_again() -> None:
    scene = Scene()
    for _ in range(3):
        assert shown(scene.serving.get()) == ("STALE", "v1")
        scene.cluster.clock.advance(1)
    assert len(scene.sent.jobs) == 1


def test_who_waits_for_an_expired_page_is_served_first_and_gets_the_new_one() -> None:
    scene = Scene(expire=12)
    visitor = start(scene.serving.get)
    _until_sent(scene)
    assert scene.sent.jobs[0][1] is True
    scene.tell(scene.do())
    answer = visitor.result(NEVER)
    assert shown(answer) == ("EXPIRED", "v2")
    assert isinstance(answer, Served)
    assert answer.stored


def _until_sent(scene: Scene) -> None:
    waiting = threading.Event()
    while not scene.sent.jobs:
        assert not waiting.wait(0.001)


def test_a_job_that_is_refused_is_done_here() -> None:
    scene = Scene()
    scene.sent.takes = False
    assert shown(scene.serving.get()) == ("STALE", "v1")
    scene.serving.settle()
    assert shown(scene.serving.get()) == ("HIT", "v2")


def test_one_that_the_other_process_does_not_know_is_done_here() -> None:
    scene = Scene()
    scene.serving.get()
    scene.tell(Reply(Status.UNKNOWN))
    scene.serving.settle()
    assert shown(scene.serving.get()) == ("HIT", "v2")


def test_a_renderer_that_dies_costs_nothing_but_the_time_until_somebody_asks_again() -> None:
    scene = Scene()
    scene.serving.get()
    scene.tell(None)
    scene.cluster.clock.advance(0.2)
    assert shown(scene.serving.get()) == ("STALE", "v1")
    assert len(scene.sent.jobs) == 2


def test_a_page_that_somebody_else_has_rendered_is_found() -> None:
    scene = Scene()
    scene.serving.get()
    third = scene.cluster.process()
    assert shown(third.get()) == ("STALE", "v1")
    third.settle()
    reply = scene.do()
    assert reply.status is Status.FOUND
    scene.tell(reply)
    assert shown(scene.serving.get()) == ("HIT", "v2")


def test_one_that_is_being_rendered_elsewhere_is_busy() -> None:
    gate = Gate()
    scene = Scene(None, gate)
    scene.serving.get()
    third = scene.cluster.process()
    third.get()
    gate.reached()
    assert scene.do() == Reply(Status.BUSY)
    scene.tell(Reply(Status.BUSY))
    gate.open()
    third.settle()


def test_a_failure_is_heard_of_with_its_reason_and_then_the_page_rests() -> None:
    scene = Scene(None, ValueError("no"))
    scene.serving.get()
    assert scene.do() == Reply(Status.FAILED, reason="exception")
    assert run_here(scene.rendering, Attempt(ignore_backoff=False)) == Reply(Status.BACKING_OFF)
    scene.tell(Reply(Status.BACKING_OFF))
    assert shown(scene.serving.get()) == ("STALE", "v1")


def test_for_who_waits_the_last_good_page_is_kept_after_a_failure() -> None:
    scene = Scene(None, Failure("status-500"), expire=12)
    visitor = start(scene.serving.get)
    _until_sent(scene)
    reply = scene.do()
    assert reply == Reply(Status.FAILED, reason="status-500")
    scene.tell(reply)
    assert shown(visitor.result(NEVER)) == ("STALE-IF-ERROR", "v1")


def test_a_rules_own_callable_that_raises_is_a_failure_like_any_other() -> None:
    scene = Scene()
    scene.serving.get()

    def raises(task: Task) -> list[str]:
        raise ValueError("no tags")

    scene.rendering.regenerator.tags_of = raises
    assert scene.do() == Reply(Status.FAILED, reason="tags")


def test_a_task_that_only_the_other_one_can_describe_is_unknown() -> None:
    scene = Scene()

    def raises(task: Task) -> list[str]:
        raise Unknown("no such function")

    scene.rendering.regenerator.tags_of = raises
    assert run_here(scene.rendering) == Reply(Status.UNKNOWN)
    assert scene.cluster.origin.renders == 1


def test_an_older_page_than_the_one_that_was_made_counts_as_found() -> None:
    # Another node of the store still has the entry before: it is not taken for the new one.
    scene = Scene(expire=12)
    visitor = start(scene.serving.get)
    _until_sent(scene)
    before = scene.cluster.store.get(TASK.page)
    assert before is not None
    reply = scene.do()
    scene.cluster.store.set(TASK.page, before)
    scene.tell(reply)
    _second_job(scene)
    scene.tell(scene.do())
    assert shown(visitor.result(NEVER)) == ("EXPIRED", "v3")


def _second_job(scene: Scene) -> None:
    waiting = threading.Event()
    while len(scene.sent.jobs) < 2:
        assert not waiting.wait(0.001)


def test_a_word_is_not_taken_for_a_flight_that_began_later() -> None:
    # The page was sent to a renderer. A visitor without an entry to fall back on renders it in this process. Then the
    # page is invalidated, and a second visitor waits for a new render. The reply for the first job arrives now. It is
    # too old for the second visitor.
    scene = Scene()
    scene.serving.get()
    first = scene.sent.jobs[0][2]
    reply = scene.do()
    flight = scene.serving.flights.get(TASK.page)
    assert flight is not None
    assert flight.claim()
    scene.serving.dispatcher.lead(TASK, Attempt(), flight)
    assert len(scene.serving.flights) == 0

    later, is_leader = scene.serving.flights.join_or_create(TASK.page)
    assert is_leader
    first(reply)
    assert not later.done


def test_a_store_that_fails_meanwhile_is_reported_and_nobody_waits_for_ever() -> None:
    scene = Scene()
    scene.serving.get()
    reply = scene.do()
    scene.store.failing = {"get"}
    scene.tell(reply)
    assert len(scene.serving.flights) == 0
    assert len(scene.serving.events(StoreFailed)) == 1


def test_nor_where_it_raises_what_it_should_not() -> None:
    scene = Scene()
    scene.serving.get()
    reply = scene.do()

    def breaks() -> None:
        raise TypeError("a bug")

    scene.store.before["get", TASK.page] = breaks
    scene.tell(reply)
    assert len(scene.serving.flights) == 0
    assert [event.where for event in scene.serving.events(InternalError)] == ["a render in another process"]


def test_two_that_send_the_same_page_to_one_renderer_have_it_rendered_once() -> None:
    gate = Gate(page("v2"))
    scene = Scene(None, gate)
    one = start(lambda: run_here(scene.rendering))
    gate.reached()
    two = start(lambda: run_here(scene.rendering))
    assert scene.rendering.joined.wait(NEVER)
    gate.open()
    assert one.result(NEVER).status is Status.STORED
    assert two.result(NEVER) == one.result(NEVER)
    assert scene.cluster.origin.renders == 2


def test_a_render_from_before_an_invalidation_does_not_count_for_a_job_that_came_after_it() -> None:
    gate = Gate(page("v2"))
    scene = Scene(None, gate)
    one = start(lambda: run_here(scene.rendering))
    gate.reached()
    assert scene.serving.tag_versions.invalidate(["all"], Mode.EXPIRE) == {}
    two = start(lambda: run_here(scene.rendering))
    assert scene.rendering.joined.wait(NEVER)
    gate.open()
    assert one.result(NEVER).status is Status.STORED
    assert two.result(NEVER).status is Status.STORED
    assert two.result(NEVER) != one.result(NEVER)
    assert scene.cluster.origin.renders == 3


# On demand ---------------------------------------------------------------------------------------------------


def refresh(cache: Cache) -> Regenerated | Failed:
    return cache.refresh(TASK, "all")


def test_a_refresh_is_rendered_there_and_seen_here() -> None:
    scene = Scene(age=0)
    caller = start(lambda: refresh(scene.serving.cache))
    _until_sent(scene)
    job, urgent = scene.sent.jobs[0][:2]
    assert urgent
    assert job.attempt.owner
    assert (job.task, job.attempt._replace(owner=b"")) == (TASK, Attempt(refresh_tag="all", trigger="refresh"))
    scene.tell(scene.do())
    outcome = caller.result(NEVER)
    assert isinstance(outcome, Regenerated)
    content = outcome.cached.entry.content
    assert isinstance(content, Content)
    assert content.body == b"v2"
    assert shown(scene.serving.get()) == ("HIT", "v2")


def test_a_refresh_that_could_not_be_announced_there_raises_here() -> None:
    scene = Scene(age=0)
    caller = start(lambda: refresh(scene.serving.cache))
    _until_sent(scene)
    scene.rendering.tag_versions._store = _failing(scene)
    reply = scene.do()
    assert reply == Reply(Status.FAILED, reason="undelivered")
    scene.tell(reply)
    with pytest.raises(InvalidationError):
        caller.result(NEVER)


def _failing(scene: Scene) -> Troubled:
    store = Troubled(scene.cluster.store)
    store.failing = {"set", "add", "cas", "gets"}
    return store


def test_what_a_function_raises_is_for_its_caller_so_that_data_is_refreshed_here() -> None:
    scene = Scene(None, ZeroDivisionError("mine"), age=0)
    task = TASK._replace(data=True)
    outcome = scene.serving.cache.refresh(task, "all")
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, ZeroDivisionError)
    assert scene.sent.jobs == []


def test_a_task_is_the_same_after_its_way() -> None:
    task = TASK._replace(limits=TASK.limits._replace(ignore_backoff=False), data=True)
    attempt = Attempt(max_lease_wait=2.5, ignore_backoff=False, refresh_tag="tag")
    assert unpack(pack(task, attempt)) == (task, attempt)
    assert Keyspace.lock(task.page) != task.page
    entry = Cluster()
    entry.process().get()
    stored = entry.store.get(TASK.page)
    assert stored is not None
    # The digest in a reply is that of the stored entry.
    assert Codec().pack(Codec().unpack(stored, TASK.text)) == stored


def test_a_page_whose_render_began_before_a_soft_invalidation_is_not_shown_as_new_to_who_came_after_it() -> None:
    gate = Gate(page("v2"))
    cluster = Cluster(Origin(page("v1"), gate))
    server, renderer = cluster.process(), cluster.process()
    server.get()
    server.tag_versions.invalidate(["all"], Mode.EXPIRE)
    earlier = start(renderer.get)  # another visitor's
    gate.reached()
    server.tag_versions.invalidate(["all"], Mode.STALE)

    def elsewhere(_job: Job, done: OnDone) -> None:
        # The renderer joins its render in progress, and reports it.
        gate.open()
        assert shown(earlier.result()) == ("EXPIRED", "v2")
        done(Reply(Status.FOUND))

    Answering(server, elsewhere)
    assert shown(server.get()) == ("STALE", "v2")


def test_a_page_that_renderers_die_of_is_left_alone_for_a_while_and_longer_each_time() -> None:
    cluster = Cluster(Origin(page("v1")))
    server = cluster.process()
    server.get()
    server.tag_versions.invalidate(["all"], Mode.EXPIRE)
    jobs: list[Job] = []

    def elsewhere(job: Job, done: OnDone) -> None:
        jobs.append(job)
        done(Reply(Status.DIED))

    Answering(server, elsewhere)
    pauses = []
    for _ in range(7):
        before = len(jobs)
        while len(jobs) == before:
            cluster.clock.advance(0.5)
            assert shown(server.get()) == ("STALE-IF-ERROR", "v1")
        pauses.append(server.events(RenderFailed)[-1].retry_in)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert cluster.origin.renders == 1  # and never in a process that serves


def test_what_a_renderer_died_of_is_left_alone_by_every_process_and_no_longer_than_that() -> None:
    cluster = Cluster(Origin(page("v1"), page("v2")))
    server, other = cluster.process(), cluster.process()
    server.get()
    cluster.clock.advance(11)

    def elsewhere(job: Job, done: OnDone) -> None:
        owner = job.attempt.owner
        assert isinstance(server.leases.acquire(TASK.page, TASK.limits.lease, owner), Lease)
        done(Reply(Status.DIED))

    Answering(server, elsewhere)
    assert shown(server.get()) == ("STALE", "v1")
    cluster.clock.advance(0.9)
    assert shown(other.get()) == ("STALE", "v1")
    other.settle()
    assert cluster.origin.renders == 1
    cluster.clock.advance(0.4)  # much less than a lease
    assert shown(other.get()) == ("STALE", "v1")
    other.settle()
    assert shown(other.get()) == ("HIT", "v2")


def test_what_renderers_die_of_is_left_alone_by_every_process_until_it_is_invalidated_once_more() -> None:
    cluster = Cluster(Origin(page("v1")))
    processes = [cluster.process() for _ in range(3)]
    processes[0].get()
    deaths = []

    def elsewhere(job: Job, done: OnDone) -> None:
        def die(task: Task) -> NoReturn:
            deaths.append(task)
            done(Reply(Status.DIED))
            raise SystemExit

        renderer = Process(cluster.clock, cluster.store, die)
        if isinstance(renderer.regenerator.regenerate(job.task, job.attempt), BackingOff):
            done(Reply(Status.BACKING_OFF))

    for process in processes:
        Answering(process, elsewhere)
    for number in (1, 2):
        processes[0].tag_versions.invalidate(["all"], Mode.EXPIRE)
        cluster.clock.advance(0.9)  # less than the first pause
        for process in processes:
            assert shown(process.get()) == ("STALE-IF-ERROR", "v1")
        assert len(deaths) == number


def test_a_renderer_that_dies_without_the_lock_leaves_it_to_who_has_it() -> None:
    cluster = Cluster(Origin(page("v1")))
    server = cluster.process()
    server.get()
    cluster.clock.advance(11)
    leases = server.leases
    lease = leases.acquire(TASK.page, TASK.limits.lease)
    assert isinstance(lease, Lease)

    def elsewhere(_job: Job, done: OnDone) -> None:
        done(Reply(Status.DIED))

    Answering(server, elsewhere)
    server.get()
    assert cluster.store.get(leases.lock_of(TASK.page)) == lease.token
    assert leases.failures(TASK.page) == 0


def test_a_refresh_of_a_page_that_its_renderer_dies_of_fails_at_once() -> None:
    server = Cluster().process()
    calls = []

    def elsewhere(_job: Job, done: OnDone) -> None:
        calls.append(1)
        done(Reply(Status.DIED))

    Answering(server, elsewhere)
    assert server.cache.refresh(TASK, "all") == Failed("renderer-died")
    assert len(calls) == 1
