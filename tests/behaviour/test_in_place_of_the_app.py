"""``app = ISR(app)``: the ISR takes the place of the app, and has its attributes besides its own."""

from __future__ import annotations

import copy
from typing import Any

import bottle
import flask
import pytest
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from wsgi_isr import ISR, ConfigError, cached, wrap
from wsgi_isr.config.frameworks import is_flask, nested
from wsgi_isr.config.wrapping import _warn_of_flask_command
from wsgi_isr.middleware.loading import find_isr
from wsgi_isr.stores.memory import MemoryStore

SHOP = flask.Flask(__name__)


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
    assert app.configuration.settings.namespace == "default"


@pytest.mark.parametrize(
    "name", ["pages", "store", "site", "events", "development", "keeps", "note", "name_of", "journal", "clock", "rules"]
)
def test_an_attribute_that_is_new_is_the_app_s(app: Any, name: str) -> None:
    value = {"a": 1}
    setattr(app, name, value)
    assert getattr(app, name) is getattr(app.app, name) is value
    app.add_url_rule("/seen", view_func=lambda: str(getattr(flask.current_app, name)["a"]), endpoint="seen")
    assert [Client(app).get("/seen").text for _ in range(2)] == ["1", "1"]
    assert app.invalidate(everything=True)
    delattr(app, name)
    assert not hasattr(app, name)
    assert not hasattr(app.app, name)


@pytest.mark.parametrize("name", ["configuration", "app", "invalidate", "refresh", "subscribe", "is_serving", "close"])
def test_a_name_of_its_own_cannot_be_set_or_deleted(app: Any, name: str) -> None:
    before = getattr(app, name)
    for change in (lambda: setattr(app, name, {}), lambda: delattr(app, name)):
        with pytest.raises(ConfigError, match=f"ISR.{name}: .*write app.app.{name}"):
            change()
    assert getattr(app, name) == before
    assert Client(app).get("/").text == "Hello"


def test_what_an_app_does_not_let_itself_be_told_is_kept_beside_it() -> None:
    isr = wrapped(flask.Flask(__name__).wsgi_app)  # a method has no attributes of its own
    isr.note = "mine"
    assert isr.note == "mine"
    del isr.note
    assert not hasattr(isr, "note")


class Fixed(flask.Flask):
    @property
    def fixed(self) -> int:
        return 1


def test_an_attribute_that_the_app_does_not_let_be_set_is_an_error() -> None:
    isr = wrapped(Fixed(__name__))
    with pytest.raises(AttributeError):
        isr.fixed = 2
    with pytest.raises(AttributeError):
        del isr.fixed
    assert isr.fixed == 1


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


@pytest.mark.filterwarnings("ignore:Pickle, copy:DeprecationWarning")  # from itertools.count, before the lock
def test_copying_says_what_it_says_of_any_object_with_a_lock(app: Any) -> None:
    bare = ISR.__new__(ISR)
    assert not hasattr(bare, "anything")
    with pytest.raises(TypeError, match="lock"):
        copy.deepcopy(app)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_flask_app_itself_is_wrapped_with_a_warning_that_says_what_the_flask_command_needs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _warn_of_flask_command.cache_clear()
    wrapped(flask.Flask("shop"))
    wrapped(flask.Flask("blog"))
    (line,) = warnings(caplog)
    assert "the flask command does not find" in line
    assert "app.wsgi_app = ISR(app.wsgi_app, ...)" in line


@pytest.mark.parametrize(
    "make",
    [
        lambda: wrapped(flask.Flask(__name__).wsgi_app),
        lambda: wrapped(ProxyFix(flask.Flask(__name__))),
        lambda: wrapped(bottle.Bottle()),
        lambda: wrap("tests.behaviour.test_in_place_of_the_app:SHOP", store=MemoryStore()),
    ],
    ids=["wsgi_app", "middleware", "bottle", "wrap"],
)
def test_what_the_flask_command_is_not_asked_for_is_wrapped_without_a_warning(
    caplog: pytest.LogCaptureFixture, make: Any
) -> None:
    _warn_of_flask_command.cache_clear()
    make()
    assert warnings(caplog) == []
