from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
import time

import pytest

from wsgi_isr.errors import ConfigError, StoreUnavailable
from wsgi_isr.stores.base import Many, Store
from wsgi_isr.stores.sqlite import connections
from wsgi_isr.stores.sqlite.connections import DatabaseFile
from wsgi_isr.stores.sqlite.store import SQLiteStore
from wsgi_isr.stores.sqlite.table import prepare
from wsgi_isr.testing import StoreSuite, in_processes


class TestSuite(StoreSuite):
    shared = persistent = True

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path, clock):
        self.directory = tmp_path
        self.clock = clock

    def make_store(self) -> Store:
        # The timeout is long, because the test is not about the speed of this machine.
        return SQLiteStore(self.directory / "store.db", clock=self.clock, timeout=20)

    def make_bounded_store(self, max_bytes: int) -> Store:
        return SQLiteStore(self.directory / "bounded.db", max_bytes=max_bytes, clock=self.clock)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def make(path, clock):
    """Yield a function that makes handles on one file, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(**options):
            store = SQLiteStore(path, **{"clock": clock, **options})
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture
def raw(make, path):
    """Return a connection of the test to the store's file."""
    make().get("the first verb makes the file")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


class TestPaths:
    def test_file_and_directories_are_made_for_this_user_only(self, tmp_path):
        path = tmp_path / "a" / "b" / "store.db"
        store = SQLiteStore(path)
        store.set("key", b"value")
        modes = {
            each.relative_to(tmp_path).as_posix(): stat.S_IMODE(each.stat().st_mode)
            for each in (path.parent.parent, path.parent, *path.parent.iterdir())
        }
        store.close()
        files = {"a/b/store.db": 0o600, "a/b/store.db-wal": 0o600, "a/b/store.db-shm": 0o600}
        assert modes == {"a": 0o700, "a/b": 0o700, **files}

    def test_a_directory_that_was_there_keeps_its_mode(self, tmp_path):
        directory = tmp_path / "shared"
        directory.mkdir()
        directory.chmod(0o755)
        store = SQLiteStore(directory / "store.db")
        store.set("key", b"value")
        store.close()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755

    def test_a_relative_path_counts_from_where_the_store_was_made(self, tmp_path, monkeypatch):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        store = SQLiteStore("store.db")
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.set("key", b"value")
        store.close()
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_construction_makes_no_file(self, tmp_path):
        """gunicorn's master may construct the store as root, and its workers use it as another user."""
        SQLiteStore(tmp_path / "directory" / "store.db")
        assert list(tmp_path.iterdir()) == []

    def test_construction_makes_no_file_beside_one_that_is_there(self, path):
        first = SQLiteStore(path)
        first.set("key", b"value")
        first.close()
        before = path.read_bytes()
        SQLiteStore(path)
        assert os.listdir(path.parent) == [path.name]
        assert path.read_bytes() == before

    def test_nothing_is_open_after_construction(self, path):
        SQLiteStore(path)
        assert not any(str(path) in name for name in open_files())

    def test_construction_takes_no_lock_from_another_store_of_this_process(self, make, path):
        """Closing any descriptor of a file drops all locks that the process has on it (fcntl(2))."""
        holder = make()
        holder.set("key", b"value")

        other = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
        with holder._table._file.transaction():
            SQLiteStore(path)
            # This is no fork, before which the store would close the file.
            done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert "database is locked" in done.stderr

    @pytest.mark.parametrize(
        ("make_path", "problem"),
        [
            (lambda tmp: tmp, "is a directory"),
            (lambda tmp: tmp / "file" / "store.db", "a part of this path is a file"),
            (lambda tmp: tmp / "file" / "more" / "store.db", "a part of this path is a file"),
            (lambda tmp: tmp / "pipe", "not a regular file"),
            (lambda tmp: "/dev/null", "not a regular file"),
            (lambda tmp: tmp / ("x" * 300), "no possible path"),
            (lambda tmp: f"{tmp}/nul\0.db", "no possible path"),
            (lambda tmp: tmp / "loop" / "store.db", "no possible path"),
        ],
    )
    def test_a_path_that_can_never_work_is_a_configuration_error(self, tmp_path, make_path, problem):
        (tmp_path / "file").write_text("a file")
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(ConfigError) as caught:
            SQLiteStore(make_path(tmp_path))
        assert caught.value.option == "store"
        assert problem in caught.value.problem
        assert caught.value.remedy

    @pytest.mark.parametrize("options", [{"max_bytes": 1000}, {"timeout": 0}, {"timeout": -1.0}])
    def test_an_impossible_option_is_a_configuration_error(self, path, options):
        with pytest.raises(ConfigError) as caught:
            SQLiteStore(path, **options)
        assert caught.value.option == "store"
        assert not path.exists()

    def test_the_database_of_another_program_is_refused_and_left_alone(self, path):
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE customer (name)")
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="another program"):
            SQLiteStore(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_a_file_that_another_process_makes_while_we_look_at_it_is_ours(self, path):
        """The mark was not there at our read of the mark. The tables are there at our later read of tables."""

        def another_process(statement):
            if "sqlite_master" in statement:
                connection.set_trace_callback(None)
                with contextlib.suppress(StoreUnavailable):  # the tables are there, but the log cannot be written yet
                    SQLiteStore(path, timeout=0.01).get("key")

        connection = sqlite3.connect(path, isolation_level=None)
        connection.set_trace_callback(another_process)
        with contextlib.closing(connection):
            prepare(connection)
        SQLiteStore(path).close()

    def test_a_new_file_that_is_locked_for_a_moment_is_tried_again(self, path):
        """SQLite does not wait where two connections turn WAL on at once, with any timeout."""
        attempts = []

        def prepare(connection):
            attempts.append(connection)
            if len(attempts) < 3:
                raise sqlite3.OperationalError("database is locked")

        file = DatabaseFile(str(path), 20, prepare)
        with file.connection() as connection:
            assert connection is attempts[2]
        file.close()

    def test_a_new_file_that_stays_locked_is_unavailable_after_the_timeout(self, path):
        def prepare(connection):
            raise sqlite3.OperationalError("database is locked")

        file = DatabaseFile(str(path), 0.02, prepare)
        with pytest.raises(StoreUnavailable), file.connection():
            raise AssertionError("opened")

    def test_two_stores_on_one_new_file_made_by_many_processes_at_once_share_it(self, path):
        def child(number):
            store = SQLiteStore(path, timeout=20)
            store.set(f"key:{number}", b"value")
            return store._memory is None

        assert in_processes(6, child) == [True] * 6
        keys = [f"key:{number}" for number in range(6)]
        store = SQLiteStore(path)
        assert len(store.get_many(keys).values) == 6
        store.close()


class TestExpiry:
    def test_a_value_is_missing_from_the_very_moment_its_ttl_has_passed(self, make, clock):
        store = make()
        store.set("key", b"value", ttl=10)
        clock.advance(9.5)
        assert store.get("key") == b"value"
        clock.advance(0.5)
        assert store.get("key") is None

    def test_time_goes_on_while_no_process_runs(self, make, clock):
        make().set("key", b"value", ttl=10)
        make().close()
        clock.advance(10)
        assert make().get("key") is None

    def test_the_time_is_that_of_the_wall_unless_another_clock_is_given(self, path):
        assert SQLiteStore(path)._clock is time.time

    def test_writes_remove_what_has_expired(self, make, raw, clock):
        store = make()
        for number in range(50):
            store.set(f"dead:{number}", b"value", ttl=10)
        clock.advance(10)
        for number in range(2):
            store.set(f"new:{number}", b"value")
        assert raw.execute("SELECT count(*) FROM entry").fetchone() == (2,)


class TestRecency:
    def test_a_read_is_one_statement_that_writes_nothing(self, make, raw):
        store = make()
        store.set("key", b"value")
        statements = []
        with store._table._file.connection() as connection:
            connection.set_trace_callback(statements.append)
        before = raw.execute("PRAGMA data_version").fetchone()
        for _ in range(200):
            assert store.get("key") == b"value"
        assert len(statements) == 200
        assert all(statement.startswith("SELECT") for statement in statements)
        assert raw.execute("PRAGMA data_version").fetchone() == before

    def test_what_one_process_only_reads_another_that_writes_does_not_evict(self, make, clock):
        reader, writer = make(max_bytes=400_000), make(max_bytes=400_000)
        writer.set("read", b"x" * 5000)
        writer.set("unread", b"x" * 5000)
        for number in range(200):
            writer.set(f"filler:{number}", b"x" * 5000)
            clock.advance(1)
            reader.get("read")
        assert reader.get("read") is not None
        assert reader.get("unread") is None

    def test_reads_are_noted_once_enough_have_come_together(self, make, raw):
        store = make()
        for number in range(300):
            store.set(f"key:{number}", b"value")
        before = raw.execute("PRAGMA data_version").fetchone()
        for number in range(255):
            store.get(f"key:{number}")
        assert raw.execute("PRAGMA data_version").fetchone() == before
        store.get("key:255")
        assert raw.execute("PRAGMA data_version").fetchone() != before

    def test_a_read_does_not_wait_for_a_writer_to_note_anything(self, make, raw, clock):
        store = make(timeout=60)
        store.set("key", b"value")
        raw.execute("BEGIN IMMEDIATE")
        clock.advance(10)
        started = time.monotonic()
        assert store.get("key") == b"value"
        assert time.monotonic() - started < 30
        raw.execute("ROLLBACK")
        # No entry was evicted for it.
        assert list(store._table._reads._ids) == [1]

    def test_notes_do_not_grow_without_end_while_nobody_can_write_them_down(self, make, raw):
        store = make()
        for number in range(1500):
            store.set(f"key:{number}", b"value")
        raw.execute("BEGIN IMMEDIATE")
        for number in range(1500):
            store.get(f"key:{number}")
        raw.execute("ROLLBACK")
        assert len(store._table._reads._ids) == 1024


class TestBound:
    @pytest.mark.parametrize("size", [(0, 100), (1000, 4100), (10, 30_000)])
    def test_the_file_stays_within_its_bound_after_thousands_of_random_writes(self, make, path, size):
        store, chance = make(max_bytes=1_000_000), random.Random(1)
        largest = 0
        for number in range(2500):
            store.set(f"{chance.randrange(5000):040x}", chance.randbytes(chance.randint(*size)), ttl=60)
            if number % 3 == 0:
                store.get(f"{chance.randrange(5000):040x}")
            if number % 500 == 0:
                largest = max(largest, file_size(path))
        # Above the limit: the value is written before others are evicted for it. This leaves the store half full.
        assert max(largest, file_size(path)) <= 1_100_000 + 30_000

    def test_the_sum_that_the_bound_rests_on_is_right_after_any_verbs(self, make, raw, clock):
        store, chance = make(max_bytes=300_000), random.Random(2)
        for _ in range(1500):
            key, value = f"key:{chance.randrange(60)}", chance.randbytes(chance.choice([0, 100, 3000, 20_000]))
            verb = chance.choice(["set", "add", "delete", "cas", "later"])
            if verb in ("set", "add"):
                getattr(store, verb)(key, value, ttl=chance.choice([None, 5]))
            elif verb == "delete":
                store.delete(key)
            elif verb == "cas" and (found := store.gets(key)):
                assert store.cas(key, value, found.token)
            else:
                clock.advance(1)
        [[total]] = raw.execute("SELECT bytes FROM total")
        assert raw.execute("SELECT sum(size) FROM usage").fetchone() == (total,)
        assert 150_000 < total <= 300_000
        assert (
            raw.execute("SELECT id FROM entry ORDER BY id").fetchall()
            == raw.execute("SELECT id FROM usage ORDER BY id").fetchall()
        )

    def test_a_file_opened_with_a_lower_bound_shrinks_at_the_first_write(self, make, raw):
        store = make()
        for number in range(2000):
            store.set(f"key:{number}", b"x" * 1000)
        make(max_bytes=100_000).set("new", b"value")
        [[total]] = raw.execute("SELECT bytes FROM total")
        assert 50_000 < total <= 100_000
        assert store.get("new") == b"value"

    def test_choosing_whom_to_evict_does_not_look_at_everybody(self, raw):
        statements = (
            "SELECT id, size FROM usage ORDER BY used LIMIT 128",
            "SELECT ifnull(max(used), 0) + 1 FROM usage",
            "SELECT id FROM entry WHERE expires <= 5 LIMIT 32",
            "SELECT id, value FROM entry WHERE key = 'x' AND (expires IS NULL OR expires > 5)",
        )
        for statement in statements:
            [[*_, plan]] = raw.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            assert "INDEX" in plan, (statement, plan)


class TestBusy:
    def test_a_lock_that_is_held_for_too_long_is_unavailable_for_writes_only(self, make, raw, path):
        store = make(timeout=0.05)
        store.set("key", b"value")
        raw.execute("BEGIN IMMEDIATE")
        for attempt in (
            lambda: store.set("key", b"new"),
            lambda: store.add("other", b"new"),
            lambda: store.cas("key", b"new", store.gets("key").token),
            lambda: store.delete("key"),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                attempt()
            assert caught.value.node == str(path)
            assert "locked" in str(caught.value.cause)
        assert store.get("key") == b"value"
        assert store.add("key", b"new") is False
        assert store.delete("missing") is False
        raw.execute("ROLLBACK")
        store.set("key", b"new")
        assert store.get("key") == b"new"

    def test_a_file_that_is_locked_altogether_makes_every_key_unreachable(self, make, path):
        store = make(timeout=0.05)
        store.set("key", b"value")
        store.close()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("PRAGMA locking_mode = EXCLUSIVE")
            raw.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreUnavailable):
                store.get("key")
            with pytest.raises(StoreUnavailable):
                store.gets("key")
            values, unreachable = store.get_many(["key", "other"])
            assert values == {}
            assert set(unreachable) == {"key", "other"}
            assert all(isinstance(error, StoreUnavailable) for error in unreachable.values())
        assert store.get_many(["key", "other"]) == Many({"key": b"value"}, {})

    def test_a_store_made_while_the_file_is_locked_works_afterwards(self, make, raw):
        raw.execute("BEGIN IMMEDIATE")
        store = make(timeout=0.05)
        raw.execute("ROLLBACK")
        store.set("key", b"value")
        assert store._memory is None
        assert store.get("key") == b"value"

    def test_a_wrong_type_is_the_callers_fault_and_not_the_files(self, make):
        store = make()
        with pytest.raises(TypeError):
            store.set("key", "text")
        with pytest.raises((sqlite3.ProgrammingError, sqlite3.InterfaceError)):
            store.get(object())
        assert store._memory is None
        store.set("key", b"value")
        assert store.get("key") == b"value"


class TestTokens:
    @pytest.mark.parametrize("token", [None, 1, 1.5, "text", object(), b"", bytes(16)])
    def test_a_token_that_is_none_of_ours_is_refused(self, make, token):
        store = make()
        store.set("key", b"value")
        assert store.cas("key", b"new", token) is False
        assert store.get("key") == b"value"


class TestConnections:
    def test_threads_that_come_and_go_share_one_connection(self, make):
        store = make()
        for number in range(20):
            thread = threading.Thread(target=store.set, args=(f"key:{number}", b"value"))
            thread.start()
            thread.join()
        assert len(store._table._file._idle) == 1

    def test_close_while_another_thread_is_in_a_verb_does_not_break_it(self, make):
        store = make()
        store.set("key", b"value")
        with store._table._file.connection() as connection:
            store.close()
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
        assert store._table._file._idle == []
        assert store.get("key") == b"value"

    def test_an_exception_from_outside_in_the_middle_of_a_write_leaves_nothing_half(self, make):
        store = make()
        store.set("key", b"old")
        table = store._table

        class Timeout(BaseException):
            """Like gevent's Timeout, or the SystemExit of a signal handler."""

        def write_and_raise():
            with table._file.transaction() as connection:
                connection.execute("UPDATE entry SET value = x'00'")
                raise Timeout

        with pytest.raises(Timeout):
            write_and_raise()
        assert store.get("key") == b"old"
        store.set("key", b"new")
        assert make().get("key") == b"new"

    def test_a_store_that_is_forgotten_closes_its_file(self, path):
        store = SQLiteStore(path)
        store.set("key", b"value")
        assert any(str(path) in name for name in open_files())
        del store
        assert not any(str(path) in name for name in open_files())

    @pytest.mark.parametrize("extra", [True, False], ids=["with its log", "alone"])
    def test_a_file_deleted_to_empty_the_cache_is_made_anew(self, make, path, monkeypatch, extra):
        monkeypatch.setattr(connections, "CHECK_EVERY", 0.0)
        stores = [make(), make()]
        for number in range(50):
            stores[0].set(f"key:{number}", b"x" * 10_000)
        assert stores[1].get("key:0") is not None
        path.unlink()
        if extra:
            path.with_name("store.db-wal").unlink()
            path.with_name("store.db-shm").unlink()
        assert stores[1].get("key:0") is None
        stores[1].set("new", b"value")
        assert stores[0].get("new") == b"value"
        assert stores[0].get("key:1") is None
        assert [store._memory for store in stores] == [None, None]


class TestFork:
    def test_a_child_reads_although_a_thread_of_its_parent_was_noting_a_read_at_that_moment(self, make):
        store = make()
        store.set("key", b"value")
        noting, fork_done = threading.Event(), threading.Event()
        reads = store._table._reads

        def hold() -> None:
            with reads._lock:
                noting.set()
                fork_done.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        noting.wait(30)
        try:
            assert in_processes(1, lambda _: store.get("key") == b"value") == [True]
        finally:
            fork_done.set()
            holder.join()

    def test_the_parent_has_no_connection_open_at_the_moment_of_a_fork(self, make, path):
        store = make()
        store.set("key", b"value")
        assert in_processes(1, lambda _: [str(path) in name for name in open_files()].count(True)) == [0]
        assert store.get("key") == b"value"

    @pytest.mark.skipif(sys.platform != "linux", reason="knows the layout of Linux's struct flock only")
    def test_a_child_really_holds_the_lock_it_believes_to_hold(self, make, path):
        store = make()
        store.set("key", b"value")
        opened, open_it = os.pipe()
        done, finish = os.pipe()

        def holder(_):
            assert store.get("key") == b"value"
            os.write(open_it, struct.pack("=i", os.getpid()))
            os.read(done, 1)

        def observer(_):
            """Ask the system for the locks that would stop the last process from deleting the log.

            The last process to close the file deletes the log. All processes that have the file open hold a shared
            lock on these bytes (fcntl(2), F_GETLK).
            """
            [pid] = struct.unpack("=i", os.read(opened, 4))
            wish = struct.pack("@hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0x40000002, 510, 0)
            with open(path, "r+b") as file:
                answer = fcntl.fcntl(file, fcntl.F_GETLK, wish)
            os.write(finish, b"!")
            return struct.unpack("@hhqqi", answer)[-1] == pid

        assert in_processes(2, lambda number: (holder, observer)[number](number)) == [None, True]
        for end in (opened, open_it, done, finish):
            os.close(end)

    def test_a_child_made_by_c_code_that_calls_no_hooks_opens_the_file_itself(self, make):
        store = make()
        store.set("key", b"parent")
        inherited = store._table._file._idle[0]
        result, report = os.pipe()
        # PyDLL keeps the GIL, as a server that forks in C does.
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                store.set("child", b"child")
                if store.get("key") == b"parent" and store._table._file._idle != [inherited]:
                    store.close()
                    os.write(report, b"good")
            os._exit(0)
        os.close(report)
        os.waitpid(pid, 0)
        assert os.read(result, 10) == b"good"
        os.close(result)
        assert store._table._file._idle == [inherited]
        assert store.get("child") == b"child"


def open_files():
    names = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return names


def file_size(path):
    return path.stat().st_size
