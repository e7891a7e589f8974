"""Fixtures: a scripted origin, a scripted clock, and sites made of both."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.behaviour.looped import Client, Connect, Pages, Run
from tests.behaviour.origin import DEADLINE, Origin
from tests.behaviour.visitor import Clock, Jobs, Site
from tests.support.workers import RunningWorker
from wsgi_isr.cache import app_records, timeline
from wsgi_isr.cache.courier import courier
from wsgi_isr.middleware.runtime import runtime

MakeSite = Callable[..., Site]


@pytest.fixture(autouse=True)
def no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's ``WSGI_ISR_*`` variables out of the tests."""
    import os

    for name in list(os.environ):
        if name.startswith("WSGI_ISR_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def only_these_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the apps of earlier tests from the functions that reach every :class:`ISR` of the process."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    monkeypatch.setattr(runtime, "instances", alive)
    monkeypatch.setattr(runtime, "alone", None)


@pytest.fixture(autouse=True)
def no_courier() -> Iterator[None]:
    """Start no courier: a test delivers the journal itself."""
    with courier.off():
        yield


@pytest.fixture(autouse=True)
def no_recorder_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no timeline in the background: a test writes it itself."""
    monkeypatch.setattr(timeline, "in_thread", lambda work: False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.open_all()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    jobs = Jobs()
    jobs.watch(monkeypatch)
    begin = app_records.in_thread

    def counted(work: Callable[[], None]) -> bool:
        def run() -> None:
            try:
                work()
            finally:
                jobs.count(-1)

        jobs.count(+1)
        return begin(run) or bool(jobs.count(-1))

    monkeypatch.setattr(app_records, "in_thread", counted)
    return jobs


@pytest.fixture
def make_site(origin: Origin, clock: Clock, jobs: Jobs) -> Iterator[MakeSite]:
    """Yield ``make_site(rules, **options)``: the origin behind the middleware. Sites may share a store."""
    sites: list[Site] = []

    def make(rules: Any = None, *, app: Any = None, **options: Any) -> Site:
        site = Site(origin if app is None else app, rules, clock=clock, jobs=jobs, **options)
        sites.append(site)
        return site

    yield make
    origin.open_all()
    jobs.wait()
    for site in sites:
        site.isr.close(DEADLINE)


# A worker with an event loop ---------------------------------------------------------------------------------------


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def run() -> Iterator[Run]:
    """Yield a function that runs a worker until the test ends, by default ours."""
    from wsgi_isr.servers.gunicorn_worker import Worker

    with contextlib.ExitStack() as stack:
        yield lambda app, kind=Worker, **options: stack.enter_context(RunningWorker(kind, app, **options))


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Yield a function that opens a connection until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda worker: stack.enter_context(contextlib.closing(Client(worker)))
