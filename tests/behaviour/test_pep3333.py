"""PEP 3333 to the letter on both sides: a server may rely on it, and so may an app."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import DEADLINE, HTML, Body, Boom, Environ, Gate, Handler, Origin, answer
from tests.behaviour.visitor import Clock, Errors, make_environ
from wsgi_isr import cache_life
from wsgi_isr.events import InternalError, RenderFailed
from wsgi_isr.pages import capture

#: The ways of a request to the app: rendered for the cache, or bypassed.
WAYS = {"cached": {"revalidate": 60}, "bypassed": {"revalidate": 0}}

both_ways = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


def started(*parts: Any, headers: Iterable[tuple[str, str]] = (), bodies: list[Body] | None = None) -> Handler:
    """Return a handler whose body is a counted :class:`Body` of these parts."""

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Body:
        start_response("200 OK", [HTML, *headers])
        body = Body(*parts)
        if bodies is not None:
            bodies.append(body)
        return body

    return handler


def error_of(ask: Callable[[], object]) -> Exception | None:
    """Return the error that reaches the server, from any source."""
    try:
        ask()
    except Exception as error:
        return error
    return None


# write()


@both_ways
def test_what_is_written_comes_before_what_is_returned(make_site: MakeSite, origin: Origin, options: Any) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        write = start_response("200 OK", [HTML])
        write(b"one ")
        write(b"")
        write(b"two ")
        return [b"three ", b"four"]

    origin.on("/a", handler)
    site = make_site(**options)
    assert [site.visit("/a").body for _ in range(2)] == [b"one two three four"] * 2


@both_ways
def test_an_app_may_only_write(make_site: MakeSite, origin: Origin, options: Any) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [HTML])(b"written")
        return []

    origin.on("/a", handler)
    site = make_site(**options)
    assert [site.visit("/a").body for _ in range(2)] == [b"written"] * 2


def test_a_written_page_is_stored_once(make_site: MakeSite, origin: Origin) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [HTML])(b"written")
        return []

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    site.visit("/a")
    seen = site.visit("/a")
    assert (seen.label, seen.headers["Content-Length"], origin.calls["/a"]) == ("HIT", "7", 1)


def test_a_generator_may_write(make_site: MakeSite, origin: Origin) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        write = start_response("200 OK", [HTML])
        write(b"one ")
        yield b"two "
        write(b"three ")
        yield b"four"

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    assert [site.visit("/a").body for _ in range(2)] == [b"one two three four"] * 2


def test_on_bypass_what_is_written_leaves_at_once(make_site: MakeSite, origin: Origin) -> None:
    left: list[bytes] = []

    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        write = start_response("200 OK", [HTML])
        write(b"first")
        left.extend(talk.chunks)
        return [b"second"]

    origin.on("/a", handler)
    talk = make_site(revalidate=0).conversation(make_environ("/a"))
    assert talk.answer().body == b"firstsecond"
    assert left == [b"first"]


def test_a_failure_after_write_is_not_stored(make_site: MakeSite, origin: Origin) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [HTML])(b"half")
        raise Boom

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    with pytest.raises(Boom):
        site.visit("/a")
    origin.mend("/a")
    assert site.visit("/a").body != b"half"


# start_response


@both_ways
def test_start_response_may_come_with_the_first_part(make_site: MakeSite, origin: Origin, options: Any) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [HTML, ("X-Late", "yes")])
        yield b"late "
        yield b"page"

    origin.on("/a", handler)
    site = make_site(**options)
    for _ in range(2):
        seen = site.visit("/a")
        assert (seen.body, seen.headers["X-Late"]) == (b"late page", "yes")


@both_ways
def test_start_response_may_come_late_for_an_empty_page(make_site: MakeSite, origin: Origin, options: Any) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [HTML])
        yield from ()

    origin.on("/a", handler)
    site = make_site(**options)
    assert [site.visit("/a").body for _ in range(2)] == [b"", b""]


def test_a_head_is_judged_once_however_many_parts_the_body_has(
    make_site: MakeSite, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    monkeypatch.setattr(capture, "refuse", lambda code, headers, policy: judged.append(code) or "")

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [HTML])
        yield b"a" * 100
        try:
            raise Boom
        except Boom:
            start_response("404 Not Found", [HTML], sys.exc_info())
        yield from [b"b"] * 1000

    origin.on("/a", app)
    site = make_site(revalidate=60, watcher="nobody")
    assert (site.visit("/a").code, site.visit("/a").body) == (404, b"b" * 1000)
    assert judged[:2] == [200, 404]
    assert len(judged) <= 3


@both_ways
def test_an_app_may_change_its_mind_with_exc_info(make_site: MakeSite, origin: Origin, options: Any) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        try:
            start_response("200 OK", [HTML, ("X-First", "1")])
            raise Boom
        except Boom:
            start_response("404 Not Found", [("Content-Type", "text/plain")], sys.exc_info())
            return [b"sorry"]

    origin.on("/a", handler)
    seen = make_site(**options).visit("/a")
    assert (seen.status, seen.body) == ("404 Not Found", b"sorry")
    assert seen.headers["Content-Type"] == "text/plain"
    assert "X-First" not in seen.headers


def test_an_error_page_sent_with_exc_info_is_a_failed_render(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")

    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        try:
            start_response("200 OK", [HTML])
            raise Boom
        except Boom:
            start_response("500 Internal Server Error", [HTML], sys.exc_info())
            return [b"sorry"]

    origin.on("/a", handler)
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a").body == b"/a v1"


def test_on_bypass_exc_info_after_a_part_left_breaks_the_answer_off(make_site: MakeSite, origin: Origin) -> None:
    """PEP 3333: where headers were sent, start_response raises the exception that it is given."""

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [HTML])
        yield b"half"
        try:
            raise Boom
        except Boom:
            start_response("500 Internal Server Error", [HTML], sys.exc_info())
        yield b"sorry"

    origin.on("/a", handler)
    talk = make_site(revalidate=0).begin("/a")
    assert talk.read_part() == b"half"
    with pytest.raises(Boom):
        talk.read_part()
    talk.close()
    assert talk.status == "200 OK"


@pytest.mark.parametrize("status", ["500 Internal Server Error", "404 Not Found", "200 OK"])
def test_exc_info_after_a_part_does_not_make_a_page_of_two_halves(
    make_site: MakeSite, origin: Origin, status: str
) -> None:
    """A server would have sent the first part, so start_response would raise.

    In a render for the cache, nothing was sent yet. The answer is the error or the second page, and never a mixture.
    """

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [HTML])
        yield b"half"
        try:
            raise Boom
        except Boom:
            start_response(status, [HTML], sys.exc_info())
        yield b"sorry"

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    for _ in range(2):
        try:
            seen = site.visit("/a")
        except Boom:
            continue
        assert (seen.status, seen.body) == (status, b"sorry")


@both_ways
def test_an_app_that_never_starts_a_response_is_an_error(make_site: MakeSite, origin: Origin, options: Any) -> None:
    origin.on("/a", lambda environ, start_response: [])
    site = make_site(**options)
    for _ in range(2):
        assert error_of(lambda: site.visit("/a")) is not None
    origin.mend("/a")
    assert site.visit("/a").body.startswith(b"/a v")


@both_ways
def test_an_app_that_starts_two_responses_is_an_error(make_site: MakeSite, origin: Origin, options: Any) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [HTML])
        start_response("200 OK", [HTML])
        return [b"x"]

    origin.on("/a", handler)
    site = make_site(**options)
    assert error_of(lambda: site.visit("/a")) is not None


def test_a_header_list_given_to_the_server_is_never_given_again(make_site: MakeSite, clock: Clock) -> None:
    """The server of these tests empties each list that it gets."""
    site = make_site(revalidate=60)
    lengths = {len(site.visit("/a").headers) for _ in range(4)}
    assert len(lengths) == 1
    etag = site.visit("/a").headers["ETag"]
    lengths = {len(site.visit("/a", headers={"If-None-Match": etag}).headers) for _ in range(3)}
    assert len(lengths) == 1
    clock.advance(61)
    assert len(site.visit("/a").headers) > 3


def test_what_the_app_does_to_its_header_list_afterwards_changes_nothing(make_site: MakeSite, origin: Origin) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        headers = [HTML, ("X-Name", "1")]
        start_response("200 OK", headers)
        yield b"x"
        headers.append(("X-Name", "2"))

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    for _ in range(2):
        assert site.visit("/a").headers.getlist("X-Name") == ["1"]


# close()


@both_ways
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_body_is_closed_once(make_site: MakeSite, origin: Origin, options: Any, method: str) -> None:
    bodies: list[Body] = []
    origin.on("/a", started(b"one", b"two", bodies=bodies))
    make_site(**options).visit("/a", method=method)
    assert [body.closed for body in bodies] == [1]


@both_ways
def test_a_body_that_fails_half_way_is_closed_once(make_site: MakeSite, origin: Origin, options: Any) -> None:
    bodies: list[Body] = []
    origin.on("/a", started(b"one", Boom(), b"two", bodies=bodies))
    with pytest.raises(Boom):
        make_site(**options).visit("/a")
    assert [body.closed for body in bodies] == [1]


@pytest.mark.parametrize("headers", [[("Set-Cookie", "a=b")], [("Cache-Control", "private")]])
def test_a_body_that_is_not_stored_is_closed_once(
    make_site: MakeSite, origin: Origin, headers: list[tuple[str, str]]
) -> None:
    bodies: list[Body] = []
    origin.on("/a", started(b"one", b"two", headers=headers, bodies=bodies))
    site = make_site(revalidate=60)
    site.visit("/a")
    site.visit("/a")
    assert [body.closed for body in bodies] == [1] * len(bodies)


def test_a_body_made_in_the_background_is_closed_once(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    bodies: list[Body] = []
    origin.on("/a", started(b"one", b"two", bodies=bodies))
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(61)
    site.visit_and_settle("/a")
    assert [body.closed for body in bodies] == [1, 1]


def test_a_body_that_fails_in_the_background_is_closed_once(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    bodies: list[Body] = []
    origin.on("/a", started(b"one", Boom(), bodies=bodies))
    clock.advance(61)
    site.visit_and_settle("/a")
    assert [body.closed for body in bodies] == [1]


def test_on_bypass_a_visitor_who_leaves_early_closes_the_body(make_site: MakeSite, origin: Origin) -> None:
    bodies: list[Body] = []
    origin.on("/a", started(*[b"part"] * 100, bodies=bodies))
    talk = make_site(revalidate=0).begin("/a")
    talk.read_part()
    talk.close()
    assert [(body.given, body.closed) for body in bodies] == [(1, 1)]


def test_a_visitor_who_leaves_before_reading_still_leaves_the_page_behind(make_site: MakeSite, origin: Origin) -> None:
    bodies: list[Body] = []
    origin.on("/a", started(b"one", b"two", bodies=bodies))
    site = make_site(revalidate=60)
    site.begin("/a").close()
    assert [body.closed for body in bodies] == [1]
    assert site.visit("/a").body == b"onetwo"


def test_the_body_is_closed_after_its_last_part_was_read(make_site: MakeSite, origin: Origin) -> None:
    order: list[str] = []

    class Noting(Body):
        def __next__(self) -> bytes:
            order.append("read")
            return super().__next__()

        def close(self) -> None:
            order.append("close")

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Body:
        start_response("200 OK", [HTML])
        return Noting(b"one")

    origin.on("/a", handler)
    for options in WAYS.values():
        order.clear()
        make_site(**options).visit("/a")
        assert order == ["read", "read", "close"]


class Unclosable(Body):
    """A body whose ``close()`` raises each time."""

    def close(self) -> None:
        super().close()
        raise Unclosed


class Unclosed(Exception):
    """Raised by the ``close()`` of an :class:`Unclosable`."""


def unclosable(*parts: Any, headers: Iterable[tuple[str, str]] = ()) -> Handler:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> Body:
        start_response("200 OK", [HTML, *headers])
        return Unclosable(*parts)

    return handler


def test_a_page_whose_close_fails_is_complete_and_is_stored(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", unclosable(b"one", b"two"))
    site = make_site(revalidate=60)
    seen = [site.visit("/a") for _ in range(2)]
    assert [(page.code, page.label, page.body) for page in seen] == [(200, "MISS", b"onetwo"), (200, "HIT", b"onetwo")]


def test_a_close_that_fails_is_reported(make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture) -> None:
    origin.on("/a", unclosable(b"one"))
    site = make_site(revalidate=60)
    site.visit("/a")
    (event,) = site.happened(InternalError)
    assert isinstance(event.cause, Unclosed)
    assert "rule '*': close() of the body failed; the outcome of the render stands" in caplog.text
    assert "Unclosed" in caplog.text


def test_an_error_while_a_page_is_made_is_not_hidden_by_one_of_its_close(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", unclosable(b"one", Boom()))
    site = make_site(revalidate=60)
    with pytest.raises(Boom):
        site.visit("/a")
    assert [type(event.cause) for event in site.happened(InternalError)] == [Unclosed]


def test_an_error_in_the_background_is_that_of_the_page_and_not_that_of_its_close(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", unclosable(b"one", Boom()))
    clock.advance(60)
    site.visit_and_settle("/a")
    assert [type(event.cause) for event in site.happened(RenderFailed)] == [Boom]
    assert site.visit("/a").body == b"/a v1"


@pytest.mark.parametrize("parts", [(b"one",), (b"x" * 2000,)], ids=["private", "too large"])
def test_an_answer_that_is_not_stored_reaches_its_visitor_though_the_close_of_its_render_fails(
    make_site: MakeSite, origin: Origin, parts: tuple[bytes, ...]
) -> None:
    headers = [("Cache-Control", "private")] if parts == (b"one",) else []
    origin.on("/a", unclosable(*parts, headers=headers))
    talk = make_site(revalidate=60, max_body=1000).begin("/a")
    assert talk.read_part() == parts[0]
    assert talk.read_part() is None
    with pytest.raises(Unclosed):
        talk.close()


def test_on_bypass_the_server_gets_the_error_of_its_own_close(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", unclosable(b"one"))
    site = make_site({"/b": 60})
    talk = site.begin("/a")
    assert [talk.read_part(), talk.read_part()] == [b"one", None]
    with pytest.raises(Unclosed):
        talk.close()
    assert site.happened(InternalError) == []


def test_a_page_that_asks_to_be_kept_is_kept_though_its_close_fails(make_site: MakeSite, origin: Origin) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> Body:
        cache_life(60)
        start_response("200 OK", [HTML])
        return Unclosable(b"one", b"two")

    origin.on("/a", handler)
    site = make_site()
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]
    assert len(site.happened(InternalError)) == 1


def test_what_stops_the_process_is_not_swallowed_where_it_comes_during_close(
    make_site: MakeSite, origin: Origin
) -> None:
    class Stopped(Body):
        def close(self) -> None:
            raise SystemExit

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Body:
        start_response("200 OK", [HTML])
        return Stopped(b"one")

    origin.on("/a", handler)
    with pytest.raises(SystemExit):
        make_site(revalidate=60).visit("/a")


# Bodies


@both_ways
@pytest.mark.parametrize(
    "make",
    [
        lambda: [b"one", b"two"],
        lambda: (b"one", b"two"),
        lambda: iter([b"one", b"two"]),
        lambda: (part for part in (b"one", b"two")),
        lambda: {b"one": 1, b"two": 2},
        lambda: Body(b"one", b"", b"two"),
        lambda: io.BytesIO(b"onetwo"),
        lambda: FileWrapper(io.BytesIO(b"onetwo"), 2),
    ],
    ids=["list", "tuple", "iterator", "generator", "dict", "Body", "file", "FileWrapper"],
)
def test_any_iterable_is_a_body(make_site: MakeSite, origin: Origin, options: Any, make: Callable[[], Any]) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [HTML])
        return make()

    origin.on("/a", handler)
    site = make_site(**options)
    assert [site.visit("/a").body for _ in range(2)] == [b"onetwo"] * 2


def test_an_app_may_be_a_class_whose_instances_are_bodies(make_site: MakeSite) -> None:
    class App:
        """The second example of PEP 3333."""

        def __init__(self, environ: Environ, start_response: Callable[..., Any]) -> None:
            self.start = start_response

        def __iter__(self) -> Iterator[bytes]:
            self.start("200 OK", [HTML])
            yield b"Hello world!\n"

    site = make_site(app=App, revalidate=60)
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]
    assert site.visit("/a").body == b"Hello world!\n"


@both_ways
def test_a_body_of_all_bytes_is_not_changed(make_site: MakeSite, origin: Origin, options: Any) -> None:
    body = bytes(range(256)) * 1000
    origin.on("/a", answer(body))
    site = make_site(**options)
    assert [site.visit("/a").body for _ in range(2)] == [body] * 2


@pytest.mark.parametrize("server_has_one", [True, False])
@both_ways
def test_a_file_may_be_sent_with_the_file_wrapper(
    make_site: MakeSite, origin: Origin, options: Any, server_has_one: bool
) -> None:
    files: list[io.BytesIO] = []

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [HTML])
        files.append(io.BytesIO(b"file" * 5000))
        wrapper = environ.get("wsgi.file_wrapper")
        return wrapper(files[-1], 1024) if wrapper is not None else [files[-1].read()]

    origin.on("/a", handler)
    site = make_site(**options)
    extra = {"wsgi.file_wrapper": FileWrapper} if server_has_one else {}
    for _ in range(2):
        assert site.visit("/a", extra=extra).body == b"file" * 5000


@both_ways
def test_a_file_sent_with_the_file_wrapper_is_closed(make_site: MakeSite, origin: Origin, options: Any) -> None:
    files: list[io.BytesIO] = []

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [HTML])
        files.append(io.BytesIO(b"file" * 5000))
        return environ.get("wsgi.file_wrapper", FileWrapper)(files[-1])

    origin.on("/a", handler)
    make_site(**options).visit("/a", extra={"wsgi.file_wrapper": FileWrapper})
    assert [file.closed for file in files] == [True]


def test_on_bypass_the_server_s_own_file_wrapper_comes_back_to_it(make_site: MakeSite, origin: Origin) -> None:
    """A server sends a file with sendfile() only where it finds its own wrapper (PEP 3333)."""

    class Sendfile(FileWrapper):
        pass

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [HTML])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

    origin.on("/a", handler)
    # The validators wrap the returned object. This test needs the object itself.
    site = make_site(watcher="nobody", revalidate=0)
    talk = site.begin("/a", extra={"wsgi.file_wrapper": Sendfile})
    assert isinstance(talk._iterable, Sendfile)
    talk.close()


# Content-Length


@both_ways
def test_an_app_need_not_know_its_length(make_site: MakeSite, origin: Origin, options: Any) -> None:
    origin.on("/a", started(b"one", b"two"))
    site = make_site(**options)
    assert [site.visit("/a").body for _ in range(2)] == [b"onetwo"] * 2


@pytest.mark.parametrize("length", ["100", "3", "0", "-1", "many", "", "6.0", "1e1", "6, 6"])
def test_a_page_with_a_wrong_length_is_never_stored(make_site: MakeSite, origin: Origin, length: str) -> None:
    origin.on("/a", started(b"one", b"two", headers=[("Content-Length", length)]))
    site = make_site(revalidate=60)
    for _ in range(2):
        calls = origin.calls["/a"]
        assert site.visit("/a", exact_length=False).label != "HIT"
        assert origin.calls["/a"] > calls


def test_a_page_with_a_wrong_length_leaves_the_last_good_one(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", started(b"half", headers=[("Content-Length", "100")]))
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a").body == b"/a v1"


# Streaming


@pytest.mark.parametrize("watcher", ["wsgiref", "werkzeug"])
def test_on_bypass_parts_leave_one_by_one_and_unbuffered(make_site: MakeSite, origin: Origin, watcher: str) -> None:
    bodies: list[Body] = []
    origin.on("/a", started(b"one", b"", b"two", b"three", bodies=bodies))
    talk = make_site(watcher=watcher, revalidate=0).begin("/a")
    for number, part in enumerate([b"one", b"", b"two", b"three"], start=1):
        assert talk.read_part() == part
        assert bodies[0].given == number
    assert talk.read_part() is None
    talk.close()


def test_a_stream_that_never_ends_reaches_its_visitor_where_it_is_not_stored(
    make_site: MakeSite, origin: Origin
) -> None:
    def events(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
        while True:
            yield b"data: 1\n\n"

    origin.on("/a", events)
    site = make_site(revalidate=60)
    for _ in range(2):
        talk = site.begin("/a")
        assert [talk.read_part() for _ in range(3)] == [b"data: 1\n\n"] * 3
        talk.close()


def test_a_stream_that_waits_for_its_reader_is_not_waited_for_where_it_is_not_stored(
    make_site: MakeSite, origin: Origin
) -> None:
    """The second part is made only after the visitor has the first part: a buffer would wait for ever."""
    gates: list[Gate] = []

    def events(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
        gate = Gate()
        gates.append(gate)
        yield b"one"
        gate.pass_through()
        yield b"two"

    origin.on("/a", events)
    site = make_site(revalidate=60)
    for _ in range(2):
        talk = site.begin("/a")
        assert talk.read_part() == b"one"
        gates[-1].open()
        assert talk.read_part() == b"two"
        talk.close()


# The environ of a render


@pytest.mark.parametrize("watcher", ["wsgiref", "werkzeug"])
def test_a_render_gets_a_complete_environ(make_site: MakeSite, origin: Origin, clock: Clock, watcher: str) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        assert type(environ) is dict
        environ["wsgi.errors"].write("a line\n")
        environ["wsgi.errors"].flush()
        assert environ["wsgi.input"].read(10) == b""
        assert environ["SERVER_PROTOCOL"].startswith("HTTP/1.")
        assert isinstance(environ["wsgi.multithread"], bool)
        start_response("200 OK", [HTML])
        return [b"x"]

    origin.on("/a", handler)
    site = make_site(revalidate=60, watcher=watcher)
    assert site.visit("/a").body == b"x"
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a").age == 0


def test_a_background_render_may_write_to_errors_after_the_request_is_over(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.errors"].write("a line\n")
        start_response("200 OK", [HTML])
        return [b"x"]

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    errors = Errors()
    site.visit("/a", extra={"wsgi.errors": errors})
    errors.close()
    gate.open()
    site.settle()
    assert site.visit("/a").age == 0


def test_a_render_knows_that_others_may_run_beside_it(make_site: MakeSite, origin: Origin) -> None:
    """Background renders are threads, also where the server itself has none."""
    make_site(revalidate=60).visit("/a", extra={"wsgi.multithread": False})
    assert origin.last("/a")["wsgi.multithread"] is True


@pytest.mark.parametrize("missing", ["QUERY_STRING", "SCRIPT_NAME", "SERVER_PROTOCOL", "HTTP_HOST"])
@both_ways
def test_a_variable_that_may_be_absent_may_be_absent(
    make_site: MakeSite, origin: Origin, missing: str, options: Any
) -> None:
    site = make_site(watcher="werkzeug", **options)
    for _ in range(2):
        environ = make_environ("/a")
        environ.pop(missing)
        assert site.conversation(environ).answer().code == 200


@both_ways
def test_the_path_may_be_absent_below_a_script_name(make_site: MakeSite, origin: Origin, options: Any) -> None:
    site = make_site(watcher="werkzeug", **options)  # wsgiref's validator insists on it
    for _ in range(2):
        environ = make_environ("/", script_name="/app")
        environ.pop("PATH_INFO")
        assert site.conversation(environ).answer().code == 200


def test_two_middlewares_may_be_stacked(make_site: MakeSite, origin: Origin) -> None:
    inner = make_site(revalidate=60)
    outer = make_site(app=inner.isr)
    for _ in range(2):
        talk = outer.begin("/a")
        assert [talk.read_part(), talk.read_part()] == [b"/a v1", None]
        talk.close()
    assert origin.calls["/a"] == 1


def test_requests_in_many_threads_keep_to_themselves(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/c/<n>": 60})
    wrong: list[str] = []

    def ask(number: int) -> None:
        for turn in range(30):
            path = f"/{'c' if turn % 2 else 'd'}/{number * turn % 7}"
            seen = site.visit(path)
            if not seen.text.startswith(f"{path} v"):
                wrong.append(seen.text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert wrong == []
