"""Faults of the store's file, and killed processes.

An unusable file causes one warning and a store in memory, never an error. A killed process loses no acknowledged write.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pwd
import random
import resource
import shutil
import signal
import sqlite3
import struct
import tempfile
import threading
import warnings
from pathlib import Path

import pytest

from wsgi_isr.stores.base import Many, Store
from wsgi_isr.stores.sqlite import connections
from wsgi_isr.stores.sqlite.store import SQLiteStore
from wsgi_isr.testing import StoreSuite, in_processes, in_threads


class TestSuiteOnAFileThatIsNoDatabase(StoreSuite):
    """The store that stands in keeps the contract of stores."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path, clock):
        self.path = tmp_path / "store.db"
        self.path.write_bytes(b"garbage " * 1000)
        self.clock = clock

    def make_store(self) -> Store:
        return SQLiteStore(self.path, clock=self.clock)

    def make_bounded_store(self, max_bytes: int) -> Store:
        return SQLiteStore(self.path, max_bytes=max_bytes, clock=self.clock)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def warned(caplog):
    """Return the messages of the store's logger so far. No other logger may write."""
    caplog.set_level(logging.DEBUG)

    def warned():
        assert all(record.levelno == logging.WARNING for record in caplog.records)
        return [record.getMessage() for record in caplog.records if record.name == "wsgi_isr.store"]

    return warned


def use(store):
    """Use every verb, as a page does: none raises, and the memory stores values."""
    store.set("key", b"value")
    assert store.get("key") == b"value"
    assert store.cas("key", b"new", store.gets("key").token) is True
    assert store.get_many(["key", "other"]) == Many({"key": b"new"}, {})
    assert store.add("other", b"value", ttl=30) is True
    assert store.add("other", b"value", ttl=30) is False
    assert store.delete("key") is True
    assert store.get("key") is None
    store.close()
    assert store.get("other") == b"value"


def check_degraded(store, warned, path, problem):
    use(store)
    in_threads(4, lambda number: store.set(f"thread:{number}", b"value"))
    [message] = warned()
    assert str(path) in message
    assert problem in message
    assert "restart" in message


def fill(path, count=200):
    store = SQLiteStore(path)
    for number in range(count):
        store.set(f"key:{number}", b"%d" % number * 3000)
    store.close()


class TestDamaged:
    def test_no_database_at_all(self, path, warned):
        garbage = b"these are somebody's notes, not a database " * 200
        path.write_bytes(garbage)
        check_degraded(SQLiteStore(path), warned, path, "damaged")
        assert path.read_bytes() == garbage

    def test_a_page_overwritten_while_the_store_is_in_use(self, path, warned):
        fill(path)
        store = SQLiteStore(path)
        assert store.get("key:5") is not None
        assert warned() == []
        store.close()
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096 * 12)
        for number in range(200):
            store.get(f"key:{number}")
        check_degraded(store, warned, path, "malformed")

    def test_a_file_cut_short(self, path, warned):
        fill(path)
        os.truncate(path, 5 * 4096)
        store = SQLiteStore(path)
        for number in range(200):
            store.get(f"key:{number}")
        check_degraded(store, warned, path, "malformed")

    def test_a_log_of_garbage_loses_only_what_was_in_it(self, path, warned):
        fill(path)
        path.with_name("store.db-wal").write_bytes(random.Random(1).randbytes(50_000))
        store = SQLiteStore(path)
        assert store.get("key:5") == b"5" * 3000
        store.set("key", b"value")
        store.close()
        assert warned() == []

    def test_tables_that_are_gone(self, path, warned):
        store = SQLiteStore(path)
        store.set("key", b"value")
        with contextlib.closing(sqlite3.connect(path)) as raw:
            raw.execute("DROP TABLE entry")
        check_degraded(store, warned, path, "not as wsgi_isr made it")

    def test_a_file_of_an_earlier_version_is_made_anew(self, path, warned):
        SQLiteStore(path).set("key", b"value")
        with contextlib.closing(sqlite3.connect(path)) as raw:
            raw.execute("DROP TRIGGER entry_written")
            raw.execute("PRAGMA user_version = 1")
        store = SQLiteStore(path)
        assert store.get("key") is None
        use(store)
        assert SQLiteStore(path).get_many(["key"]) == store.get_many(["key"])
        assert warned() == []

    def test_a_file_of_a_later_version_is_left_alone(self, path, warned):
        SQLiteStore(path).set("key", b"value")
        with contextlib.closing(sqlite3.connect(path)) as raw:
            raw.execute("PRAGMA user_version = 99")
        store = SQLiteStore(path)
        assert store.get("key") is None
        check_degraded(store, warned, path, "later version")

    def test_a_file_replaced_by_the_database_of_another_program_is_left_alone(self, path, warned, monkeypatch):
        monkeypatch.setattr(connections, "CHECK_EVERY", 0.0)
        store = SQLiteStore(path)
        store.set("key", b"value")
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE customer (name)")
        before = path.read_bytes()
        check_degraded(store, warned, path, "another program")
        assert path.read_bytes() == before


class TestFull:
    def test_a_database_that_may_not_grow(self, path, warned, monkeypatch):
        monkeypatch.setattr(connections, "PRAGMAS", (*connections.PRAGMAS, "PRAGMA max_page_count = 60"))
        store = SQLiteStore(path)
        store.set("before", b"stored")
        for number in range(100):
            store.set(f"key:{number}", b"x" * 5000)
            assert store.get(f"key:{number}") == b"x" * 5000
        check_degraded(store, warned, path, "full")

    @pytest.mark.parametrize("kind", ["full", "read-only"])
    def test_a_real_disk_that_is_full_or_turns_read_only_while_the_store_is_in_use(self, tmp_path, kind):
        """The child has a file system of 1 MB of its own, which ends with the child."""
        path = tmp_path / "store.db"

        def child(_):
            if not mount(tmp_path, MS_NOSUID, b"size=1m"):
                return None
            messages = record_warnings()
            store = SQLiteStore(path)
            store.set("before", b"stored")
            if kind == "read-only":
                store.close()
                assert mount(tmp_path, MS_NOSUID | MS_REMOUNT | MS_RDONLY, None)
            else:
                (tmp_path / "other").write_bytes(bytes(500_000))
            for number in range(100):
                store.set(f"key:{number}", b"x" * 10_000)
                assert store.get(f"key:{number}") == b"x" * 10_000
            use(store)
            return messages

        [messages] = in_processes(1, child)
        if messages is None:
            pytest.skip("this user may not mount anything, not even for itself")
        [message] = messages
        assert str(path) in message
        assert ("the disk is full" if kind == "full" else "permissions") in message
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_the_system_does_not_let_grow(self, path):
        """The limit of a process on the size of its files: writing fails half-way (EFBIG)."""

        def child(_):
            messages = record_warnings()
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            store = SQLiteStore(path)
            for number in range(100):
                store.set(f"key:{number}", b"x" * 10_000)
                assert store.get(f"key:{number}") == b"x" * 10_000
            use(store)
            return messages

        [[message]] = in_processes(1, child)
        assert str(path) in message
        # Entries stored before are complete.
        store = SQLiteStore(path)
        assert store.get("key:0") == b"x" * 10_000
        store.close()


class TestReadOnly:
    def test_a_connection_that_may_not_write(self, path, warned, monkeypatch):
        fill(path)
        monkeypatch.setattr(connections, "PRAGMAS", (*connections.PRAGMAS, "PRAGMA query_only = ON"))
        check_degraded(SQLiteStore(path), warned, path, "read-only")

    @pytest.mark.parametrize("kind", ["file and directory", "file", "empty directory", "directory", "no access"])
    def test_what_this_user_may_not_write(self, kind):
        """Run in a child without root's rights, because permission bits do not stop root.

        All cases are found out before the first verb, except a writable file in a directory that is not writable.
        """
        place = Path(tempfile.mkdtemp())  # tmp_path is inside a directory that others may not enter
        path = place / "store.db"
        try:
            if kind != "empty directory":
                fill(path)
                path.chmod({"no access": 0o000, "directory": 0o666}.get(kind, 0o444))
            place.chmod(0o777 if kind == "file" else 0o555)

            def child(_):
                if os.getuid() == 0:
                    os.setgid(65534)
                    os.setuid(65534)
                messages = record_warnings()
                store = SQLiteStore(path)
                early = len(messages)
                use(store)
                return early, pwd.getpwuid(os.getuid()).pw_name, messages

            [(early, user, [message])] = in_processes(1, child)
            assert early == (kind != "directory")
            assert str(path) in message
            assert f"make {place} a directory that user {user} can write to, with all files in it" in message
        finally:
            place.chmod(0o700)
            shutil.rmtree(place)

    def test_a_directory_that_turns_into_a_file_while_the_store_is_in_use(self, tmp_path, warned, monkeypatch):
        monkeypatch.setattr(connections, "CHECK_EVERY", 0.0)
        path = tmp_path / "cache" / "store.db"
        store = SQLiteStore(path)
        store.set("key", b"value")
        shutil.rmtree(path.parent)
        path.parent.write_text("a file")
        check_degraded(store, warned, path, "cannot be")

    def test_too_many_open_files(self, path):
        def child(_):
            messages = record_warnings()
            store = SQLiteStore(path)
            store.set("key", b"value")
            store.close()
            spare = os.dup(0)
            os.close(spare)
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, spare))
            use(store)
            return messages

        [[message]] = in_processes(1, child)
        assert "number of open files" in message


class TestDegraded:
    def test_there_is_no_way_back_to_what_the_file_holds(self, path, warned, monkeypatch):
        monkeypatch.setattr(connections, "PRAGMAS", (*connections.PRAGMAS, "PRAGMA max_page_count = 60"))
        store = SQLiteStore(path)
        store.set("tag", b"before the invalidation")
        for number in range(100):
            store.set(f"key:{number}", b"x" * 5000)
        store.set("tag", b"after it")
        store.delete("tag")
        monkeypatch.undo()
        store.close()
        assert store.get("tag") is None
        assert len(warned()) == 1

    def test_a_token_of_the_file_is_not_good_for_the_memory(self, path, warned):
        store = SQLiteStore(path)
        store.set("key", b"value")
        token = store.gets("key").token
        store.close()
        path.write_bytes(b"garbage " * 1000)
        assert store.cas("key", b"new", token) is False
        store.set("key", b"value")
        assert store.cas("key", b"new", token) is False
        assert len(warned()) == 1

    def test_a_child_of_a_degraded_parent_does_not_warn_again(self, path, warned):
        path.write_bytes(b"garbage " * 1000)
        store = SQLiteStore(path)
        assert len(warned()) == 1

        def child(_):
            messages = record_warnings()
            use(store)
            return messages

        assert in_processes(1, child) == [[]]

    def test_many_threads_that_meet_the_damage_at_once_warn_once(self, path, warned, monkeypatch):
        store = SQLiteStore(path)
        path.write_bytes(b"garbage " * 1000)
        everybody_has_met_it = threading.Barrier(8)
        degrade = store._degrade

        def wait_and_degrade(broken):
            everybody_has_met_it.wait(30)
            return degrade(broken)

        monkeypatch.setattr(store, "_degrade", wait_and_degrade)
        in_threads(8, lambda number: store.set(f"key:{number}", b"value"))
        assert len(warned()) == 1
        assert len(store.get_many([f"key:{number}" for number in range(8)]).values) == 8


MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 2, 32, 16384, 1 << 18
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000


def mount(directory, flags, options):
    """Mount a memory file system in a namespace of this process. Return whether the system allows it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not flags & MS_REMOUNT:
        user, group = os.getuid(), os.getgid()
        if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
            return False
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        if libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
            return False
    return libc.mount(b"none", os.fsencode(directory), b"tmpfs", flags, options) == 0


def record_warnings():
    """Return a list that records warnings, for a child to send to the test."""
    messages = []

    class ToList(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger = logging.getLogger("wsgi_isr.store")
    logger.addHandler(ToList())
    logger.propagate = False
    return messages


class TestKilled:
    @pytest.mark.parametrize("round_", range(6))
    def test_a_process_killed_while_it_writes_loses_nothing_that_it_acknowledged(self, path, round_):
        chance = random.Random(f"{round_}")
        store = SQLiteStore(path, timeout=20)
        store.set("before", b"stored")
        pids, pipes = zip(*(start_writer(store, name) for name in range(2)), strict=True)
        try:
            acknowledged = [[], []]
            for _ in range(chance.randrange(20, 120)):
                for pipe, numbers in zip(pipes, acknowledged, strict=True):
                    numbers.append(struct.unpack("=I", os.read(pipe, 4))[0])
        finally:
            # One after the other, in any order: the second one continues with the files of the first one.
            for pid in pids if round_ % 2 else reversed(pids):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        for pipe, numbers in zip(pipes, acknowledged, strict=True):
            while piece := os.read(pipe, 4):
                numbers.append(struct.unpack("=I", piece)[0])
            os.close(pipe)
        for reader in (store, SQLiteStore(path)):
            assert reader.get("before") == b"stored"
            for name, numbers in enumerate(acknowledged):
                assert numbers == list(range(len(numbers)))
                for number in numbers:
                    assert reader.get(f"{name}:{number}") == content(name, number)
                # The kill hit this write: the entry is complete, or missing.
                assert reader.get(f"{name}:{len(numbers)}") in (None, content(name, len(numbers)))
            assert reader._memory is None
            reader.close()
        with contextlib.closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert (
                raw.execute("SELECT sum(size) FROM usage").fetchall()
                == raw.execute("SELECT bytes FROM total").fetchall()
            )


def content(name, number):
    return random.Random(f"{name} {number}").randbytes((number * 7919) % 40_000)


def start_writer(store, name):
    """Start a child that writes without end, and prints each number once its value is stored."""
    acknowledged, acknowledge = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            for number in range(1_000_000):
                store.set(f"{name}:{number}", content(name, number))
                os.write(acknowledge, struct.pack("=I", number))
        finally:
            os._exit(1)
    os.close(acknowledge)
    return pid, acknowledged
