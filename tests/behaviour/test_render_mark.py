"""The mark of renders: limiters and access logs inside of the cache can tell renders from requests."""

from __future__ import annotations

from typing import Any

import flask
import pytest
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin
from tests.behaviour.visitor import Clock
from wsgi_isr import Rule

ATTACKER, VISITOR = {"REMOTE_ADDR": "203.0.113.66"}, {"REMOTE_ADDR": "198.51.100.7"}
LIMIT = 5


def limited_app(exempts_renders: bool) -> Any:
    """Return a Flask app that accepts a few requests a minute from each address."""
    app = flask.Flask(__name__)
    limiter = Limiter(get_remote_address, app=app, default_limits=[f"{LIMIT}/minute"], storage_uri="memory://")
    if exempts_renders:

        @limiter.request_filter
        def is_render() -> bool:
            return "wsgi_isr.render" in flask.request.environ

    @app.route("/<path:page>", methods=["GET", "POST"])
    def show(page: str) -> str:
        return page

    return app.wsgi_app


def test_misses_of_one_visitor_do_not_limit_the_others_where_renders_are_exempt(make_site: MakeSite) -> None:
    site = make_site(revalidate=60, app=limited_app(exempts_renders=True))
    for number in range(4 * LIMIT):
        assert site.visit(f"/{number}", extra=ATTACKER).code == 200
    assert site.visit("/page", extra=VISITOR).code == 200


def test_without_the_recipe_a_limiter_takes_all_renders_for_one_visitor(make_site: MakeSite) -> None:
    site = make_site(revalidate=60, app=limited_app(exempts_renders=False))
    for number in range(LIMIT):
        site.visit(f"/{number}", extra=ATTACKER)
    assert site.visit("/page", extra=VISITOR).code == 429


def test_guesses_of_a_secret_in_a_url_are_limited_where_their_rule_is_0(make_site: MakeSite) -> None:
    site = make_site({"/reset/<token>": 0}, revalidate=60, app=limited_app(exempts_renders=True))
    guesses = [site.visit(f"/reset/{number}", extra=ATTACKER).code for number in range(LIMIT + 1)]
    assert guesses == [200] * LIMIT + [429]
    assert site.visit("/reset/secret", extra=VISITOR).code == 200


def test_requests_that_are_passed_on_are_limited_by_their_own_address(make_site: MakeSite) -> None:
    site = make_site(revalidate=60, app=limited_app(exempts_renders=True))
    posts = [site.visit("/page", method="POST", extra=ATTACKER).code for _ in range(LIMIT + 1)]
    assert posts == [200] * LIMIT + [429]
    assert site.visit("/page", method="POST", extra=VISITOR).code == 200


def test_every_render_says_that_it_is_one(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(60)
    site.visit_and_settle("/a")
    site.isr.refresh("/a")
    assert [seen["wsgi_isr.render"] for seen in origin.seen["/a"]] == [True, True, True]


#: Spellings of a header that a server turns into the variable.
NAMES = ["wsgi_isr.render", "WSGI_ISR.RENDER", "Wsgi-Isr.Render", "wsgi-isr-render"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "request_",
    [{"method": "POST"}, {"headers": {"Authorization": "x"}}, {"path": "/a?unknown=1"}, {"path": "/never"}],
    ids=["method", "authorization", "query", "rule"],
)
def test_a_request_that_is_passed_on_never_says_so_whatever_its_client_sends(
    make_site: MakeSite, origin: Origin, name: str, request_: dict[str, Any]
) -> None:
    rules = {"/a": Rule(revalidate=60, vary=NAMES), "/never": 0}
    request = {"path": "/a", **request_}
    headers = {**request.get("headers", {}), name: "True"}
    seen = make_site(rules).visit(**{**request, "headers": headers})
    assert seen.label == "BYPASS"
    assert "wsgi_isr.render" not in origin.last(request["path"].partition("?")[0])
