"""Content codings: a page is compressed once. Each client gets it in a coding that it accepts."""

from __future__ import annotations

import base64
import builtins
import gzip
import random
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Origin, answer
from tests.behaviour.visitor import Clock, Seen, Site
from wsgi_isr.cache.entry import Content
from wsgi_isr.pages import compression
from wsgi_isr.pages.compression import MAX_CACHED, MIN_BYTES, chosen, encoded
from wsgi_isr.pages.respond import MAX_VARIANTS
from wsgi_isr.stores.memory import MemoryStore

PAGE = b"<p>A page that says the same again and again, as pages do.</p>\n" * 100
DECODERS = {
    None: lambda body: body,
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
}


@pytest.fixture
def site(make_site: MakeSite, origin: Origin) -> Site:
    origin.on("/a", answer(PAGE))
    return make_site(revalidate=60)


def ask(site: Site, accepted: str | None, method: str = "GET", **headers: str) -> Seen:
    given = {} if accepted is None else {"Accept-Encoding": accepted}
    return site.visit("/a", method=method, headers={**given, **{k.replace("_", "-"): v for k, v in headers.items()}})


def coding_of(seen: Seen) -> str | None:
    coded = seen.headers.get("Content-Encoding")
    assert DECODERS[coded](seen.body) == PAGE
    assert seen.headers["Content-Length"] == str(len(seen.body))
    return coded


@pytest.mark.parametrize("accepted", ["gzip", "br", "zstd"])
def test_whoever_takes_a_coding_gets_it_from_the_first_answer_on(site: Site, accepted: str) -> None:
    answers = [ask(site, accepted) for _ in range(4)]
    assert [coding_of(seen) for seen in answers] == [accepted] * 4
    assert [seen.label for seen in answers] == ["MISS", "HIT", "HIT", "HIT"]
    assert all(len(seen.body) < len(PAGE) / 5 for seen in answers)


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("deflate", None),
        ("*;q=0", None),
        ("gzip;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("x-gzip", "gzip"),
        ("GZIP", "gzip"),
        ("br;q=0.1, gzip;q=0.2", "gzip"),
        ("zstd, *;q=0.1", "zstd"),
        ("zstd;q=0, br;q=0, *", "gzip"),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("nonsense;;;q=x, gzip", "gzip"),
    ],
)
def test_what_is_liked_most_is_sent(site: Site, accepted: str | None, expected: str | None) -> None:
    assert [coding_of(ask(site, accepted)) for _ in range(3)] == [expected] * 3


def test_of_several_that_are_liked_the_smallest_is_sent(site: Site) -> None:
    sizes = {name: len(ask(site, name).body) for name in ("gzip", "br", "zstd")}
    assert coding_of(ask(site, "gzip, deflate, br, zstd")) == min(sizes, key=lambda name: sizes[name])


def test_a_page_is_compressed_once_whoever_asks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(site, None)
    monkeypatch.setattr(compression, "_coders", lambda: pytest.fail("compressed again"))
    for accepted in (None, "gzip", "br", "zstd", "gzip"):
        assert coding_of(ask(site, accepted)) == accepted


def test_caches_downstream_are_told_by_every_form_of_the_page(site: Site) -> None:
    for accepted in (None, "gzip", "br"):
        assert "accept-encoding" in ", ".join(ask(site, accepted).headers.getlist("Vary")).lower()


def test_each_coding_has_a_strong_tag_of_its_own_and_304_speaks_of_it(site: Site) -> None:
    tags = {accepted: ask(site, accepted).headers["ETag"] for accepted in (None, "gzip", "br", "zstd")}
    assert len(set(tags.values())) == 4
    assert not any(tag.startswith("W/") for tag in tags.values())
    for accepted, tag in tags.items():
        seen = ask(site, accepted, If_None_Match=tag)
        assert (seen.code, seen.body, seen.headers["ETag"]) == (304, b"", tag)
        assert seen.headers.get("Content-Encoding") is None
        assert "Accept-Encoding" in seen.headers.getlist("Vary")
    # The visitor has another content coding of the page: the whole page is sent.
    assert ask(site, "gzip", If_None_Match=str(tags["br"])).code == 200


def test_head_says_what_get_would(site: Site) -> None:
    got = ask(site, "gzip")
    head = ask(site, "gzip", method="HEAD")
    names = ("Content-Length", "Content-Encoding", "ETag", "Vary")
    assert head.body == b""
    assert [head.headers[name] for name in names] == [got.headers[name] for name in names]


def test_parts_are_those_of_the_page_as_it_is_and_of_no_other_form(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(PAGE, ("Accept-Ranges", "bytes")))
    site = make_site(revalidate=60)
    zipped, plain = ask(site, "gzip"), ask(site, None)
    part = ask(site, "gzip", Range="bytes=10-19")
    assert (part.code, part.body, part.headers["ETag"]) == (206, PAGE[10:20], plain.headers["ETag"])
    assert part.headers.get("Content-Encoding") is None
    # A client that has the beginning of the other content coding gets the whole page.
    whole = ask(site, "gzip", Range="bytes=10-", If_Range=str(zipped.headers["ETag"]))
    assert (whole.code, whole.body) == (200, PAGE)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PAGE[: MIN_BYTES - 1], [HTML]),
        (PAGE, [("Content-Type", "image/png")]),
        (PAGE, [HTML, ("Cache-Control", "public, no-transform")]),
        (gzip.compress(PAGE * 20), [HTML, ("Content-Encoding", "gzip")]),
        (PAGE, [HTML, ("Content-MD5", "x")]),
    ],
    ids=["small", "no text", "no-transform", "coded by the app", "with a digest"],
)
def test_what_is_not_to_be_compressed_goes_out_as_it_is(
    make_site: MakeSite, origin: Origin, body: bytes, headers: list[tuple[str, str]]
) -> None:
    origin.on("/a", answer(body, *headers, content_type=False))
    site = make_site(revalidate=60)
    for _ in range(2):
        seen = ask(site, "gzip, br, zstd")
        assert seen.body == body
        assert "Vary" not in seen.headers


def test_what_does_not_get_smaller_goes_out_as_it_is() -> None:
    noise = random.Random(1).randbytes(1000)
    content = Content("200 OK", (), noise, "e")
    assert encoded(content, [("Content-Type", "text/plain")]) is content


def test_a_page_for_whose_codings_the_store_has_no_room_is_stored_as_it_is(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    body = base64.b64encode(random.Random(1).randbytes(30_000))  # each coding takes three quarters of it
    origin.on("/a", answer(body))
    store = MemoryStore(256 * 1024, clock=clock)
    assert len(body) < store.max_value < 3 * len(body)
    first, second = (make_site(revalidate=60, store=store) for _ in range(2))
    assert ask(first, "gzip").label == "MISS"
    seen = ask(second, "gzip")
    assert (seen.label, seen.body) == ("HIT", body)


def test_a_vary_of_the_app_is_kept_and_not_repeated(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(PAGE, ("Vary", "Cookie, accept-encoding")))
    seen = ask(make_site(revalidate=60), "gzip")
    assert seen.headers.getlist("Vary") == ["Cookie, accept-encoding"]
    assert coding_of(seen) == "gzip"


def test_where_the_libraries_are_missing_there_is_gzip(
    make_site: MakeSite, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def import_(name: str, *rest: Any) -> Any:
        if name in ("brotli", "zstandard"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", import_)
    monkeypatch.setattr(compression, "_coders", compression._coders.__wrapped__)
    origin.on("/a", answer(PAGE))
    site = make_site(revalidate=60)
    assert [coding_of(ask(site, accepted)) for accepted in ("br", "zstd", "br, gzip")] == [None, None, "gzip"]


def test_somebody_who_sends_many_forms_of_the_header_fills_no_memory(site: Site) -> None:
    ask(site, "gzip")
    for number in range(100):
        ask(site, f"gzip, x{number}")
        ask(site, "gzip," + f"x{number}" * 1000)
    (cached,) = site.isr._engine.local.fingerprints.values()
    assert cached.prepared is not None
    assert len(cached.prepared.variants) <= MAX_VARIANTS
    assert all(len(accepted or "") <= MAX_CACHED for accepted in cached.prepared.variants)


def test_a_header_of_kilobytes_counts_as_absent(site: Site) -> None:
    assert coding_of(ask(site, "gzip," + "x" * 900)) == "gzip"
    assert coding_of(ask(site, "gzip," + "x" * 1100)) is None


_CODED = encoded(Content("200 OK", (HTML,), PAGE, "e"), [HTML])


@given(
    st.one_of(
        st.text(),
        st.lists(
            st.tuples(
                st.sampled_from(["gzip", "br", "zstd", "identity", "*", "x-gzip", "deflate"]),
                st.sampled_from(["", ";q=0", ";q=0.5", ";q=1", ";q=2", ";q=x"]),
            ).map("".join)
        ).map(", ".join),
    )
)
def test_whatever_is_asked_for_the_page_is_the_same(accepted: str) -> None:
    sent = chosen(_CODED, accepted)
    coded = dict(sent.headers).get("Content-Encoding")
    assert DECODERS[coded](sent.body) == PAGE
    assert coded is None or sent.etag == f"e-{coded}"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text/html; charset=utf-8", True),
        ("TEXT/CSS", True),
        ("application/json", True),
        ("application/ld+json", True),
        ("application/javascript", True),
        ("image/svg+xml", True),
        ("font/woff2", False),
        ("application/zip", False),
        ("video/mp4", False),
        ("application/octet-stream", False),
        ("", False),
    ],
)
def test_what_is_text(kind: str, expected: bool) -> None:
    content = Content("200 OK", (), PAGE, "e")
    assert bool(encoded(content, [("Content-Type", kind)]).coded) is expected
