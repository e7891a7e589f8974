"""Renders and their windows, as the report of a load counts them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from cluster.load.renders import Crowded, Recorder, Render, Windows, crowded, lifetimes, read, windows
from cluster.load.report import invalidated
from cluster.supervisor.state import Directory
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.events import Invalidated, Rendered, Served
from wsgi_isr.pages.request_key import PageKey

LIFETIME = {"a": 5.0}


def render(began: float, key: str = "a", *, seconds: float = 1.0, stored: bool = True) -> Render:
    return Render(began + seconds, seconds, key, "instance-1", 1, stored)


@pytest.mark.parametrize(
    ("renders", "expected"),
    [
        ([], Windows(0, 0, 0)),
        ([render(0)], Windows(1, 1, 1)),
        # The page of the first is stale at 6, five seconds after the end of its render.
        ([render(0), render(6.1), render(12.2)], Windows(3, 3, 1)),
        ([render(0), render(5.9)], Windows(2, 1, 2)),
        # Two renders at once are one too many, in either order of their ends.
        ([render(0), render(6.1), render(6.2)], Windows(3, 2, 2)),
        ([render(0), render(6.1, seconds=2), render(6.2, seconds=0.1)], Windows(3, 2, 2)),
        # A render that was not stored renewed no page: its successor is for the same window.
        ([render(0), render(6.1, stored=False), render(8)], Windows(3, 2, 2)),
        ([render(0), render(0.5, "b")], Windows(1, 1, 1)),
    ],
)
def test_a_window_begins_when_a_page_is_stale_or_was_never_there(renders: list[Render], expected: Windows) -> None:
    assert windows(renders, LIFETIME) == expected


def test_pages_have_windows_of_their_own() -> None:
    assert windows([render(0), render(0.1, "b")], {"a": 5.0, "b": 5.0}) == Windows(2, 2, 1)


def test_a_window_that_began_before_the_load_does_not_count_but_is_known() -> None:
    renders = [render(0), render(6.1), render(12.2)]
    assert windows(renders, LIFETIME, since=2) == Windows(2, 2, 1)


def test_one_in_each_window_is_what_it_should_be() -> None:
    assert windows([render(0), render(6.1)], LIFETIME).per_window == 1
    assert windows([], LIFETIME).per_window == 0


def test_renders_are_read_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    path = tmp_path / "renders"
    assert read(path) == []
    path.write_text('[9.0, 1.0, "a", "instance-2", 7, true]\n[8.5, 2.0, "b", "instance-1", 8, false]\n')
    assert [(each.key, each.began) for each in read(path)] == [("b", 6.5), ("a", 8.0)]


def test_what_is_written_down_is_read_with_clocks_put_right(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "renders"), "instance-3", shift=3600.0)
    before = time.monotonic()
    recorder(Rendered("isr2:x:p:1", 0.25, True))
    recorder(Rendered("isr2:x:d:1", 0.25, True))  # data is no page
    recorder(Served("isr2:x:p:1", "HIT"))
    (written,) = read(tmp_path / "renders")
    assert (written.key, written.seconds, written.instance, written.stored) == ("isr2:x:p:1", 0.25, "instance-3", True)
    assert before - 3600 <= written.ended <= time.monotonic() - 3600


def test_a_render_ends_when_its_page_is_made_and_not_when_that_was_stored(tmp_path: Path) -> None:
    before = time.monotonic()
    Recorder(str(tmp_path / "renders"), "instance-1")(Rendered("isr2:x:p:1", 8.0, True, storing=5.0))
    (written,) = read(tmp_path / "renders")
    assert before - 5 <= written.ended <= time.monotonic() - 5
    assert written.seconds == 3.0


@pytest.mark.parametrize(("namespace", "release"), [("default", ""), ("default", "two"), ("shop", "")])
def test_a_path_leads_to_the_key_under_which_its_renders_are_noted(
    namespace: str, release: str, tmp_path: Path
) -> None:
    text = PageKey("http", "127.0.0.1:8080", "", "/about \xc3\xbcs").text
    key = Keyspace(namespace, release).page(text)
    Recorder(str(tmp_path / "renders"), "instance-1")(Rendered(key, 0.5, True, text, revalidate=60))
    renders = read(tmp_path / "renders")
    assert lifetimes(renders, "127.0.0.1:8080", {"/about%20%C3%BCs?x=1": True, "/other": True}) == {key: 60.0}
    assert lifetimes(renders, "127.0.0.1:8080", {"/about%20%C3%BCs": False}) == {key: 0.0}
    assert lifetimes(renders, "127.0.0.1:8081", {"/about%20%C3%BCs": True}) == {}


def test_a_page_that_is_fresh_until_it_is_invalidated_has_a_lifetime_without_end(tmp_path: Path) -> None:
    Recorder(str(tmp_path / "renders"), "instance-1")(Rendered("isr2:x:p:1", 0.5, True))
    (written,) = read(tmp_path / "renders")
    assert written.lifetime == math.inf


def test_windows_with_more_than_one_render_are_told_with_their_page() -> None:
    text = PageKey("http", "a.test", "", "/about").text
    renders = [render(0), render(6.1), render(6.2)._replace(text=text), render(13)]
    assert crowded(renders, LIFETIME) == [Crowded("a", 6.1, 7.2, 2)]
    assert crowded([each._replace(text=text) for each in renders], LIFETIME) == [Crowded("/about", 6.1, 7.2, 2)]
    assert crowded(renders, LIFETIME, since=7) == []


def test_what_is_invalidated_from_an_instance_is_noted(tmp_path: Path) -> None:
    before = time.monotonic()
    directory = Directory(tmp_path)
    assert invalidated(directory) == []
    Recorder(str(directory.renders), "instance-1")(Invalidated(("t",), "purge"))
    (at,) = invalidated(directory)
    assert before <= at <= time.monotonic()
    assert read(directory.renders) == []
