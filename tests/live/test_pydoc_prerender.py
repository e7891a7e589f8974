"""All pages of the example of several hundred, rendered before the first request: during changes, and as files."""

from __future__ import annotations

import http.client
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import pytest
from werkzeug.test import Client

from examples.pydoc_bottle import catalogue
from examples.pydoc_bottle.caching import RULES, module_params, package_params
from examples.pydoc_bottle.site import site
from tests.live.support.prerendering import Prerender, ask_file, file_server
from tests.live.support.waiting import PATIENCE
from wsgi_isr import ISR, invalidate
from wsgi_isr.prerender.html_links import with_base

URL = "https://docs.example.org"
#: The release of the app itself and of the app for visitors, which is wrapped here.
RELEASE = "pydoc"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Return every page, and its package."""
    modules = {f"/module/{one['name']}": catalogue.package_of(one["name"]) for one in module_params()}
    return {"/": "", **modules, **{f"/package/{one['name']}": one["name"] for one in package_params()}}


@pytest.fixture
def visitor(store: str) -> Client:
    """Return a visitor of another process, which shares the store."""
    return Client(ISR(site, RULES, store=store, coherence=0, release=RELEASE))


def rendered_at(body: bytes) -> float:
    found = re.search(rb'id="rendered-at" datetime="([^"]+)Z"', body)
    assert found is not None
    return datetime.fromisoformat(f"{found[1].decode()}+00:00").timestamp()


def test_no_page_that_is_older_than_an_acknowledged_invalidation_is_fresh(
    pages: Mapping[str, str], store: str, figure: Callable[[str], None]
) -> None:
    command = Prerender("examples.pydoc_bottle:app", {"WSGI_ISR_STORE": store, "WSGI_ISR_RELEASE": RELEASE})
    # The packages with the most pages, so that each is likely to be invalidated during its renders.
    packages = [package for package, _ in Counter(filter(None, pages.values())).most_common(50)]
    acknowledged: dict[str, float] = {}
    began = time.monotonic()
    process = command.begin("--json", "--url", URL)
    invalidated = 0
    while process.poll() is None:
        package = packages[invalidated % len(packages)]
        invalidate(tags=[f"package:{package}"], store=store)
        acknowledged[package] = math.floor(time.time() * 1000) / 1000  # the pages show milliseconds
        invalidated += 1
        time.sleep(0.05)  # as often as the run allows: the number is among the figures
    first = json.loads(process.communicate(timeout=PATIENCE)[0])
    took = time.monotonic() - began
    assert (first["ok"], first["rendered"] + first["there"]) == (True, len(pages))
    assert invalidated > len(packages)

    # Prerendered pages are not rendered again: an app that raises proves it.
    def nothing(environ: object, start_response: object) -> list[bytes]:
        raise AssertionError("rendered")

    isr = ISR(nothing, RULES, store=store, coherence=0, release=RELEASE)
    visitor = Client(isr)
    fresh = stale = 0
    for path, package in pages.items():
        try:
            answer = visitor.get(path, base_url=URL, buffered=True)
        except AssertionError:
            stale += 1
            continue
        if answer.headers["X-ISR"] != "HIT":
            stale += 1
            continue
        fresh += 1
        assert rendered_at(answer.data) >= acknowledged.get(package, 0.0), path
    isr.close(0)
    assert (fresh > 0, stale > 0) == (True, True)

    second = json.loads(command.run("--json", "--url", URL))
    assert (second["ok"], second["rendered"], second["there"]) == (True, stale, fresh)
    third = json.loads(command.run("--json", "--url", URL))
    assert (third["rendered"], third["there"]) == (0, len(pages))
    figure(
        f"{len(pages)} pages in {took:.1f} s beside {invalidated} invalidations: {fresh} fresh afterwards, {stale} "
        f"rendered by a second run in {second['seconds']:.1f} s, none by a third in {third['seconds']:.1f} s"
    )


def test_all_of_it_as_files_is_what_visitors_see(
    pages: Mapping[str, str], store: str, visitor: Client, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    out = tmp_path / "out"
    command = Prerender("examples.pydoc_bottle:app", {"WSGI_ISR_STORE": store, "WSGI_ISR_RELEASE": RELEASE})
    report = json.loads(command.run("--json", "--export", str(out), "--url", URL))
    assert (report["ok"], report["rendered"]) == (True, len(pages))
    with file_server(out, tmp_path / "server.log") as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for path in [*pages, "/static/site.css"]:
            status, at, body = ask_file(connection, path)
            original = visitor.get(path, base_url=URL, buffered=True)
            assert original.headers["X-ISR"] == ("HIT" if path in pages else "BYPASS")
            expected = original.data if at == path else with_base(original.text, path).encode()
            assert (status, body) == (200, expected), path
        connection.close()
    figure(f"{len(pages)} pages and their style sheet are the same, byte for byte")
