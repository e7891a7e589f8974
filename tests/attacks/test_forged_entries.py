"""Forged cache entries with a right checksum, by another program: they count as missing, without error."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attacks.support.sample import Sample
from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.visitor import Clock, Conversation, Site, make_environ
from wsgi_isr import cached
from wsgi_isr.cache.entry import Codec, Content, Entry, HitForMiss, TagSnapshot, UnreadableEntry, Value
from wsgi_isr.cache.local_cache import CachedEntry
from wsgi_isr.cache.task import Served
from wsgi_isr.config.policy import Policy
from wsgi_isr.data import codec
from wsgi_isr.events import Rendered, Unreadable
from wsgi_isr.pages.compression import chosen
from wsgi_isr.pages.respond import PreparedResponse, cache_status, headers_of, send_page
from wsgi_isr.stores.memory import MemoryStore

CODEC = Codec()
HEAD = 5  # schema and checksum
NAN, INFINITE = float("nan"), float("inf")


def fields_of(packed: bytes) -> list[Any]:
    """Return the fields of an entry, as lists that can be changed."""
    fields: list[Any] = msgpack.unpackb(packed[HEAD:])
    return fields


def sealed(fields: Any, packed: bytes) -> bytes:
    """Return the bytes of other fields, with the schema of ``packed`` and a right checksum."""
    forged: bytes = msgpack.packb(fields, unicode_errors="surrogatepass")
    return packed[:1] + zlib.crc32(forged).to_bytes(4, "big") + forged


# One field after the other --------------------------------------------------------------------------------

#: The place of a field, and the attacker's value for it.
FORGED: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "key": ((0,), [None, 1, b"/a", [], ""]),
    "kind": ((1,), ["", "value", "refusal", None, 1, b"page", ["page"]]),
    "payload": ((2,), [None, [], "200 OK", {}, [b""], ["200 OK"]]),
    "status": (
        (2, 0),
        [
            *(None, 200, b"200 OK", "", "OK", "20", "2000 OK", " 200 OK", "200OK", "200 OK\r\nX: y", "200 \n"),
            *("500 No", "100 Continue", "304 Not Modified", "206 Partial", "204 None", "٢٠٠ OK", "200 ☃", ["200 OK"]),
        ],
    ),
    "headers": (
        (2, 1),
        [
            *(None, "ab", b"ab", 1, {}, {"ab": "c"}, [["a"]], [["a", "b", "c"]], ["ab"], [[]], [None], [["a", None]]),
            *([["a", b"b"]], [[b"a", "b"]], [["a", 1]], [["", "b"]], [["a b", "c"]], [["a\r\nb", "c"]], [["a:", "b"]]),
            *([["a", "b\r\nSet-Cookie: c=d"]], [["a", "b\0"]], [["a", "☃"]], [["ä", "b"]], [["a", "\x7f"]]),
            *([["Content-Length", "1"]], [["transfer-encoding", "chunked"]], [["Connection", "close"]]),
            *([["ETag", '"a"']], [["X-ISR", "HIT"]], [["Age", "1"]], [["a", ["b"]]], [["a", {}]]),
        ],
    ),
    "body": ((2, 2), [None, "text", 1, [], [b"a"], {}]),
    "etag": ((2, 3), [None, 1, b"a", 'a"b', "a b", "a\r\nb", "a\x7f", "☃", ["a"]]),
    "reads_cookies": ((2, 4), [None, 0, 1, "", [], b""]),
    "coded": (
        (2, 5),
        [
            *(None, "ab", 1, {}, [["gzip"]], [["gzip", "text"]], [[b"gzip", b""]], [["deflate", b""]], [["", b""]]),
            *([["gzip\r\nX: y", b""]], [[1, b""]], [None], [["br", b"", b""]], [["br", None]]),
        ],
    ),
    "times": ((3,), [None, [], [1, 2, 3], "abcd", {}, [1, 2, 3, 4, 5]]),
    "started": ((3, 0), [None, "1", b"", [], NAN, INFINITE, -INFINITE, -1, True, 2**63]),
    "created": ((3, 1), [None, "1", b"", [], NAN, INFINITE, -INFINITE, -1, False, 1e300]),
    "revalidate": ((3, 2), ["1", b"", [], NAN, INFINITE, -INFINITE, -1, True, 2**63]),
    "expire": ((3, 3), ["1", b"", [], NAN, INFINITE, -INFINITE, -0.5, False, 2**63]),
    "tags": (
        (4,),
        [
            *(None, "ab", 1, {}, {"all": b"x"}, [["all"]], [["all", "x"]], [["all", None]], [[None, b"x"]]),
            *([[b"all", b"x"]], [[["all"], b"x"]], ["ab"], [None], [["all", b"x", 1]], [{"a": 1, b"b": 2}]),
        ],
    ),
    "valid_at": ((5,), [None, 1, "ab", {}, [["node"]], [["node", 1]], [[1, b"x"]], [["node", ["x"]]], [None]]),
}
EACH = [
    pytest.param(place, value, id=f"{name} {value!r}"[:60])
    for name, (place, codec) in FORGED.items()
    for value in codec
]


def put(fields: Any, place: tuple[int, ...], value: Any) -> Any:
    """Return the same fields, with ``value`` at one place."""
    fields = copy.deepcopy(fields)
    inner = fields
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return fields


@pytest.mark.parametrize(("place", "value"), EACH)
def test_a_page_with_an_impossible_field_is_missing_and_rendered_anew(
    make_site: MakeSite, origin: Origin, clock: Clock, place: tuple[int, ...], value: Any
) -> None:
    store = MemoryStore(clock=clock)
    origin.on("/a", answer(b"a page that is worth compressing " * 40, ("Vary", "Cookie"), ("Accept-Ranges", "bytes")))
    key, packed = stored_by(make_site(revalidate=60, store=store), "/a")
    store.set(key, sealed(put(fields_of(packed), place, value), packed))
    site = make_site(revalidate=60, store=store)  # another process
    request = {"Accept-Encoding": "br, gzip", "If-None-Match": '"x"', "Range": "bytes=0-9"}
    first, second = site.visit("/a", headers=request), site.visit("/a", headers=request)
    assert (first.code, first.label, second.code, second.label) == (206, "MISS", 206, "HIT")
    assert {event.key for event in site.happened(Unreadable)} == {key}


def stored_by(site: Site, path: str) -> tuple[str, bytes]:
    """Return key and bytes of the page that one visit has stored."""
    site.visit(path)
    (rendered,) = site.happened(Rendered)
    value = site.store.get(rendered.key)
    assert rendered.stored
    assert value is not None
    return rendered.key, value


@pytest.mark.parametrize(
    "content", [["value", [b"\xc0"]], ["refusal", ["two words"]], ["refusal", ['"']], ["refusal", [b"x"]]], ids=str
)
def test_a_page_of_another_kind_is_missing_and_rendered_anew(
    make_site: MakeSite, origin: Origin, clock: Clock, content: list[Any]
) -> None:
    store = MemoryStore(clock=clock)
    key, packed = stored_by(make_site(revalidate=60, store=store), "/a")
    fields = fields_of(packed)
    store.set(key, sealed([fields[0], *content, *fields[3:]], packed))
    site = make_site(revalidate=60, store=store)
    assert [site.visit("/a").label, site.visit("/a").label] == ["MISS", "HIT"]
    assert origin.calls["/a"] == 2


@pytest.mark.parametrize(
    "content",
    [["page", ["200 OK", [], b"", "", False, []]], ["value", ["text"]], ["value", [None]], ["value", [[b"x"]]]],
    ids=str,
)
def test_data_of_another_kind_is_missing_and_made_anew(make_site: MakeSite, clock: Clock, content: list[Any]) -> None:
    store = MemoryStore(clock=clock)
    calls = []

    @cached
    def load() -> str:
        calls.append(1)
        return "mine"

    first = make_site(store=store)
    assert load() == "mine"
    (rendered,) = first.happened(Rendered)
    packed = store.get(rendered.key)
    assert packed is not None
    fields = fields_of(packed)
    first.isr._reset_after_fork()  # a process without a copy of its own
    store.set(rendered.key, sealed([fields[0], *content, *fields[3:]], packed))
    assert (load(), len(calls)) == ("mine", 2)


# Any change at all -----------------------------------------------------------------------------------------

PAGE = Entry(
    "k",
    Content(
        "200 OK",
        (("Content-Type", "text/html"), ("Vary", "Cookie"), ("Accept-Ranges", "bytes")),
        b"<p>hello</p>",
        "0f1e",
        True,
        (("br", b"br"), ("gzip", b"gzip")),
    ),
    1_700_000_000.25,
    1_700_000_001.5,
    60,
    600.0,
    TagSnapshot((("all", b"stamp"), ("tag:post", b"")), (("node", b"nonce"),)),
)
PACKED = {kind: CODEC.pack(PAGE) for kind in ("page",)} | {
    "value": CODEC.pack(Entry("k", Value(b"\xc0"), 1.0, 2.0, None, None)),
    "refusal": CODEC.pack(Entry("k", HitForMiss("set-cookie"), 1.0, 2.0, 60.0, None)),
}
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["200 OK", "204 No Content", "404 Not Found\r\nX: y", "Content-Length", "Status", "gzip", "page"])
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


def places(value: Any, before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Yield every place inside of nested lists."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield (*before, number)
            yield from places(item, (*before, number))


@st.composite
def forgeries(draw: st.DrawFn) -> bytes:
    """Return an entry with a few parts replaced, removed or doubled."""
    packed = PACKED[draw(st.sampled_from(sorted(PACKED)))]
    fields = fields_of(packed)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(list(places(fields)) or [(0,)]))
        inner = fields
        for step in above:
            inner = inner[step]
        change = draw(st.sampled_from(["other", "gone", "twice"]))
        if change == "other" or not inner:
            inner[last:] = [draw(ANY), *inner[last + 1 :]]
        elif change == "gone":
            del inner[last]
        else:
            inner.insert(last, inner[last])
    return sealed(fields, packed)


@settings(max_examples=600)
@given(forgeries(), st.booleans(), st.sampled_from([0.0, 1.0, 1_700_000_001.5, 1_700_000_100.0, 4e9]))
def test_an_entry_with_any_change_is_unreadable_or_can_be_served(data: bytes, is_data: bool, now: float) -> None:
    try:
        entry = CODEC.unpack(data, "k", is_data)
    except UnreadableEntry:
        return
    assert CODEC.unpack(CODEC.pack(entry), "k", is_data) == entry
    if isinstance(entry.content, Content):
        assert not is_data
        for environ in (make_environ(), *(make_environ(headers=headers) for headers in REQUESTS)):
            serve(entry, entry.content, environ, now)
    elif isinstance(entry.content, HitForMiss):
        assert re.fullmatch(r"[!#-'*+.0-9A-Z^_`a-z|~-]+", entry.content.reason)
    else:
        assert is_data
        assert type(entry.content.data) is bytes


REQUESTS = [
    {"Accept-Encoding": "br"},
    {"Accept-Encoding": "gzip"},
    {"If-None-Match": '"0f1e"', "If-Modified-Since": "Tue, 30 Jan 2024 10:00:00 GMT"},
    {"Range": "bytes=1-2"},
    {"Range": "bytes=99-"},
]


def serve(entry: Entry, content: Content, environ: Environ, now: float) -> None:
    """Send a page as the middleware does, to a server that rejects any fault."""
    prepared = PreparedResponse(entry, content, now, 0.0).variant(environ.get("HTTP_ACCEPT_ENCODING"))
    assert prepared[1] == chosen(content, environ.get("HTTP_ACCEPT_ENCODING", "")).body
    for label, hit in (("HIT", True), ("STALE", True), ("STALE-IF-ERROR", True), ("MISS", False), ("DEGRADED", True)):

        def app(environ: Environ, start_response: Any, label: str = label, hit: bool = hit) -> Iterable[bytes]:
            sent = content
            if "HTTP_RANGE" not in environ:
                sent = chosen(content, environ.get("HTTP_ACCEPT_ENCODING", ""))
            status = cache_status(Served(CachedEntry(entry), label, hit=hit), now)
            return send_page(environ, start_response, sent, headers_of(entry, sent, label, status, now))

        told = Conversation(validator(app) if is_usual(content) else app, dict(environ))
        told.begin()
        while told.read_part() is not None:
            pass
        told.close()
        check_sent(told)


def is_usual(content: Content) -> bool:
    """Return whether wsgiref's validator accepts every correct answer of this form.

    The validator is stricter than HTTP: each answer but a 204 needs a type, names consist of letters, tabs are wrong.
    """
    names = [name.lower() for name, _ in content.headers]
    are_usual = all(re.fullmatch(r"(?!status$)[a-z]([a-z0-9_-]*[a-z0-9])?", name) for name in names)
    has_type = "content-type" in names and content.status[:3] != "204" and len(content.status) > 4
    return are_usual and has_type and not any("\t" in value for _, value in content.headers)


def check_sent(told: Conversation) -> None:
    """Check that a server can write the answer, and that a reader finds its end (RFC 9112)."""
    assert re.fullmatch(r"[2-4][0-9][0-9]( [\t -~\x80-\xff]*)?", told.status)
    for name, value in told.headers:
        assert re.fullmatch(r"[!#-'*+.0-9A-Z^_`a-z|~-]+", name)
        assert re.fullmatch(r"[\t -~\x80-\xff]*", value)
    names = [name.lower() for name, _ in told.headers]
    assert names.count("content-length") == (0 if told.status.startswith("304") else 1)
    assert names.count("etag") == 1
    assert "transfer-encoding" not in names
    lengths = [int(value) for name, value in told.headers if name.lower() == "content-length"]
    assert lengths in ([], [sum(map(len, told.chunks))])
    if told.status[:3] in ("204", "205"):
        assert b"".join(told.chunks) == b""


# The list of sites -----------------------------------------------------------------------------------------


GOOD = ["http", "example.org", ""]


def list_of(*sites: Any) -> bytes:
    """Return a list of sites, as another program would write it."""
    return CODEC.seal(msgpack.packb(sites), "sites")


@pytest.mark.parametrize(
    "site",
    [
        *(None, 1, "abc", b"abc", [], ["http"], ["http", "example.org"], [*GOOD, "more"], {"a": 1, "b": 2, "c": 3}),
        *(
            ["ftp", "example.org", ""],
            ["HTTP", "example.org", ""],
            [b"http", "example.org", ""],
            [1, "example.org", ""],
        ),
        *(["http", "", ""], ["http", "EXAMPLE.org", ""], ["http", "a b", ""], ["http", "evil/path", ""]),
        *(["http", "example.org\n", ""], ["http", b"example.org", ""], ["http", None, ""], ["http", "a:99999", ""]),
        *(["http", "example.org", None], ["http", "example.org", b"/a"], ["http", "example.org", "app"]),
        *(["http", "example.org", "/\xff"], ["http", "example.org", "/☃"], ["http", "example.org", "/" + "a" * 9000]),
    ],
    ids=lambda site: repr(site)[:60],
)
def test_a_site_that_is_none_is_left_out_of_the_list(make_site: MakeSite, clock: Clock, site: Any) -> None:
    forged = make_site(revalidate=60, store=MemoryStore(clock=clock))
    sites = forged.isr._pages.sites
    forged.store.set(sites._key, list_of(site, ["https", "www.example.org:8080", "/app"]))
    assert sites.known() == [("https", "www.example.org:8080", "/app")]
    assert forged.isr.refresh("/app/a") is True
    forged.store.set(sites._key, list_of(site))
    assert sites.known() == [("http", "localhost", "")]


@pytest.mark.parametrize("value", [None, 1, "ab", b"ab", {}, {"http": 1}, [[]]], ids=repr)
def test_a_list_of_sites_that_is_none_is_empty_and_written_anew(make_site: MakeSite, clock: Clock, value: Any) -> None:
    site = make_site(revalidate=60, store=MemoryStore(clock=clock))
    site.store.set(site.isr._pages.sites._key, CODEC.seal(msgpack.packb(value), "sites"))
    site.visit("/a")
    assert make_site(revalidate=60, store=site.store).isr._pages.sites.known() == [("http", "example.org", "")]


def test_a_forged_list_of_many_sites_is_cut_short(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60, store=MemoryStore(clock=clock))
    many = [["http", f"host-{number}.example", ""] for number in range(1000)]
    site.store.set(site.isr._pages.sites._key, list_of(*many))
    assert len(site.isr._pages.sites.known()) == 16


# A signing key -------------------------------------------------------------------------------------------

KEY = {"signing_key": "a key of more than 16 characters"}
OTHER_KEY = {"signing_key": "another key of as many characters"}


@pytest.mark.parametrize("theirs", [{}, OTHER_KEY, {**KEY, "namespace": "b"}], ids=["none", "other", "namespace"])
def test_an_entry_that_the_site_did_not_sign_is_missing(
    make_site: MakeSite, origin: Origin, clock: Clock, theirs: dict[str, Any]
) -> None:
    store = MemoryStore(clock=clock)
    origin.on("/a", answer(b"forged"))
    _, forged = stored_by(make_site(revalidate=60, store=MemoryStore(clock=clock), **theirs), "/a")
    origin.on("/a", answer(b"the site's own"))
    key, _ = stored_by(make_site(revalidate=60, store=store, **KEY), "/a")
    store.set(key, forged)
    site = make_site(revalidate=60, store=store, **KEY)
    first, second = site.visit("/a"), site.visit("/a")
    assert (first.label, first.text, second.label) == ("MISS", "the site's own", "HIT")
    assert {event.reason for event in site.happened(Unreadable)} == {"signature"}


def test_processes_with_one_key_share_their_pages_and_data(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=60, store=store, **KEY) for _ in range(2)]
    assert [site.visit("/a").label for site in sites] == ["MISS", "HIT"]
    assert sites[1].isr.refresh("/a") is True
    assert sites[1].isr._pages.sites.known() == sites[0].isr._pages.sites.known() == [("http", "example.org", "")]
    assert origin.calls["/a"] == 2


def test_processes_with_different_keys_take_each_other_s_entries_for_missing_without_an_error(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    calls = []

    @cached
    def load() -> int:
        calls.append(1)
        return len(calls)

    origin.on("/data", answer(lambda environ: str(load()).encode()))
    sites = [make_site(revalidate=60, store=store, **key) for key in (KEY, OTHER_KEY, {})]
    for number, site in enumerate(sites * 2):
        site.isr._reset_after_fork()
        seen, data = site.visit("/a"), site.visit("/data")
        assert (seen.code, seen.label, seen.text) == (200, "MISS", f"/a v{number + 1}")
        assert (data.code, data.label, data.text) == (200, "MISS", str(number + 1))
        assert site.isr._pages.sites.known() == [("http", "example.org", "")]
    assert all(site.happened(Unreadable) for site in sites)


def test_data_that_the_site_did_not_sign_is_missing(make_site: MakeSite, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    site = make_site(store=store, **KEY)

    @cached
    def load() -> str:
        return "the site's own"

    assert load() == "the site's own"
    (rendered,) = site.happened(Rendered)
    own = store.get(rendered.key)
    assert own is not None
    text, _, _, *rest = msgpack.unpackb(own[1 + 32 :])
    store.set(rendered.key, sealed([text, "value", [codec.encode("forged")], *rest], own))
    site.isr._reset_after_fork()
    assert load() == "the site's own"
    assert {event.reason for event in site.happened(Unreadable)} == {"signature"}


def test_a_list_of_sites_that_the_site_did_not_sign_is_empty(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60, store=MemoryStore(clock=clock), **KEY)
    site.store.set(site.isr._pages.sites._key, list_of(["http", "evil.example", ""]))
    assert site.isr._pages.sites.known() == [("http", "localhost", "")]
    site.visit("/a")
    again = make_site(revalidate=60, store=site.store, **KEY)
    assert again.isr._pages.sites.known() == [("http", "example.org", "")]


def test_a_page_that_another_namespace_signed_with_the_same_key_is_missing(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    one, other = (make_site(revalidate=60, store=store, namespace=name, **KEY) for name in ("one", "other"))
    (_, theirs), (key, _) = stored_by(one, "/a"), stored_by(other, "/a")
    store.set(key, theirs)
    other.isr._reset_after_fork()
    assert (other.visit("/a").label, origin.calls["/a"]) == ("MISS", 3)


def test_a_page_without_room_for_its_codings_is_stored_and_signed(make_site: MakeSite, origin: Origin) -> None:
    store = MemoryStore(max_bytes=64 * 1024)
    body = random.Random(1).randbytes(7000).hex().encode()
    origin.on("/a", answer(body))
    site = make_site(revalidate=60, store=store, **KEY)
    assert (site.visit("/a").label, site.visit("/a").label) == ("MISS", "HIT")
    site.isr._reset_after_fork()
    assert site.visit("/a").label == "HIT"


# Dataclasses -----------------------------------------------------------------------------------------------


CONSTRUCTED: list[str] = []


@dataclasses.dataclass
class Dangerous:
    """A dataclass whose constructor acts on its arguments."""

    command: str = ""

    def __post_init__(self) -> None:
        CONSTRUCTED.append(self.command)


def dataclass_bytes(kind: type, **fields: Any) -> bytes:
    """Return the bytes of a dataclass as another program writes them."""
    pairs = msgpack.ExtType(2, msgpack.packb([list(pair) for pair in fields.items()]))
    name = f"{kind.__module__}:{kind.__qualname__}"
    packed: bytes = msgpack.packb(msgpack.ExtType(5, msgpack.packb([name, pairs])))
    return packed


@cached
def greeting() -> str:
    return "hello"


@cached
def shape_of_a_page() -> Sample:
    raise LookupError


def write_data(site: Site, function: Any, data: bytes) -> None:
    """Store ``data`` under the key of the result of ``function``, with a right checksum."""
    task = function._task(site.isr._engine, (), {})
    entry = Entry(task.text, Value(data), site.clock(), site.clock(), None, None, TagSnapshot())
    site.store.set(task.page, CODEC.pack(entry))


POLICY = [field.name for field in dataclasses.fields(Policy)]


def test_a_forged_dataclass_of_another_module_is_not_made_and_the_function_is_called(
    make_site: MakeSite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    write_data(site, greeting, dataclass_bytes(Policy, **dict.fromkeys(POLICY, str(secret))))
    assert greeting() == "hello"
    assert "wsgi_isr.config.policy:Policy is not allowed" in caplog.text
    assert "annotate the result, such as -> Policy" in caplog.text


def test_a_forged_dataclass_that_is_expected_is_made_without_its_constructor(
    make_site: MakeSite, tmp_path: Path
) -> None:
    site = make_site()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    write_data(site, shape_of_a_page, dataclass_bytes(Sample, file=str(secret)))
    found = shape_of_a_page()
    assert found.file == str(secret)  # and not the content of the file


def test_a_forged_dataclass_of_the_function_s_own_module_is_made_without_its_constructor(
    make_site: MakeSite,
) -> None:
    site = make_site()
    write_data(site, greeting, dataclass_bytes(Dangerous, command="rm -rf /"))
    made: Any = greeting()
    assert made.command == "rm -rf /"
    assert CONSTRUCTED == []
