"""Isolation: the pages, data and hosts of one visitor never decide the answer to another one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Environ, Gate, Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import ConfigError, RefreshError, Rule, cache_tag, cached, enable_draft, invalidate, is_draft, refresh
from wsgi_isr.pages.draft import COOKIE
from wsgi_isr.stores.memory import MemoryStore

SECRET = "a secret of some length"


def shows(show: Callable[[Environ], Any]) -> Any:
    return answer(lambda environ: str(show(environ)).encode())


def draft_cookie(site: Site) -> str:
    return f"{COOKIE}={site.isr._engine.drafts.issue(60)}"


# Closures ------------------------------------------------------------------------------------------------


def of(user: str) -> dict[str, Any]:
    return {"headers": {"Authorization": user}}


def test_a_function_made_in_a_view_knows_whose_data_it_closes_over(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)

    def view(environ: Environ) -> str:
        basket = {"user": environ["HTTP_AUTHORIZATION"]}

        @cached(revalidate=60)
        def load() -> str:
            return f"basket of {basket['user']}"

        return load()

    origin.on("/basket", shows(view))
    assert [site.visit("/basket", **of(user)).text for user in ("alice", "bob", "alice")] == [
        *("basket of alice", "basket of bob", "basket of alice")
    ]


class User:
    """An object of an ORM: it has no bytes."""

    def __init__(self, name: str) -> None:
        self.name = name


def test_a_function_made_in_a_view_that_closes_over_an_object_is_not_kept(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(revalidate=60)

    def view(environ: Environ) -> str:
        user = User(environ["HTTP_AUTHORIZATION"])

        def name() -> str:
            return user.name

        @cached(revalidate=60)
        def load() -> str:
            return f"basket of {name()}"

        return load()

    origin.on("/basket", shows(view))
    with caplog.at_level(logging.WARNING, "wsgi_isr.data"):
        found = [site.visit("/basket", **of(user)).text for user in ("alice", "bob")]
    assert found == ["basket of alice", "basket of bob"]
    assert "is made in a view" in caplog.text


def test_a_page_has_the_tags_and_the_lifetime_of_data_that_is_not_kept_because_of_its_closure(
    make_site: MakeSite, origin: Origin
) -> None:
    site, calls = make_site(revalidate=100), [0]

    def show(environ: Environ) -> bytes:
        connection = object()

        @cached(revalidate=5, tags=["post:{number}"])
        def post(number: int) -> int:
            assert connection
            cache_tag("inside")
            calls[0] += 1
            return calls[0]

        return str(post(7)).encode()

    origin.on("/a", answer(show))
    for number, tag in enumerate(("post:7", "inside", "post:7")):
        seen = site.visit("/a")
        assert (seen.body, site.lifetime("/a").revalidate) == (str(number + 1).encode(), 5)
        assert site.visit("/a").label == "HIT"
        site.isr.invalidate(tags=[tag])


def test_what_a_function_changes_in_its_closure_is_its_state_and_no_key(make_site: MakeSite) -> None:
    site = make_site()
    calls, count = [], 0

    @cached(revalidate=60)
    def load(x: int) -> int:
        nonlocal count
        count += 1
        calls.append(x)
        return x

    assert [load(1), load(1), load(2), load(1)] == [1, 1, 2, 1]
    assert (calls, count) == ([1, 2], 2)
    assert site.isr


def test_functions_that_one_factory_makes_have_data_of_their_own(make_site: MakeSite) -> None:
    site = make_site()

    def make(n: int) -> Callable[[], int]:
        return cached(revalidate=60)(lambda: n)

    one, two = make(1), make(2)
    assert [one(), two(), one(), two()] == [1, 2, 1, 2]
    assert site.isr


# Drafts --------------------------------------------------------------------------------------------------


def test_what_an_editor_refreshes_is_not_kept(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET, background_threads=1, background_queue=1)

    @cached(revalidate=60)
    def load() -> str:
        return "draft" if is_draft() else "published"

    origin.on("/edit", shows(lambda environ: load.refresh()))
    origin.on("/a", shows(lambda environ: load()))
    assert site.visit("/edit", cookie=draft_cookie(site)).text == "draft"
    assert site.visit("/a").text == "published"


def test_data_is_kept_as_for_nobody_whoever_asks_first(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": 0}, secret=SECRET)

    @cached(revalidate=60)
    def load() -> bool:
        return is_draft()

    # The call runs in the thread of a visitor in draft mode, through a function without that context.
    def view(environ: Environ) -> Any:
        from wsgi_isr.cache.context import within

        with within(None):
            return load()

    origin.on("/a", shows(view))
    assert site.visit("/a", cookie=draft_cookie(site)).text == "False"


def test_no_cache_of_any_kind_keeps_a_draft(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    names = ["X-Accel-Expires", "Surrogate-Control", "Cloudflare-CDN-Cache-Control", "CDN-Cache-Control", "Expires"]
    origin.on("/a", answer(b"draft", *((name, "600") for name in names)))
    seen = site.visit("/a", cookie=draft_cookie(site))
    assert [name for name in names if name in seen.headers] == []
    assert seen.headers["Cache-Control"] == "private, no-store"


def test_a_draft_stays_one_where_a_rule_s_own_code_fails(make_site: MakeSite, origin: Origin) -> None:
    def bypass(environ: Any) -> bool:
        raise ValueError("broken")

    site = make_site({"/a": Rule(revalidate=60, bypass=bypass)}, secret=SECRET)
    origin.on("/a", shows(lambda environ: is_draft()))
    seen = site.visit("/a", cookie=draft_cookie(site))
    assert (seen.text, seen.headers["Cache-Control"]) == ("True", "private, no-store")


def test_behind_a_proxy_that_ends_tls_the_cookie_is_for_tls_alone(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(secret=SECRET, canonical_url="https://example.org")

    def view(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [HTML]
        enable_draft(headers)
        start_response("200 OK", headers)
        return [b"ok"]

    origin.on("/preview", view)
    assert "Secure" in site.visit("/preview", method="POST").headers["Set-Cookie"]


# Several apps in a process -------------------------------------------------------------------------------


def test_in_a_thread_that_knows_no_app_nothing_is_kept_where_there_are_several_places(
    make_site: MakeSite, origin: Origin
) -> None:
    store = MemoryStore()
    sites = [make_site({"/": 0}, store=store, namespace=name) for name in ("a", "b")]
    tenant = threading.local()

    @cached(revalidate=60)
    def secret() -> str:
        return f"secret of {tenant.name}"

    def view(environ: Environ) -> str:
        found: list[str] = []

        def run() -> None:
            tenant.name = environ["HTTP_HOST"]
            found.append(secret())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return found[0]

    origin.on("/", shows(view))
    assert [site.visit("/", host=host).text for site, host in zip(sites, "ab", strict=True)] == [
        *("secret of a", "secret of b")
    ]


def test_an_invalidation_of_data_from_outside_reaches_every_app(make_site: MakeSite, origin: Origin) -> None:
    sites = [make_site({"/": 0}, namespace=name) for name in ("a", "b")]
    values = [1]

    @cached(revalidate=60)
    def value() -> int:
        return values[0]

    origin.on("/", shows(lambda environ: value()))
    assert [site.visit("/").text for site in sites] == ["1", "1"]
    values[0] = 2
    assert value.invalidate() is not None
    assert [site.visit("/").text for site in sites] == ["2", "2"]


def test_a_refresh_of_several_apps_is_that_of_those_who_have_the_page(make_site: MakeSite) -> None:
    blog, shop = Origin(), Origin()
    sites = [
        make_site({"/blog/<slug>": 60}, app=blog, namespace="blog"),
        make_site({"/shop/<slug>": 60}, app=shop, namespace="shop"),
    ]
    sites[0].visit("/blog/a")
    assert refresh("/blog/a") is True
    assert (blog.calls["/blog/a"], shop.calls["/blog/a"]) == (2, 0)


# Hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/caf\xe9/x", "/caf%C3%A9/x"])
def test_a_refresh_below_a_mount_point_makes_the_page_for_every_host(
    make_site: MakeSite, origin: Origin, path: str
) -> None:
    site, mount = make_site(revalidate=60), "/caf\xe9".encode().decode("latin-1")
    hosts = ("one.example", "two.example")
    for host in hosts:
        site.visit("/x", host=host, script_name=mount)
    assert site.isr.refresh(path) is True
    assert origin.calls["/x"] == 4
    assert [site.visit("/x", host=host, script_name=mount).label for host in hosts] == ["HIT", "HIT"]


def test_a_refresh_goes_to_the_mount_point_that_the_path_is_below_of_and_to_no_other(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site(revalidate=60)
    for mount in ("/app", "/application"):
        site.visit("/", script_name=mount)
    assert site.isr.refresh("/application/x") is True
    assert site.visit("/x", script_name="/application").label == "HIT"
    assert origin.calls["/application/x"] == 0


def test_a_host_for_which_it_is_no_page_does_not_keep_a_refresh_from_the_others(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site({"/p": Rule(revalidate=600, bypass=lambda environ: environ["HTTP_HOST"] != "example.org")})
    site.visit("/p")
    site.visit("/p", host="evil.test")
    assert site.isr.refresh("/p") is True
    assert site.visit("/p").text == "/p v3"


def test_a_host_that_the_app_refuses_does_not_keep_a_refresh_from_the_others(
    make_site: MakeSite, origin: Origin
) -> None:
    def is_unstored(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        here = environ["HTTP_HOST"] == "example.org"
        start_response("200 OK" if here else "400 Bad Request", [HTML])
        return [f"v{origin.calls['/p']}".encode()]

    origin.on("/p", is_unstored)
    site = make_site(revalidate=600)
    site.visit("/p", host="evil.test")
    site.visit("/p")
    assert site.isr.refresh("/p") is True


def test_many_hosts_do_not_push_out_the_real_one(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    site, job = (make_site(revalidate=600, store=store, coherence=0) for _ in range(2))
    site.visit("/p")
    for number in range(40):
        site.visit("/p", host=f"{number}.test")
    for by in (site, job):
        before = site.visit("/p").text
        assert by.isr.refresh("/p") is True
        assert (site.visit("/p").label, site.visit("/p").text != before) == ("HIT", True)


def test_the_error_of_the_real_host_is_raised_whatever_others_come_to(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=600)
    site.visit("/p")
    site.visit("/p", host="other.test")

    def fails_here(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("500 Oops" if environ["HTTP_HOST"] == "example.org" else "200 OK", [HTML])
        return [b"x"]

    origin.on("/p", fails_here)
    with pytest.raises(RefreshError, match="status-500"):
        site.isr.refresh("/p")


def test_a_store_that_raises_what_it_should_not_costs_no_visitor_their_page(make_site: MakeSite) -> None:
    class Broken(MemoryStore):
        def gets(self, key: str) -> Any:
            if key == told:
                raise RuntimeError("broken")
            return super().gets(key)

    site = make_site(revalidate=60, store=Broken())
    told = site.isr._pages.sites._key
    assert site.visit("/a").code == 200


def test_what_is_no_path_is_said(make_site: MakeSite) -> None:
    site: Any = make_site(revalidate=60)
    with pytest.raises(ConfigError, match="path"):
        site.isr.refresh(None)


# Joining -------------------------------------------------------------------------------------------------


def test_who_joins_a_render_that_fails_gets_nothing_from_before_an_invalidation(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site(revalidate=60)
    versions = ["old"]
    gate = Gate()

    def slow(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        read = versions[0]
        if not gate.entered.is_set():
            gate.pass_through()
        start_response("503 Later", [HTML])
        return [read.encode()]

    origin.on("/a", slow)
    first = site.start_visit("/a")
    gate.wait_until_entered()
    versions[0] = "new"
    invalidate(paths=["/a"], mode="purge")
    second = site.start_visit("/a")
    gate.open()
    assert first.result().text == "old"
    assert second.result().text == "new"


def test_a_refresh_that_the_store_does_not_take_is_a_failure(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, store=MemoryStore(max_bytes=1 << 20))
    site.visit("/a")
    origin.on("/a", answer(b"x" * (1 << 19)))
    with pytest.raises(RefreshError, match="not-stored"):
        site.isr.refresh("/a")


def test_shells_leave_room_for_renewals(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(
        {"/a": 60, "/shell/<slug>": Rule(revalidate=60, fallback=b"shell")},
        background_threads=1,
        background_queue=8,
    )
    site.visit("/a")
    gate = origin.hold("/shell/0")
    agent = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"}
    seen = [site.visit(f"/shell/{number}", headers=agent).body for number in range(6)]
    assert seen[:2] == [b"shell", b"shell"]
    assert seen[2:] == [f"/shell/{number} v1".encode() for number in range(2, 6)]  # rendered while they waited
    clock.advance(60)
    assert site.visit("/a").label == "STALE"
    gate.open()
    site.settle()
    assert site.visit("/a").text == "/a v2"


def test_a_file_of_a_server_whose_wrapper_is_a_function_comes_back_to_it(make_site: MakeSite, origin: Origin) -> None:
    class Sendfile:
        def __iter__(self) -> Any:
            return iter([b"file"])

    def send(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [HTML])
        body: Iterable[bytes] = environ["wsgi.file_wrapper"](None)
        return body

    origin.on("/a", send)
    site = make_site({"/a": 0}, watcher="nobody")
    talk = site.begin("/a", extra={"wsgi.file_wrapper": lambda file: Sendfile()})
    assert isinstance(talk._iterable, Sendfile)
