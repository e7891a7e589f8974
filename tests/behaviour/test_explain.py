"""``ISR.explain``: the answer that a request would get, and why, without any effect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.nodes import Nodes
from tests.behaviour.origin import Boom, Origin, answer, failing
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule, cache_life, cache_tag, cached, no_store
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.observe.explanation import Explanation
from wsgi_isr.stores.memory import MemoryStore

HOST = "http://example.org"


def explained(site: Site, path: str = "/", **request: Any) -> Explanation:
    """Return the explanation of a URL, and check that it agrees with the next request and changes nothing."""
    return site.isr.explain(HOST + path, **request)


def state_of(store: MemoryStore) -> dict[str, Any]:
    found = {key: store.get(key) for key in [*store._pages.items, *store._control.items]}
    return {key: value for key, value in found.items() if value is not None}  # others have lapsed


# Verdicts ---------------------------------------------------------------------------------------------


def test_a_missing_page_is_rendered_for_the_client_that_waits(make_site: MakeSite) -> None:
    site = make_site({"/": 60})
    told = explained(site)
    assert (told.answer, told.reason, told.stored) == ("MISS", "missing", None)
    assert told.then == "The client waits for a render."
    assert site.visit("/").label == "MISS"


def test_a_fresh_page_is_a_hit_with_its_age_and_its_lifetime_from_the_rule(make_site: MakeSite, clock: Clock) -> None:
    site = make_site({"/": Rule(60, expire=600)})
    site.visit("/")
    clock.advance(20)
    told = explained(site)
    assert (told.answer, told.reason) == ("HIT", "fresh")
    page = told.stored
    assert page is not None
    assert (page.status, page.age, page.revalidate, page.expire, page.source) == ("200 OK", 20.0, 60.0, 600.0, "rule")
    assert site.visit("/").label == "HIT"


def test_an_old_page_is_stale_and_regenerated_in_the_background(make_site: MakeSite, clock: Clock) -> None:
    site = make_site({"/": 60})
    site.visit("/")
    clock.advance(61)
    told = explained(site)
    assert (told.answer, told.reason, told.then) == ("STALE", "stale-age", "A render begins in the background.")
    assert site.visit("/").label == "STALE"


def test_a_page_past_expire_is_expired(make_site: MakeSite, clock: Clock) -> None:
    site = make_site({"/": Rule(60, expire=100)})
    site.visit("/")
    clock.advance(101)
    assert (explained(site).answer, explained(site).reason) == ("EXPIRED", "expired-age")
    assert site.visit("/").label == "EXPIRED"


@pytest.mark.parametrize(
    ("mode", "label", "reason", "validity"),
    [
        ("stale", "STALE", "stale-tag", "stale"),
        ("expire", "EXPIRED", "expired-tag", "expired"),
        ("purge", "MISS", "purged", "purged"),
    ],
)
def test_an_invalidated_tag_is_named_with_its_actor_and_its_time(
    mode: str, label: str, reason: str, validity: str, make_site: MakeSite, clock: Clock
) -> None:
    site = make_site({"/": Rule(60, tags=["posts"])})
    site.visit("/")
    clock.advance(5)
    site.isr.invalidate(tags=["posts"], mode=mode, actor="ann")
    clock.advance(5)
    told = explained(site)
    assert (told.answer, told.reason) == (label, reason)
    (tag,) = [tag for tag in told.tags if tag.name == "tag:posts"]
    assert (tag.validity, tag.invalidated_at, tag.mode) == (validity, clock.now - 5, f"{mode} tag:posts")
    assert tag.invalidated_by.startswith("ann (")
    assert {tag.validity for tag in told.tags if tag.name != "tag:posts"} == {"valid"}
    assert site.visit("/").label == label


def test_the_tags_of_path_prefix_and_rule_have_their_names_before_and_after_the_render(make_site: MakeSite) -> None:
    site = make_site({"/blog/<slug>": Rule(60, tags=["post:{slug}"])})
    names = ["all", "route:/blog/<slug>", "path:/blog/a", "prefix:/", "prefix:/blog", "prefix:/blog/a", "tag:post:a"]
    assert [tag.name for tag in explained(site, "/blog/a").tags] == names
    site.visit("/blog/a")
    assert [tag.name for tag in explained(site, "/blog/a").tags] == names


def test_a_lock_held_elsewhere_is_named(make_site: MakeSite, clock: Clock) -> None:
    site = make_site({"/": 60})
    site.visit("/")
    page = site.isr._pages.at("/").task.page
    site.store.set(Keyspace.lock(page), b"a token of another process", 90)
    clock.advance(61)
    told = explained(site)
    assert told.lock is not None
    assert (told.lock.state, told.lock.is_held_here) == ("held", False)
    assert (told.answer, told.then) == ("STALE", "Another process regenerates it now.")
    site.store.delete(page)
    missing = make_site({"/": 60}, store=site.store)
    assert explained(missing).then.startswith("Another process renders the page: the client waits for it, at most 10 s")


def test_a_render_of_this_process_is_named(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site({"/": 60})
    gate = origin.hold("/")
    visit = site.start_visit("/")
    gate.wait_until_entered()
    told = explained(site)
    assert told.lock is not None
    assert (told.lock.is_held_here, told.then.partition(":")[0]) == (True, "This process renders the page")
    gate.open()
    visit.result()


def test_a_back_off_has_its_last_error_and_its_end(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site({"/": Rule(60, expire=100)})
    site.visit("/")
    clock.advance(101)
    origin.on("/", failing(Boom("the data base is away\nand more")))
    assert site.visit("/").label == "STALE-IF-ERROR"
    site.jobs.wait()
    told = explained(site)
    assert (told.answer, told.reason) == ("STALE-IF-ERROR", "back-off")
    assert told.lock is not None
    assert (told.lock.state, told.lock.failures) == ("back-off", 1)
    assert told.lock.last_error == "exception: Boom: the data base is away"
    assert told.lock.retry_in is not None
    assert 0 < told.lock.retry_in <= 1.25
    assert site.visit("/").label == "STALE-IF-ERROR"


def test_an_invalidation_after_the_failure_ends_the_back_off(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site({"/": Rule(60, expire=100)})
    site.visit("/")
    clock.advance(101)
    origin.on("/", failing(Boom()))
    site.visit("/")
    site.jobs.wait()
    clock.advance(0.2)  # the pause of this process alone
    site.isr.invalidate(paths=["/"])
    origin.mend("/")
    assert (explained(site).answer, explained(site).reason) == ("EXPIRED", "expired-tag")
    assert site.visit("/").label == "EXPIRED"


def test_a_node_that_is_away_is_named_and_the_page_is_degraded(make_site: MakeSite, clock: Clock) -> None:
    store = Nodes(clock)
    site = make_site({"/": Rule(60, tags=["posts"])}, store=store)
    site.visit("/")
    away = store.node_of(site.isr._engine.keyspace.tag("tag:posts"))
    store.unplugged = {away}
    clock.advance(1)
    told = explained(site)
    assert [node.name for node in told.nodes if not node.is_reachable] == [away]
    assert (told.answer, told.reason) == ("DEGRADED", "degraded")
    assert [tag.validity for tag in told.tags if tag.name == "tag:posts"] == [""]
    assert f"away: {away}" in told.text()
    assert site.visit("/").label == "DEGRADED"


def test_the_page_of_the_previous_release_is_stale(make_site: MakeSite) -> None:
    store = MemoryStore()
    make_site({"/": 60}, store=store, release="one").visit("/")
    site = make_site({"/": 60}, store=store, release="two")
    told = explained(site)
    assert told.stored is not None
    assert (told.answer, told.reason, told.stored.place) == ("STALE", "stale-release", "previous release")
    assert len(site.isr._engine.local) == 0
    assert site.visit("/").label == "STALE"


# Reasons ----------------------------------------------------------------------------------------------

BYPASSES: list[tuple[str, str, dict[str, Any]]] = [
    ("method", "/", {"method": "POST"}),
    ("authorization", "/", {"headers": {"Authorization": "Basic eDp5"}}),
    ("upgrade", "/", {"headers": {"Upgrade": "websocket"}}),
    ("query", "/?page=2", {}),
    ("rule", "/bypassed", {}),
    ("no-rule", "/other", {}),
    ("revalidate-0", "/never", {}),
    ("host", "/", {"headers": {"Host": "evil.example"}}),
    ("url-length", "/?" + 9000 * "x", {}),
    ("url-depth", 40 * "/x", {}),
    ("url-parameters", "/?" + 300 * "a&", {}),
]


@pytest.mark.parametrize(("reason", "path", "request_"), BYPASSES, ids=[bypass[0] for bypass in BYPASSES])
def test_each_reason_for_a_bypass_is_the_one_in_cache_status(
    reason: str, path: str, request_: dict[str, Any], make_site: MakeSite
) -> None:
    rules = {"/": 60, "/never": 0, "/bypassed": Rule(60, bypass=lambda environ: True)}
    site = make_site(rules, hosts=["example.org"], watcher="nobody")
    told = explained(site, path, **request_)
    assert (told.answer, told.reason, told.is_cacheable) == ("BYPASS", reason, False)
    assert told.why.endswith(".")
    seen = site.visit(path, **request_)
    assert reason in seen.cache_status


def test_a_visitor_in_draft_mode_bypasses(make_site: MakeSite) -> None:
    site = make_site({"/": 60}, secret="0123456789abcdef")
    cookie = f"wsgi_isr_draft={site.isr._engine.drafts.issue(60)}"
    told = explained(site, headers={"Cookie": cookie})
    assert (told.answer, told.reason) == ("BYPASS", "draft")
    assert cookie not in told.text()


def test_cookies_bypass_a_page_that_reads_them(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/", answer(b"x", ("Vary", "Cookie")))
    site = make_site({"/": 60})
    site.visit("/")
    assert explained(site).answer == "HIT"
    told = explained(site, headers={"Cookie": "session=secret"})
    assert (told.answer, told.reason) == ("BYPASS", "cookie")
    assert "secret" not in told.text() + json.dumps(told.as_dict())


@pytest.mark.parametrize(
    ("reason", "headers", "status"),
    [
        ("set-cookie", [("Set-Cookie", "a=b")], "200 OK"),
        ("private", [("Cache-Control", "private")], "200 OK"),
        ("no-store", [("Cache-Control", "no-store")], "200 OK"),
        ("no-cache", [("Cache-Control", "no-cache")], "200 OK"),
        ("vary-accept-language", [("Vary", "Accept-Language")], "200 OK"),
        ("vary-any", [("Vary", "*")], "200 OK"),
        ("csp-nonce", [("Content-Security-Policy", "script-src 'nonce-abc'")], "200 OK"),
        ("status-201", [], "201 Created"),
        ("max-body", [("Content-Length", "9000000")], "200 OK"),
        ("self-redirect", [("Location", "https://example.org/")], "301 Moved Permanently"),
    ],
)
def test_each_reason_for_an_answer_that_is_not_stored(
    reason: str, headers: list[tuple[str, str]], status: str, make_site: MakeSite, origin: Origin
) -> None:
    body = 9_000_000 * b"x" if reason == "max-body" else b"x"
    origin.on("/", answer(body, *headers, status=status))
    site = make_site({"/": 60})
    site.visit("/")
    told = explained(site)
    assert (told.answer, told.reason) == ("BYPASS", reason)
    assert told.stored is not None
    assert (told.stored.refused, told.stored.source) == (reason, "uncacheable_ttl")
    assert reason in site.visit("/").cache_status
    assert [line.kind for line in told.timeline] == ["refused"]


def test_code_that_calls_no_store_and_a_page_that_asks_for_no_lifetime(make_site: MakeSite, origin: Origin) -> None:
    def refuse(environ: Any) -> bytes:
        no_store()
        return b"x"

    origin.on("/", answer(refuse))
    site = make_site(revalidate="auto")
    site.visit("/")
    site.visit("/plain")
    assert (explained(site).reason, explained(site, "/plain").reason) == ("no-store", "not-asked")


def test_the_store_that_keeps_nothing_and_development_are_reasons(make_site: MakeSite) -> None:
    assert explained(make_site({"/": 60}, store="null://")).reason == "store-disabled"
    assert explained(make_site({"/": 60}, development="bypass")).reason == "development"


def test_an_unlisted_page_is_a_404_and_a_page_with_a_shell_is_said(make_site: MakeSite) -> None:
    site = make_site({"/<x>": Rule(60, paths=["/a"], dynamic_params=False), "/s/<x>": Rule(60, fallback=b"wait")})
    told = explained(site, "/b")
    assert (told.answer, told.reason) == ("HIT", "not-listed")
    browser = {"User-Agent": "Mozilla/5.0"}
    assert explained(site, "/s/a", headers=browser).reason == "shell"
    assert explained(site, "/s/a").reason == "missing"  # a crawler waits


def test_an_error_of_a_rules_callable_is_an_internal_error_with_its_text(make_site: MakeSite) -> None:
    site = make_site({"/": Rule(60, bypass=lambda environ: bool(1 / 0))})
    told = explained(site)
    assert (told.answer, told.reason) == ("BYPASS", "internal-error")
    assert told.problem == "ZeroDivisionError: division by zero"


def test_a_damaged_page_is_a_problem_and_counts_as_missing(make_site: MakeSite) -> None:
    site = make_site({"/": 60})
    site.visit("/")
    site.store.set(site.isr._pages.at("/").task.page, b"no entry")
    other = make_site({"/": 60}, store=site.store)
    told = explained(other)
    assert (told.answer, "no page of this app" in told.problem) == ("MISS", True)


# Facts ------------------------------------------------------------------------------------------------


def test_the_rule_is_named_with_the_reason_why_it_matched(make_site: MakeSite) -> None:
    site = make_site({"/blog/<slug>": 60, "/blog/new": 5}, revalidate=7)
    found = explained(site, "/blog/a").rule
    assert found is not None
    assert (found.pattern, found.why, found.parameters) == (
        "/blog/<slug>",
        "the most specific match of 2 patterns",
        {"slug": "a"},
    )
    other = explained(site, "/x").rule
    assert other is not None
    assert (other.pattern, other.why) == ("*", "none of 2 patterns matches: the options of the site hold")


def test_the_key_shows_its_query_and_hides_cookies_and_other_parameters(make_site: MakeSite) -> None:
    site = make_site({"/": Rule(60, query=["page"], other_query="ignore", vary=["Accept-Language"], cookies=["theme"])})
    headers = {"Accept-Language": "de", "Cookie": "theme=dark-secret"}
    told = explained(site, "/?token=secret&page=2", headers=headers)
    assert told.key is not None
    assert told.key.query == (("page", "2"),)
    assert told.key.headers == (("accept-language", "de"),)
    assert (told.key.cookies, told.key.left_out) == (("theme",), ("token",))
    assert told.url == f"{HOST}/?token=...&page=2"
    assert "secret" not in told.text() + json.dumps(told.as_dict())


@pytest.mark.parametrize("source", ["rule", "header", "code", "data", "negative_ttl"])
def test_the_origin_of_the_lifetime_is_named(source: str, make_site: MakeSite, origin: Origin) -> None:
    @cached(revalidate=5)
    def prices() -> str:
        return "1"

    def body(environ: Any) -> bytes:
        if source == "code":
            cache_life(5)
        return prices().encode() if source == "data" else b"x"

    headers = [("Cache-Control", "s-maxage=5")] if source == "header" else []
    status = "404 Not Found" if source == "negative_ttl" else "200 OK"
    origin.on("/", answer(body, *headers, status=status))
    site = make_site({"/": 60})
    site.visit("/")
    page = explained(site).stored
    assert page is not None
    assert page.source == source
    assert page.revalidate == {"rule": 60, "negative_ttl": 10}.get(source, 5)


def test_the_data_of_a_page_is_named_without_its_arguments(make_site: MakeSite, origin: Origin) -> None:
    @cached(revalidate=500)
    def price(of: str) -> str:
        return of

    origin.on("/", answer(lambda environ: price("a secret").encode()))
    site = make_site({"/": 60})
    site.visit("/")
    told = explained(site)
    assert told.stored is not None
    (name,) = told.stored.data
    assert name.endswith("price")
    assert "a secret" not in told.text() + json.dumps(told.as_dict())


# The timeline -----------------------------------------------------------------------------------------


def test_the_timeline_tells_renders_stale_answers_failures_and_invalidations_in_order(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site({"/": Rule(60, tags=["posts"])})
    site.visit("/")
    clock.advance(61)
    origin.on("/", failing(Boom("no")))
    site.visit("/")
    site.jobs.wait()
    site.visit("/")
    site.visit("/")
    clock.advance(10)
    origin.mend("/")
    site.visit("/")
    site.jobs.wait()
    clock.advance(1)
    site.isr.invalidate(tags=["posts"], actor="ann")
    clock.advance(1)
    site.visit("/")
    told = explained(site)
    kinds = [(line.kind, line.by.rpartition(":")[2].partition(" ")[0], line.times) for line in told.timeline]
    assert kinds[0] == ("rendered", "visitor", 1)
    assert ("failed", "background", 1) in kinds
    assert kinds[-3:-1] == [("rendered", "background", 1), ("invalidated", kinds[-2][1], 1)]
    assert kinds[-1][0] == "rendered"
    assert sum(times for kind, _, times in kinds if kind == "stale") == 4
    times = [line.at for line in told.timeline]
    assert times == sorted(times)


def test_another_process_reads_the_timeline_from_the_store(make_site: MakeSite) -> None:
    site = make_site({"/": Rule(60, tags=["posts"])})
    site.visit("/")
    site.isr.invalidate(tags=["posts"], actor="ann")
    site.isr._engine.recorder.flush()
    other = make_site({"/": Rule(60, tags=["posts"])}, store=site.store)
    told = explained(other)
    assert [line.kind for line in told.timeline] == ["rendered", "invalidated"]


def test_a_store_that_is_ill_gets_no_timeline_and_nothing_fails(make_site: MakeSite, clock: Clock) -> None:
    store = Nodes(clock)
    site = make_site({"/": 60}, store=store)
    site.visit("/")
    store.unplugged = set(store.nodes)
    site.isr._engine.recorder.flush()
    told = explained(site)
    assert (told.answer, [node.is_reachable for node in told.nodes]) == ("DEGRADED", [False, False, False])
    assert told.problem != ""


@pytest.mark.parametrize("forged", [b"x", b"", 500 * b"\x93"])
def test_a_forged_timeline_is_left_out(forged: bytes, make_site: MakeSite) -> None:
    site = make_site({"/": 60})
    site.visit("/")
    site.store.set(Keyspace.timeline(site.isr._pages.at("/").task.page), forged)
    assert [line.kind for line in explained(site).timeline] == ["rendered"]


def test_an_actor_that_is_no_text_is_shown_as_text(make_site: MakeSite) -> None:
    site = make_site({"/": Rule(60, tags=["posts"])})
    site.visit("/")
    actor: Any = 5
    site.isr.invalidate(tags=["posts"], actor=actor)
    assert explained(site).timeline[-1].by.startswith("5 (")


def test_the_timeline_keeps_the_last_events_alone(make_site: MakeSite, clock: Clock) -> None:
    site = make_site({"/": 60})
    site.visit("/")
    for _ in range(30):
        site.isr.refresh("/")
        site.isr._engine.recorder.flush()
    page = site.isr._pages.at("/").task.page
    record = site.isr._engine.timelines.read(site.store.get(Keyspace.timeline(page)))
    assert len(record) == 20
    assert {event.by.rpartition(":")[2] for event in record} == {"refresh"}


# No effects -------------------------------------------------------------------------------------------


def test_an_explanation_renders_nothing_stores_nothing_and_counts_as_no_use(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site({"/": Rule(60, tags=["posts"])})
    site.visit_and_settle("/")
    site.isr._engine.recorder.flush()
    local = site.isr._engine.local
    copy = local.peek(site.isr._pages.at("/").task.page)
    assert copy is not None
    clock.advance(61)
    before = state_of(site.store), dict(origin.calls), copy.uses, copy.checked, copy.recheck_at, len(site.events)
    for path in ("/", "/missing", "/?x=1"):
        explained(site, path)
    after = state_of(site.store), dict(origin.calls), copy.uses, copy.checked, copy.recheck_at, len(site.events)
    assert after == before
    assert len(local) == 1
    assert site.jobs.wait() is None  # no job in the background


def test_a_terminal_gets_no_control_characters_of_clients(make_site: MakeSite, origin: Origin) -> None:
    def body(environ: Any) -> bytes:
        cache_tag("evil\x1b[31m\ntag")
        return b"x"

    origin.on("/\x1b]0;x\x07", answer(body))
    site = make_site(revalidate=60)
    site.visit("/%1b]0;x%07")
    text = explained(site, "/%1b]0;x%07").text()
    assert "tag:evil" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_what_is_no_url_is_refused(make_site: MakeSite) -> None:
    from wsgi_isr import ConfigError

    site = make_site({"/": 60})
    for wrong in ("blog", "ftp://example.org/", "http://a b/", "/\udcff", "/%ff", None):
        with pytest.raises(ConfigError):
            site.isr.explain(wrong)
