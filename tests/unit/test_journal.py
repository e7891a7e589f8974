"""The journal: its lines, their order and lifetime, and its files."""

from __future__ import annotations

import logging
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsgi_isr.cache import journal as module
from wsgi_isr.cache.journal import Journal, JournalLine, journal_for
from wsgi_isr.errors import ConfigError
from wsgi_isr.stores.memcached.store import MemcachedStore
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.stores.null import NullStore
from wsgi_isr.stores.sqlite.store import SQLiteStore

HERE = ("memcached://a:1", "memcached://b:1")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "journal"))


def keep(journal: Journal, *tags: str, mode: str = "expire", namespace: str = "site") -> None:
    journal.keep(namespace, tags, mode, HERE)


def kept(journal: Journal, namespace: str = "site") -> list[tuple[tuple[str, ...], str]]:
    """Return the tags and the mode of each line."""
    return [(line.tags, line.mode) for line in journal.lines(namespace, HERE)]


# Records that the journal keeps -------------------------------------------------------------------------


def test_lines_are_those_of_a_namespace_in_the_order_in_which_they_were_kept(journal: Journal) -> None:
    assert journal.is_empty()
    keep(journal, "tag:a", "tag:b")
    keep(journal, "tag:other", namespace="other")
    keep(journal, "tag:c", mode="purge")
    assert not journal.is_empty()
    assert kept(journal) == [(("tag:a", "tag:b"), "expire"), (("tag:c",), "purge")]
    assert kept(journal, "other") == [(("tag:other",), "expire")]


def test_lines_are_those_of_a_store_that_has_one_of_the_places(journal: Journal) -> None:
    keep(journal, "tag:a")
    moved = ("memcached://b:1", "memcached://c:1")
    assert [line.tags for line in journal.lines("site", moved)] == [("tag:a",)]
    assert journal.lines("site", ("memcached://c:1",)) == []


def test_a_line_that_says_the_same_takes_the_place_of_the_earlier_one(journal: Journal) -> None:
    for _ in range(3):
        keep(journal, "tag:a")
        keep(journal, "tag:a", mode="purge")
    assert kept(journal) == [(("tag:a",), "expire"), (("tag:a",), "purge")]


def test_what_was_delivered_of_a_line_leaves_the_rest_in_its_place(journal: Journal) -> None:
    keep(journal, "tag:a", "tag:b")
    keep(journal, "tag:c", mode="stale")
    first, _ = journal.lines("site", HERE)
    journal.settle({first.id: ["tag:a"]})
    assert kept(journal) == [(("tag:b",), "expire"), (("tag:c",), "stale")]
    journal.settle({line.id: line.tags for line in journal.lines("site", HERE)})
    assert journal.is_empty()


def test_what_is_kept_again_while_it_is_delivered_is_not_removed_by_the_end_of_that_delivery(journal: Journal) -> None:
    # A process reads the line, and delivers it. New data are committed while the node is down again, so the same tag
    # is kept once more. Only then the process notes its delivery.
    keep(journal, "tag:a")
    (delivered,) = journal.lines("site", HERE)
    keep(journal, "tag:a")
    journal.settle({delivered.id: ["tag:a"]})
    assert kept(journal) == [(("tag:a",), "expire")]


def test_a_line_that_a_crash_cut_short_spoils_no_other(journal: Journal) -> None:
    keep(journal, "tag:a")
    with open(journal.path, "ab") as file:
        file.write(b'["site", ["tag:b"], "exp')
    keep(journal, "tag:c")
    assert kept(journal) == [(("tag:a",), "expire"), (("tag:c",), "expire")]


@pytest.mark.parametrize(
    "text", ["null", "[]", "[1]", '["site", [1], "expire", [], "x"]', '["site", [], "expire", [], "x"]']
)
def test_what_is_no_line_is_passed_over(text: str, journal: Journal) -> None:
    Path(journal.path).write_text(f"{text}\n")
    keep(journal, "tag:a")
    assert kept(journal) == [(("tag:a",), "expire")]


def test_a_journal_that_has_grown_becomes_one_line_for_all_pages(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    keep(journal, "tag:other", namespace="other")
    for number in range(500):
        keep(journal, f"tag:{number}", mode="stale" if number % 2 else "expire")
    assert os.stat(journal.path).st_size < 12_000
    assert (("all",), "expire") in kept(journal)
    assert kept(journal, "other") == [(("tag:other",), "expire")]


@pytest.mark.parametrize("length", [1, 1000])
def test_ten_thousand_posts_to_new_urls_keep_it_small_and_read_little_of_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    parse, parsed, sizes = module._parse, [0], []

    def counted(*line: Any) -> JournalLine | None:
        parsed[0] += 1
        return parse(*line)

    monkeypatch.setattr(module, "_parse", counted)
    monkeypatch.setattr("os.fsync", lambda file: None)  # 10,000 of them are slow on a disk
    for number in range(10_000):
        keep(journal, f"path:/{number}/{'x' * length}")
        sizes.append(os.stat(journal.path).st_size)
    assert max(sizes) <= module.MAX_BYTES + 2 * (length + 200)
    assert parsed[0] < 10_000 * 50


def test_lines_become_one_in_a_time_that_grows_with_their_number_alone() -> None:
    compared = [0]

    class Tag(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared[0] += 1
            return str.__eq__(self, other)

    lines = [JournalLine("site", (Tag(number),), "expire", HERE, str(number)) for number in range(1000)]
    other = JournalLine("other", (Tag("a"),), "expire", HERE, "a")
    assert [line.namespace for line in module._condensed([other, *lines])] == ["other", "site"]
    assert compared[0] <= 1000


def test_a_line_that_could_not_be_delivered_for_a_week_is_dropped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    journal = Journal(str(tmp_path / "journal"), clock=lambda: now[0])
    journal.keep("site", ["tag:a"], "expire", HERE, HERE[:1])
    now[0] += module.MAX_LINE_AGE
    journal.keep("site", ["tag:b"], "expire", HERE, HERE[1:])
    assert [line.tags for line in journal.lines("site", HERE)] == [("tag:a",), ("tag:b",)]
    now[0] += 1
    assert [line.tags for line in journal.lines("site", HERE)] == [("tag:b",)]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"1 lines were dropped from {journal.path}: for more than 7 days no process could deliver them; missed by: "
        "memcached://a:1"
    )


def test_a_journal_that_other_node_lists_have_filled_becomes_one_line_for_each_of_them(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    before = ("memcached://b:1", "memcached://c:1")
    for number in range(200):
        journal.keep("site", [f"tag:{number}"], "stale", before, before[:1])
    for number in range(200):
        journal.keep("site", [f"tag:{number}"], "expire", HERE, HERE[:1])
    assert os.stat(journal.path).st_size < 12_000
    everything = [line for line in journal.lines("site", HERE) if line.tags == ("all",)]
    assert {(line.places, line.mode) for line in everything} == {(before, "stale"), (HERE, "expire")}


# Several processes --------------------------------------------------------------------------------------


def test_no_two_deliver_at_the_same_time(journal: Journal) -> None:
    keep(journal, "tag:a")
    with journal.delivery_lock() as first, Journal(journal.path).delivery_lock() as second:
        assert (first, second) == (True, False)
    with journal.delivery_lock() as again:
        assert again


def test_a_holder_of_the_lock_that_was_stopped_hangs_no_other_process_for_ever(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.0)
    keep(journal, "tag:a")
    with Journal(journal.path)._locked(), pytest.raises(OSError, match="another process holds its lock"):
        keep(journal, "tag:b")
    keep(journal, "tag:b")
    assert len(kept(journal)) == 2


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.0)
    hear, tell = multiprocessing.Pipe()
    with journal._locked():
        child = multiprocessing.get_context("fork").Process(target=hear.recv)
        child.start()
    try:
        keep(journal, "tag:a")
    finally:
        tell.send(None)
        child.join()


# Sites with a journal -----------------------------------------------------------------------------------


def test_stores_on_other_machines_have_one_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = MemcachedStore.from_url("memcached://127.0.0.1:1")
    found = journal_for(None, store, str(tmp_path / ".wsgi_isr"))
    assert found is not None
    assert found.path == f"{tmp_path}/.wsgi_isr/journal"
    assert list(tmp_path.iterdir()) == []
    assert journal_for(False, store, str(tmp_path)) is None
    named = journal_for("own", store, str(tmp_path))
    assert named is not None
    assert named.path == f"{tmp_path}/own"


def test_stores_of_this_machine_have_one_if_it_is_named(tmp_path: Path) -> None:
    for store in (MemoryStore(), NullStore(), SQLiteStore(tmp_path / "pages.db")):
        assert journal_for(None, store, str(tmp_path / ".wsgi_isr")) is None
        assert journal_for(str(tmp_path / "journal"), store, "") is not None


def test_a_default_that_cannot_be_written_is_a_warning_that_says_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".wsgi_isr").touch()  # no folder can be there
    assert journal_for(None, MemcachedStore.from_url("memcached://127.0.0.1:1"), f"{tmp_path}/.wsgi_isr") is not None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{tmp_path}/.wsgi_isr/journal: ")
    assert "set journal= (WSGI_ISR_JOURNAL) to a writable file, or write journal=False" in record.getMessage()


# Its files ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o000, 0o077], ids=oct)
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_check_makes_no_file(tmp_path: Path) -> None:
    Journal(str(tmp_path / "below" / "journal")).check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "file/journal", "other"])
def test_a_path_that_cannot_be_written_is_a_configuration_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other.lock").mkdir()
    with pytest.raises(ConfigError) as caught:
        journal_for(str(tmp_path / name), MemoryStore(), "")
    assert caught.value.option == "journal"


@pytest.mark.parametrize("name", ["journal", "journal.lock"])
def test_a_link_in_the_place_of_a_file_is_not_followed(name: str, tmp_path: Path, journal: Journal) -> None:
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        keep(journal, "tag:a")
    assert not (tmp_path / "elsewhere").exists()
    assert journal.is_empty()
    with pytest.raises(ConfigError) as caught:
        journal.check()
    assert str(tmp_path / name) in caught.value.problem


@pytest.mark.usefixtures("any_umask")
def test_a_journal_that_a_line_was_appended_to_is_for_its_own_user(tmp_path: Path, journal: Journal) -> None:
    keep(journal, "tag:a")
    with journal.delivery_lock():
        modes = {file.name: oct(mode_of(file)) for file in tmp_path.iterdir()}
    assert modes == {"journal": "0o600", "journal.lock": "0o600", "journal.turn": "0o600"}


@pytest.mark.usefixtures("any_umask")
def test_a_journal_that_was_rewritten_is_for_its_own_user(tmp_path: Path, journal: Journal) -> None:
    keep(journal, "tag:a")
    keep(journal, "tag:b")
    Path(journal.path).chmod(0o644)
    journal.settle({journal.lines("site", HERE)[0].id: ["tag:a"]})
    assert oct(mode_of(tmp_path / "journal")) == "0o600"
    assert kept(journal) == [(("tag:b",), "expire")]


@pytest.mark.usefixtures("any_umask")
def test_a_directory_that_is_made_for_a_journal_is_for_its_own_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    keep(Journal(str(tmp_path / "spool" / "journal")), "tag:a")
    assert oct(mode_of(tmp_path / "spool")) == "0o700"
    assert oct(mode_of(tmp_path)) == "0o755"


def test_a_rewrite_does_not_follow_a_link_in_place_of_its_temporary_file(tmp_path: Path, journal: Journal) -> None:
    path, victim = tmp_path / "journal", tmp_path / "victim"
    victim.write_text("precious")
    keep(journal, "tag:a")
    (tmp_path / f"journal.{os.getpid()}").symlink_to(victim)
    journal.settle({journal.lines("site", HERE)[0].id: ["tag:a"]})
    assert victim.read_text() == "precious"
    assert kept(journal) == []
    assert not path.is_symlink()


def test_a_line_is_what_it_was_after_its_way_to_the_disk(journal: Journal) -> None:
    tags = ("tag:a,b", "tag:\n", "tag:caf\u00e9", "tag:\udc80")
    journal.keep("si te", tags, "purge", HERE)
    (line,) = journal.lines("si te", HERE)
    assert line == JournalLine("si te", tags, "purge", HERE, line.id, since=line.since)


def test_a_path_that_is_a_link_is_refused_and_the_error_says_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "journal")
    with pytest.raises(ConfigError) as caught:
        Journal(str(tmp_path / "link")).check()
    assert caught.value.problem == f"{tmp_path}/link is a symbolic link"
    assert caught.value.remedy == f"name the file itself: {tmp_path}/journal"
