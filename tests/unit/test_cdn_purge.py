"""The client of each CDN against its API: batches, limits, errors and back-off."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.cdn import TOKEN, ZONE, Answer, FakeCdn, Purge, rate_limited
from wsgi_isr.cdn import purge
from wsgi_isr.cdn.purge import HttpEdge, edges_of
from wsgi_isr.config.cdn import PRODUCTS, Cdn
from wsgi_isr.errors import StoreUnavailable

KINDS = list(PRODUCTS)
#: The most tags that a request of each CDN takes.
BATCH = {"cloudflare": 100, "fastly": 256, "varnish": 500, "bunny": 1, "generic": 100}


class Time:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(params=KINDS)
def cdn(request: pytest.FixtureRequest) -> Iterator[FakeCdn]:
    with FakeCdn(request.param) as fake:
        yield fake


@pytest.fixture
def cloudflare() -> Iterator[FakeCdn]:
    with FakeCdn("cloudflare") as fake:
        yield fake


@pytest.fixture
def closing() -> Iterator[list[HttpEdge]]:
    edges: list[HttpEdge] = []
    yield edges
    for edge in edges:
        edge.close()


def edge_of(cdn: FakeCdn, time: Time, closing: list[HttpEdge], token: str = TOKEN) -> HttpEdge:
    (edge,) = edges_of(Cdn(cdn.kind, ZONE, (cdn.url,), token), lambda: time.now, time.pause)
    closing.append(edge)
    return edge


def test_tags_are_purged(cdn: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    edge_of(cdn, time, closing).purge(["a"], False)
    assert cdn.purges == [Purge(("a",), False)]


def test_a_soft_purge_is_soft_where_the_cdn_has_it(cdn: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    edge_of(cdn, time, closing).purge(["a"], True)
    assert cdn.purges == [Purge(("a",), cdn.kind in ("fastly", "varnish", "generic"))]


def test_many_tags_go_out_in_the_largest_batches(cdn: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    size = BATCH[cdn.kind]
    tags = [f"tag{number:09}" for number in range(2 * size + 1)]
    edge_of(cdn, time, closing).purge(tags, False)
    assert cdn.tags == tags
    assert [len(one.tags) for one in cdn.purges] == [size, size, 1]


def test_a_refused_token_is_not_tried_again_and_not_shown(cdn: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    with pytest.raises(StoreUnavailable, match="token is refused") as raised:
        edge_of(cdn, time, closing, "another-secret").purge(["a"], False)
    assert cdn.requests == 1
    assert cdn.purges == []
    assert "another-secret" not in str(raised.value)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_of_the_server_is_tried_again(cdn: FakeCdn, time: Time, closing: list[HttpEdge], status: int) -> None:
    cdn.scripted = [Answer(status), Answer(status)]
    edge_of(cdn, time, closing).purge(["a"], False)
    assert cdn.tags == ["a"]
    assert time.pauses == [purge.PAUSE, 2 * purge.PAUSE]


def test_a_short_rate_limit_is_waited_for(cdn: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    cdn.scripted = [rate_limited(2)]
    edge_of(cdn, time, closing).purge(["a"], False)
    assert cdn.tags == ["a"]
    assert time.pauses == [2.0]


def test_each_batch_of_a_purge_has_the_whole_deadline(time: Time, closing: list[HttpEdge]) -> None:
    with FakeCdn("bunny") as cdn:
        cdn.scripted = [rate_limited(2), Answer(204)] * 5
        edge_of(cdn, time, closing).purge([f"t{number}" for number in range(5)], False)
        assert cdn.requests == 10
    assert sum(time.pauses) > purge.DEADLINE


def test_a_long_rate_limit_fails_at_once_and_holds_for_further_calls(
    cdn: FakeCdn, time: Time, closing: list[HttpEdge]
) -> None:
    edge = edge_of(cdn, time, closing)
    cdn.scripted = [rate_limited(40)]
    with pytest.raises(StoreUnavailable, match="429"):
        edge.purge(["a"], False)
    assert not edge.is_due
    with pytest.raises(StoreUnavailable, match="not asked again for 40 s"):
        edge.purge(["b"], False)
    assert cdn.requests == 1
    time.now += 40
    assert edge.is_due
    edge.purge(["c"], False)
    assert cdn.tags == ["c"]


def test_the_limit_of_fastly_names_a_time(time: Time, closing: list[HttpEdge], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_isr.cdn.purge.time.time", lambda: 1000.0)
    with FakeCdn("fastly") as cdn:
        cdn.scripted = [Answer(429, b"", (("Fastly-RateLimit-Reset", "1030"),))]
        edge = edge_of(cdn, time, closing)
        with pytest.raises(StoreUnavailable):
            edge.purge(["a"], False)
        time.now += 29
        assert not edge.is_due
        time.now += 1
        assert edge.is_due


@pytest.mark.parametrize("value", ["", "soon", "-5", "1e400", "99999999999", "\u0661", "Tue, 99 Foo 2020 00:00:00 GMT"])
def test_an_impossible_retry_after_blocks_purges_for_minutes_at_most(value: str) -> None:
    assert 0 <= purge._pause_of({"Retry-After": value}) <= purge._LONGEST


def test_a_success_that_is_none_is_a_failure(cloudflare: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    cloudflare.scripted = [Answer(200, b'{"success": false, "errors": ["x"]}')]
    with pytest.raises(StoreUnavailable, match="no success"):
        edge_of(cloudflare, time, closing).purge(["a"], False)


def test_a_varnish_without_the_vcl_is_a_failure(time: Time, closing: list[HttpEdge]) -> None:
    with FakeCdn("varnish") as cdn:
        cdn.scripted = [Answer(200, b"<h1>A page of the app</h1>")]
        with pytest.raises(StoreUnavailable, match="VCL has no purge"):
            edge_of(cdn, time, closing).purge(["a"], False)


def test_the_token_does_not_follow_a_redirect(cloudflare: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    with FakeCdn("cloudflare") as elsewhere:
        cloudflare.scripted = [Answer(307, b"", (("Location", elsewhere.url),))]
        with pytest.raises(StoreUnavailable, match="307"):
            edge_of(cloudflare, time, closing).purge(["a"], False)
        assert elsewhere.requests == 0


def test_a_password_in_netrc_does_not_take_the_place_of_the_token(
    cloudflare: FakeCdn, time: Time, closing: list[HttpEdge], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login x password y\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    edge_of(cloudflare, time, closing).purge(["a"], False)
    assert cloudflare.tags == ["a"]


def test_no_connection_is_tried_again_and_then_a_failure(time: Time, closing: list[HttpEdge]) -> None:
    with FakeCdn("generic") as cdn:
        pass
    edge = edge_of(cdn, time, closing)
    with pytest.raises(StoreUnavailable):
        edge.purge(["a"], False)
    assert sum(time.pauses) < purge.DEADLINE
    assert len(time.pauses) >= 3


class Trickle:
    """An answer of one byte a second without an end."""

    def __init__(self, time: Time) -> None:
        self._time = time
        self.raw = self
        self.status_code = 200
        self.headers: dict[str, str] = {}

    def request(self, *_: object, **__: object) -> Trickle:
        return self

    def read(self, size: int, decode_content: bool) -> bytes:
        self._time.now += size
        return b"x" * size

    def __enter__(self) -> Trickle:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_an_answer_that_does_not_end_is_a_failure_at_the_deadline(
    cloudflare: FakeCdn, time: Time, closing: list[HttpEdge], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = edge_of(cloudflare, time, closing)
    monkeypatch.setattr(edge, "_opened", lambda: Trickle(time))
    began = time.now
    with pytest.raises(StoreUnavailable, match="does not end"):
        edge.purge(["a"], False)
    assert time.now - began <= purge.DEADLINE + 1


def test_a_call_waits_for_others_for_a_limited_time(
    cloudflare: FakeCdn, time: Time, closing: list[HttpEdge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "BUSY", 0.01)
    edge = edge_of(cloudflare, time, closing)
    with edge._sending, pytest.raises(StoreUnavailable, match="on their way"):
        edge.purge(["a"], False)
    edge.purge(["b"], False)
    assert cloudflare.tags == ["b"]


def test_a_purge_over_http_goes_to_no_proxy_of_the_environment(
    cloudflare: FakeCdn, time: Time, closing: list[HttpEdge], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeCdn("generic") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        edge_of(cloudflare, time, closing).purge(["a"], False)
        assert proxy.requests == 0
    assert cloudflare.tags == ["a"]


def test_failures_in_a_row_double_the_pause_up_to_a_limit(
    cloudflare: FakeCdn, time: Time, closing: list[HttpEdge]
) -> None:
    edge = edge_of(cloudflare, time, closing)
    pauses = []
    for _ in range(8):
        cloudflare.scripted = [Answer(403)]
        with pytest.raises(StoreUnavailable):
            edge.purge(["a"], False)
        began = time.now
        while not edge.is_due:
            time.now += 1
        pauses.append(time.now - began)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    edge.purge(["a"], False)
    cloudflare.scripted = [Answer(403)]
    with pytest.raises(StoreUnavailable):
        edge.purge(["a"], False)
    time.now += 1
    assert edge.is_due


def until_waiting(edge: HttpEdge, calls: int) -> None:
    """Wait until so many calls wait for the request of another one."""
    while len(edge._waiting) < calls:
        threading.Event().wait(0.005)


def test_calls_that_wait_for_a_request_go_out_together(
    cloudflare: FakeCdn, time: Time, closing: list[HttpEdge]
) -> None:
    edge = edge_of(cloudflare, time, closing)
    cloudflare.answers.clear()
    threads = [threading.Thread(target=edge.purge, args=([f"t{number}"], False)) for number in range(20)]
    threads[0].start()
    assert cloudflare.arrived.wait(20)
    for thread in threads[1:]:
        thread.start()
    until_waiting(edge, 19)
    cloudflare.answers.set()
    for thread in threads:
        thread.join()
    assert cloudflare.requests == 2
    assert {*cloudflare.tags} == {f"t{number}" for number in range(20)}


def test_calls_that_went_out_together_fail_together(cloudflare: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    edge = edge_of(cloudflare, time, closing)
    cloudflare.answers.clear()
    cloudflare.scripted = [Answer(403)]
    failed: list[StoreUnavailable] = []

    def call(tag: str) -> None:
        try:
            edge.purge([tag], False)
        except StoreUnavailable as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(f"t{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    assert cloudflare.arrived.wait(20)
    cloudflare.answers.set()
    for thread in threads:
        thread.join()
    assert len(failed) == 3
    assert cloudflare.purges == []


def test_hard_and_soft_purges_do_not_mix(time: Time, closing: list[HttpEdge]) -> None:
    with FakeCdn("fastly") as cdn:
        edge = edge_of(cdn, time, closing)
        cdn.answers.clear()
        calls = [(["first"], False), (["hard"], False), (["soft"], True)]
        threads = [threading.Thread(target=edge.purge, args=call) for call in calls]
        threads[0].start()
        assert cdn.arrived.wait(20)
        for thread in threads[1:]:
            thread.start()
        until_waiting(edge, 2)
        cdn.answers.set()
        for thread in threads:
            thread.join()
        assert cdn.purges == [Purge(("first",), False), Purge(("hard",), False), Purge(("soft",), True)]


def test_the_place_of_an_edge_has_no_secret(cdn: FakeCdn, time: Time, closing: list[HttpEdge]) -> None:
    edge = edge_of(cdn, time, closing)
    assert edge.place == f"cdn://{cdn.kind}/{ZONE}"
    assert TOKEN not in repr(Cdn(cdn.kind, ZONE, (cdn.url,), TOKEN))


class Ended(BaseException):
    """The thread ends: gevent.Timeout, or SystemExit."""


def test_a_thread_that_ends_within_a_request_is_no_success_for_the_others(
    cloudflare: FakeCdn, time: Time, closing: list[HttpEdge], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = edge_of(cloudflare, time, closing)
    began, goes_on = threading.Event(), threading.Event()
    outcomes: list[BaseException] = []

    def ending(*_: object) -> None:
        began.set()
        goes_on.wait(20)
        raise Ended

    def call(tag: str) -> None:
        try:
            edge.purge([tag], False)
        except BaseException as error:
            outcomes.append(error)

    monkeypatch.setattr(edge, "_attempt", ending)
    edge._waiting.append(purge._Call(["of another thread"], False))
    other = edge._waiting[0]
    first = threading.Thread(target=call, args=("a",))
    first.start()
    assert began.wait(20)
    goes_on.set()
    first.join()
    assert [type(outcome) for outcome in outcomes] == [Ended]
    assert other.is_done
    assert "interrupted" in str(other.error)
