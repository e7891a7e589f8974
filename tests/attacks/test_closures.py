"""A cached function that is made in a view never gives one visitor the data of another."""

from __future__ import annotations

import contextvars
import datetime as dt
import functools
import json
import logging
import operator
import os
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from werkzeug.local import LocalProxy

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ, Origin, answer
from wsgi_isr import cached
from wsgi_isr.data.closure import closure_of
from wsgi_isr.data.registry import Functions

NAME = "HTTP_AUTHORIZATION"  # the visitor's name; such a request bypasses the cache

# Values of a module are the same for all visitors ----------------------------------------------------------


@dataclass
class Basket:
    owner: str = ""

    def of(self) -> str:
        return self.owner


@dataclass(frozen=True, slots=True)
class Slotted:
    owner: str = ""


class SlottedBase:
    __slots__ = ("get",)


@dataclass
class OnSlots(SlottedBase):
    __slots__ = ("owner",)
    owner: str


class User:
    """An object of an ORM."""

    def __init__(self, environ: Environ) -> None:
        self.environ = environ

    def name(self) -> str:
        return str(self.environ[NAME])

    @classmethod
    def shape(cls) -> str:
        return cls.__name__


def of_everybody(text: str = "everybody") -> str:
    return text


@cached(revalidate=60)
def kept_for_everybody() -> str:
    return "everybody"


View = Callable[[Environ], Callable[[], str]]
VIEWS: dict[str, View] = {}


def view(make: View) -> View:
    """Register a view. The function that it makes is called, and the result is the page."""
    VIEWS[make.__name__] = make
    return make


def keep(function: Callable[[], str]) -> Any:
    return cached(revalidate=60)(function)


# Views with something of their visitor in a cached function --------------------------------------------------


@view
def a_bound_builtin(environ: Environ) -> Any:
    get = environ.get
    return keep(lambda: get(NAME))


@view
def a_method_wrapper(environ: Environ) -> Any:
    item = environ.__getitem__
    return keep(lambda: item(NAME))


@view
def a_slot_wrapper_that_is_bound(environ: Environ) -> Any:
    show = User(environ).__repr__
    same = environ.__contains__
    return keep(lambda: f"{same(NAME)}{show}"[:4] + environ[NAME])


@view
def a_class_of_the_view(environ: Environ) -> Any:
    class Mine:
        user = environ[NAME]

    return keep(lambda: Mine.user)


@view
def a_class_of_the_view_with_the_name_of_another(environ: Environ) -> Any:
    mine = type("User", (), {"user": environ[NAME], "__module__": __name__, "__qualname__": "User"})
    return keep(lambda: mine.user)  # type: ignore[attr-defined]


@view
def a_method_of_a_class_of_the_view(environ: Environ) -> Any:
    class Mine:
        @classmethod
        def user(cls) -> str:
            return str(environ[NAME])

    user = Mine.user
    return keep(lambda: user())


@view
def a_method_of_an_object(environ: Environ) -> Any:
    name = User(environ).name
    return keep(lambda: name())


@view
def a_partial(environ: Environ) -> Any:
    get = functools.partial(dict.get, environ, NAME)
    return keep(lambda: get())


@view
def a_partial_with_a_keyword(environ: Environ) -> Any:
    get = functools.partial(lambda user=None: user.name(), user=User(environ))
    return keep(lambda: get())


@view
def a_partial_with_an_attribute(environ: Environ) -> Any:
    get = functools.partial(int, "1")
    get.environ = environ  # type: ignore[attr-defined]
    return keep(lambda: get.environ[NAME])  # type: ignore[attr-defined]


@view
def a_partial_of_another_kind(environ: Environ) -> Any:
    class Mine(functools.partial):  # type: ignore[type-arg]
        user = environ[NAME]

    get = Mine(int, "1")
    return keep(lambda: get.user)


@view
def a_lambda_in_a_lambda(environ: Environ) -> Any:
    def outer() -> Any:
        return lambda: lambda: environ[NAME]

    middle = outer()
    return keep(lambda: middle()())


@view
def a_default(environ: Environ) -> Any:
    def load(get: Any = environ.get) -> str:
        return str(get(NAME))

    return keep(load)


@view
def a_keyword_default(environ: Environ) -> Any:
    def load(*, user: Any = User(environ)) -> str:  # noqa: B008
        return str(user.name())

    return keep(load)


@view
def a_default_of_a_helper(environ: Environ) -> Any:
    def helper(get: Any = environ.get, *, user: Any = User(environ)) -> str:  # noqa: B008
        return str(get(NAME))

    return keep(lambda: helper())


@view
def a_default_of_data_of_a_helper(environ: Environ) -> Any:
    def helper(user: str = environ[NAME], *, also: str = environ[NAME]) -> str:
        return user

    return keep(lambda: helper())


@view
def a_default_that_the_signature_does_not_show(environ: Environ) -> Any:
    def load() -> str:
        return ""

    @functools.wraps(load)
    def wrapper(user: str = environ[NAME]) -> str:
        return user

    return keep(wrapper)


@view
def a_keyword_default_that_the_signature_does_not_show(environ: Environ) -> Any:
    def load() -> str:
        return ""

    @functools.wraps(load)
    def wrapper(*, get: Any = environ.get) -> str:
        return str(get(NAME))

    return keep(wrapper)


@view
def an_attribute_of_a_helper(environ: Environ) -> Any:
    def helper() -> str:
        return str(helper.environ[NAME])  # type: ignore[attr-defined]

    helper.environ = environ  # type: ignore[attr-defined]
    return keep(lambda: helper())


@view
def an_attribute_of_the_function_itself(environ: Environ) -> Any:
    def load() -> str:
        return str(load.user)  # type: ignore[attr-defined]

    load.user = environ[NAME]  # type: ignore[attr-defined]
    return keep(load)


@view
def a_name_that_is_defined_later(environ: Environ) -> Any:
    load = keep(lambda: user)
    user = environ[NAME]
    return load


@view
def a_helper_that_is_defined_later(environ: Environ) -> Any:
    load = keep(lambda: helper())

    def helper() -> str:
        return str(environ[NAME])

    return load


@view
def a_dict_that_is_filled_later(environ: Environ) -> Any:
    context: dict[str, str] = {}
    load = keep(lambda: context["user"])
    context["user"] = environ[NAME]
    return load


@view
def a_name_that_is_another_one_later(environ: Environ) -> Any:
    user = ""
    load = keep(lambda: user)
    user = environ[NAME]
    return load


@view
def a_helper_s_name_that_is_another_one_later(environ: Environ) -> Any:
    user = ""

    def helper() -> str:
        return user

    load = keep(lambda: helper())
    user = environ[NAME]
    return load


@view
def an_attribute_that_is_given_later(environ: Environ) -> Any:
    def helper() -> str:
        return str(vars(helper)["user"])

    load = keep(lambda: helper())
    helper.user = environ[NAME]  # type: ignore[attr-defined]
    return load


@view
def a_dataclass_that_has_more_than_its_fields(environ: Environ) -> Any:
    basket: Any = Basket()
    basket.get = environ.get
    return keep(lambda: basket.get(NAME))


@view
def a_dataclass_with_more_inside_of_data(environ: Environ) -> Any:
    basket: Any = Basket()
    basket.user = environ[NAME]
    baskets = {"a": [(basket,)]}
    return keep(lambda: baskets["a"][0][0].user)


@view
def a_dataclass_with_another_slot(environ: Environ) -> Any:
    basket = OnSlots("")
    basket.get = environ.get  # type: ignore[attr-defined]
    return keep(lambda: basket.get(NAME))  # type: ignore[attr-defined]


@view
def a_dataclass_of_the_view(environ: Environ) -> Any:
    @dataclass
    class Mine:
        user: str = field(default=environ[NAME])

    mine = Mine()
    return keep(lambda: mine.user)


@view
def a_text_with_an_attribute(environ: Environ) -> Any:
    class Token(str):
        user = environ[NAME]

    token = Token("x")
    return keep(lambda: token.user)


@view
def another_cached_function(environ: Environ) -> Any:
    get = environ.get
    inner = keep(lambda: get(NAME))

    def load() -> str:
        return str(inner())

    return keep(load)


@view
def another_cached_function_that_is_filled_later(environ: Environ) -> Any:
    context: dict[str, str] = {}

    def read() -> str:
        return context["user"]

    inner = keep(read)

    def load() -> str:
        return str(inner())

    outer = keep(load)
    context["user"] = environ[NAME]
    return outer


@view
def another_cached_function_of_data(environ: Environ) -> Any:
    user = environ[NAME]

    def read() -> str:
        return str(user)

    inner = keep(read)

    def load() -> str:
        return str(inner())

    return keep(load)


@view
def one_of_two_helpers_of_one_name(environ: Environ) -> Any:
    if environ[NAME] == "alice":
        helper = lambda: "alice"  # noqa: E731
    else:
        helper = lambda: "bob"  # noqa: E731
    return keep(lambda: helper())


@view
def one_of_two_functions_of_one_name(environ: Environ) -> Any:
    if environ[NAME] == "alice":

        @cached(revalidate=60)
        def load() -> str:
            return "alice"
    else:

        @cached(revalidate=60)
        def load() -> str:
            return "bob"

    return load


@view
def one_of_two_functions_of_one_name_that_are_wrapped(environ: Environ) -> Any:
    if environ[NAME] == "alice":
        load = functools.wraps(of_everybody)(lambda *_: "alice")
    else:
        load = functools.wraps(of_everybody)(lambda *_: "bob")
    return keep(load)


@view
def one_of_two_helpers_of_a_module(environ: Environ) -> Any:
    helper = alice if environ[NAME] == "alice" else bob
    return keep(lambda: helper())


@view
def one_of_two_classes_of_a_module(environ: Environ) -> Any:
    kind = Alice if environ[NAME] == "alice" else Bob
    return keep(lambda: kind.user)


def alice() -> str:
    return "alice"


def bob() -> str:
    return "bob"


class Alice:
    user = "alice"


class Bob:
    user = "bob"


@view
def a_proxy_of_a_function(environ: Environ) -> Any:
    def name() -> str:
        return str(environ[NAME])

    proxy: Any = LocalProxy(lambda: of_everybody if proxy_is_harmless else name)
    proxy_is_harmless = True
    load = keep(lambda: proxy())
    proxy_is_harmless = False
    return load


@view
def a_proxy_of_a_class(environ: Environ) -> Any:
    class Mine:
        user = environ[NAME]

    proxy: Any = LocalProxy(lambda: Mine)
    return keep(lambda: proxy.user)


@view
def a_function_with_names_of_its_own(environ: Environ) -> Any:
    names: dict[str, Any] = {"environ": environ, "NAME": NAME, "__name__": __name__}
    exec("def load(): return environ[NAME]", names)
    return keep(names["load"])


@view
def a_helper_with_names_of_its_own(environ: Environ) -> Any:
    names: dict[str, Any] = {"environ": environ, "NAME": NAME}
    exec("def helper(): return environ[NAME]", names)
    helper = names["helper"]
    return keep(lambda: helper())


@view
def a_helper_with_the_name_of_another(environ: Environ) -> Any:
    def helper() -> str:
        return str(environ[NAME])

    helper.__qualname__ = helper.__name__ = "of_everybody"
    return keep(lambda: helper())


@view
def a_module_of_the_view(environ: Environ) -> Any:
    module: Any = types.ModuleType("json")
    module.user = environ[NAME]
    return keep(lambda: module.user)


@view
def an_iterator(environ: Environ) -> Any:
    users = iter([environ[NAME]] * 9)
    return keep(lambda: next(users))


@view
def a_context_variable(environ: Environ) -> Any:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    user.set(environ[NAME])
    return keep(lambda: user.get())


@view
def a_weak_reference(environ: Environ) -> Any:
    user = User(environ)
    there = weakref.ref(user)
    return keep(lambda: (there() or user).name())


@view
def a_function_with_a_memory(environ: Environ) -> Any:
    @functools.lru_cache
    def helper() -> str:
        return str(environ[NAME])

    return keep(lambda: helper())


@view
def a_function_with_a_memory_that_is_cached(environ: Environ) -> Any:
    @functools.lru_cache
    def load() -> str:
        return str(environ[NAME])

    return keep(load)


@view
def a_getter(environ: Environ) -> Any:
    class Mine:
        user = environ[NAME]

        def __call__(self) -> str:
            return str(self.user)

    get = Mine()
    return keep(lambda: get())


@view
def a_list_of_functions(environ: Environ) -> Any:
    functions = [environ.get]
    return keep(lambda: functions[0](NAME))


@view
def a_property(environ: Environ) -> Any:
    user = property(lambda _: environ[NAME])
    return keep(lambda: user.fget(None))  # type: ignore[misc]


@view
def an_item_getter_of_the_visitor(environ: Environ) -> Any:
    get = functools.partial(operator.itemgetter(NAME), environ)
    return keep(lambda: get())


@view
def data_of_the_visitor(environ: Environ) -> Any:
    user = environ[NAME]
    return keep(lambda: user)


@view
def a_bound_builtin_of_data_of_the_visitor(environ: Environ) -> Any:
    get = {"user": environ[NAME]}.get
    return keep(lambda: str(get("user")))


@view
def a_method_of_data_of_the_visitor(environ: Environ) -> Any:
    owner = Basket(environ[NAME]).of
    return keep(lambda: owner())


@view
def a_partial_of_data_of_the_visitor(environ: Environ) -> Any:
    owner = functools.partial(of_everybody, text=environ[NAME])
    return keep(lambda: owner())


@pytest.fixture
def visits(make_site: MakeSite, origin: Origin) -> Callable[[View], list[str]]:
    """Visit one view as alice and bob, in turns."""
    site = make_site(revalidate=60)

    def run(make: View) -> list[str]:
        origin.on("/", answer(lambda environ: str(make(environ)()).encode()))
        return [site.visit("/", headers={"Authorization": user}).text for user in USERS]

    return run


USERS = ["alice", "bob", "alice", "bob"]


@pytest.mark.parametrize("name", VIEWS)
def test_nobody_gets_what_a_cached_function_has_of_another_visitor(
    visits: Callable[[View], list[str]], name: str
) -> None:
    found = visits(VIEWS[name])
    assert [text[-5:] if "alice" in text else text[-3:] for text in found] == USERS


# Closures that are the same for everybody -------------------------------------------------------------------


def showing(thing: Any) -> Callable[[], str]:
    return lambda: str(thing)[:0] + "same"


def harmless() -> Iterator[tuple[str, Any]]:
    """Yield functions that are cached, because they close over such values only."""
    number, text, rows = 1, "x", [{"a": (1, None)}]
    yield "numbers", lambda: f"{number}{text}{rows}"
    moment = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
    yield "a date", lambda: moment.isoformat()
    basket, slotted = Basket("shop"), Slotted("shop")
    yield "a dataclass", lambda: basket.owner + slotted.owner
    yield "a method of a dataclass", (lambda of: lambda: of())(basket.of)
    module = json
    yield "a module", lambda: module.dumps(1)
    for name, thing in {
        "a builtin": len,
        "a function of a module": json.dumps,
        "a function of C": dt.datetime.fromtimestamp.__self__,
        "a class": User,
        "a class in a class": threading.Thread,
        "a class method": User.shape,
        "a class method of C": dict.fromkeys,
        "a method that is not bound": str.upper,
        "a slot of a class": str.__len__,
        "a class method that is not bound": vars(dict)["fromkeys"],
        "a bound builtin of data": "x".join,
        "a partial": functools.partial(int, "11", base=2),
        "a cached function": kept_for_everybody,
        "an error": LookupError,
    }.items():
        yield name, showing(thing)

    def helper(x: str = "a", *, y: int = 1) -> str:
        return f"{x}{y}"

    yield "a helper", lambda: helper()
    helper.is_exempt = True  # type: ignore[attr-defined]
    yield "a helper with an attribute", lambda: helper()
    yield "a lambda in a lambda", (lambda inner: lambda: inner()())(lambda: lambda: "same")

    def down(n: int) -> str:
        return up(n - 1) if n else "same"

    def up(n: int) -> str:
        return down(n - 1) if n else "same"

    yield "helpers that call each other", lambda: down(3)

    def load(n: int = 2) -> str:
        return load(n - 1) if n else "same"

    yield "itself", load

    @functools.wraps(load)
    def wrapper(*args: Any) -> Any:
        return load(*args)

    yield "what it wraps", wrapper
    inner = cached(revalidate=60)(lambda: "inner")
    yield "a cached function of the view", (lambda: lambda: inner())()


HARMLESS = [name for name, _ in harmless()]


@pytest.mark.parametrize("name", HARMLESS)
def test_a_function_that_is_the_same_for_everybody_is_kept(
    visits: Callable[[View], list[str]], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def make(environ: Environ) -> Any:
        function = dict(harmless())[name]

        def counted() -> Any:
            record(name)
            return function()

        counted.__qualname__ = f"counted_{name}_{id(calls)}"
        return cached(revalidate=60)(counted)

    RECORDED[name] = calls
    found = visits(make)
    assert (len(set(found)), len(calls)) == (1, 1)
    assert caplog.records == []


RECORDED: dict[str, list[str]] = {}


def record(name: str) -> None:
    RECORDED[name].append("called")


def test_data_of_a_visitor_is_kept_for_that_visitor_alone(visits: Callable[[View], list[str]]) -> None:
    RECORDED["data"] = calls = []

    def make(environ: Environ) -> Any:
        get = {"user": environ[NAME]}.get

        def load() -> str:
            record("data")
            return str(get("user"))

        return keep(load)

    assert visits(make) == USERS
    assert len(calls) == 2


def test_a_result_of_another_visitor_s_function_of_the_same_key_is_not_kept(
    visits: Callable[[View], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two visitors are answered at once. A task then finds the function that the other view made last."""
    others: list[tuple[Any, dict[str, str]]] = []
    use = Functions.use

    def overtaken(self: Functions[Any], function: Any) -> None:
        use(self, function)
        for other, context in others:
            self.add(other)
            context["user"] = "alice"

    def make(environ: Environ) -> Any:
        context: dict[str, str] = {}

        def load() -> str:
            return context.get("user", "nobody")

        made = keep(load)
        if environ[NAME] == "alice":
            others[:] = [(made, context)]
            return lambda: "alice"
        return made

    monkeypatch.setattr(Functions, "use", overtaken)
    assert visits(make) == ["alice", "nobody", "alice", "nobody"]


def test_the_warning_names_what_a_function_closes_over(
    visits: Callable[[View], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wsgi_isr.data"):
        visits(a_bound_builtin)
        visits(a_default_of_a_helper)
        visits(a_dict_that_is_filled_later)
        visits(a_name_that_is_defined_later)
    text = caplog.text
    made, remedy = "is not kept: it is made in a view with", "; pass that as an argument"
    assert f"a_bound_builtin.<locals>.<lambda> {made} the object of get, a dict{remedy}" in text
    assert f"{made} the object of helper: get=, a dict{remedy}" in text
    assert f"is not kept: what it closes over has changed since a view made it{remedy}" in text
    assert f"{made} user, which is not defined yet{remedy}" in text


# Digests ------------------------------------------------------------------------------------------------


SCRIPT = """
from wsgi_isr.data.closure import closure_of

def make(n):
    def helper(x=(1, "a", None), *, y=frozenset({3, 4})):
        return x in {"a", "b", "c", "d", 1.5, None} and n
    return lambda: (helper(), len, dict, {"e", "f"})

print(closure_of(make(1)).digest, closure_of(make(2)).digest)
"""


def test_a_closure_has_the_same_digest_in_every_process() -> None:
    shown = set()
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-c", SCRIPT]
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        shown.add(subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout)
    (digests,) = shown
    assert len(set(digests.split())) == 2


def test_a_function_that_holds_nothing_has_no_digest() -> None:
    assert closure_of(of_everybody.__class__(of_everybody.__code__, globals())) == ("", "")
    assert closure_of(len) == closure_of(str.upper) == ("", "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: 1, lambda: 2),
        (lambda: 1, lambda: True),
        (lambda: "a", lambda: b"a"),
        (lambda x: x.a, lambda x: x.b),
        (lambda x: x in {1, 2}, lambda x: x in {1, 3}),
        (lambda: lambda: 1, lambda: lambda: 2),
        (lambda x=1: x, lambda x=2: x),
        (json.dumps, json.loads),
        (len, sum),
        (str.upper, str.lower),
        (dict, list),
        (dict.fromkeys, int.from_bytes),
        ("a".join, "b".join),
        ("a".join, "a".split),
        (functools.partial(int, "1"), functools.partial(int, "2")),
        (functools.partial(int, base=2), functools.partial(int, base=8)),
        (Basket("a").of, Basket("b").of),
        (User.shape, len),
        (json, types),
        (kept_for_everybody, cached(lambda: "another")),
    ],
)
def test_functions_that_differ_in_what_they_close_over_have_other_digests(one: Any, other: Any) -> None:
    def make(thing: Any) -> Any:
        return lambda: thing

    assert closure_of(make(one)).digest != closure_of(make(other)).digest
