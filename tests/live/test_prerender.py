"""``wsgi-isr prerender`` as a process, on a store that it shares with others."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.live.support.prerendering import Prerender, ask_file, file_server
from tests.live.support.static_site import PAGES
from tests.live.support.waiting import PATIENCE, until
from wsgi_isr.prerender.html_links import with_base
from wsgi_isr.prerender.static_site import NOTES

SITE = "tests.live.support.static_site:app"
URL = ("--url", "https://example.com")


class Runs(Prerender):
    """Runs of the command on one store, and the renders of all of them."""

    def __init__(self, directory: Path, store: str) -> None:
        self._renders = directory / "site-renders"
        super().__init__(SITE, {"SITE_RENDERS": str(self._renders), "WSGI_ISR_STORE": store})

    def renders(self) -> Counter[str]:
        """Return the number of renders of each path."""
        return Counter(self._renders.read_text().splitlines() if self._renders.exists() else [])

    def begin(self, *arguments: str, slow: float = 0.0, output: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return super().begin(*arguments, output=output, SITE_SLOW=str(slow))


@pytest.fixture
def runs(tmp_path: Path, store: str) -> Runs:
    return Runs(tmp_path, store)


def test_the_second_run_renders_nothing(runs: Runs) -> None:
    first = json.loads(runs.run("--json", *URL))
    assert (first["ok"], first["rendered"], first["there"]) == (True, PAGES, 0)
    assert set(runs.renders().values()) == {1}
    assert f"0 rendered, {PAGES} already there, 0 skipped, 0 failed" in runs.run(*URL)
    assert runs.renders().total() == PAGES


def test_a_terminal_shows_a_bar_that_comes_to_its_end(runs: Runs) -> None:
    ours, theirs = pty.openpty()
    process = runs.begin(*URL, slow=0.01, output=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # a terminal reports the closed other side in this way
    finally:
        os.close(ours)
    assert process.wait(PATIENCE) == 0
    positions = [int(done) for done in re.findall(rf"\] +([0-9]+)/{PAGES} ", shown.decode())]
    assert positions == sorted(positions)
    assert (len(set(positions)) > 10, positions[-1]) == (True, PAGES)
    assert re.search(r"[0-9]+% +[0-9:]* +[0-9]+/s", shown.decode())


def test_an_interrupted_run_says_how_far_it_came_and_the_next_one_goes_on(runs: Runs) -> None:
    process = runs.begin(*URL, "--jobs", "2", slow=0.05)
    until(lambda: runs.renders().total() >= 20, "20 renders")
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    done = runs.renders().total()
    assert process.returncode == 1
    assert f"stopped, with {PAGES - done} known pages left; run it again to continue" in err
    assert 20 <= done < PAGES
    assert json.loads(runs.run("--json", *URL))["rendered"] == PAGES - done
    assert (runs.renders().total(), set(runs.renders().values())) == (PAGES, {1})


def test_the_second_signal_ends_it_at_once_and_nobody_waits_for_its_lease(runs: Runs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = runs.begin(*URL, "--jobs", "1", slow=60.0, output=output.fileno())
    until(lambda: runs.renders().total() == 1, "a render")
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: "stopping: renders in progress still end" in log.read_text(), "an answer to the first signal")
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(PATIENCE) == 1
    assert f"stopped, with {PAGES} known pages left" in log.read_text()
    report = json.loads(runs.run("--json", *URL))
    assert (report["rendered"], report["seconds"] < 4.0) == (PAGES, True)  # the lease would have lived for 5


def test_two_at_once_share_the_work_and_render_each_page_once(runs: Runs) -> None:
    both = [runs.begin("--json", *URL, "--jobs", "2", slow=0.02) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=2 * PATIENCE)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert (runs.renders().total(), set(runs.renders().values())) == (PAGES, {1})
    assert sum(report["rendered"] for report in said) == PAGES
    assert all(report["rendered"] + report["there"] == PAGES for report in said)


def test_an_export_shows_the_same_pages_from_a_server_of_files(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = json.loads(runs.run("--json", "--crawl", "--export", str(out), *URL))
    assert (report["ok"], report["rendered"], report["assets"]) == (True, PAGES + 1, 2)  # one redirect; style and pixel

    # The app as visitors see it, with the pages that the command has rendered.
    monkeypatch.setenv("SITE_RENDERS", str(tmp_path / "none"))
    from tests.live.support.static_site import POSTS, app

    client = app.test_client()
    paths = ["/", "/%C3%BCber%20uns", *(f"/posts/{n}" for n in range(1, POSTS + 1))]
    paths += [f"/posts/p/{n}" for n in range(1, 9)]
    assert len(paths) == PAGES
    with file_server(out, tmp_path / "server.log") as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        based = 0
        for path in [*paths, "/style.css", "/pixel.png"]:
            status, at, body = ask_file(connection, path)
            original = client.get(path, base_url="https://example.com").data
            if at != path:
                # A slash was added, and relative links still have the same meaning.
                original = with_base(original.decode(), path).encode()
                based += b"<base " in original
            assert (status, body) == (200, original), path
        assert based == 118
        status, _, body = ask_file(connection, "/old")
        assert (status, b"url=/posts/p/1" in body) == (200, True)
        connection.close()
    assert sorted(_files(out)) == sorted(
        ["404.html", "index.html", "old/index.html", "pixel.png", "style.css"]
        + [unquote(path[1:]) + "/index.html" for path in paths[1:]]
    )
    assert (out / "404.html").read_bytes() == client.get("/nothing/here").data

    before = {name: (out / name).stat().st_mtime_ns for name in _files(out)}
    again = json.loads(runs.run("--json", "--crawl", "--export", str(out), *URL))
    assert (again["rendered"], again["written"], again["unchanged"]) == (0, 0, len(before))
    assert {name: (out / name).stat().st_mtime_ns for name in _files(out)} == before


def _files(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != NOTES]
