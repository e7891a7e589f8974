"""Page keys: which requests are for the same page, and the request that its render sees."""

from __future__ import annotations

import io
import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from werkzeug.http import parse_cookie

from wsgi_isr.cache.keyspace import SLOTS, Keyspace, prefix_tag, stored_tag
from wsgi_isr.cache.verdict import Bypass
from wsgi_isr.config.origin import MAX_HOST, MAX_URL
from wsgi_isr.config.policy import Policy
from wsgi_isr.config.rule_set import RuleSet
from wsgi_isr.config.rules import Rule
from wsgi_isr.pages.request_key import (
    MAX_PARAMETERS,
    MAX_SEGMENTS,
    Matcher,
    PageKey,
    _is_tracking,
    canonical,
    tags_of_page,
)
from wsgi_isr.stores.base import route


def narrow(value: str) -> str:
    return "de" if value.startswith("de") else "en"


RULES = RuleSet(
    {
        "/": 10,
        "/search": Rule(revalidate=60, query=["q", "page"]),
        "/any": Rule(revalidate=60, other_query="key"),
        "/ignore": Rule(revalidate=60, query=["q"], other_query="ignore"),
        "/lang": Rule(revalidate=60, vary={"Accept-Language": narrow}, cookies=["theme", "lang"]),
        "/raw": Rule(revalidate=60, vary=["X-Device", "Content-Type"], cookies=["caf\xe9"]),
        "/never": 0,
        "/mine": Rule(revalidate=60, bypass=lambda environ: environ["REMOTE_ADDR"] == "10.0.0.1"),
        "/campaign": Rule(revalidate=60, query=["utm_source"]),
    },
    Rule(revalidate="auto"),
)
MATCHER = Matcher(RULES, None, ("_ga*", "_gid"))


def request(path: str = "/", query: str = "", **environ: Any) -> dict[str, Any]:
    """Return the environ of a GET. ``None`` removes a variable."""
    base: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "internal",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_HOST": "example.com",
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        **environ,
    }
    return {name: value for name, value in base.items() if value is not None}


def key_of(environ: dict[str, Any], matcher: Matcher = MATCHER) -> PageKey:
    match = matcher.match(environ)
    assert not isinstance(match, Bypass), match
    return match[1]


def page_of(environ: dict[str, Any]) -> tuple[Policy, PageKey] | None:
    """Return policy and key of a request that is for the cache."""
    match = MATCHER.match(environ)
    return None if isinstance(match, Bypass) else match


# A table of requests and their keys: a change here makes every stored page of every site a miss. ------


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        (request(), '["https","example.com","","/",[],[],[]]'),
        (request(REQUEST_METHOD="HEAD"), '["https","example.com","","/",[],[],[]]'),
        (request(HTTP_HOST="EXAMPLE.com:443"), '["https","example.com","","/",[],[],[]]'),
        (request(HTTP_HOST="example.com:80"), '["https","example.com:80","","/",[],[],[]]'),
        (
            request(**{"HTTP_HOST": "example.com:80", "wsgi.url_scheme": "http"}),
            '["http","example.com","","/",[],[],[]]',
        ),
        (request(HTTP_HOST="[2001:DB8::1]:8443"), '["https","[2001:db8::1]:8443","","/",[],[],[]]'),
        (request(HTTP_HOST=None), '["https","internal:8000","","/",[],[],[]]'),
        (request(HTTP_HOST=None, SERVER_PORT="443"), '["https","internal","","/",[],[],[]]'),
        (request(SCRIPT_NAME="/shop"), '["https","example.com","/shop","/",[],[],[]]'),
        (request("/a/"), '["https","example.com","","/a/",[],[],[]]'),
        (request("/a"), '["https","example.com","","/a",[],[],[]]'),
        (request("//a"), '["https","example.com","","//a",[],[],[]]'),
        (request(""), '["https","example.com","","",[],[],[]]'),
        (request("/caf\xc3\xa9"), '["https","example.com","","/caf\\u00c3\\u00a9",[],[],[]]'),
        (request('/"],["'), '["https","example.com","","/\\"],[\\"",[],[],[]]'),
        (
            request("/search", "page=2&q=b&q=a"),
            '["https","example.com","","/search",[["page","2"],["q","b"],["q","a"]],[],[]]',
        ),
        (request("/search", "q="), '["https","example.com","","/search",[["q",""]],[],[]]'),
        (request("/search", "q"), '["https","example.com","","/search",[["q",""]],[],[]]'),
        (request("/search", "?"), None),
        (request("/search", "&&"), '["https","example.com","","/search",[],[],[]]'),
        (
            request("/search", "q=%C3%A9&utm_source=x&gclid=1&fbclid=2"),
            '["https","example.com","","/search",[["q","\\u00c3\\u00a9"]],[],[]]',
        ),
        (request("/search", "q=\xc3\xa9"), '["https","example.com","","/search",[["q","\\u00c3\\u00a9"]],[],[]]'),
        (request("/search", "q=a+b"), '["https","example.com","","/search",[["q","a b"]],[],[]]'),
        (request("/search", "q=a%20b"), '["https","example.com","","/search",[["q","a b"]],[],[]]'),
        (
            request("/any", "b=2&a=1&utm_id=9"),
            '["https","example.com","","/any",[["a","1"],["b","2"]],[],[]]',
        ),
        (request("/ignore", "x=1&q=2"), '["https","example.com","","/ignore",[["q","2"]],[],[]]'),
        (
            request("/campaign", "utm_source=x&utm_id=9"),
            '["https","example.com","","/campaign",[["utm_source","x"]],[],[]]',
        ),
        (
            request("/lang", HTTP_ACCEPT_LANGUAGE="de-AT,de;q=0.9"),
            '["https","example.com","","/lang",[],[["accept-language","de"]],[]]',
        ),
        (request("/lang"), '["https","example.com","","/lang",[],[["accept-language","en"]],[]]'),
        (
            request("/lang", HTTP_COOKIE="session=s; theme=dark; lang=fr; lang=it"),
            '["https","example.com","","/lang",[],[["accept-language","en"]],[["lang","fr"],["theme","dark"]]]',
        ),
        (
            request("/lang", HTTP_COOKIE="theme="),
            '["https","example.com","","/lang",[],[["accept-language","en"]],[["theme",""]]]',
        ),
        (request("/raw"), '["https","example.com","","/raw",[],[],[]]'),
        (
            request("/raw", HTTP_X_DEVICE="phone", CONTENT_TYPE="text/plain", HTTP_COOKIE="caf\xc3\xa9=\xc3\xa9"),
            '["https","example.com","","/raw",[],[["content-type","text/plain"],["x-device","phone"]],'
            '[["caf\\u00e9","\\u00e9"]]]',
        ),
        (request(HTTP_COOKIE="session=s", HTTP_ACCEPT="text/html"), '["https","example.com","","/",[],[],[]]'),
    ],
)
def test_the_key_of_a_request_is_readable_and_stable(environ: dict[str, Any], text: str | None) -> None:
    if text is None:
        assert MATCHER.match(environ) == Bypass("query")
    else:
        assert key_of(environ).text == text


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        (request(REQUEST_METHOD="POST"), "method"),
        (request(REQUEST_METHOD="get"), "method"),
        (request(REQUEST_METHOD="PURGE"), "method"),
        (request(HTTP_AUTHORIZATION="Bearer x"), "authorization"),
        (request(HTTP_AUTHORIZATION=""), "authorization"),
        (request(REMOTE_USER="ann"), "authorization"),
        (request(AUTH_TYPE="Basic"), "authorization"),
        (request(HTTP_UPGRADE="websocket"), "upgrade"),
        (request("/" + "x" * MAX_URL), "url-length"),
        (request("/search", "q=" + "x" * MAX_URL), "url-length"),
        (request("/search", "&".join(["q=1"] * MAX_PARAMETERS)), None),
        (request("/search", "&".join(["q=1"] * (MAX_PARAMETERS + 1))), "url-parameters"),
        (request("/search", "&" * MAX_PARAMETERS), "url-parameters"),
        (request(HTTP_HOST="a" * MAX_HOST), None),
        (request(HTTP_HOST="a" * (MAX_HOST + 1)), "host"),
        (request("/\xff"), "url-encoding"),
        (request("/\u20ac"), "url-encoding"),
        (request("/search", "q=\u20ac"), "url-encoding"),
        (request(HTTP_HOST=""), "host"),
        (request(HTTP_HOST="a b"), "host"),
        (request(HTTP_HOST="evil.com/path"), "host"),
        (request(HTTP_HOST="user@evil.com"), "host"),
        (request(HTTP_HOST="example.com\n"), "host"),
        (request(HTTP_HOST="example.com:"), "host"),
        (request(HTTP_HOST="example.com:http"), "host"),
        (request(HTTP_HOST="\xe4.com"), "host"),
        (request("/a" * 32), None),
        (request("/a" * 33), "url-depth"),
        (request(SCRIPT_NAME="/\xff"), "url-encoding"),
        (request(HTTP_HOST="a:99999"), "host"),
        (request("/lang", HTTP_COOKIE="lang=\xff"), "cookie-encoding"),
        (request("/never"), "revalidate-0"),
        (request("/mine", REMOTE_ADDR="10.0.0.1"), "rule"),
        (request(query="x=1"), "query"),
        (request(query="=1"), "query"),
        (request("/search", "q=1&x=1"), "query"),
    ],
)
def test_a_request_that_is_not_for_the_cache_says_why(environ: dict[str, Any], reason: str | None) -> None:
    match = MATCHER.match(environ)
    assert (match.reason if isinstance(match, Bypass) else None) == reason


def test_a_request_gets_the_policy_of_its_path() -> None:
    match = MATCHER.match(request("/search"))
    assert not isinstance(match, Bypass)
    assert match[0] is RULES.policies["/search"]


def test_an_unlisted_page_has_a_key_where_its_own_headers_decide() -> None:
    match = MATCHER.match(request("/unlisted"))
    assert not isinstance(match, Bypass)
    assert (match[0].name, match[0].lifetime) == ("*", None)


@pytest.mark.parametrize("query", ["", "q=1"])
def test_an_unlisted_page_beside_rules_is_not_for_the_cache(query: str) -> None:
    matcher = Matcher(RuleSet({"/": 10}, Rule()), None, ())
    assert matcher.match(request("/unlisted", query)) == Bypass("no-rule")
    assert matcher.written(request("/unlisted", REQUEST_METHOD="POST")) is None
    assert not isinstance(matcher.match(request("/")), Bypass)


@pytest.mark.parametrize("host", ["evil.com", "EXAMPLE.com:8080", "\xff"])
def test_with_a_canonical_url_every_host_leads_to_the_same_page(host: str) -> None:
    matcher = Matcher(RULES, "https://WWW.example.com", ())
    assert key_of(request(HTTP_HOST=host), matcher)[:2] == ("https", "www.example.com")


# Different facts, different keys ----------------------------------------------------------------------

LATIN = st.text(st.characters(max_codepoint=255), max_size=8)
ANY = st.text(max_size=8)
PAIRS = st.lists(st.tuples(LATIN, LATIN), max_size=3).map(tuple)
KEYS = st.builds(
    PageKey,
    scheme=st.sampled_from(["http", "https"]),
    host=st.sampled_from(["a", "a:1", "a.b"]),
    script=LATIN,
    path=LATIN,
    query=PAIRS,
    headers=st.lists(st.tuples(LATIN, ANY), max_size=2).map(tuple),
    cookies=st.lists(st.tuples(ANY, ANY), max_size=2).map(tuple),
)
KEYSPACE = Keyspace("site")


@given(KEYS)
def test_a_key_is_read_back_from_its_text(key: PageKey) -> None:
    assert PageKey.parse(key.text) == key
    assert key.text.isascii()


@given(KEYS, KEYS)
def test_different_facts_make_different_texts_and_names(one: PageKey, other: PageKey) -> None:
    assert (one == other) == (one.text == other.text)
    assert (one == other) == (KEYSPACE.page(one.text) == KEYSPACE.page(other.text))


@given(KEYS, st.data())
def test_a_fact_cannot_be_moved_into_another_field(key: PageKey, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations([key.query, key.headers, key.cookies]))
    moved = PageKey(key.scheme, key.host, key.script, key.path, *shuffled)
    assert (moved.text == key.text) == (moved == key)


#: Values that a client can send for the rules above, by rule.
VALUES = st.lists(LATIN, max_size=3)
DECLARED = st.fixed_dictionaries({"q": VALUES, "page": VALUES})


def encode(facts: dict[str, list[str]], order: list[str]) -> str:
    """Return a query string with the parameters in this order, each with its values in their own order."""
    rest = {name: iter(values) for name, values in facts.items()}
    return urlencode([(name, next(rest[name])) for name in order], encoding="latin-1")


@given(DECLARED, DECLARED)
def test_requests_are_the_same_page_exactly_if_the_declared_parameters_are_equal(
    one: dict[str, list[str]], other: dict[str, list[str]]
) -> None:
    keys = [
        key_of(request("/search", encode(facts, [name for name in facts for _ in facts[name]])))
        for facts in (one, other)
    ]
    assert (keys[0].text == keys[1].text) == (one == other)


@given(DECLARED, st.data())
def test_the_order_of_different_parameters_makes_no_difference(
    facts: dict[str, list[str]], data: st.DataObject
) -> None:
    names = [name for name in facts for _ in facts[name]]
    orders = [data.draw(st.permutations(names)) for _ in range(2)]
    first, second = (key_of(request("/search", encode(facts, order))) for order in orders)
    assert first == second


@given(LATIN.filter(bool))
def test_two_spellings_of_one_value_are_one_page(value: str) -> None:
    raw = "".join(c if c not in "%&+#;=" and c.isprintable() else quote(c, encoding="latin-1") for c in value)
    full = "".join(f"%{ord(c):02x}" for c in value)
    assert key_of(request("/search", "q=" + raw.replace(" ", "+"))) == key_of(request("/search", "q=" + full))


@given(ANY, ANY)
def test_requests_are_the_same_page_exactly_if_the_declared_header_is_equal(one: str, other: str) -> None:
    keys = [key_of(request("/raw", HTTP_X_DEVICE=value)) for value in (one, other)]
    assert (keys[0].text == keys[1].text) == (one == other)


def test_a_declared_header_that_is_absent_is_another_page_than_an_empty_one() -> None:
    assert key_of(request("/raw")) != key_of(request("/raw", HTTP_X_DEVICE=""))


@given(st.text("dens-,;q=0.9", max_size=12))
def test_a_narrowed_header_makes_no_more_pages_than_it_has_values(value: str) -> None:
    assert dict(key_of(request("/lang", HTTP_ACCEPT_LANGUAGE=value)).headers)["accept-language"] in ("de", "en")


@pytest.mark.parametrize("value", [True, 3, 2.5, b"x", ("a", "b")])
def test_a_function_that_narrows_a_header_to_something_else_than_text_is_named(value: Any) -> None:
    rules = RuleSet({"/": Rule(revalidate=1, vary={"X-Plan": lambda header: value})}, Rule())
    with pytest.raises(TypeError, match=r"rule '/'.*X-Plan"):
        Matcher(rules, None, ()).match(request())


def test_a_function_that_narrows_a_header_to_nothing_makes_the_page_of_those_without_it() -> None:
    rules = RuleSet({"/": Rule(revalidate=1, vary={"X-Plan": lambda header: None})}, Rule())
    assert key_of(request(HTTP_X_PLAN="gold"), Matcher(rules, None, ())).headers == ()


# The request that a render sees -----------------------------------------------------------------------

MARK = "mArKeR7"
ALLOWED = {
    "REQUEST_METHOD",
    "SCRIPT_NAME",
    "PATH_INFO",
    "QUERY_STRING",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "REMOTE_ADDR",
    "HTTP_HOST",
    "wsgi.version",
    "wsgi.url_scheme",
    "wsgi.input",
    "wsgi.errors",
    "wsgi.multithread",
    "wsgi.multiprocess",
    "wsgi.run_once",
    "wsgi_isr.render",
}
UNDECLARED = st.sampled_from(
    [
        "HTTP_X_FORWARDED_FOR",
        "HTTP_X_FORWARDED_HOST",
        "HTTP_X_FORWARDED_PREFIX",
        "HTTP_FORWARDED",
        "HTTP_ACCEPT",
        "HTTP_ACCEPT_ENCODING",
        "HTTP_ACCEPT_LANGUAGE",
        "HTTP_USER_AGENT",
        "HTTP_REFERER",
        "HTTP_IF_NONE_MATCH",
        "HTTP_IF_MODIFIED_SINCE",
        "HTTP_RANGE",
        "HTTP_X_HTTP_METHOD_OVERRIDE",
        "HTTP_PROXY",
        "HTTP_TRANSFER_ENCODING",
        "HTTP_PROXY_AUTHORIZATION",
        "CONTENT_LENGTH",
        "REQUEST_URI",
        "RAW_URI",
        "REMOTE_ADDR",
        "REMOTE_HOST",
        "REMOTE_PORT",
        "SERVER_NAME",
        "SERVER_PROTOCOL",
        "SSL_CLIENT_S_DN",
        "gunicorn.socket",
        "wsgi.file_wrapper",
    ]
) | st.from_regex(r"HTTP_[A-Z][A-Z_]{0,12}", fullmatch=True).filter(
    lambda name: name not in ("HTTP_HOST", "HTTP_X_DEVICE", "HTTP_COOKIE")
)


@given(
    path=st.sampled_from(["/", "/search", "/any", "/ignore", "/lang", "/raw", "/unlisted"]),
    headers=st.dictionaries(UNDECLARED, st.just(MARK), max_size=6),
    parameters=st.lists(st.sampled_from(["utm_source", "utm_" + MARK, "gclid", "x", MARK]), max_size=3),
    cookies=st.lists(st.sampled_from(["session", "_ga", "themes", "Theme", MARK]), max_size=3),
)
def test_nothing_that_a_client_sets_outside_the_key_reaches_the_render(
    path: str, headers: dict[str, str], parameters: list[str], cookies: list[str]
) -> None:
    environ = request(
        path,
        "&".join(f"{name}={MARK}" for name in parameters),
        **{"HTTP_COOKIE": "; ".join(f"{name}={MARK}" for name in cookies), **headers},
        **{"wsgi.input": io.BytesIO(MARK.encode())},
    )
    found = page_of(environ)
    assume(found is not None)
    assert found is not None
    policy, key = found
    seen = canonical(key)
    declared = {"HTTP_ACCEPT_LANGUAGE"} if path == "/lang" else {"HTTP_X_DEVICE", "CONTENT_TYPE"}
    assert seen.keys() <= ALLOWED | declared
    assert seen["wsgi.input"].read() == b""
    if policy.other_query == "key":
        # Parameters are part of this key as a whole. Nothing else is.
        seen["QUERY_STRING"] = ""
    assert MARK.lower() not in repr(seen).lower()


@given(KEYS)
def test_a_render_sees_everything_that_its_key_holds(key: PageKey) -> None:
    seen = canonical(key._replace(headers=(), cookies=()))
    assert seen["REQUEST_METHOD"] == "GET"
    assert (seen["wsgi.url_scheme"], seen["HTTP_HOST"]) == (key.scheme, key.host)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == (key.script, key.path)
    again = request(query=seen["QUERY_STRING"])
    again["PATH_INFO"] = "/any"
    untracked = [pair for pair in key.query if not _is_tracking(pair[0])]
    assert sorted(key_of(again).query) == sorted(untracked)


def test_a_render_does_not_look_like_a_request_from_the_machine_itself() -> None:
    assert not ip_address(canonical(PageKey("http", "a", "", "/"))["REMOTE_ADDR"]).is_loopback


@pytest.mark.parametrize(
    ("scheme", "host", "name", "port"),
    [
        ("https", "example.com", "example.com", "443"),
        ("http", "example.com", "example.com", "80"),
        ("http", "example.com:8080", "example.com", "8080"),
        ("http", "[::1]", "[::1]", "80"),
        ("http", "[::1]:8080", "[::1]", "8080"),
    ],
)
def test_server_name_and_port_agree_with_the_host(scheme: str, host: str, name: str, port: str) -> None:
    seen = canonical(PageKey(scheme, host, "", "/"))
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"], seen["HTTP_HOST"]) == (name, port, host)


@settings(max_examples=300)
@given(st.text(max_size=30), st.text(max_size=30))
@example("", '"')
@example('"', "a;b")
@example('"quoted"', "\\")
@example(" lead", "trail ")
@example("a,b", "\U0001f36a\x00\x7f\n")
@example("%3B", "\\073")
def test_cookie_values_survive_the_way_through_the_canonical_request(theme: str, lang: str) -> None:
    key = PageKey("https", "a", "", "/lang", cookies=(("lang", lang), ("theme", theme)))
    seen = canonical(key)
    assert seen["HTTP_COOKIE"].isascii()
    cookies = parse_cookie(seen)
    assert list(cookies.items(multi=True)) == [("lang", lang), ("theme", theme)]


@pytest.mark.parametrize("value", ["x" * 5000, "\xe9" * 3000], ids=["plain", "quoted"])
def test_a_long_declared_cookie_is_not_worth_a_warning(value: str) -> None:
    key = PageKey("https", "a", "", "/lang", cookies=(("lang", value),))
    assert parse_cookie(canonical(key)).to_dict() == {"lang": value}


@given(
    st.sampled_from([rule for rule in RULES.policies if rule not in ("/never", "/lang", "*")]),
    st.lists(st.tuples(st.sampled_from(["q", "page"]), LATIN), max_size=3),
    LATIN,
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=';"\\,'), max_size=8),
)
def test_the_canonical_request_leads_to_the_same_page(
    path: str, query: list[tuple[str, str]], header: str, cookie: str
) -> None:
    environ = request(
        path, urlencode(query, encoding="latin-1"), HTTP_X_DEVICE=header, HTTP_COOKIE=f"caf\xc3\xa9={cookie}"
    )
    found = page_of(environ)
    assume(found is not None)
    assert found is not None
    assert key_of(canonical(found[1])) == found[1]


# Hostile requests -------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    path=st.sampled_from(["/search", "/lang", "/raw", "/any"]) | LATIN,
    query=st.text(st.characters(max_codepoint=255), max_size=30),
    host=LATIN,
    cookie=LATIN | st.sampled_from(["lang=\xff", "lang=\xc3", 'lang="\\377"', "lang", "=;=;", 'theme="']),
    header=LATIN,
)
@example(path="/lang", query="", host="a", cookie="lang=\xff", header="")
def test_no_request_makes_the_matcher_raise(path: str, query: str, host: str, cookie: str, header: str) -> None:
    match = MATCHER.match(
        request(path, query, HTTP_HOST=host, HTTP_COOKIE=cookie, HTTP_X_DEVICE=header, HTTP_ACCEPT_LANGUAGE=header)
    )
    if not isinstance(match, Bypass):
        canonical(PageKey.parse(match[1].text))


@given(st.text(st.characters(max_codepoint=255), max_size=12))
def test_only_a_host_that_is_one_gets_into_a_key(host: str) -> None:
    match = MATCHER.match(request(HTTP_HOST=host))
    if not isinstance(match, Bypass):
        assert re.fullmatch(r"[a-z0-9._\-:\[\]]+", match[1].host)


# Cookies that identify no visitor -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "personal"),
    [
        ("", False),
        (None, False),
        (" ; ", False),
        ("_ga=1; _gid=2; _ga_X1=3", False),
        ("lang=de; theme=dark", False),
        ("session=1", True),
        ("_ga=1;session=1", True),
        ("_ga=1; lang=de; x", True),
        ("_gidx=1", True),
        ("LANG=de", True),
        ("x=_ga", True),
    ],
)
def test_cookies_of_analytics_and_declared_ones_do_not_make_a_visitor_known(header: str | None, personal: bool) -> None:
    assert MATCHER.personal_cookies(RULES.policies["/lang"], request(HTTP_COOKIE=header)) is personal


def test_a_cookie_that_another_rule_declares_makes_a_visitor_known() -> None:
    policy: Policy = RULES.policies["/"]
    assert MATCHER.personal_cookies(policy, request(HTTP_COOKIE="lang=de"))


# Names in the store -----------------------------------------------------------------------------------


@given(
    st.text(max_size=300),
    st.text(max_size=300) | st.text(st.characters(categories=["Cs"]), max_size=2),
    st.text(max_size=50),
    st.text("abcdefghij.:0123456789-", min_size=1, max_size=100),
)
def test_every_name_fits_every_store(namespace: str, text: str, release: str, node: str) -> None:
    keyspace = Keyspace(namespace, release)
    page = keyspace.page(text)
    for name in (page, Keyspace.lock(page), Keyspace.failures(page), keyspace.tag(text), keyspace.epoch(node)):
        assert re.fullmatch(r"[!-~]{1,200}", name)


SHORT = st.text(max_size=20)


@given(st.tuples(SHORT, SHORT, SHORT), st.tuples(SHORT, SHORT, SHORT))
@example(("", "a", "b"), ("a", "", "b"))
def test_names_are_equal_only_for_the_same_page_of_the_same_release_and_namespace(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    names = [Keyspace(namespace, release).page(f'["{text}"]') for namespace, release, text in (one, other)]
    assert (names[0] == names[1]) is (one == other)


@given(SHORT, SHORT, SHORT, SHORT)
def test_a_tag_has_one_name_in_all_releases(namespace: str, tag: str, one: str, other: str) -> None:
    assert Keyspace(namespace, one).tag(tag) == Keyspace(namespace, other).tag(tag)


def test_the_names_of_a_page_are_stable_and_tell_its_plane() -> None:
    keyspace = Keyspace("default")
    page = keyspace.page('["https","example.com","","/",[],[],[]]')
    assert page == "isr5:b16e758ca8f3:p:62906831fc4d9ad072c2953f4249985b90958f4b"
    assert Keyspace.lock(page) == page + ":lock"
    assert Keyspace.failures(page) == page + ":failures"
    assert keyspace.tag("all").startswith("isr2:b16e758ca8f3:t:")
    assert keyspace.epoch("10.0.0.1:11211") == "isr2:b16e758ca8f3:e:10.0.0.1:11211"


def test_a_lock_stays_on_the_node_of_its_entry_and_a_tag_never_moves() -> None:
    keyspace = Keyspace("default")
    page = keyspace.page("[]")
    assert route(Keyspace.lock(page)) == route(Keyspace.failures(page)) == route(page)
    assert not route(page).control
    assert route(keyspace.tag("all")).control
    assert route(keyspace.epoch("10.0.0.1:11211"))[::2] == (True, "10.0.0.1:11211")


# Tags that every page has ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "path", "tags"),
    [
        ("", "/", ["path:/", "prefix:/"]),
        ("", "", ["path:/", "prefix:/"]),  # the target of GET http://host (RFC 9110, 4.2.3)
        ("/shop", "", ["path:/shop", "prefix:/", "prefix:/shop"]),
        ("", "/search", ["path:/search", "prefix:/", "prefix:/search"]),
        ("", "/a/b/", ["path:/a/b/", "prefix:/", "prefix:/a", "prefix:/a/b"]),
        ("/shop", "/a", ["path:/shop/a", "prefix:/", "prefix:/shop", "prefix:/shop/a"]),
        ("", "/caf\xc3\xa9", ["path:/caf\xe9", "prefix:/", "prefix:/caf\xe9"]),
        ("", "//a//b", ["path://a//b", "prefix:/", "prefix:/a", "prefix:/a//b"]),
    ],
)
def test_a_page_carries_its_path_each_ancestor_its_rule_and_everything(script: str, path: str, tags: Any) -> None:
    match = MATCHER.match(request(path, SCRIPT_NAME=script))
    assert not isinstance(match, Bypass)
    policy, key = match
    found = tags_of_page(key, policy, RULES)
    assert found[:2] == ["all", f"route:{policy.name}"]
    assert sorted(found[2:]) == sorted(set(map(stored_tag, tags)))
    for tag in tags:
        if tag.startswith("prefix:"):
            assert prefix_tag(tag.removeprefix("prefix:")) == tag
            assert prefix_tag(tag.removeprefix("prefix:") + "/") == tag
            assert prefix_tag("/" + tag.removeprefix("prefix:")) == tag


@given(st.text())
def test_a_path_a_prefix_and_a_piece_of_data_have_one_of_a_fixed_number_of_slots(text: str) -> None:
    for kind, name in (("path:", f"path:/{text}"), ("prefix:", f"prefix:/{text}"), ("data:", f"data:{text}")):
        cached = stored_tag(name)
        assert re.fullmatch(r"slot:[0-9a-f]{4}", cached)
        assert int(cached.removeprefix("slot:"), 16) in SLOTS[kind]
        assert stored_tag(cached) == cached


def test_nothing_of_one_kind_shares_a_slot_with_something_of_another() -> None:
    """Any client can invalidate a path of its choice, by a POST to the path."""
    every = [number for slots in SLOTS.values() for number in slots]
    assert sorted(every) == list(range(65536))


def test_slots_are_the_same_in_every_version_of_the_package() -> None:
    slots = [stored_tag(name) for name in ("path:/", "prefix:/", "data:[]")]
    assert slots == ["slot:0e5c", "slot:b53c", "slot:e476"]


@given(st.text(min_size=1))
def test_tags_that_people_give_are_exact(text: str) -> None:
    for name in ("all", f"route:{text}", f"tag:{text}", f"tag:path:{text}"):
        assert stored_tag(name) == name


def test_the_tags_of_people_are_kept_apart_from_those_that_nobody_gave() -> None:
    rules = RuleSet({"/<slug>": Rule(revalidate=1, tags=["all", "post:{slug}", "path:/x"])}, Rule())
    match = Matcher(rules, None, ()).match(request("/caf\xc3\xa9"))
    assert not isinstance(match, Bypass)
    found = tags_of_page(match[1], match[0], rules)
    assert [tag for tag in found if tag.startswith("tag:")] == ["tag:all", "tag:post:caf\xe9", "tag:path:/x"]


@given(LATIN, LATIN)
def test_every_page_that_has_a_key_has_its_tags(script: str, path: str) -> None:
    match = MATCHER.match(request(path, SCRIPT_NAME=script))
    if not isinstance(match, Bypass):
        assert len(tags_of_page(match[1], match[0], RULES)) <= 2 * MAX_SEGMENTS + 8


@pytest.mark.parametrize(
    ("method", "path", "written"),
    [
        ("POST", "/search", "path:/search"),
        ("PUT", "/", "path:/"),
        ("PUT", "", "path:/"),
        ("PATCH", "/any", "path:/any"),
        ("DELETE", "/lang", "path:/lang"),
        ("POST", "/unlisted", "path:/unlisted"),
        ("GET", "/search", None),
        ("OPTIONS", "/search", None),
        ("POST", "/never", None),
        ("POST", "/\xff", None),
        ("POST", "/\u20ac", None),
    ],
)
def test_a_write_invalidates_the_page_at_its_url_where_there_may_be_one(
    method: str, path: str, written: str | None
) -> None:
    assert MATCHER.written(request(path, REQUEST_METHOD=method)) == written


def test_a_write_below_a_mount_point_invalidates_the_public_path() -> None:
    environ = request("/search", REQUEST_METHOD="POST", SCRIPT_NAME="/shop")
    assert MATCHER.written(environ) == "path:/shop/search"
