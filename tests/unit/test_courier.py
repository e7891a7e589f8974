"""The courier: the thread that delivers the lines of journals. It runs only where a journal needs it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_isr.cache import courier as module
from wsgi_isr.cache.courier import NAME, Courier
from wsgi_isr.stores.memory import MemoryStore

#: Seconds to wait for a thing that happens at once.
SOON = 20.0


class Store(MemoryStore):
    closed = 0

    def close(self) -> None:
        self.closed += 1


class App:
    """An app with a journal that has lines to deliver for a number of rounds."""

    def __init__(self, rounds: int = 0, is_serving: bool = False) -> None:
        self._store = Store()
        self.is_serving = is_serving
        self.rounds = rounds
        self.asked = threading.Semaphore(0)

    def deliver_kept(self) -> bool:
        self.rounds -= 1
        self.asked.release()
        return self.rounds > 0


class Broken(App):
    def deliver_kept(self) -> bool:
        super().deliver_kept()
        raise RuntimeError("boom")


@pytest.fixture
def courier(monkeypatch: pytest.MonkeyPatch) -> Iterator[Courier]:
    """Yield a courier with a long pause after its first round."""
    monkeypatch.setattr(module, "FIRST", 0.0)
    courier = Courier()
    module.courier.before_fork()  # ends the thread for apps of other tests
    yield courier
    courier.before_fork()
    module.courier.after_fork_in_parent()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == NAME]


def test_an_app_with_a_journal_has_a_thread_from_the_start(courier: Courier) -> None:
    assert threads() == []
    app, other = App(), App()
    courier.attend(app)
    courier.attend(other)
    assert threads() == [NAME]
    assert all(each.asked.acquire(timeout=SOON) for each in (app, other))
    (thread,) = [each for each in threading.enumerate() if each.name == NAME]
    assert thread.daemon
    courier.dismiss(app, SOON)
    assert threads() == [NAME]
    courier.dismiss(other, SOON)
    assert threads() == []


def test_while_something_is_kept_it_tries_again_soon_and_then_only_looks(
    courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            pauses.append(timeout)
            return len(pauses) > 4

    courier._attended.add(app := App(rounds=3))
    courier._run(Stop())
    assert app.rounds == -1
    expected = [0.0, module.AGAIN, module.AGAIN, module.LOOK, module.LOOK]
    assert [0.75 * pause <= taken <= 1.25 * pause for pause, taken in zip(expected, pauses, strict=True)] == [True] * 5


def test_an_app_whose_journal_fails_is_no_trouble_for_another_and_is_reported_once(
    courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    broken, app = Broken(), App()
    courier._attended.add(broken)
    courier._attended.add(app)
    assert [courier.round(), courier.round()] == [True, True]
    assert app.rounds == -2
    assert [record.getMessage() for record in caplog.records] == [
        "internal error: delivering a journal failed; it is tried again, and reported once"
    ]


def test_an_app_is_not_kept_alive_for_its_journal(courier: Courier) -> None:
    courier.attend(app := App())
    assert app.asked.acquire(timeout=SOON)
    del app
    assert courier.round() is False
    assert len(courier._attended) == 0


def test_where_it_is_off_there_is_no_thread(courier: Courier) -> None:
    with courier.off():
        courier.attend(app := App())
        courier.start()
        courier.after_fork_in_child()
        assert threads() == []
    courier.start()
    assert app.asked.acquire(timeout=SOON)


# Forks --------------------------------------------------------------------------------------------------


def test_a_master_of_workers_has_no_thread_and_no_connection_when_it_forks(courier: Courier) -> None:
    courier.attend(app := App())
    courier.before_fork()
    assert threads() == []
    assert app._store.closed == 1
    courier.after_fork_in_parent()
    assert threads() == []
    courier.before_fork()  # of the second worker
    assert app._store.closed == 1


def test_a_process_that_serves_goes_on_after_a_fork(courier: Courier) -> None:
    courier.attend(app := App(is_serving=True))
    courier.before_fork()
    assert (threads(), app._store.closed) == ([], 0)
    courier.after_fork_in_parent()
    assert threads() == [NAME]


def test_a_child_begins_anew(courier: Courier) -> None:
    courier.attend(app := App())
    courier.before_fork()
    courier.after_fork_in_child()
    assert threads() == [NAME]
    assert app.asked.acquire(timeout=SOON)


def test_a_child_that_gevent_may_patch_waits_for_the_hook(courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.sys.modules, "gevent.monkey", module)
    courier.attend(app := App())
    courier.before_fork()
    courier.after_fork_in_child()
    assert threads() == []
    courier.start()
    assert app.asked.acquire(timeout=SOON)
    assert threads() == [NAME]


def test_a_fork_of_a_process_with_a_journal_leaves_one_thread_in_each(tmp_path: Path) -> None:
    # The real hooks, in a process of its own: this one has threads of pytest.
    code = f"""
import os, threading
from wsgi_isr import ISR

def app(environ, start_response): ...
isr = ISR(app, store="memcached://127.0.0.1:1", journal="{tmp_path}/journal")
names = lambda: [t.name for t in threading.enumerate()]
print(names())
child = os.fork()
if child == 0:
    print(names(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(names())
isr._is_serving = True
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
print(names())
isr.close()
print(names())
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    both, one = f"['MainThread', '{NAME}']", "['MainThread']"
    assert run.stdout.splitlines() == [both, both, one, both, one]


IN_C = """
import ctypes, os, sys
from wsgi_isr import ISR
from wsgi_isr.cache.courier import courier
from wsgi_isr.stores.fork_hooks import ForkAware, watch

class Connections(ForkAware):
    are_inherited = True

    def after_fork_in_child(self):
        self.are_inherited = False

watch(connections := Connections())
def app(environ, start_response): ...
isr = ISR(app, store="memcached://127.0.0.1:1", journal="{journal}", development="cache")
fork = ctypes.PyDLL(None).fork  # as uWSGI does, unless py-call-osafterfork is set
engine = isr._engine
courier._own.lock.acquire()  # a thread of the parent may hold any lock
isr._beginning[os.getpid()].acquire()
child = fork()
if child == 0:
    isr._is_serving = False
    begun = isr._engine
    thread = courier._own.thread
    print(begun is not engine, isr._engine is begun, thread.name, thread.is_alive(), connections.are_inherited)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
courier._own.lock.release()
print(isr._engine is engine)
"""


def test_a_child_of_a_fork_in_c_begins_anew(tmp_path: Path) -> None:
    code = IN_C.format(journal=tmp_path / "journal")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    assert run.stdout.splitlines() == [f"True True {NAME} True False", "True"]


def test_a_thread_that_could_not_start_is_tried_again_with_the_next_line(
    courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", fail)
        courier.attend(app := App())
    assert threads() == []
    courier.start()
    assert app.asked.acquire(timeout=SOON)


def test_a_thread_that_has_died_is_replaced(courier: Courier) -> None:
    dead = courier._own.thread = threading.Thread(target=lambda: None)
    dead.start()
    dead.join(SOON)
    courier.attend(app := App())
    assert app.asked.acquire(timeout=SOON)
