"""Hosts: the hosts that a site answers to, and the cost of hosts that a client invents."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import ConfigError, RefreshError, Rule, refresh
from wsgi_isr.stores.memory import MemoryStore

HOSTS = ["Example.org", "www.example.org", "dev.example.org:8080", "*.shop.example"]


def host_of(environ: Environ) -> str:
    """Return the host that the app was called for."""
    return str(environ["HTTP_HOST"])


# Hosts that are answered from the cache ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "scheme", "answered"),
    [
        ("example.org", "http", True),
        ("EXAMPLE.ORG", "http", True),
        ("example.org:80", "http", True),
        ("example.org:443", "https", True),
        ("www.example.org", "https", True),
        ("dev.example.org:8080", "http", True),
        ("a.shop.example", "http", True),
        ("a.b.shop.example", "http", True),
        # A port is a host of its own, or there would be 65,535 of each.
        ("example.org:8080", "http", False),
        ("example.org:80", "https", False),
        ("dev.example.org", "http", False),
        ("a.shop.example:81", "http", False),
        ("shop.example", "http", False),
        ("evilshop.example", "http", False),
        ("example.org.evil.test", "http", False),
        ("example.org.", "http", False),
        ("", "http", False),
        ("a b", "http", False),
        ("*.shop.example", "http", False),
    ],
)
def test_only_the_hosts_that_are_named_have_pages(
    make_site: MakeSite, origin: Origin, host: str, scheme: str, answered: bool
) -> None:
    site = make_site(revalidate=60, hosts=HOSTS)
    seen = [site.visit("/a", host=host, scheme=scheme) for _ in range(2)]
    if answered:
        assert [one.label for one in seen] == ["MISS", "HIT"]
    else:
        assert [one.label for one in seen] == ["BYPASS"] * 2
        assert {one.cache_status for one in seen} == {'wsgi-isr; fwd=bypass; detail="host"'}
        assert host_of(origin.last("/a")) == host


def test_another_host_gets_the_app_s_own_answer_and_leaves_nothing_behind(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    site = make_site(revalidate=60, hosts=["example.org"], store=store)
    for number in range(20):
        assert site.visit("/a", host=f"{number}.test").label == "BYPASS"
    assert origin.calls["/a"] == 20
    assert [found.host for found in site.isr._pages.sites.known()] == ["example.org"]
    site.visit("/a")
    assert [found.host for found in site.isr._pages.sites.known()] == ["example.org"]


def test_a_page_that_is_not_listed_is_no_404_of_ours_for_another_host(make_site: MakeSite) -> None:
    rule = Rule(revalidate=60, paths=["/p/a"], dynamic_params=False)
    site = make_site({"/p/<slug>": rule}, hosts=["example.org"])
    assert site.visit("/p/b").code == 404
    seen = site.visit("/p/b", host="evil.test")
    assert (seen.code, seen.label) == (200, "BYPASS")


def test_without_hosts_every_host_has_pages_of_its_own(make_site: MakeSite) -> None:
    site = make_site(revalidate=60)
    assert [site.visit("/a", host=host).label for host in ("a.test", "b.test", "a.test")] == ["MISS", "MISS", "HIT"]


def test_the_host_of_the_canonical_url_is_one_of_the_hosts(make_site: MakeSite) -> None:
    site = make_site(revalidate=60, hosts=["example.org"], canonical_url="https://www.example.org")
    hosts = ("example.org", "www.example.org", "evil.test")
    assert [site.visit("/a", host=host).label for host in hosts] == ["MISS", "HIT", "BYPASS"]
    assert site.isr.refresh("/a") is True


def test_hosts_that_were_known_before_they_were_named_are_refreshed_no_more(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    before = make_site(revalidate=600, store=store)
    for host in ("0.test", "1.test", "example.org"):
        before.visit("/a", host=host)
    site = make_site(revalidate=600, store=store, hosts=["example.org"])
    site.isr.refresh("/a")
    assert (origin.calls["/a"], host_of(origin.last("/a"))) == (4, "example.org")


def test_a_refresh_before_the_first_visitor_is_for_the_first_host(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, hosts=["*.example.org", "www.example.org"])
    assert site.isr.refresh("/a") is True
    assert site.visit("/a", host="www.example.org").label == "HIT"


def test_a_refresh_for_hosts_that_are_all_unknown_says_so(make_site: MakeSite) -> None:
    with pytest.raises(RefreshError, match="host"):
        make_site(revalidate=60, hosts=["*.example.org"]).isr.refresh("/a")


NO_HOSTS = ["example.org", ["https://a.test"], ["a.test/"], ["*"], ["*."], ["a.*"], ["b\xfccher.test"], [""], [5]]


@pytest.mark.parametrize("hosts", NO_HOSTS)
def test_what_is_no_host_is_refused_at_start(make_site: MakeSite, hosts: Any) -> None:
    with pytest.raises(ConfigError, match="hosts"):
        make_site(revalidate=60, hosts=hosts)


# Cost of a refresh ---------------------------------------------------------------------------------------


def invent(site: Site, path: str = "/a", hosts: int = 20) -> None:
    """Ask for a page at many hosts, as any client can."""
    for number in range(hosts):
        site.visit(path, host=f"{number}.test")


def rendered_for(origin: Origin, path: str = "/a") -> list[str]:
    """Return the hosts for which a page was rendered, in order."""
    return [host_of(environ) for environ in origin.seen[path]]


def test_a_refresh_renders_for_a_few_of_many_hosts_and_the_first_is_one_of_them(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site(revalidate=600)
    site.visit("/a")
    invent(site)
    origin.seen["/a"].clear()
    assert site.isr.refresh("/a") is True
    assert rendered_for(origin) == ["example.org", "0.test", "1.test", "2.test"]
    assert site.visit("/a").label == "HIT"


def test_the_pages_of_the_other_hosts_become_stale(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=600)
    site.visit("/a")
    invent(site)
    site.isr.refresh("/a")
    labels = [site.visit_and_settle("/a", host=f"{number}.test").label for number in (2, 3, 19)]
    assert labels == ["HIT", "STALE", "STALE"]


@pytest.mark.parametrize(
    ("options", "renders"),
    [({"canonical_url": "http://example.org"}, 1), ({"hosts": ["example.org"]}, 1)],
    ids=["canonical_url", "hosts"],
)
def test_with_hosts_that_are_named_a_refresh_renders_for_these_alone(
    make_site: MakeSite, origin: Origin, options: Any, renders: int
) -> None:
    site = make_site(revalidate=600, **options)
    site.visit("/a")
    invent(site)
    origin.seen["/a"].clear()
    assert site.isr.refresh("/a") is True
    assert rendered_for(origin) == ["example.org"] * renders


def test_with_six_hosts_that_are_named_a_refresh_renders_for_all_six(make_site: MakeSite, origin: Origin) -> None:
    hosts = [f"{number}.test" for number in range(6)]
    site = make_site(revalidate=600, hosts=hosts)
    invent(site)
    origin.seen["/a"].clear()
    site.isr.refresh("/a")
    assert rendered_for(origin) == hosts


def test_with_a_wildcard_clients_can_still_invent_hosts_and_a_refresh_renders_for_a_few(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site(revalidate=600, hosts=["*.test"])
    invent(site)
    origin.seen["/a"].clear()
    site.isr.refresh("/a")
    assert len(rendered_for(origin)) == 4


def test_in_a_view_the_host_of_the_request_comes_first_though_it_is_not_among_the_known(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site(revalidate=600)
    origin.on("/publish", answer(lambda environ: repr(refresh("/a")).encode()))
    invent(site)
    site.visit("/a")  # the list is full by now
    origin.seen["/a"].clear()
    assert site.visit("/publish", method="POST").body == b"True"
    assert rendered_for(origin) == ["example.org", "0.test", "1.test", "2.test"]


def test_in_a_view_a_page_that_is_new_is_made_for_the_host_of_the_request(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=600)
    origin.on("/publish", answer(lambda environ: repr(refresh("/new")).encode()))
    site.visit("/a", host="other.test")
    assert site.visit("/publish", method="POST").body == b"True"
    assert rendered_for(origin, "/new") == ["example.org"]


def test_the_host_of_a_request_is_that_of_its_own_app_alone(make_site: MakeSite) -> None:
    inside, outside = Origin(), Origin()
    one = make_site(revalidate=600, app=inside, namespace="one")
    two = make_site(revalidate=600, app=outside, namespace="two")
    two.visit("/a", host="two.test")
    inside.on("/publish", answer(lambda environ: repr(two.isr.refresh("/a")).encode()))
    assert one.visit("/publish", method="POST", host="one.test").body == b"True"
    assert rendered_for(outside) == ["two.test"] * 2


def test_a_refresh_asks_a_list_of_pages_once_however_many_hosts_there_are(make_site: MakeSite) -> None:
    asked: list[int] = []
    rule = Rule(revalidate=600, paths=lambda: asked.append(1) or ["/a"], dynamic_params=False)
    site = make_site({"/<slug>": rule})
    invent(site)
    asked.clear()
    site.isr.refresh("/a")
    assert len(asked) == 1


# Log lines -----------------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_second_host_that_gets_a_page_is_a_warning_once(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(revalidate=600)
    site.visit("/a")
    assert warnings(caplog) == []
    invent(site)
    (said,) = warnings(caplog)
    assert "'example.org', '0.test'" in said
    assert 'canonical_url="https://example.com"' in said
    assert 'hosts=["example.com"' in said


def test_a_process_that_starts_where_there_were_many_hosts_says_so_with_four_of_them(
    make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(clock=clock)
    invent(make_site(revalidate=600, store=store))
    caplog.clear()
    make_site(revalidate=600, store=store).visit("/b", host="0.test")
    (said,) = warnings(caplog)
    assert "'0.test', '1.test', '2.test', '3.test' and 12 more" in said


def test_one_page_from_another_process_is_enough_to_know_of_a_host(
    make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=600, store=store) for _ in range(2)]
    sites[0].visit("/a")
    sites[1].visit("/a")
    assert warnings(caplog) == []
    sites[0].visit("/a", host="other.test")
    assert len(warnings(caplog)) == 1
    assert sites[1].visit("/a", host="other.test").label == "HIT"
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize(
    "options", [{"canonical_url": "http://example.org"}, {"hosts": ["example.org"]}, {"hosts": ["*.test"]}]
)
def test_where_an_option_says_which_hosts_there_are_the_log_says_nothing(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture, options: Any
) -> None:
    site = make_site(revalidate=600, **options)
    site.visit("/a")
    invent(site)
    assert warnings(caplog) == []


def test_hosts_that_get_no_page_are_not_worth_a_warning(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    origin.on("/a", answer(b"bad host", status="400 Bad Request"))
    origin.on("/b", answer(b"nothing", status="404 Not Found"))
    site = make_site(revalidate=600)
    site.visit("/c")
    invent(site, "/a")
    invent(site, "/b")
    assert warnings(caplog) == []


def test_nothing_in_the_name_of_a_host_breaks_out_of_the_line(
    make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    import msgpack

    store = MemoryStore(clock=clock)
    first = make_site(revalidate=600, store=store)
    sites = first.isr._pages.sites
    stored = [("http", host, "") for host in ("a\nb\u202e", "x" * 5000, "y" * 261)]
    store.set(sites._key, sites._codec.seal(msgpack.packb(stored), "sites"))
    first.visit("/a")
    (said,) = warnings(caplog)
    assert said.isprintable()
    assert "yyy" in said
    assert "xxx" not in said
    assert len(said) < 1000


def test_a_damaged_list_of_hosts_is_none(make_site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore(clock=clock)
    site = make_site(revalidate=600, store=store)
    store.set(site.isr._pages.sites._key, b"\xc1")
    assert site.visit("/a").label == "MISS"
    assert warnings(caplog) == []
