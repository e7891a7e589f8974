"""Admission: which answers are stored, why others are not, and how long a refusal lasts (hit-for-miss)."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import DEADLINE, Body, Environ, Origin, answer
from tests.behaviour.visitor import Clock, all_at_once
from wsgi_isr import Rule
from wsgi_isr.events import Refused
from wsgi_isr.stores.memory import MemoryStore

#: Headers of an answer that may not be stored, and the reason in Cache-Status.
REFUSED = {
    "Set-Cookie": ([("Set-Cookie", "a=b")], "cookie"),
    "private": ([("Cache-Control", "private")], "private"),
    "private in another case": ([("Cache-Control", "PRIVATE")], "private"),
    "private with fields": ([("Cache-Control", 'private="X-Name"')], "private"),
    "private among others": ([("Cache-Control", "max-age=60,private , must-revalidate")], "private"),
    "private beside s-maxage": ([("Cache-Control", "s-maxage=60, private")], "private"),
    "no-store": ([("Cache-Control", "no-store")], "no-store"),
    "no-store in another case": ([("cache-control", "No-Store")], "no-store"),
    "no-store in a second header": ([("Cache-Control", "public"), ("Cache-Control", "no-store")], "no-store"),
    # The answer may not be used without asking the app again (RFC 9111, 5.2.2.4). A bypass asks again.
    "no-cache": ([("Cache-Control", "no-cache")], "no-cache"),
    "a nonce": ([("Content-Security-Policy", "default-src 'self'; script-src 'Nonce-r4nd0m'")], "csp-nonce"),
    "a nonce in a second policy": (
        [("Content-Security-Policy", "default-src *"), ("content-security-policy", "script-src 'nonce-x'")],
        "csp-nonce",
    ),
    "Vary on a header": ([("Vary", "User-Agent")], "vary"),
    "Vary on a header among others": ([("Vary", "Accept-Encoding, user-agent")], "vary"),
    "Vary in a second header": ([("Vary", "Cookie"), ("Vary", "Origin")], "vary"),
    "Vary on everything": ([("Vary", "*")], "vary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_answer_that_is_not_for_others_is_never_stored(
    make_site: MakeSite, origin: Origin, clock: Clock, case: str
) -> None:
    origin.on("/a", answer(b"x", *REFUSED[case][0]))
    store = MemoryStore(clock=clock)
    site = make_site(revalidate=60, store=store)
    for _ in range(3):
        calls = origin.calls["/a"]
        assert site.visit("/a").label == "BYPASS"
        assert origin.calls["/a"] > calls
    assert make_site(revalidate=60, store=store).visit("/a").label == "BYPASS"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/a", "/a"),
        ("/%C3%A4%20b", "/%c3%a4%20b"),
        ("/%C3%A4", "/\u00c3\u00a4"),
        ("/a?q=%C3%A4+b", "/a?q=%C3%A4%20b"),
        ("/", ""),
    ],
)
def test_a_redirect_that_leads_back_at_another_scheme_is_not_stored_or_it_would_be_a_loop(
    make_site: MakeSite, origin: Origin, path: str, target: str
) -> None:
    def rewritten(environ: Environ, start_response: Any) -> Any:
        environ["PATH_INFO"] = "/inside"  # as middlewares do; the app inside uses the URL from before
        return answer(b"", ("Location", f"https://localhost{target}"), status="301 Moved Permanently")(
            environ, start_response
        )

    site = make_site(app=rewritten, revalidate=60, query=["q"])
    assert site.visit(path).cache_status == 'wsgi-isr; fwd=bypass; detail="self-redirect"'


def test_a_redirect_to_what_is_no_url_is_the_visitor_s_all_the_same(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", ("Location", "http://[bad"), status="301 Moved Permanently"))
    site = make_site(revalidate=60)
    assert [(seen.code, seen.headers["Location"]) for seen in (site.visit("/a"), site.visit("/a"))] == [
        (301, "http://[bad")
    ] * 2


def test_a_redirect_to_the_slash_of_an_app_that_is_mounted_there_is_stored(make_site: MakeSite, origin: Origin) -> None:
    def moved(environ: Environ, start_response: Any) -> Any:
        return answer(b"", ("Location", "/sub/"), status="308 Permanent Redirect")(environ, start_response)

    site = make_site(app=DispatcherMiddleware(origin, {"/sub": moved}), revalidate=60)
    assert [site.visit("/sub").label for _ in range(2)] == ["MISS", "HIT"]


@pytest.mark.parametrize("status", ["404 Not Found", "301 Moved Permanently", "410 Gone"])
def test_a_status_that_may_be_stored_does_not_make_up_for_a_cookie(
    make_site: MakeSite, origin: Origin, status: str
) -> None:
    origin.on("/a", answer(b"x", ("Set-Cookie", "a=b"), ("Location", "/"), status=status))
    site = make_site(revalidate=60)
    assert [site.visit("/a").label for _ in range(3)] == ["BYPASS"] * 3


@pytest.mark.parametrize("case", REFUSED)
def test_the_reason_is_in_cache_status(make_site: MakeSite, origin: Origin, case: str) -> None:
    headers, word = REFUSED[case]
    origin.on("/a", answer(b"x", *headers))
    site = make_site(revalidate=60)
    for _ in range(2):
        status = site.visit("/a").cache_status
        assert status.startswith("wsgi-isr; fwd=")
        assert word in status.lower()
        assert "stored" not in status


@pytest.mark.parametrize("case", REFUSED)
def test_the_app_is_asked_once_for_each_visit_of_a_page_known_as_uncacheable(
    make_site: MakeSite, origin: Origin, case: str
) -> None:
    origin.on("/a", answer(b"x", *REFUSED[case][0]))
    site = make_site(revalidate=60)
    site.visit("/a")
    calls = origin.calls["/a"]
    assert calls <= 2
    for _ in range(3):
        site.visit("/a")
    assert origin.calls["/a"] == calls + 3


def test_the_visitor_of_an_uncacheable_page_is_seen_as_they_are(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(lambda environ: environ.get("HTTP_USER_AGENT", "none").encode(), ("Vary", "User-Agent")))
    site = make_site(revalidate=60)
    for name in ("one", "two", "one"):
        assert site.visit("/a", headers={"User-Agent": name}).text == name


@pytest.mark.parametrize("value", ["Accept-Encoding", "accept-encoding", "Cookie", "Accept-Encoding, Cookie", ""])
def test_vary_on_accept_encoding_or_cookie_may_be_stored(make_site: MakeSite, origin: Origin, value: str) -> None:
    origin.on("/a", answer(b"x", ("Vary", value)))
    site = make_site(revalidate=60)
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]


@pytest.mark.parametrize(
    "value", ["public", "max-age=30", "must-revalidate", "s-maxage=30", 'x-private="1"', "no-storefront=1"]
)
def test_other_cache_control_may_be_stored(make_site: MakeSite, origin: Origin, value: str) -> None:
    origin.on("/a", answer(b"x", ("Cache-Control", value)))
    site = make_site(revalidate=60)
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]


def test_several_visitors_of_an_uncacheable_page_are_in_the_app_at_once(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", ("Set-Cookie", "a=b")))
    site = make_site(revalidate=60)
    site.visit("/a")
    together = threading.Barrier(5)

    def meet(_: Environ) -> bytes:
        together.wait(DEADLINE)
        return b"x"

    origin.on("/a", answer(meet, ("Set-Cookie", "a=b")))
    assert {seen.body for seen in all_at_once(5, lambda _: site.visit("/a"))} == {b"x"}


def test_visitors_who_share_the_first_render_of_an_uncacheable_page_do_not_queue_up(
    make_site: MakeSite, origin: Origin
) -> None:
    """The first visitor gets the refusal. The others are then in the app all at once, not one by one."""
    found_out = threading.Event()
    together = threading.Barrier(4)

    def meet(_: Environ) -> bytes:
        if found_out.is_set():
            together.wait(DEADLINE)
        return b"x"

    origin.on("/a", answer(meet, ("Set-Cookie", "a=b")))
    site = make_site(revalidate=60)
    gate = origin.hold("/a")
    site.isr.subscribe(lambda event: found_out.set() if isinstance(event, Refused) else None)
    visits = [site.start_visit("/a", cookie=f"v={number}") for number in range(4)]
    gate.wait_until_entered()
    gate.open()
    assert {visit.result().body for visit in visits} == {b"x"}


def test_an_uncacheable_page_is_tried_again_after_uncacheable_ttl(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", answer(b"x", ("Set-Cookie", "a=b")))
    site = make_site(revalidate=60, uncacheable_ttl=20)
    site.visit("/a")
    origin.mend("/a")
    clock.advance(19)
    assert site.visit("/a").label == "BYPASS"
    clock.advance(2)
    site.visit_and_settle("/a")
    assert site.visit("/a").label == "HIT"


def test_another_instance_knows_that_a_page_is_uncacheable(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(b"x", ("Set-Cookie", "a=b")))
    store = MemoryStore(clock=clock)
    make_site(revalidate=60, store=store).visit("/a")
    calls = origin.calls["/a"]
    other = make_site(revalidate=60, store=store)
    other.visit("/a")
    other.visit("/a")
    assert origin.calls["/a"] <= calls + 3


def test_one_uncacheable_page_does_not_make_its_neighbours_uncacheable(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/p/1", answer(b"x", ("Set-Cookie", "a=b")))
    site = make_site({"/p/<int:id>": 60})
    site.visit("/p/1")
    assert [site.visit("/p/2").label for _ in range(2)] == ["MISS", "HIT"]


def test_the_reason_is_in_the_log_once_for_each_rule(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/p/1", "/p/2", "/q/1"):
        origin.on(path, answer(b"x", ("Set-Cookie", "a=b")))
    site = make_site({"/p/<int:id>": 60, "/q/<int:id>": 60})
    with caplog.at_level(logging.DEBUG, logger="wsgi_isr"):
        for path in ("/p/1", "/p/1", "/p/2", "/q/1"):
            site.visit(path)
    lines = [record.getMessage() for record in caplog.records if "cookie" in record.getMessage().lower()]
    assert len([line for line in lines if "/p/" in line]) == 1
    assert len([line for line in lines if "/q/" in line]) == 1


# Statuses


@pytest.mark.parametrize(
    "status",
    [
        "200 OK",
        "203 Non-Authoritative Information",
        "301 Moved Permanently",
        "308 Permanent Redirect",
        "404 Not Found",
        "410 Gone",
    ],
)
def test_a_status_that_may_be_stored_is_stored_as_it_is(make_site: MakeSite, origin: Origin, status: str) -> None:
    origin.on("/a", answer(b"x", ("Location", "http://example.org/b"), status=status))
    site = make_site(revalidate=60)
    first, second = site.visit("/a"), site.visit("/a")
    assert (first.label, second.label) == ("MISS", "HIT")
    assert (first.status, second.status) == (status, status)
    assert second.headers["Location"] == "http://example.org/b"


@pytest.mark.parametrize(
    "status",
    [
        "201 Created",
        "202 Accepted",
        "205 Reset Content",
        "206 Partial Content",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "405 Method Not Allowed",
        "418 I'm a Teapot",
        "451 Unavailable For Legal Reasons",
    ],
)
def test_another_status_is_passed_through_and_not_stored(make_site: MakeSite, origin: Origin, status: str) -> None:
    origin.on("/a", answer(b"x", status=status))
    site = make_site(revalidate=60)
    for _ in range(2):
        seen = site.visit("/a")
        assert (seen.status, seen.body, seen.label) == (status, b"x", "BYPASS")
        assert "status" in seen.cache_status or status[:3] in seen.cache_status


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_status_without_a_body_is_passed_through(make_site: MakeSite, origin: Origin, status: str) -> None:
    origin.on("/a", answer(b"", status=status, content_type=False))
    site = make_site(revalidate=60)
    assert [site.visit("/a").status for _ in range(2)] == [status] * 2
    assert origin.calls["/a"] >= 2


def test_a_rule_names_other_statuses(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", ("Location", "http://example.org/b"), status="302 Found"))
    origin.on("/b", answer(b"x", status="404 Not Found"))
    site = make_site({"/<name>": Rule(revalidate=60, statuses=[200, 302])})
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]
    assert [site.visit("/b").label for _ in range(2)] == ["BYPASS", "BYPASS"]


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone"])
def test_a_page_that_is_not_there_lives_ten_seconds(
    make_site: MakeSite, origin: Origin, clock: Clock, status: str
) -> None:
    origin.on("/a", answer(b"nothing here", status=status))
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 10
    clock.advance(9)
    assert site.visit("/a").label == "HIT"
    origin.mend("/a")
    clock.advance(2)
    site.visit_and_settle("/a")
    seen = site.visit("/a")
    assert (seen.code, seen.label, site.lifetime("/a").revalidate) == (200, "HIT", 60)


def test_negative_ttl_is_how_long_a_404_lives(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(b"nothing here", status="404 Not Found"))
    site = make_site({"/a": Rule(revalidate=3600, negative_ttl=100)})
    site.visit("/a")
    clock.advance(99)
    assert site.visit("/a").label == "HIT"
    clock.advance(2)
    assert site.visit_and_settle("/a").label != "HIT"


def test_a_404_lives_no_longer_than_revalidate(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(b"nothing here", status="404 Not Found"))
    site = make_site(revalidate=3)
    site.visit("/a")
    clock.advance(4)
    assert site.visit("/a").label != "HIT"


def test_a_404_of_a_page_that_is_fresh_for_ever_lives_ten_seconds(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", answer(b"nothing here", status="404 Not Found"))
    site = make_site(revalidate=False)
    site.visit("/a")
    clock.advance(11)
    assert site.visit("/a").label != "HIT"


def test_a_404_is_not_served_long_after_its_ten_seconds(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    """The page may exist by then: an entry that lives ten seconds is not served an hour later."""
    origin.on("/a", answer(b"nothing here", status="404 Not Found"))
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.mend("/a")
    clock.advance(3600)
    assert site.visit("/a").code == 200


def test_a_page_that_was_taken_down_becomes_its_404(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", answer(b"gone", status="404 Not Found"))
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a").code == 404


# Bodies


def test_a_body_of_exactly_max_body_is_stored(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x" * 1000))
    site = make_site(revalidate=60, max_body=1000)
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("parts", [1, 7])
def test_a_body_over_max_body_is_passed_through_whole(
    make_site: MakeSite, origin: Origin, announced: bool, parts: int
) -> None:
    body = bytes(range(256)) * 7
    size = len(body) // parts
    headers = [("Content-Length", str(len(body)))] if announced else []

    def large(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain"), *headers])
        return Body(*(body[at : at + size] for at in range(0, len(body), size)))

    origin.on("/a", large)
    site = make_site(revalidate=60, max_body=1000)
    for _ in range(3):
        seen = site.visit("/a")
        assert (seen.body, seen.label) == (body, "BYPASS")
        assert "body" in seen.cache_status


@pytest.mark.parametrize("known", [False, True])
def test_a_body_over_max_body_is_closed_every_time(make_site: MakeSite, origin: Origin, known: bool) -> None:
    bodies: list[Body] = []

    def large(environ: Environ, start_response: Any) -> Body:
        start_response("200 OK", [("Content-Type", "text/plain")])
        bodies.append(Body(b"x" * 600, b"y" * 600, b"z" * 600))
        return bodies[-1]

    origin.on("/a", large)
    site = make_site(revalidate=60, max_body=1000)
    if known:
        site.visit("/a")
    site.visit("/a")
    assert [body.closed for body in bodies] == [1] * len(bodies)


def test_a_large_download_known_as_such_streams_part_by_part(make_site: MakeSite, origin: Origin) -> None:
    bodies: list[Body] = []

    def large(environ: Environ, start_response: Any) -> Body:
        start_response("200 OK", [("Content-Type", "text/plain")])
        bodies.append(Body(*[b"x" * 600] * 5))
        return bodies[-1]

    origin.on("/a", large)
    site = make_site(revalidate=60, max_body=1000)
    site.visit("/a")
    talk = site.begin("/a")
    for number in range(1, 6):
        assert talk.read_part() == b"x" * 600
        assert bodies[-1].given == number
    assert talk.read_part() is None
    talk.close()


def test_the_first_answer_over_max_body_is_not_held_in_memory_whole(make_site: MakeSite, origin: Origin) -> None:
    """A 10 GB download must not be read to its end before its first byte leaves."""
    bodies: list[Body] = []

    def endless(environ: Environ, start_response: Any) -> Body:
        start_response("200 OK", [("Content-Type", "text/plain")])
        bodies.append(Body(*[b"x" * 600] * 1000))
        return bodies[-1]

    origin.on("/a", endless)
    talk = make_site(revalidate=60, max_body=1000).begin("/a")
    assert talk.read_part()
    talk.close()
    assert max(body.given for body in bodies) <= 5
    assert [body.closed for body in bodies] == [1] * len(bodies)


@pytest.mark.parametrize("parts", [[], [b""], [b"", b"", b""]])
def test_an_empty_page_is_stored(make_site: MakeSite, origin: Origin, parts: list[bytes]) -> None:
    origin.on("/a", answer(parts))
    site = make_site(revalidate=60)
    seen = [site.visit("/a") for _ in range(2)]
    assert [(visit.label, visit.body) for visit in seen] == [("MISS", b""), ("HIT", b"")]
    assert seen[1].headers["Content-Length"] == "0"


def test_a_page_in_parts_is_stored_whole(make_site: MakeSite, origin: Origin) -> None:
    def in_parts(environ: Environ, start_response: Any) -> Body:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Body(b"", b"one ", b"", b"two ", b"three")

    origin.on("/a", in_parts)
    site = make_site(revalidate=60)
    assert [site.visit("/a").body for _ in range(2)] == [b"one two three"] * 2
    assert origin.calls["/a"] == 1


def test_a_page_larger_than_the_store_takes_is_served_all_the_same(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", answer(b"x" * 100_000))
    site = make_site(revalidate=60, store=MemoryStore(max_bytes=64 * 1024, clock=clock))
    for _ in range(3):
        seen = site.visit("/a")
        assert (seen.code, len(seen.body)) == (200, 100_000)


def test_a_page_larger_than_the_local_copies_may_take_is_stored(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x" * 100_000))
    site = make_site(revalidate=60, local_cache_bytes=10_000)
    assert [site.visit("/a").label for _ in range(3)] == ["MISS", "HIT", "HIT"]


def test_a_page_is_served_from_the_store_where_local_copies_have_no_room(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, local_cache_bytes=1)
    assert [site.visit("/a").label for _ in range(3)] == ["MISS", "HIT", "HIT"]
    assert origin.calls["/a"] == 1


# Odd answers of apps


@pytest.mark.parametrize(
    "header",
    [
        ("Cache-Control", "s-maxage=-5"),
        ("Cache-Control", "s-maxage=99999999999999999999999"),
        ("Cache-Control", 's-maxage="60"'),
        ("Cache-Control", "s-maxage=1.5"),
        ("Cache-Control", "s-maxage=60, s-maxage=70"),
        ("Cache-Control", "s-maxage=60, stale-while-revalidate=x"),
        ("Cache-Control", "s-maxage=60, stale-while-revalidate=-1"),
        ("Cache-Control", ",,=,;\"'"),
        ("Cache-Control", "s-maxage=\xe9"),
        ("Cache-Control", "s-maxage=٣"),
        ("Vary", ", ,"),
        ("Last-Modified", "yesterday"),
        ("Expires", "0"),
        ("ETag", "unquoted"),
        ("Age", "old"),
        ("Date", "never"),
        ("Content-Encoding", "who-knows"),
        ("Cache-Status", "CDN; hit"),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_an_odd_header_of_the_app_breaks_no_page(
    make_site: MakeSite, origin: Origin, clock: Clock, header: tuple[str, str], listed: bool
) -> None:
    name, value = header
    origin.on("/a", answer(b"x", (name, value.encode().decode("latin-1"))))
    site = make_site(revalidate=60) if listed else make_site()
    for _ in range(3):
        assert (site.visit("/a").status, site.visit("/a").body) == ("200 OK", b"x")
    clock.advance(61)
    assert site.visit_and_settle("/a").status == "200 OK"


@pytest.mark.parametrize("target", ["http://[x", "//[", "http://\xe2\x84\x80/", "http://example.org:port/", ":", ""])
@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found"])
def test_a_redirect_to_what_is_no_url_breaks_no_page(
    make_site: MakeSite, origin: Origin, target: str, status: str
) -> None:
    origin.on("/a", answer(b"", ("Location", target), status=status))
    site = make_site(revalidate=60)
    for _ in range(3):
        seen = site.visit("/a")
        assert (seen.status, seen.headers["Location"]) == (status, target)


@pytest.mark.parametrize("value", ["\u20ac", "half of a pair \udcff"])
def test_a_header_that_no_server_could_send_is_not_stored(
    make_site: MakeSite, origin: Origin, clock: Clock, value: str
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", answer(b"x", ("X-A", value)))
    clock.advance(61)
    site.visit_and_settle("/a")
    assert (site.visit("/a").label, site.visit("/a").text) == ("STALE", "/a v1")
