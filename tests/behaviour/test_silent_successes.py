"""Warnings about an invalidation that may have reached no page, and about two apps that share pages."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.nodes import spread
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.visitor import Clock, Site
from tests.support.memcached import Memcached
from wsgi_isr import Receipt, Rule, invalidate
from wsgi_isr.stores.memory import MemoryStore

BLOG = {
    "/blog": 3600,
    "/blog/<slug>": Rule(revalidate=3600, tags=["posts", "post:{slug}"]),
}
PAGES = ["/blog", "/blog/a", "/blog/b"]

# Nothing happens silently ---------------------------------------------------------------------------------


@pytest.fixture
def used(make_site: MakeSite, tmp_path: Path) -> Site:
    """Return a site with a file as its store, in the namespace ``blog``."""
    site = make_site(BLOG, store=f"sqlite:///{tmp_path}/pages.db", namespace="blog")
    for path in PAGES:
        site.visit(path)
    site.settle()
    return site


def job(site: Site, **named: Any) -> Receipt:
    """Invalidate as a job that knows only the store."""
    return invalidate(**{"store": site.store, "namespace": "blog", **named})


def test_a_receipt_says_where_it_holds(used: Site, tmp_path: Path) -> None:
    receipt = job(used, tags=["posts"])
    assert (receipt.store, receipt.namespace) == (f"sqlite:///{tmp_path}/pages.db", "blog")
    assert (len(receipt.nodes), len(receipt.acknowledged)) == (1, 1)
    assert receipt.warnings == receipt.notes == ()


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"tags": ["post:c"]}, "no stored page has carried tag:post:c yet"),
        ({"tags": ["POSTS", "post:"], "mode": "purge"}, "no stored page has carried tag:POSTS, tag:post: yet"),
        ({"routes": ["/blog/<slug"]}, "no rule of the app has the pattern '/blog/<slug': did you mean '/blog/<slug>'?"),
        (
            {"tags": ["posts"], "namespace": "shop"},
            "no app has used the namespace 'shop' of {store} yet: write namespace='blog'",
        ),
    ],
    ids=str,
)
def test_an_invalidation_that_may_have_reached_nothing_says_so(
    used: Site, named: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    words = words.format(store=f"sqlite:///{tmp_path}/pages.db")
    (warning,) = job(used, **named).warnings
    assert warning.startswith(words)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and words in r.getMessage()]


def test_a_new_tag_beside_one_that_pages_carry_is_no_warning_in_the_log(
    used: Site, caplog: pytest.LogCaptureFixture
) -> None:
    assert job(used, tags=["posts", "post:new"]).warnings == ("no stored page has carried tag:post:new yet",)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_relative_path_from_another_folder_is_another_store(
    used: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invalidate(tags=["posts"], store="sqlite:///pages.db", namespace="blog").warnings == ()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (warning,) = invalidate(tags=["posts"], store="sqlite:///pages.db", namespace="blog").warnings
    assert warning == (
        f"no app has used sqlite:///{elsewhere}/pages.db yet: name the store that the app uses, absolutely "
        "(sqlite:////path): a relative path counts from the current folder"
    )


def test_nodes_that_are_spelled_in_another_way_are_a_warning_that_says_what_to_write(make_site: MakeSite) -> None:
    node = Memcached()
    try:
        site = make_site(BLOG, store=f"memcached://127.0.0.1:{node.port}", journal=False)
        site.visit("/blog/a")
        site.settle()
        named = {"tags": ["posts"], "namespace": "default"}
        assert invalidate(**named, store=f"memcached://127.0.0.1:{node.port}").warnings == ()
        (warning,) = invalidate(**named, store=f"memcached://localhost:{node.port}").warnings
    finally:
        node.kill()
    assert f"spells the nodes of the store 127.0.0.1:{node.port}, and not localhost:{node.port}" in warning
    assert warning.endswith(f"write store='memcached://127.0.0.1:{node.port}'")


def test_an_app_that_invalidates_in_its_own_requests_is_told_of_tags_alone(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(BLOG)
    origin.on("/save", answer(lambda environ: repr(invalidate(paths=["/blog/a"]).warnings).encode()))
    assert site.visit("/save", method="POST").body == b"()"  # the first request of all


# Two apps in one place --------------------------------------------------------------------------------------


def one(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"one"]


def two(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"two"]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "two apps keep their pages" in record.getMessage()]


def test_two_apps_of_one_namespace_and_host_are_a_warning_by_both(
    make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(clock=clock)
    first, second = (make_site(app=app, revalidate=3600, store=store) for app in (one, two))
    first.visit("/a")
    first.settle()
    assert told(caplog) == []
    second.visit("/b")
    second.settle()
    (warning,) = told(caplog)
    assert "'example.org'" in warning
    assert f"{__name__}:one" in warning
    assert f"{__name__}:two" in warning
    assert 'namespace="shop"' in warning
    # The app that was there before finds out within a minute.
    clock.advance(60)
    first.visit("/a")
    first.settle()
    assert told(caplog) == [warning] * 2
    clock.advance(60)
    for site in (first, second):
        site.visit("/a")
        site.settle()
    assert len(told(caplog)) == 2


@pytest.mark.parametrize(
    "apart",
    [
        [{"host": "one.example"}, {"host": "two.example"}],
        [{"script_name": ""}, {"script_name": "/shop"}],
    ],
    ids=str,
)
def test_two_apps_of_one_namespace_in_two_places_are_none(
    make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture, apart: list[dict[str, Any]]
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(app=app, revalidate=3600, store=store) for app in (one, two)]
    for site, request in zip(sites * 2, apart * 2, strict=True):
        site.visit("/a", **request)
        site.settle()
        clock.advance(60)
    assert told(caplog) == []


def test_one_app_in_several_processes_releases_and_with_other_rules_is_one_app(
    make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(clock=clock)
    options: list[dict[str, Any]] = [
        {},
        {},
        {"release": "2"},
        {"rules": {"/a": 10}},
        {"rules": {"/b": 10}, "release": "3"},
    ]
    sites = [make_site(app=one, revalidate=3600, store=store, **each) for each in options]
    for _ in range(2):
        for site in sites:
            site.visit("/a")
            site.settle()
        clock.advance(60)
    assert told(caplog) == []


def test_an_app_that_is_gone_for_an_hour_is_no_other_app(
    make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(clock=clock)
    first, second = (make_site(app=app, revalidate=36000, store=store) for app in (one, two))
    first.visit("/a")
    first.settle()
    clock.advance(3600)
    second.visit("/b")
    second.settle()
    assert told(caplog) == []


def test_a_store_that_cannot_be_asked_costs_no_request_anything(
    make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    site, store = spread(make_site, clock)
    site.settle()
    store.unplugged = {*store.nodes}
    clock.advance(60)
    assert site.visit("/t1").code == 200
    site.settle()
