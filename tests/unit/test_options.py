"""The kinds of option values: accepted values, their form as text, and error messages."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsgi_isr.config import options as o
from wsgi_isr.errors import ConfigError

KINDS = {name: kind for name, kind in vars(o).items() if name.isupper() and isinstance(kind, o.Kind)} | {
    "CHOICE": o.choice("bypass", "ignore", "key")
}


def double(value: str) -> str:
    return value * 2


GOOD: list[tuple[str, Any, Any]] = [
    ("LIFETIME", 60, 60),
    ("LIFETIME", 0.5, 0.5),
    ("LIFETIME", 0, 0),
    ("LIFETIME", False, False),
    ("LIFETIME", "hours", "hours"),
    ("SECONDS", 0, 0),
    ("SECONDS", 1.5, 1.5),
    ("PERIOD", 0.001, 0.001),
    ("PERIOD", 3600, 3600),
    ("SIZE", 1, 1),
    ("SIZE", 8 << 20, 8 << 20),
    ("COUNT", 4, 4),
    ("NAMES", [], ()),
    ("NAMES", ["q", "page"], ("q", "page")),
    ("NAMES", ("q", "q", "a"), ("q", "a")),
    ("NAMES", iter(["q"]), ("q",)),
    ("HEADERS", ["Accept-Language"], {"Accept-Language": None}),
    ("HEADERS", {"Accept-Language": double, "X-Device": None}, {"Accept-Language": double, "X-Device": None}),
    ("HEADERS", (), {}),
    ("TAGS", ["a,b", "\u00e9 "], ("a,b", "\u00e9 ")),
    ("TAGS", [], ()),
    ("TAGS", double, double),
    ("STATUSES", [404, 200, 200], (200, 404)),
    ("STATUSES", {204}, (204,)),
    ("TEXT", "site", "site"),
    ("FLAG", True, True),
    ("FLAG", False, False),
    ("CALLABLE", double, double),
    ("CHOICE", "ignore", "ignore"),
]

BAD: list[tuple[str, Any]] = [
    *[("LIFETIME", value) for value in (True, -1, "", None, [60], math.nan, math.inf, b"hours")],
    *[("SECONDS", value) for value in (-0.1, "60", True, False, None, math.nan, -math.inf)],
    *[("PERIOD", value) for value in (0, -1, 0.0001, "60", True, math.inf)],
    *[("SIZE", value) for value in (0, -1, 1.5, "8MiB", True)],
    *[("COUNT", value) for value in (0, -4, 1.0, "4", True)],
    *[("NAMES", value) for value in ("page", 7, [""], [1], b"ab", [None], None)],
    *[("HEADERS", value) for value in ("Accept", 7, [""], {"": None}, {1: None}, {"Accept": "en"})],
    # "*" is no header name. Declared, it would allow to store `Vary: *`, which must never be stored.
    *[("HEADERS", value) for value in (["*"], ["Accept Language"], ["Accept:"], ["Acc\xe9nt"])],
    *[("STATUSES", value) for value in (200, "200", ["200"], [True], [199], [500], [206], [304], [429], b"\xc8")],
    *[("TAGS", value) for value in ("posts", 7, [""], [1], None)],
    *[("TEXT", value) for value in ("", 7, None, b"x")],
    *[("FLAG", value) for value in (1, 0, "true", None)],
    *[("CALLABLE", value) for value in ("f", 7, None)],
    *[("CHOICE", value) for value in ("", "Ignore", None, 1, ["key"])],
]

TEXTS: list[tuple[str, str, Any]] = [
    ("LIFETIME", "60", 60),
    ("LIFETIME", "0", 0),
    ("LIFETIME", "0.5", 0.5),
    ("LIFETIME", "False", False),
    ("LIFETIME", "no", False),
    ("LIFETIME", "hours", "hours"),
    ("SECONDS", "10", 10),
    ("SECONDS", "1e3", 1000.0),
    ("PERIOD", " 2.5 ", 2.5),
    ("SIZE", "8388608", 8 << 20),
    ("SIZE", "8MiB", 8 << 20),
    ("SIZE", "8 mib", 8 << 20),
    ("SIZE", "64k", 64 << 10),
    ("SIZE", "1GiB", 1 << 30),
    ("SIZE", "10b", 10),
    ("COUNT", "4", 4),
    ("NAMES", "q, page", ("q", "page")),
    ("NAMES", "q", ("q",)),
    ("NAMES", "", ()),
    ("NAMES", ",", ()),
    ("HEADERS", "Accept-Language,X-Device", ("Accept-Language", "X-Device")),
    ("TAGS", "posts, post:{id}", ("posts", "post:{id}")),
    ("STATUSES", "200, 404", (200, 404)),
    ("TEXT", "site", "site"),
    ("FLAG", "1", True),
    ("FLAG", "Yes", True),
    ("FLAG", "off", False),
    ("CHOICE", "key", "key"),
]

BAD_TEXTS: list[tuple[str, str]] = [
    ("LIFETIME", ""),
    ("LIFETIME", "60s"),
    ("SECONDS", "soon"),
    ("SECONDS", ""),
    ("PERIOD", "1,5"),
    ("SIZE", "8MB"),
    ("SIZE", "1.5m"),
    ("SIZE", "MiB"),
    ("SIZE", ""),
    ("SIZE", "-8"),
    ("COUNT", "-1"),
    ("COUNT", "4.0"),
    ("COUNT", ""),
    ("COUNT", "\xb2"),
    ("COUNT", "9" * 5000),
    ("SIZE", "9" * 5000),
    ("STATUSES", "200,ok"),
    ("FLAG", "maybe"),
    ("FLAG", ""),
]


@pytest.mark.parametrize(("kind", "value", "result"), GOOD)
def test_a_possible_value_is_taken(kind: str, value: Any, result: Any) -> None:
    checked = KINDS[kind].check("x", value)
    assert checked == result
    assert type(checked) is type(result)


@pytest.mark.parametrize(("kind", "value"), BAD)
def test_an_impossible_value_is_refused_by_name_and_remedy(kind: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        KINDS[kind].check("the_option", value)
    assert caught.value.option.startswith("the_option")
    assert caught.value.problem
    assert caught.value.remedy
    assert str(caught.value).startswith("the_option")


@pytest.mark.parametrize(("kind", "text", "result"), TEXTS)
def test_text_is_read_as_the_value_it_stands_for(kind: str, text: str, result: Any) -> None:
    parse = KINDS[kind].parse
    assert parse is not None
    value = parse("x", text)
    assert value == result
    assert type(value) is type(result)
    KINDS[kind].check("x", value)


@pytest.mark.parametrize(("kind", "text"), BAD_TEXTS)
def test_text_that_stands_for_nothing_is_refused_by_name_and_remedy(kind: str, text: str) -> None:
    parse = KINDS[kind].parse
    assert parse is not None
    with pytest.raises(ConfigError) as caught:
        KINDS[kind].check("WSGI_ISR_X", parse("WSGI_ISR_X", text))
    assert caught.value.option == "WSGI_ISR_X"
    assert caught.value.remedy


@given(st.sampled_from(sorted(name for name, kind in KINDS.items() if kind.parse)), st.text(max_size=12))
@example("COUNT", "\xb2")
@example("SIZE", "\u0663k")
@example("LIFETIME", "nan")
@example("SECONDS", "inf")
def test_any_text_is_either_a_possible_value_or_a_config_error(kind: str, text: str) -> None:
    parse = KINDS[kind].parse
    assert parse is not None
    try:
        value = KINDS[kind].check("x", parse("x", text))
    except ConfigError:
        return
    if isinstance(value, (int, float)):
        assert math.isfinite(value)
        assert value >= 0


@given(
    st.sampled_from(sorted(KINDS)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=2),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=4,
    ),
)
def test_any_value_is_either_taken_or_a_config_error(kind: str, value: Any) -> None:
    try:
        checked = KINDS[kind].check("x", value)
    except ConfigError:
        return
    assert KINDS[kind].check("x", checked) == checked


def test_the_error_for_an_unknown_name_suggests_the_nearest() -> None:
    assert o.unknown("revaldate", ["revalidate", "expire"]).remedy == "did you mean revalidate?"
    assert o.unknown("zzz", ["revalidate", "expire"]).remedy == "known: expire, revalidate"


def test_config_errors_survive_a_copy_between_processes() -> None:
    make, arguments = ConfigError("expire", "is wrong", "mend it").__reduce__()
    again = make(*arguments)
    assert (again.option, again.problem, again.remedy, str(again)) == (
        "expire",
        "is wrong",
        "mend it",
        "expire: is wrong (mend it)",
    )
