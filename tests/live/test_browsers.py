"""Real browsers in front of a real nginx and gunicorn: after an invalidation they show the new page.

Another process invalidates: the one that runs the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cluster.load.request import fetch
from tests.live.support.browsed import APP, Front, Numbers
from tests.live.support.server import Gunicorn
from tests.live.support.waiting import until
from tests.support.browsers import Browser, Chromium, Firefox
from wsgi_isr import invalidate

KINDS: dict[str, Callable[[Path], Browser]] = {"firefox": Firefox, "chromium": Chromium}


class Site:
    """The site and its changes.

    :param front: nginx.
    :param store: the URL of the store.
    """

    def __init__(self, front: Front, numbers: Numbers, store: str) -> None:
        self.front = front
        self._numbers = numbers
        self._store = store

    def change(self, name: str, number: int, mode: str = "expire") -> None:
        """Commit, then invalidate."""
        self._numbers.set(name, number)
        invalidate(tags=[name], mode=mode, store=self._store)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    numbers, store = Numbers(directory), f"sqlite:///{directory}/pages.sqlite3"
    # With coherence=0, an invalidation holds when it returns.
    env = {**numbers.env, "WSGI_ISR_STORE": store, "WSGI_ISR_COHERENCE": "0"}
    with Gunicorn(directory / "log", env, APP) as server:
        instances = {"instance-1": f"127.0.0.1:{server.port}"}
        front = Front("front", directory / "front.log", directory, instances, 0, workers=1)
        try:
            front.start()
            yield Site(front, numbers, store)
        finally:
            front.stop()
            front.close()
        assert server.complaints() == []


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, Browser]]:
    """Return the browsers that were started for this module. A parametrized fixture would start one for each test,
    because the tests run in random order."""
    browsers: dict[str, Browser] = {}
    yield browsers
    for browser in browsers.values():
        browser.close()


@pytest.fixture(params=KINDS)
def browser(
    request: pytest.FixtureRequest, started: dict[str, Browser], tmp_path_factory: pytest.TempPathFactory
) -> Browser:
    kind: str = request.param
    if kind not in started:
        started[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
    return started[kind]


class Reader:
    """A person at a browser, who looks at the pages and files of one name."""

    def __init__(self, browser: Browser, front: Front) -> None:
        self.browser = browser
        self.front = front
        self.name = uuid4().hex

    def go(self, kind: str) -> None:
        """Type an address."""
        self.browser.go(f"{self.front.url}/{kind}/{self.name}")

    @property
    def shown(self) -> str:
        """Return the title of the page."""
        title: str = self.browser.run("return document.title")
        return title

    def fetch(self, kind: str) -> str:
        """Return the title that a script of the page gets."""
        text: str = self.browser.run(
            "const text = await (await fetch(given[0])).text(); return /<title>(.*)<.title>/.exec(text)[1]",
            f"/{kind}/{self.name}",
        )
        return text

    def asked(self) -> dict[str, list[int]]:
        """Return the statuses of each kind that was requested since the last call."""
        found: dict[str, list[int]] = {}
        for line in self.front.asked():
            path, status = line.split()
            found.setdefault(path.replace(f"/{self.name}", "")[1:], []).append(int(status))
        return found


@pytest.fixture
def reader(browser: Browser, site: Site) -> Reader:
    site.front.asked()
    return Reader(browser, site.front)


# Ways back to a page ---------------------------------------------------------------------------------------


def by_a_link(reader: Reader) -> str:
    reader.browser.click("#again")
    return reader.shown


def by_a_link_from_elsewhere(reader: Reader) -> str:
    reader.browser.click("#other")
    assert reader.shown == "other"
    reader.browser.click("#page")
    return reader.shown


def by_its_address(reader: Reader) -> str:
    reader.go("page")
    return reader.shown


def by_a_reload(reader: Reader) -> str:
    reader.browser.click("#reload")
    return reader.shown


def by_a_script(reader: Reader) -> str:
    return reader.fetch("page")


every_way = pytest.mark.parametrize(
    "look", [by_a_link, by_a_link_from_elsewhere, by_its_address, by_a_reload, by_a_script]
)


@every_way
def test_a_returning_reader_asks_and_gets_304_until_the_page_has_changed(
    reader: Reader, site: Site, look: Callable[[Reader], str]
) -> None:
    reader.go("page")
    assert (reader.shown, reader.asked()) == ("1", {"page": [200]})
    assert (look(reader), reader.asked()["page"]) == ("1", [304])
    site.change(reader.name, 2)
    assert (look(reader), reader.asked()["page"]) == ("2", [200])
    assert (look(reader), reader.asked()["page"]) == ("2", [304])


PARTS = """
    const image = document.querySelector("img");
    return [document.title, String(window.shown), getComputedStyle(document.body).width, String(image.naturalWidth)];
"""


@pytest.mark.parametrize("again", ["#again", "#reload"])
def test_scripts_style_sheets_and_images_are_asked_for_like_pages(reader: Reader, site: Site, again: str) -> None:
    kinds = ("image", "script", "style", "whole")
    reader.go("whole")
    assert reader.browser.run(PARTS) == ["1", "1", "100px", "1"]
    assert reader.asked() == {kind: [200] for kind in kinds}
    for number, status in ((1, 304), (2, 200), (2, 304)):
        site.change(reader.name, number)
        reader.browser.click(again)
        assert reader.browser.run(PARTS) == [f"{number}", f"{number}", f"{number}00px", f"{number}"]
        assert reader.asked() == {kind: [status] for kind in kinds}


@pytest.mark.parametrize("direction", ["back", "forward"])
def test_in_the_history_a_page_is_as_it_was_and_one_step_from_there_it_is_new(
    reader: Reader, site: Site, direction: str
) -> None:
    """RFC 9111, 6: a history may show a page as it was, however old. Both browsers do, without a request."""
    go = reader.browser.back if direction == "back" else reader.browser.forward
    for kind in ("page", "other") if direction == "back" else ("other", "page"):
        reader.go(kind)
    if direction == "forward":
        reader.browser.back()
    reader.asked()
    site.change(reader.name, 2)
    go()
    assert (reader.shown, reader.asked()) == ("1", {})
    assert (by_a_reload(reader), reader.asked()) == ("2", {"page": [200]})
    site.change(reader.name, 3)
    assert (by_a_link(reader), reader.asked()) == ("3", {"page": [200]})


# Directives of the app -------------------------------------------------------------------------------------


def test_words_to_shared_caches_are_no_licence_for_browsers(
    reader: Reader, site: Site, figure: Callable[[str], None]
) -> None:
    """Both browsers obey ``stale-while-revalidate``, which was meant for a CDN."""
    figure(f"{reader.browser.name} {reader.browser.version}")
    reader.go("shared")
    for number in (2, 3):
        site.change(reader.name, number)
        assert reader.fetch("shared") == str(number)
        reader.browser.click("#again")
        assert reader.shown == str(number)
    assert reader.asked() == {"shared": [200, 200, 200, 304, 304]}


def test_within_the_time_that_the_app_gives_browsers_nothing_is_asked_for_again(reader: Reader, site: Site) -> None:
    load = """
        const script = document.createElement("script");
        script.src = given[0];
        await new Promise((done, failed) => {
            script.onload = done;
            script.onerror = failed;
            document.head.append(script);
        });
        return window.shown;
    """
    file = f"/file/{reader.name}"
    reader.go("view")
    assert (reader.browser.run(load, file), reader.asked()) == (1, {"view": [200], "file": [200]})
    site.change(reader.name, 2)
    reader.browser.click("#again")
    assert (reader.shown, reader.fetch("view"), reader.browser.run(load, file)) == ("1", "1", 1)
    assert reader.asked() == {}


def test_a_validator_of_the_app_s_own_is_answered_by_304(reader: Reader, site: Site) -> None:
    reader.go("tagged")
    tag = "return (await fetch(location)).headers.get('ETag')"
    assert (reader.browser.run(tag), reader.asked()) == ('"app-1"', {"tagged": [200, 304]})
    site.change(reader.name, 2)
    reader.browser.click("#again")
    assert (reader.browser.run(tag), reader.asked()) == ('"app-2"', {"tagged": [200, 304]})


def test_a_page_that_was_stale_is_new_as_soon_as_it_is_renewed(reader: Reader, site: Site) -> None:
    reader.go("page")
    site.change(reader.name, 2, mode="stale")
    reader.browser.click("#again")
    assert reader.shown == "1"
    until(lambda: b"<title>2" in fetch(site.front.port, f"/page/{reader.name}").body, "the new page")
    assert by_a_link(reader) == "2"
