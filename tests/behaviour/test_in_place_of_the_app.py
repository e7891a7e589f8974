"""``app = ISR(app)``: it stands in the place of the app, whose attributes it has besides its own."""

from __future__ import annotations

import copy
from typing import Any

import bottle
import flask
import pytest
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from wsgi_isr import ISR, cached
from wsgi_isr.frameworks import is_flask, nested
from wsgi_isr.loading import find_isr
from wsgi_isr.stores.memory import MemoryStore


def wrapped(app: Any, **options: Any) -> Any:
    return ISR(app, revalidate=60, store=MemoryStore(), **options)


@pytest.fixture
def app() -> Any:
    made = wrapped(flask.Flask(__name__))
    made.config["GREETING"] = "Hello"

    @made.route("/")
    def hello() -> str:
        return str(flask.current_app.config["GREETING"])

    @made.get("/who")
    def who() -> str:
        flask.session["name"] = "Ida"
        return "Ida"

    return made


def test_routes_configuration_and_clients_of_flask_are_reached_through_it(app: Any) -> None:
    client = Client(app)
    assert [client.get("/").headers["X-ISR"] for _ in range(2)] == ["MISS", "HIT"]
    assert client.get("/").text == "Hello"
    assert app.test_client().get("/").text == "Hello"
    with app.app_context():
        assert flask.current_app.name == app.name
    assert [rule.rule for rule in app.url_map.iter_rules()][-1:] == ["/who"]


def test_what_is_set_on_it_and_is_the_app_s_is_set_there(app: Any) -> None:
    app.secret_key = "not a secret"
    assert Client(app).get("/who").text == "Ida"
    app.wsgi_app = ProxyFix(app.wsgi_app)
    assert isinstance(app.app.wsgi_app, ProxyFix)
    assert Client(app).get("/").text == "Hello"


def test_what_is_its_own_is_its_own(app: Any) -> None:
    assert app.invalidate(paths=["/"]).tags == ("path:/",)
    assert app.store.keeps
    assert app.site != getattr(app.app, "site", None)
    app.note = "mine"  # of neither: as of any object
    assert app.note == "mine"
    assert not hasattr(app.app, "note")


def test_a_name_that_neither_has_is_an_error_that_names_it(app: Any) -> None:
    with pytest.raises(AttributeError, match="no attribute 'rout'"):
        app.rout  # noqa: B018


@pytest.mark.parametrize("name", ["__wrapped__", "_got_first_request", "__deepcopy__", "__html__", "_private"])
def test_names_of_python_and_private_ones_are_not_passed_on(app: Any, name: str) -> None:
    assert not hasattr(app, name)


def test_it_is_no_flask_app_for_those_who_look_for_one(app: Any) -> None:
    assert not is_flask(app)
    assert find_isr(app) is app
    assert find_isr(ProxyFix(app)) is app
    assert [one for one in nested(app) if is_flask(one)] == [app.app]


def test_kept_functions_have_the_application_of_flask_around_them(app: Any) -> None:
    @cached(revalidate=60)
    def greeting() -> str:
        return str(flask.current_app.config["GREETING"])

    app.add_url_rule("/kept", view_func=greeting, endpoint="kept")
    assert Client(app).get("/kept").text == "Hello"


def test_an_app_that_says_so_of_itself_is_wrapped_twice_without_a_circle(app: Any) -> None:
    inner = flask.Flask(__name__)
    inner.get("/")(lambda: "Hello")
    inner.wsgi_app = wrapped(inner.wsgi_app)  # type: ignore[method-assign]
    outer = wrapped(inner)
    assert Client(outer).get("/").text == "Hello"
    assert find_isr(outer) is outer


def test_routes_of_bottle_are_reached_through_it() -> None:
    app = wrapped(bottle.Bottle())
    app.route("/")(lambda: "Hello")
    assert [Client(app).get("/").headers["X-ISR"] for _ in range(2)] == ["MISS", "HIT"]


def test_copying_says_what_it_says_of_any_object_with_a_lock(app: Any) -> None:
    bare = ISR.__new__(ISR)
    assert not hasattr(bare, "anything")
    with pytest.raises(TypeError, match="lock"):
        copy.deepcopy(app)
