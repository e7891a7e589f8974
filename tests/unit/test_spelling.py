"""Misspelled rules: the error of each says what to write."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from wsgi_isr import ISR, ConfigError, Rule, cache_life, cached, wrap
from wsgi_isr.config.patterns import spelling
from wsgi_isr.config.rule_set import RuleSet

WRITTEN = {
    # Globs.
    "/blog/*": "/blog/<path:rest>",
    "/blog/**": "/blog/<path:rest>",
    "/*": "/<path:rest>",
    "/static/*.css": "/static/<path:rest>.css",
    # Regular expressions, Django's among them.
    r"/blog/(?P<slug>\w+)": "/blog/<slug>",
    r"/blog/(?P<slug>[-a-zA-Z0-9_]+)/": "/blog/<slug>/",
    r"^/blog/(?P<id>\d+)/$": "/blog/<int:id>/",
    r"/(?P<year>[0-9]{4})/(?P<rest>.*)": "/<int:year>/<path:rest>",
    r"/blog/(?P<slug>(a|b)+)": "/blog/<slug>",
    r"/blog/(\d+)": "/blog/<int:number>",
    r"/blog/([^/]+)": "/blog/<name>",
    r"/blog/\w+": "/blog/<name>",
    r"/blog/.*": "/blog/<path:rest>",
    # Express, Rails.
    "/blog/:slug": "/blog/<slug>",
    "/:lang/blog/:slug/edit": "/<lang>/blog/<slug>/edit",
    "/files/:path*": "/files/<path:path>",
    "/files/*path": "/files/<path:path>",
    # FastAPI, Starlette, Pyramid.
    "/blog/{slug}": "/blog/<slug>",
    "/blog/{id:int}": "/blog/<int:id>",
    "/files/{name:path}": "/files/<path:name>",
    "/blog/{year:[0-9]+}": "/blog/<year>",
    # Next.js.
    "/blog/[slug]": "/blog/<slug>",
    "/docs/[...slug]": "/docs/<path:slug>",
    "/docs/[[...slug]]": "/docs/<path:slug>",
}


@pytest.mark.parametrize(("written", "meant"), WRITTEN.items())
def test_a_pattern_in_another_spelling_is_refused_with_werkzeug_s(written: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet({written: 60}, Rule())
    assert caught.value.remedy == f"write {meant!r}"
    assert written in str(caught.value) or repr(written) in str(caught.value)
    RuleSet({meant: 60}, Rule())


@pytest.mark.parametrize(
    "pattern",
    [
        "/",
        "/blog/<slug>",
        "/<int(min=1):page>",
        '/<any("a*", ":b", "{c}"):kind>',
        "/wiki/Special:Random",
        "/price$<int:price>",
        "/wiki/Foo_(bar)",
        "/c++/index.html",
        "/a.b-c_d~e/$x/",
        "/caf\xe9/<name>",
        "/<string(length=2):lang>/<path:rest>",
    ],
)
def test_a_pattern_of_werkzeug_is_what_it_is(pattern: str) -> None:
    assert spelling(pattern) == pattern
    RuleSet({pattern: 60}, Rule())


@pytest.mark.parametrize(("text", "number"), [("60", "60"), ("0.5", "0.5"), ("0", "0"), (" 60 ", "60"), ("6e1", "60")])
def test_a_number_in_quotes_is_refused_with_the_number(text: str, number: str) -> None:
    calls: list[Any] = [
        lambda: Rule(revalidate=text),
        lambda: ISR(app, revalidate=text, store="null://"),
        lambda: ISR(app, {"/": text}, store="null://"),
        lambda: cache_life(text),
        lambda: cached(revalidate=text)(app),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="is text") as caught:
            call()
        assert caught.value.remedy == f"write {number}, without the quotes"


def app(environ: Any, start_response: Any) -> list[bytes]:
    return []


@pytest.mark.parametrize(
    ("name", "meant"), [("revalidat", "revalidate"), ("tag", "tags"), ("dynamic_param", "dynamic_params")]
)
def test_a_misspelt_option_of_a_rule_is_refused_with_the_one_that_was_meant(name: str, meant: str) -> None:
    for call in (lambda: Rule(**{name: 60}), lambda: RuleSet({"/a": {name: 60}}, Rule())):
        with pytest.raises(ConfigError, match=f"{name}: unknown option .*did you mean {meant}"):
            call()


def test_a_rule_can_still_be_copied_and_compared() -> None:
    rule = Rule(revalidate=60, tags=["a"])
    assert copy.copy(rule) == copy.deepcopy(rule) == Rule(60, tags=["a"]) == rule


# Wrapped apps -------------------------------------------------------------------------------------------


def create_app() -> Any:
    return app


def create_app_with(config: Any = None, *, debug: bool = False) -> Any:
    return app


class Application:
    """An app in the form of a class (PEP 3333, "The Application/Framework Side")."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        start_response("200 OK", [])

    def __iter__(self) -> Any:
        return iter([b""])


class Framework:
    def __init__(self, name: str = "", folder: str = "") -> None:
        pass

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


@pytest.mark.parametrize("factory", [create_app, create_app_with])
def test_a_factory_is_refused_with_what_to_write(factory: Any) -> None:
    with pytest.raises(ConfigError, match="does not take environ and start_response") as caught:
        ISR(factory, revalidate=60)
    assert caught.value.remedy == f"if it returns one, write {factory.__name__}()"


def test_a_factory_on_a_command_line_is_refused_with_what_to_write_there() -> None:
    target = f"{__name__}:create_app"
    with pytest.raises(ConfigError) as caught:
        wrap(target)
    assert caught.value.option == f"wrap({target!r})"
    assert caught.value.remedy == f"if it returns one, write {target}()"
    assert wrap(f"{target}()", store="null://").app is app


def test_a_class_is_refused_unless_it_can_be_an_app() -> None:
    with pytest.raises(ConfigError, match="Framework is a class") as caught:
        ISR(Framework, revalidate=60)
    assert caught.value.remedy == "wrap an object: Framework(...)"
    for wrapped in (Framework(), Application, app, lambda *args: [], Framework().__call__):
        ISR(wrapped, revalidate=60, store="null://")


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a WSGI application"):
        ISR("myapp:app", revalidate=60)  # type: ignore[arg-type]
