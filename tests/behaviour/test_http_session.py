"""Fetches: a requests session whose GETs are cached like data, against a real server."""

from __future__ import annotations

import base64
import copy
import gzip
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth, HTTPDigestAuth
from urllib3.util import Retry

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.upstream import Reply, Request, Upstream
from tests.behaviour.visitor import Clock, Site, all_at_once
from wsgi_isr import CachedSession, ConfigError, cached
from wsgi_isr.cache.context import RenderContext, within
from wsgi_isr.cache.verdict import CacheDirectives
from wsgi_isr.data import codec, http_response
from wsgi_isr.data.active_engine import activate
from wsgi_isr.data.call_site import CallSite
from wsgi_isr.data.http_response import StoredResponse
from wsgi_isr.events import DataServed, Refused, RenderFailed
from wsgi_isr.observe.debug import line_of
from wsgi_isr.stores.memory import MemoryStore

MakeSession = Callable[..., CachedSession]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


@pytest.fixture
def make_session(upstream: Upstream, make_site: MakeSite) -> Iterator[MakeSession]:
    """Return ``make_session(**options)``: a session that takes no proxy from the environment."""
    sessions: list[CachedSession] = []

    def make(**options: Any) -> CachedSession:
        session = CachedSession(**options)
        session.trust_env = False
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.close()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site(revalidate=3600)


@pytest.fixture
def session(make_session: MakeSession) -> CachedSession:
    return make_session(revalidate=60)


def page(show: Callable[[], Any]) -> Any:
    """Return a handler whose page shows the result of ``show``."""
    return answer(lambda environ: str(show()).encode())


def used(site: Site) -> list[str]:
    """Return the line of each fetch so far, without its duration."""
    lines = [line_of(event) or "" for event in site.happened(DataServed)]
    return [line.rpartition(" ms=")[0].removeprefix("data verdict=") for line in lines]


# Hit and miss -------------------------------------------------------------------------------------------


def test_a_get_is_fetched_once_and_comes_back_as_a_response(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    first, second = session.get(f"{upstream.url}/a"), session.get(f"{upstream.url}/a")
    assert first.text == second.text == "/a v1"
    assert type(first) is type(second) is requests.Response
    assert first is not second
    assert upstream.calls["/a"] == 1


def test_each_fetch_is_one_line_with_its_full_url_verdict_and_reason(
    make_site: MakeSite, session: CachedSession, upstream: Upstream, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(debug=True)
    url = f"{upstream.url}/a"
    with caplog.at_level(logging.DEBUG, "wsgi_isr.debug"):
        session.get(url, params={"of": "tea", "in": "€"})
        session.get(url, params={"of": "tea", "in": "€"})
        clock.advance(61)
        session.get(url, params={"of": "tea", "in": "€"})
        site.settle()
        session.get(url, no_store=True)
        session.post(url)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("data ")]
    full = f"GET {url}?of=tea&in=%E2%82%AC"
    assert [line.rpartition(" ms=")[0] for line in lines] == [
        f'data verdict=MISS key="{full}"',
        f'data verdict=HIT key="{full}"',
        f'data verdict=STALE key="{full}" age=61.0',
        f'data verdict=SKIP key="GET {url}" reason=no-store',
        f'data verdict=SKIP key="POST {url}" reason=method',
    ]


def test_what_users_of_a_url_are_called_is_not_in_the_log(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    session.get(upstream.url.replace("//", "//me:hush@") + "/a")
    assert used(site) == [f'SKIP key="GET {upstream.url}/a" reason=authorization']
    assert upstream.seen["/a"][0].headers["authorization"].startswith("Basic ")


def test_all_that_a_call_says_is_part_of_the_key_as_it_is_said(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    url = f"{upstream.url}/a"
    calls: list[Callable[[], requests.Response]] = [
        lambda: session.get(url),
        lambda: session.get(url, params={"a": "1", "b": "2"}),
        lambda: session.get(url, params={"b": "2", "a": "1"}),
        lambda: session.get(url, params=[("a", "1"), ("a", "2")]),
        lambda: session.get(url, params={"a": "1&b=2"}),
        lambda: session.get(url, headers={"Accept": "text/plain"}),
        lambda: session.get(url, headers={"Accept": "text/plain, b"}),
        lambda: session.get(url, headers={"Accept": "text/plain", "X": "b"}),
        lambda: session.get(url, headers={"Accept": None}),
        lambda: session.get(url, allow_redirects=False),
        lambda: session.get(url, timeout=5),
        lambda: session.get(url, timeout=(5, 5)),
        lambda: session.get(url, verify=False),
        lambda: session.get(url, revalidate=70),
        lambda: session.get(url, revalidate=70, expire=80),
        lambda: session.get(url, revalidate="hours"),
        lambda: session.get(url, tags=["a"]),
        lambda: session.get(url, tags=["a", "b"]),
        lambda: session.get(url, tags=["a,b"]),
    ]
    for _ in range(2):
        assert [call().text for call in calls] == [f"/a v{n}" for n in range(1, len(calls) + 1)]
    assert session.get(f"{url}?a=1&b=2").text == "/a v2"
    assert session.request("get", url).text == "/a v1"
    assert session.get(url.encode(), stream=False, cookies={}, json=None).text == "/a v1"
    assert upstream.calls["/a"] == len(calls)
    assert "accept" not in upstream.seen["/a"][8].headers


def test_parameters_and_headers_of_the_session_are_sent(site: Site, session: CachedSession, upstream: Upstream) -> None:
    session.params = {"lang": "en", "in": "eur"}
    session.headers["X-Shop"] = "1"
    for _ in range(2):
        session.get(f"{upstream.url}/a", params={"of": "tea", "in": None}, headers={"X-Call": "2"})
    (seen,) = upstream.seen["/a"]
    assert seen.target == "/a?lang=en&of=tea"
    assert (seen.headers["x-shop"], seen.headers["x-call"]) == ("1", "2")


def test_a_session_with_other_headers_has_answers_of_its_own(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    url = f"{upstream.url}/a"
    assert session.get(url).text == "/a v1"
    session.headers["X-Lang"] = "de"
    assert session.get(url).text == session.get(url).text == "/a v2"
    del session.headers["x-lang"]
    assert session.get(url).text == "/a v1"


def test_a_new_version_is_another_key(site: Site, make_session: MakeSession, upstream: Upstream) -> None:
    sessions = [make_session(version=version, name="shop") for version in (1, 2, 1)]
    assert [session.get(f"{upstream.url}/a").text for session in sessions] == ["/a v1", "/a v2", "/a v1"]


def test_a_bad_url_is_the_error_that_requests_raises(site: Site, session: CachedSession) -> None:
    with pytest.raises(requests.exceptions.MissingSchema):
        session.get("/a")


# Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"revalidate": -1}, "revalidate"),
        ({"revalidate": True}, "revalidate"),
        ({"revalidate": 60, "expire": 30}, "expire: 30 is below revalidate=60"),
        ({"revalidate": False, "expire": 30}, "expire"),
        ({"expire": 0}, "expire"),
        ({"timeout": 0}, "timeout"),
        ({"lock_timeout": -1}, "lock_timeout"),
        ({"tags": "posts"}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": lambda arguments: []}, "tags"),
        ({"name": ""}, "name"),
    ],
)
def test_a_bad_option_is_an_error_where_the_session_is_made(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"CachedSession: {problem}"):
        CachedSession(**options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"revalidate": -1}, "revalidate"),
        ({"expire": 30}, "expire: 30 is below revalidate=60"),
        ({"revalidate": False, "expire": 30}, "expire"),
        ({"tags": "posts"}, "tags"),
        ({"tags": [1]}, "tags"),
    ],
)
def test_a_bad_option_of_a_call_is_an_error_of_that_call(
    session: CachedSession, upstream: Upstream, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=f"get: {problem}"):
        session.get(f"{upstream.url}/a", **options)
    assert not upstream.calls


def test_a_call_may_have_its_own_lifetime(
    site: Site, make_session: MakeSession, upstream: Upstream, clock: Clock
) -> None:
    session, url = make_session(revalidate=60, expire=80), f"{upstream.url}/a"
    for options in ({}, {"revalidate": 10}, {"revalidate": False}, {"expire": 70}):
        session.get(url, **options)
    clock.advance(75)
    session.get(url)
    session.get(url, revalidate=10)
    session.get(url, revalidate=False)
    session.get(url, expire=70)
    labels = [event.label for event in site.happened(DataServed)]
    assert labels == ["MISS"] * 4 + ["STALE", "STALE", "HIT", "EXPIRED"]
    site.settle()


def test_profiles_are_those_of_the_app(make_site: MakeSite, session: CachedSession, upstream: Upstream) -> None:
    site = make_site(profiles={"tea": (7, 9)})
    url = f"{upstream.url}/a"
    session.get(url, revalidate="tea")
    site.clock.advance(9)
    assert session.get(url, revalidate="tea").text == "/a v2"
    with pytest.raises(ConfigError, match="coffee"):
        session.get(url, revalidate="coffee")


# Pages --------------------------------------------------------------------------------------------------


def test_the_tags_of_session_and_call_are_those_of_the_page_as_well(
    site: Site, make_session: MakeSession, origin: Origin, upstream: Upstream
) -> None:
    session = make_session(tags=["all"])
    origin.on("/a", page(lambda: session.get(f"{upstream.url}/a", tags=["post:1"]).text))
    origin.on("/b", page(lambda: session.get(f"{upstream.url}/b").text))
    for path in ("/a", "/b"):
        site.visit(path)
        assert site.visit(path).label == "HIT"
    site.isr.invalidate(tags=["post:1"])
    seen = site.visit("/a")
    assert (seen.label, seen.text, site.visit("/b").label) == ("EXPIRED", "/a v2", "HIT")
    site.isr.invalidate(tags=["all"])
    assert [site.visit(path).text for path in ("/a", "/b")] == ["/a v3", "/b v2"]


def test_the_lowest_lifetime_of_page_and_fetches_wins_and_each_fetch_keeps_its_own(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock
) -> None:
    def show() -> str:
        return " ".join(session.get(f"{upstream.url}/{n}", revalidate=n).text for n in (100, 7))

    origin.on("/a", page(show))
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 7
    clock.advance(7)
    assert site.visit_and_settle("/a").label == "STALE"
    seen = site.visit("/a")
    assert (seen.label, seen.text) == ("HIT", "/100 v1 /7 v2")
    assert site.lifetime("/a").revalidate == 7
    assert upstream.calls == {"/100": 1, "/7": 2}


@pytest.mark.parametrize("options", [{"no_store": True}, {"revalidate": 0}])
def test_a_fetch_that_is_not_to_be_kept_makes_the_page_uncacheable_and_no_error(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, options: dict[str, Any]
) -> None:
    origin.on("/a", page(lambda: session.get(f"{upstream.url}/a", **options).text))
    labels = [(seen.code, seen.label) for seen in (site.visit("/a") for _ in range(3))]
    assert labels == [(200, "BYPASS")] * 3
    assert {event.reason for event in site.happened(Refused)} == {"no-store"}
    reason = "no-store" if "no_store" in options else "revalidate-0"
    assert set(used(site)) == {f'SKIP key="GET {upstream.url}/a" reason={reason}'}
    assert site.visit("/a").text == f"/a v{upstream.calls['/a']}"


def test_a_session_may_keep_nothing_and_a_call_may_say_otherwise(
    site: Site, make_session: MakeSession, upstream: Upstream
) -> None:
    session, url = make_session(revalidate=0), f"{upstream.url}/a"
    assert [session.get(url).text, session.get(url).text] == ["/a v1", "/a v2"]
    assert [session.get(url, revalidate=60).text for _ in range(2)] == ["/a v3", "/a v3"]


def test_no_stale_answer_goes_into_a_page_that_is_stored(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock
) -> None:
    origin.on("/a", page(lambda: session.get(f"{upstream.url}/a").text))
    session.get(f"{upstream.url}/a")
    clock.advance(61)
    assert site.visit("/a").text == "/a v2"
    assert upstream.calls["/a"] == 2


def test_five_cold_pages_that_share_a_fetch_ask_once(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream
) -> None:
    started = threading.Barrier(5)

    def show() -> str:
        started.wait(20)
        return session.get(f"{upstream.url}/a").text

    for number in range(5):
        origin.on(f"/{number}", page(show))
    seen = all_at_once(5, lambda number: site.visit(f"/{number}"))
    assert {one.text for one in seen} == {"/a v1"}
    assert upstream.calls["/a"] == 1


def test_two_instances_on_one_store_ask_once(
    make_site: MakeSite, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=100, store=store) for _ in range(2)]
    for path in ("/a", "/b"):
        origin.on(path, page(lambda: session.get(f"{upstream.url}/x").text))
    gate = upstream.hold("/x")
    first = sites[0].start_visit("/a")
    gate.wait_until_entered()

    def while_the_other_waits(_seconds: float) -> None:
        gate.open()
        first.result()

    clock.on_pause = while_the_other_waits
    second = sites[1].start_visit("/b")
    assert {first.result().text, second.result().text} == {"/x v1"}
    assert upstream.calls["/x"] == 1


def test_many_threads_with_one_session_ask_once(site: Site, session: CachedSession, upstream: Upstream) -> None:
    gate = upstream.hold("/a")
    found: list[requests.Response] = []
    threads = [
        threading.Thread(target=lambda: found.append(session.get(f"{upstream.url}/a")), daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    gate.wait_until_entered()
    gate.open()
    for thread in threads:
        thread.join(20)
    assert [response.text for response in found] == ["/a v1"] * 8
    assert len(set(map(id, found))) == 8
    assert upstream.calls["/a"] == 1


# Time ---------------------------------------------------------------------------------------------------


def test_a_stale_answer_is_handed_out_and_renewed_in_the_background(
    site: Site, session: CachedSession, upstream: Upstream, clock: Clock
) -> None:
    url = f"{upstream.url}/a"
    session.get(url)
    clock.advance(60)
    gate = upstream.hold("/a")
    assert session.get(url).text == "/a v1"
    gate.wait_until_entered()
    gate.open()
    site.settle()
    assert session.get(url).text == "/a v2"
    assert upstream.calls["/a"] == 2


def test_an_expired_answer_is_not_handed_out(
    site: Site, make_session: MakeSession, upstream: Upstream, clock: Clock
) -> None:
    session = make_session(revalidate=60, expire=80)
    session.get(f"{upstream.url}/a")
    clock.advance(80)
    assert session.get(f"{upstream.url}/a").text == "/a v2"


@pytest.mark.parametrize("status", [404, 410])
def test_that_there_is_nothing_is_kept_for_ten_seconds(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock, status: int
) -> None:
    upstream.on("/a", Reply(status, b"no"))
    origin.on("/a", page(lambda: session.get(f"{upstream.url}/a").status_code))
    seen = site.visit("/a")
    assert (seen.text, site.lifetime("/a").revalidate) == (str(status), 10)
    assert session.get(f"{upstream.url}/a").status_code == status
    assert upstream.calls["/a"] == 1
    upstream.mend("/a")
    clock.advance(10)
    (*_, last) = site.happened(DataServed)
    assert site.store.get(site.isr._engine.keyspace.data(last.key)) is not None
    assert session.get(f"{upstream.url}/a").status_code == 200
    clock.advance(61)
    assert site.visit("/a").text == "200"


def test_that_there_is_nothing_does_not_fill_the_store(
    site: Site, session: CachedSession, upstream: Upstream, clock: Clock
) -> None:
    upstream.on("/a", Reply(404))
    for path in ("/a", "/b"):
        session.get(upstream.url + path)
    names = [site.isr._engine.keyspace.data(event.key) for event in site.happened(DataServed)]
    clock.advance(71)
    assert [site.store.get(name) is None for name in names] == [True, False]


# Statuses and errors ------------------------------------------------------------------------------------

KEPT = [200, 203, 204, 300, 301, 308, 404, 410]
ACCIDENTS = [400, 401, 403, 408, 429, 500, 502, 503]
ONE_REQUESTS = [201, 206, 302, 303, 307]  # true for this caller and this moment only


@pytest.mark.parametrize("status", KEPT)
def test_what_holds_for_everybody_is_kept(site: Site, session: CachedSession, upstream: Upstream, status: int) -> None:
    upstream.on("/a", Reply(status, b"" if status == 204 else b"x"))
    for _ in range(2):
        assert session.get(f"{upstream.url}/a").status_code == status
    assert upstream.calls["/a"] == 1


@pytest.mark.parametrize("status", ACCIDENTS + ONE_REQUESTS)
def test_any_other_answer_is_handed_on_after_one_request_and_not_kept(
    site: Site, session: CachedSession, upstream: Upstream, status: int
) -> None:
    upstream.on("/a", Reply(status, b"why", (("X-Why", "because"),)))
    for n in (1, 2):
        response = session.get(f"{upstream.url}/a")
        assert (response.status_code, response.content, response.headers["X-Why"]) == (status, b"why", "because")
        assert upstream.calls["/a"] == n
    assert set(used(site)) == {f'SKIP key="GET {upstream.url}/a" reason=status-{status}'}
    upstream.mend("/a")
    assert session.get(f"{upstream.url}/a").text == session.get(f"{upstream.url}/a").text == "/a v3"


@pytest.mark.parametrize("status", [401, 429, 503])
def test_an_accident_upstream_keeps_the_last_good_page_although_the_app_copes_with_it(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock, status: int
) -> None:
    origin.on("/a", page(lambda: session.get(f"{upstream.url}/a", tags=["a"]).text))
    site.visit("/a")
    upstream.on("/a", Reply(status, b"oh"))
    clock.advance(61)
    assert site.visit_and_settle("/a").label == "STALE"
    assert site.visit("/a").text == "/a v1"
    assert upstream.calls["/a"] == 2
    assert f"fetch-{status}" in {event.reason for event in site.happened(RenderFailed)}
    # The data is past its time, too. There a refusal would be stored, and the page would be gone.
    site.isr.invalidate(tags=["a"])
    seen = site.visit("/a")
    assert (seen.label, seen.text) == ("STALE-IF-ERROR", "/a v1")
    upstream.mend("/a")
    clock.advance(60)
    seen = site.visit_and_settle("/a")
    assert (seen.label, seen.text) == ("EXPIRED", f"/a v{upstream.calls['/a']}")


def test_without_a_last_good_page_the_visitor_sees_what_the_app_made_of_the_accident(
    site: Site, session: CachedSession, upstream: Upstream, origin: Origin
) -> None:
    made = answer(
        lambda environ: session.get(f"{upstream.url}/a").content, ("Cache-Control", "public, max-age=600, s-maxage=600")
    )
    origin.on("/a", made)
    upstream.on("/a", Reply(503, b"oh"))
    seen = site.visit("/a")
    assert (seen.code, seen.text, seen.label, seen.cache_status) == (
        *(200, "oh", "MISS"),
        'wsgi-isr; fwd=uri-miss; detail="fetch-503"',
    )
    assert seen.headers.getlist("Cache-Control") == ["no-store"]
    upstream.mend("/a")
    assert site.visit("/a").text == "/a v2"
    assert site.visit("/a").label == "HIT"


def test_a_redirect_that_is_not_followed_belongs_to_nobodys_page(
    site: Site, session: CachedSession, upstream: Upstream, origin: Origin
) -> None:
    upstream.on("/a", Reply(302, b"", (("Location", "/b"),)))
    origin.on("/a", page(lambda: session.get(f"{upstream.url}/a", allow_redirects=False).headers["Location"]))
    assert [(seen.text, seen.label) for seen in (site.visit("/a"), site.visit("/a"))] == [("/b", "BYPASS")] * 2


def test_an_accident_in_the_background_leaves_the_stale_answer_and_is_not_tried_again_at_once(
    site: Site, session: CachedSession, upstream: Upstream, clock: Clock
) -> None:
    url = f"{upstream.url}/a"
    session.get(url)
    upstream.on("/a", Reply(503))
    clock.advance(61)
    for _ in range(5):
        assert session.get(url).text == "/a v1"
        site.settle()
        clock.advance(0.15)
    assert upstream.calls["/a"] == 2
    (failed,) = site.happened(RenderFailed)
    assert (failed.reason, failed.cause) == ("status-503", None)
    upstream.mend("/a")
    clock.advance(3)
    session.get(url)
    site.settle()
    assert session.get(url).text == "/a v3"


def test_an_expired_answer_is_better_than_an_accident(
    site: Site, make_session: MakeSession, upstream: Upstream, clock: Clock
) -> None:
    session, url = make_session(revalidate=60, expire=80, tags=["a"]), f"{upstream.url}/a"
    session.get(url)
    upstream.on("/a", Reply(None))
    clock.advance(90)
    assert session.get(url).text == "/a v1"
    assert [event.label for event in site.happened(DataServed)] == ["MISS", "STALE-IF-ERROR"]
    site.isr.invalidate(tags=["a"], mode="purge")
    with pytest.raises(requests.ConnectionError):
        session.get(url)


def test_those_who_wait_for_an_accident_each_get_a_response_of_their_own(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    upstream.on("/a", Reply(503, b"oh"))
    gate = upstream.hold("/a")
    found: list[requests.Response] = []
    threads = [
        threading.Thread(target=lambda: found.append(session.get(f"{upstream.url}/a")), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    gate.wait_until_entered()
    flights = site.isr._engine.cache._dispatcher.flights
    assert len(flights) == 1
    gate.open()
    for thread in threads:
        thread.join(20)
    assert [(response.status_code, response.text) for response in found] == [(503, "oh")] * 4
    assert len(set(map(id, found))) == 4


class Broken(BaseAdapter):
    """An adapter that raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.calls = 0

    def send(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        raise self.error

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "error",
    [requests.ConnectionError("gone"), requests.ReadTimeout("slow"), requests.exceptions.ChunkedEncodingError()],
)
def test_an_exception_goes_through_after_one_request_and_keeps_the_last_good_page(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock, error: Exception
) -> None:
    def show() -> str:
        try:
            return session.get(f"{upstream.url}/a").text
        except requests.RequestException:
            return "no prices"  # the app handles the error

    origin.on("/a", page(show))
    site.visit("/a")
    working = session.get_adapter(upstream.url)
    broken = Broken(error)
    session.mount("http://", broken)
    with pytest.raises(type(error)):
        session.get(f"{upstream.url}/b")
    assert broken.calls == 1
    clock.advance(61)
    with activate(site.isr._engine):  # as in a request
        assert session.get(f"{upstream.url}/a").text == "/a v1"
    site.settle()
    assert site.visit_and_settle("/a").text == site.visit("/a").text == "/a v1"
    session.mount("http://", working)
    clock.advance(60)
    site.visit_and_settle("/a")
    assert site.visit("/a").text == "/a v2"


def test_a_fetch_without_a_timeout_has_that_of_the_session(
    site: Site, make_session: MakeSession, upstream: Upstream
) -> None:
    seen: list[Any] = []

    class Noting(HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            seen.append(kwargs["timeout"])
            return super().send(*args, **kwargs)

    for options in ({}, {"timeout": 7}):
        session = make_session(**options)
        session.mount("http://", Noting())
        session.get(f"{upstream.url}/a?{options}")
        session.get(f"{upstream.url}/a?{options}", timeout=(1, 2))
        session.post(f"{upstream.url}/a")
    assert seen == [30.0, (1, 2), 30.0, 7, (1, 2), 7]


def test_a_cached_function_made_of_an_accident_is_not_kept_either(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock
) -> None:
    @cached(revalidate=10)
    def rows() -> list[str]:
        return session.get(f"{upstream.url}/a", revalidate=10).text.split()

    origin.on("/a", page(lambda: rows()[-1]))
    site.visit("/a")
    upstream.on("/a", Reply(503, b"o h"))
    clock.advance(11)
    assert site.visit_and_settle("/a").label == "STALE"
    assert site.visit("/a").text == "v1"
    assert upstream.calls["/a"] == 2
    assert rows() == ["/a", "v1"]
    rows.invalidate()
    assert rows() == ["/a", "v1"]
    site.isr.invalidate(everything=True, mode="purge")
    calls = upstream.calls["/a"]
    assert rows() == ["o", "h"]
    assert upstream.calls["/a"] == calls + 1
    upstream.mend("/a")
    clock.advance(60)
    assert rows() == rows() == ["/a", f"v{calls + 2}"]


# Large bodies -------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_response, "MAX_BODY", 10)


def test_a_body_of_8_mib_is_kept_and_a_larger_one_handed_on(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    sizes = {"/max": 8 << 20, "/more": (8 << 20) + 1}
    for path, size in sizes.items():
        upstream.on(path, Reply(200, b"x" * size))
        for _ in range(2):
            assert len(session.get(upstream.url + path).content) == size
    assert upstream.calls == {"/max": 1, "/more": 2}
    assert used(site)[-1] == f'SKIP key="GET {upstream.url}/more" reason=max-body'


def test_a_page_of_a_body_that_is_too_large_is_stored_with_its_tags_and_lifetime(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock, small: None
) -> None:
    upstream.on("/a", lambda request: Reply(200, f"{upstream.calls['/a']}".encode() * 11))
    origin.on("/a", page(lambda: session.get(f"{upstream.url}/a", revalidate=20, tags=["a"]).text[0]))
    seen = site.visit("/a")
    assert (seen.text, site.lifetime("/a").revalidate, upstream.calls["/a"]) == ("1", 20, 1)
    assert site.visit("/a").label == "HIT"
    site.isr.invalidate(tags=["a"])
    seen = site.visit("/a")
    assert (seen.label, seen.text) == ("EXPIRED", "2")
    clock.advance(20)
    assert site.visit_and_settle("/a").label == "STALE"
    assert site.visit("/a").text == "3"
    assert upstream.calls["/a"] == 3


def test_who_comes_after_an_invalidation_does_not_get_the_large_body_from_before_it(
    site: Site, session: CachedSession, upstream: Upstream, small: None
) -> None:
    gate = upstream.hold("/a")

    def begun_as(number: int) -> Reply:
        gate.pass_through()
        return Reply(200, f"{number}".encode() * 11)

    upstream.on("/a", lambda request: begun_as(upstream.calls["/a"]))
    upstream.let_go("/a")
    found: list[str] = []

    def show() -> None:
        found.append(session.get(f"{upstream.url}/a", tags=["a"]).text)

    first = threading.Thread(target=show, daemon=True)
    first.start()
    gate.wait_until_entered()
    site.isr.invalidate(tags=["a"])
    second = threading.Thread(target=show, daemon=True)
    second.start()
    gate.open()
    for thread in (first, second):
        thread.join(20)
    # The second fetch joined the flight of the first, or came after it.
    assert len(found) == 2
    assert "1" * 11 not in found


# Not for the cache --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Bearer x"}},
        {"headers": {"AUTHORIZATION": b"Bearer x"}},
        {"headers": {b"Authorization": b"Bearer x"}},
        {"headers": {"Cookie": "a=b"}},
        {"headers": {"X-Api-Key": "x"}},
        {"headers": {"Private-Token": "x"}},
        {"auth": ("me", "hush")},
        {"auth": HTTPBasicAuth("me", "hush")},
        {"cookies": {"a": "b"}},
        {"headers": {"Authorization": "Bearer x"}, "revalidate": 60, "tags": ["a"]},
    ],
)
def test_what_says_who_asks_is_never_kept(
    site: Site, session: CachedSession, upstream: Upstream, options: dict[str, Any]
) -> None:
    url = f"{upstream.url}/a"
    assert [session.get(url, **options).text for _ in range(2)] == ["/a v1", "/a v2"]
    assert set(used(site)) == {f'SKIP key="GET {url}" reason=authorization'}
    assert session.get(url).text == "/a v3"


def test_a_header_that_is_left_out_says_nothing_about_who_asks(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    session.headers["Authorization"] = "Bearer x"
    for _ in range(2):
        session.get(f"{upstream.url}/a", headers={"Authorization": None})
    assert upstream.calls["/a"] == 1
    assert "authorization" not in upstream.seen["/a"][0].headers


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stream": True}, "stream"),
        ({"data": b"x"}, "body"),
        ({"json": []}, "body"),
        ({"files": {"a": b"x"}}, "body"),
        ({"hooks": {"response": lambda response, **rest: None}}, "hooks"),
        ({"proxies": {"https": "http://127.0.0.1:9"}}, "proxies"),
    ],
)
def test_what_cannot_be_kept_is_fetched_and_its_tags_and_lifetime_count_all_the_same(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, options: dict[str, Any], reason: str
) -> None:
    def show() -> str:
        with session.get(f"{upstream.url}/a", revalidate=20, tags=["a"], **options) as response:
            return response.text

    assert (show(), show()) == ("/a v1", "/a v2")
    assert set(used(site)) == {f'SKIP key="GET {upstream.url}/a" reason={reason}'}
    origin.on("/a", page(show))
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 20
    site.isr.invalidate(tags=["a"])
    assert site.visit("/a").text == "/a v4"


def test_an_argument_that_has_no_bytes_is_handed_to_requests(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    from urllib3 import Timeout

    assert session.get(f"{upstream.url}/a", timeout=Timeout(5)).text == "/a v1"
    assert used(site) == [f'SKIP key="GET {upstream.url}/a" reason=unencodable']


def test_a_session_that_streams_is_not_for_the_cache(site: Site, session: CachedSession, upstream: Upstream) -> None:
    session.stream = True
    for _ in range(2):
        session.get(f"{upstream.url}/a").close()
    assert upstream.calls["/a"] == 2
    session.get(f"{upstream.url}/a", stream=False)
    session.get(f"{upstream.url}/a", stream=False)
    assert upstream.calls["/a"] == 3


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE"])
def test_other_methods_are_none_of_the_caches_business(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, method: str
) -> None:
    upstream.on("/a", Reply(503))
    url = f"{upstream.url}/a"
    origin.on("/a", page(lambda: session.request(method, url, revalidate=20, tags=["a"]).status_code))
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 3600
    assert site.visit("/a").label == "HIT"
    session.request(method.lower(), url)
    assert set(used(site)) == {f'SKIP key="{method} {url}" reason=method'}
    assert upstream.calls["/a"] == 2


def test_an_accident_of_a_fetch_that_is_not_for_the_cache_counts_for_the_page(
    site: Site, session: CachedSession, origin: Origin, upstream: Upstream, clock: Clock
) -> None:
    def show() -> str:
        return session.get(f"{upstream.url}/a", auth=("me", "hush")).text

    origin.on("/a", page(show))
    site.visit("/a")
    for reply in (Reply(503), Reply(None)):
        upstream.on("/a", reply)
        clock.advance(3601)
        site.visit_and_settle("/a")
        assert site.visit("/a").text == "/a v1"


def test_in_a_draft_everything_is_fetched(site: Site, session: CachedSession, upstream: Upstream) -> None:
    session.get(f"{upstream.url}/a")
    with within(RenderContext(CacheDirectives(), {}, stored=False, draft=True)):
        assert session.get(f"{upstream.url}/a", revalidate=False).text == "/a v2"
        upstream.on("/a", Reply(503, b"oh"))
        assert session.get(f"{upstream.url}/a", revalidate=False).text == "oh"
    assert session.get(f"{upstream.url}/a").text == "/a v1"
    assert upstream.calls["/a"] == 3


def test_without_a_store_that_keeps_anything_everything_is_fetched(
    make_site: MakeSite, session: CachedSession, upstream: Upstream
) -> None:
    site = make_site(store="null://")
    assert [session.get(f"{upstream.url}/a").text for _ in range(2)] == ["/a v1", "/a v2"]
    upstream.on("/a", Reply(503))
    assert session.get(f"{upstream.url}/a").status_code == 503
    assert upstream.calls["/a"] == 3
    assert used(site)[0] == f'SKIP key="GET {upstream.url}/a" reason=store-disabled'


# The caller's credentials -------------------------------------------------------------------------------


def everything_in(store: MemoryStore) -> bytes:
    return b"\n".join(name.encode() + b" " + item.value for name, item in store._pages.items.items())


def test_the_sessions_credentials_are_sent_and_nowhere_kept_in_clear(
    make_site: MakeSite, session: CachedSession, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(debug=True)
    session.headers.update({"Authorization": "Bearer s3cr3t", "X-Api-Key": "s3cr3t"})
    session.proxies["https"] = "http://me:s3cr3t@127.0.0.1:9"
    with caplog.at_level(logging.DEBUG):
        session.get(f"{upstream.url}/a")
        site.clock.advance(61)
        session.get(f"{upstream.url}/a")
        site.settle()
        session.auth = ("me", "s3cr3t")
        session.get(f"{upstream.url}/a")
        session.auth = HTTPDigestAuth("me", "s3cr3t")
        session.get(f"{upstream.url}/a")
    seen = upstream.seen["/a"]
    assert [request.headers["authorization"].split()[0] for request in seen] == ["Bearer", "Bearer", "Basic", "Bearer"]
    assert "s3cr3t" in seen[0].headers["x-api-key"]
    kept = everything_in(site.store)
    assert b"/a v1" in kept or b"/a v2" in kept
    for secret in (b"s3cr3t", b"czNjcjN0", b"bWU6czNjcjN0"):
        assert secret not in kept
    assert "s3cr3t" not in caplog.text
    # The key is text of base 85; what is in it is not in clear there either.
    entries = [event.key for event in site.happened(DataServed)]
    assert all(b"s3cr3t" not in base64.b85decode(json.loads(key)[2]) for key in entries)


class Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def echo(request: Request) -> Reply:
    return Reply(200, request.headers.get("authorization", "nobody").encode())


def test_each_identity_of_a_session_has_answers_of_its_own(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    upstream.on("/a", echo)
    url = f"{upstream.url}/a"
    for _ in range(2):
        found = []
        for auth in (None, ("me", "one"), ("me", "two"), HTTPBasicAuth("you", "one")):
            session.auth = auth
            found.append(session.get(url).text)
        for token in ("one", "two"):
            session.headers["Authorization"], session.auth = f"Bearer {token}", None
            found.append(session.get(url).text)
        del session.headers["Authorization"]
        assert (found[0], found[-2:]) == ("nobody", ["Bearer one", "Bearer two"])
        assert len(set(found)) == 6
    assert upstream.calls["/a"] == 6


def test_what_a_view_makes_for_one_visitor_is_not_for_the_cache(
    make_site: MakeSite, make_session: MakeSession, upstream: Upstream, origin: Origin
) -> None:
    class Signing(HTTPAdapter):
        def __init__(self, user: str) -> None:
            super().__init__()
            self.user = user

        def send(self, request: requests.PreparedRequest, *rest: Any, **more: Any) -> requests.Response:
            request.headers["Authorization"] = self.user
            return super().send(request, *rest, **more)

    upstream.on("/a", echo)

    def show(environ: Environ) -> bytes:
        session = make_session()
        session.mount("http://", Signing(environ["HTTP_AUTHORIZATION"]))
        return session.get(f"{upstream.url}/a").content

    origin.on("/mine", answer(show))
    site = make_site(revalidate=60)
    for user in ("alice", "bob", "alice"):
        assert site.visit("/mine", headers={"Authorization": user}).text == user


@pytest.mark.parametrize(
    "auth", [lambda request: request, AuthBase(), Bearer("one")], ids=["function", "says nothing", "may look it up"]
)
def test_a_way_to_sign_that_cannot_be_told_from_another_is_not_for_the_cache(
    site: Site, session: CachedSession, upstream: Upstream, auth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuthBase, "__call__", lambda self, request: request)
    session.auth = auth
    assert [session.get(f"{upstream.url}/a").text for _ in range(2)] == ["/a v1", "/a v2"]
    assert used(site)[0] == f'SKIP key="GET {upstream.url}/a" reason=authorization'


def test_an_answer_is_renewed_as_it_was_asked_for_whatever_became_of_the_session(
    site: Site, session: CachedSession, upstream: Upstream, clock: Clock
) -> None:
    upstream.on("/a", echo)
    url = f"{upstream.url}/a"
    session.headers["Authorization"] = "one"
    session.get(url)
    clock.advance(61)
    gate = upstream.hold("/a")
    assert session.get(url).text == "one"
    session.headers["Authorization"] = "two"
    gate.wait_until_entered()
    gate.open()
    site.settle()
    assert session.get(url).text == "two"
    session.headers["Authorization"] = "one"
    assert session.get(url).text == "one"
    assert [request.headers["authorization"] for request in upstream.seen["/a"]] == ["one", "one", "two"]


def test_sessions_of_one_factory_do_not_renew_for_each_other(
    site: Site, make_session: MakeSession, upstream: Upstream, clock: Clock
) -> None:
    upstream.on("/a", echo)
    sessions = {token: make_session(revalidate=60) for token in ("one", "two", "three")}
    assert len({session._call_site.name for session in sessions.values()}) == 1
    for token, session in sessions.items():
        session.headers["Authorization"] = token
    for _ in range(3):
        for token, session in sessions.items():
            assert session.get(f"{upstream.url}/a").text == token
        clock.advance(61)
        site.settle()


def test_a_cached_fetch_neither_sends_nor_collects_cookies_beyond_its_own_redirects(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    upstream.on("/login", Reply(200, b"", (("Set-Cookie", "who=me; Path=/"),)))
    upstream.on("/a", Reply(302, b"", (("Set-Cookie", "seen=1; Path=/"), ("Location", "/b"))))
    upstream.on("/b", Reply(200, b"b", (("Set-Cookie", "more=1"), ("X-Kept", "yes"))))
    session.post(f"{upstream.url}/login")
    assert session.cookies.get_dict() == {"who": "me"}
    for _ in range(2):
        response = session.get(f"{upstream.url}/a")
        assert (response.text, response.headers["X-Kept"]) == ("b", "yes")
        assert "Set-Cookie" not in response.headers
        assert not response.cookies
        assert not any("Set-Cookie" in before.headers for before in response.history)
    assert session.cookies.get_dict() == {"who": "me"}
    assert "cookie" not in upstream.seen["/a"][0].headers
    assert upstream.seen["/b"][0].headers["cookie"] == "seen=1"
    session.post(f"{upstream.url}/login")
    assert upstream.seen["/login"][1].headers["cookie"] == "who=me"


# Responses ----------------------------------------------------------------------------------------------


def same(one: requests.Response, other: requests.Response) -> bool:
    names = ("status_code", "reason", "url", "content", "text", "encoding", "is_redirect", "ok", "links")
    return all(getattr(one, name) == getattr(other, name) for name in names)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", ()),
        (b"\x00\xff", (("Content-Type", "image/png"),)),
        ("tée".encode(), (("Content-Type", "text/html; charset=utf-8"),)),
        ("tée".encode("latin-1"), (("Content-Type", "text/html"),)),
        ("tée".encode("utf-16"), (("Content-Type", "application/json"),)),
        (b'{"a": [1]}', (("Content-Type", "application/json"), ("X-Twice", "1"), ("X-Twice", "2"))),
        (b"x", (("X-Latin", "t\xe9e"), ("Link", "</n>; rel=next"))),
        (gzip.compress(b"zip", mtime=0), (("Content-Encoding", "gzip"),)),
    ],
)
def test_a_kept_response_is_what_requests_alone_would_have_had(
    site: Site, session: CachedSession, upstream: Upstream, body: bytes, headers: tuple[tuple[str, str], ...]
) -> None:
    upstream.on("/a", Reply(200, body, headers))
    url = f"{upstream.url}/a?b=c d"
    with requests.Session() as plain:
        plain.trust_env = False
        real = plain.get(url)
    made, kept = session.get(url), session.get(url)
    for response in (made, kept):
        assert same(response, real)
        dates = [dict(one.headers) | {"Date": ""} for one in (response, real)]
        assert dates[0] == dates[1]
        assert (response.request.method, response.request.url) == ("GET", real.url)
        assert b"".join(response.iter_content(2)) == real.content
        assert list(response.iter_lines()) == list(real.iter_lines())
        with response:
            response.raise_for_status()
    assert made.elapsed == kept.elapsed > timedelta(0)
    assert not any(name.lower().startswith(("x-isr", "cache-status")) for name in kept.headers)


def test_json_and_errors_of_a_kept_response_are_those_of_requests(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    upstream.on("/a", Reply(200, b'{"a": [1]}'))
    upstream.on("/b", Reply(404, b"no json"))
    for _ in range(2):
        assert session.get(f"{upstream.url}/a").json() == {"a": [1]}
        with pytest.raises(requests.HTTPError, match="404 Client Error: Not Found for url"):
            session.get(f"{upstream.url}/b").raise_for_status()
        with pytest.raises(requests.exceptions.JSONDecodeError):
            session.get(f"{upstream.url}/b").json()
    assert upstream.calls == {"/a": 1, "/b": 1}


def test_a_response_that_is_changed_by_whoever_got_it_is_not_changed_for_others(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    first = session.get(f"{upstream.url}/a")
    first.headers["X-Mine"], first.encoding = "1", "utf-16"
    second = session.get(f"{upstream.url}/a")
    assert "X-Mine" not in second.headers
    assert second.text == "/a v1"


def test_a_followed_redirect_is_kept_with_where_it_led_to_and_how(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    upstream.on("/a", Reply(302, b"", (("Location", "/b?x=1"),)))
    upstream.on("/b", Reply(301, b"", (("Location", f"{upstream.url}/c"),)))
    for _ in range(2):
        response = session.get(f"{upstream.url}/a")
        assert (response.url, response.text) == (f"{upstream.url}/c", "/c v1")
        assert [(before.status_code, before.url) for before in response.history] == [
            (302, f"{upstream.url}/a"),
            (301, f"{upstream.url}/b?x=1"),
        ]
        assert response.history[0].is_redirect
        assert response.history[0].headers["Location"] == "/b?x=1"
    assert upstream.calls == {"/a": 1, "/b": 1, "/c": 1}


def test_a_permanent_redirect_that_is_not_followed_is_kept(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    upstream.on("/a", Reply(308, b"", (("Location", "/b"),)))
    for _ in range(2):
        response = session.get(f"{upstream.url}/a", allow_redirects=False)
        assert (response.status_code, response.is_permanent_redirect) == (308, True)
        assert response.history == []
    assert upstream.calls == {"/a": 1}


text = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=20)
answers = st.builds(
    StoredResponse,
    status=st.integers(100, 599),
    reason=st.one_of(st.none(), text, st.binary(max_size=10)),
    url=st.text(max_size=30),
    headers=st.dictionaries(
        st.from_regex(r"[a-z][a-z-]{0,10}", fullmatch=True).filter(lambda name: name != "set-cookie"), text
    ).map(lambda headers: tuple(headers.items())),
    body=st.binary(max_size=200),
    encoding=st.one_of(st.none(), st.sampled_from(["utf-8", "latin-1", "nonsense"])),
    elapsed=st.timedeltas(min_value=timedelta(0), max_value=timedelta(hours=1)),
)


@given(answers, st.lists(answers, max_size=2))
def test_any_response_comes_back_as_what_it_was(answer: StoredResponse, history: list[StoredResponse]) -> None:
    on_the_way = tuple(StoredResponse(**{**vars(one), "body": b""}) for one in history)
    whole = StoredResponse(**{**vars(answer), "history": on_the_way})
    back = codec.decode(codec.encode(whole), codec.Types(CallSite.fetch).allows)
    assert back == whole
    response = back.restore()
    assert StoredResponse.of(response) == whole
    assert response.content == whole.body
    assert response.text == response.text
    assert response.ok is (whole.status < 400 or whole.status >= 600)


# Adapters and hooks -------------------------------------------------------------------------------------


def test_retries_that_are_mounted_on_the_session_work(site: Site, session: CachedSession, upstream: Upstream) -> None:
    upstream.on("/a", lambda request: Reply(503 if upstream.calls["/a"] < 3 else 200, b"at last"))
    session.mount(upstream.url, HTTPAdapter(max_retries=Retry(3, status_forcelist=[503], backoff_factor=0)))
    for _ in range(2):
        assert session.get(f"{upstream.url}/a").text == "at last"
    assert upstream.calls["/a"] == 3


def test_a_hook_of_the_session_is_run_on_the_real_answer_and_what_it_makes_of_it_is_kept(
    site: Site, session: CachedSession, upstream: Upstream
) -> None:
    calls = []

    def hook(response: requests.Response, **rest: Any) -> None:
        calls.append(response.url)
        response.headers["X-Hook"] = f"was here: {response.text}"  # requests leaves an unread body open
        response.raise_for_status()

    session.hooks["response"].append(hook)
    for _ in range(2):
        with activate(site.isr._engine):  # as in a request
            assert session.get(f"{upstream.url}/a").headers["X-Hook"] == "was here: /a v1"
    assert len(calls) == 1
    upstream.on("/b", Reply(404))
    for n in (1, 2):
        with pytest.raises(requests.HTTPError):
            session.get(f"{upstream.url}/b")
        assert upstream.calls["/b"] == n


# Processes ----------------------------------------------------------------------------------------------


def test_the_name_of_a_session_is_that_of_the_place_that_makes_it() -> None:
    def in_a_function() -> CachedSession:
        return CachedSession()

    here, there = CachedSession(), CachedSession(revalidate=1)
    try:
        names = [session._call_site.name for session in (here, there, in_a_function(), in_a_function())]
    finally:
        for session in (here, there):
            session.close()
    function = "test_the_name_of_a_session_is_that_of_the_place_that_makes_it"
    assert [name.startswith(f"{__name__}.") for name in names] == [True] * 4
    assert names[0].endswith(f"{function}:CachedSession")
    assert names[1] == names[0] + ":2"
    assert names[2] == names[3]
    assert names[2].endswith("in_a_function:CachedSession")


def test_a_process_that_was_never_asked_can_renew_for_one_that_was(
    site: Site, make_session: MakeSession, upstream: Upstream, clock: Clock
) -> None:
    upstream.on("/a", echo)
    session = make_session(revalidate=60, name="renewing")
    session.headers["Authorization"] = "one"
    session.get(f"{upstream.url}/a")
    clock.advance(61)
    session.get(f"{upstream.url}/a")
    site.settle()
    session._call_site._configurations.clear()  # as in a new process
    clock.advance(61)
    task = session._fetch._task(site.isr._engine, ("", "", {}, {}, 1, None, ()), {})
    assert task.rule == "CachedSession:renewing"
    digest, _ = session.configuration()
    assert session._call_site._session(digest).headers["Authorization"] == "one"
    with pytest.raises(LookupError, match="no session of this process"):
        session._call_site._session("another")


SCRIPT = """
import sys
from wsgi_isr import CachedSession, invalidate

session = CachedSession(revalidate=60, tags=["posts"])
session.trust_env = False
session.headers["Authorization"] = "Bearer x"

for argument in sys.argv[1:]:
    if argument.startswith("http"):
        print(session.get(argument).text)
    else:
        invalidate(tags=[argument])
"""


def test_scripts_share_what_was_fetched_by_the_store_in_their_environment(upstream: Upstream, tmp_path: Any) -> None:
    def run(*arguments: str) -> list[str]:
        environ = {**os.environ, "WSGI_ISR_STORE": f"sqlite:///{tmp_path}/cache.db"}
        command = [sys.executable, "-c", SCRIPT, *arguments]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    url = f"{upstream.url}/a"
    assert run(url, url) == ["/a v1", "/a v1"]
    assert run(url) == ["/a v1"]
    assert run("posts", url, url) == ["/a v2", "/a v2"]


def test_requests_is_imported_by_those_who_fetch_and_missed_by_them_alone() -> None:
    program = """
import sys
sys.modules["requests"] = None  # as if it was not installed
from wsgi_isr import *
import wsgi_isr
try:
    from wsgi_isr import CachedSession
except wsgi_isr.ConfigError as error:
    print(error)
del sys.modules["requests"]
from wsgi_isr import CachedSession
print(CachedSession().__class__.__mro__[1].__module__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "CachedSession: requests is not installed (pip install wsgi_isr[requests])",
        "requests.sessions",
    ]


def test_importing_the_package_does_not_import_requests() -> None:
    program = "import sys, wsgi_isr; print('requests' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_session_that_is_copied_says_so_at_once(copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="make another one"):
        copied(CachedSession(revalidate=60))
