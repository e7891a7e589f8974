"""The codec of data.

Decoding returns the encoded value with its types. Different values have different bytes. No bytes of a store run code.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import sys
import typing
import uuid
from dataclasses import InitVar, dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_isr.data import codec
from wsgi_isr.data.codec import Types, Unencodable, allow_all, encode

T = TypeVar("T")


def decode(data: bytes, allows: Any = allow_all) -> Any:
    return codec.decode(data, allows)


BERLIN = ZoneInfo("Europe/Berlin")


@dataclass(frozen=True)
class Point:
    x: Any
    y: Any = 0


@dataclass(frozen=True)
class Place(Point):
    name: str = ""


@dataclass(slots=True)
class Slotted:
    text: Any


@dataclass(kw_only=True)
class Box(Generic[T]):
    content: T


@dataclass
class Priced:
    net: float
    gross: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.gross = self.net * 2


class Outer:
    @dataclass(frozen=True)
    class Inner:
        value: Any


# Values that can be cached ------------------------------------------------------------------------------

OFFSETS = st.timedeltas(dt.timedelta(hours=-23, minutes=-59), dt.timedelta(hours=23, minutes=59))
ZONES = (
    st.none()
    | st.just(dt.timezone.utc)
    | st.builds(dt.timezone, OFFSETS)
    | st.builds(dt.timezone, OFFSETS, st.text(max_size=4))
    | st.sampled_from([BERLIN, ZoneInfo("UTC"), ZoneInfo("America/St_Johns")])
)
FOLDS = st.integers(0, 1)


def folded(value: Any, fold: int) -> Any:
    return value.replace(fold=fold)


ANY_TEXT = st.text(st.characters(), max_size=12) | st.text(st.characters(categories=["Cs"]), max_size=2)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64])
    | st.floats(allow_nan=False)
    | ANY_TEXT
    | st.binary(max_size=12)
    | st.builds(folded, st.datetimes(timezones=ZONES, allow_imaginary=True), FOLDS)
    | st.dates()
    | st.builds(folded, st.times(timezones=ZONES), FOLDS)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
HASHABLE = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(Point, inner, inner)
        | st.builds(Place, inner, name=ANY_TEXT)
        | st.builds(Outer.Inner, inner)
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
        | st.builds(Slotted, inner)
        | st.builds(Box, content=inner)
    ),
    max_leaves=8,
)


def shape(value: Any) -> Any:
    """Return the value with every type in it at any depth, and with all differences that equality overlooks."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [shape(item) for item in value]
    if kind is dict:
        return kind, [(shape(name), shape(item)) for name, item in value.items()]
    if kind in (set, frozenset):
        return kind, sorted((shape(item) for item in value), key=repr)
    if hasattr(value, "__dataclass_fields__"):
        return kind, [(name, shape(getattr(value, name))) for name in value.__dataclass_fields__]
    return kind, ascii(value) if kind is not int else hex(value)


@given(VALUES)
def test_what_goes_in_comes_out_as_what_it_was(value: Any) -> None:
    assert shape(decode(encode(value))) == shape(value)


@given(VALUES)
def test_a_key_can_be_read_back_as_well_but_for_the_order_in_dicts(value: Any) -> None:
    assert decode(encode(value, key=True)) == value


@given(VALUES, VALUES)
def test_different_values_have_different_keys(one: Any, other: Any) -> None:
    if shape(one) != shape(other) and encode(one, key=True) == encode(other, key=True):
        assert one == other  # then they differ only in the order of a dict
        assert encode(one) != encode(other)


@given(st.dictionaries(HASHABLE, VALUES, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_a_dict_does_not_count_in_a_key_and_is_kept_in_a_value(value: dict[Any, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    other = dict(items)
    assert encode([other], key=True) == encode([value], key=True)
    assert list(decode(encode(other))) == list(other)


@given(st.lists(HASHABLE, max_size=6), st.randoms(use_true_random=False))
def test_the_order_in_which_a_set_was_filled_never_counts(items: list[Any], random: Any) -> None:
    other = list(items)
    random.shuffle(other)
    if shape(set(items)) == shape(set(other)):  # of 1 and True, the first stays
        assert encode(set(items)) == encode(set(other))


@pytest.mark.parametrize("text", ["nan", "-nan", "snan", "NaN123", "-0", "1.0", "1.00", "1E+5", "Infinity"])
def test_a_decimal_keeps_its_digits(text: str) -> None:
    assert str(decode(encode(decimal.Decimal(text)))) == str(decimal.Decimal(text))


def test_a_number_too_long_to_be_written_in_decimal_digits_comes_back() -> None:
    assert (decode(encode(-(10**5000))) == -(10**5000)) is True


def test_a_float_that_is_no_number_comes_back() -> None:
    again = decode(encode([float("nan"), -0.0]))
    assert [repr(item) for item in again] == ["nan", "-0.0"]


# Keys ---------------------------------------------------------------------------------------------------

MOMENT = dt.datetime(2024, 10, 27, 2, 30)  # noqa: DTZ001 - the clock shows it twice, and says not where
ALIKE: list[list[Any]] = [
    [1, True, 1.0, "1", b"1", decimal.Decimal(1), decimal.Decimal("1.0"), 2**64 + 1],
    [0, False, 0.0, -0.0, "", b"", None, (), [], {}, set(), frozenset()],
    [(1,), [1], {1}, frozenset({1}), {1: None}, [(1,)], ([1],), [[1]]],
    [(1, 2), (12,), ((1, 2),), ((1,), 2), (1, (2,)), ("1", 2)],
    ["a", b"a", ["a"], ("a",), {"a"}, {"a": "a"}, {"a": b"a"}],
    [
        *(MOMENT, MOMENT.replace(fold=1), MOMENT.replace(tzinfo=dt.timezone.utc), MOMENT.isoformat()),
        *(MOMENT.replace(tzinfo=BERLIN), MOMENT.replace(tzinfo=BERLIN, fold=1), MOMENT.date(), MOMENT.time()),
        *(MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(hours=2))), MOMENT.replace(tzinfo=ZoneInfo("UTC"))),
        MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
    ],
    [
        *(dt.time(2, 30), dt.time(2, 30, fold=1), dt.time(2, 30, tzinfo=dt.timezone.utc)),
        *(dt.time(2, 30, tzinfo=BERLIN), dt.time(2, 30, tzinfo=ZoneInfo("UTC"))),
    ],
    [Point(1, 2), Place(1, 2), Outer.Inner(1), {"x": 1, "y": 2}, (1, 2), Point(1, 2.0), Point(True, 2)],
    [uuid.UUID(int=1), str(uuid.UUID(int=1)), uuid.UUID(int=1).bytes, 1],
    [dt.timedelta(1), [1, 0, 0], 86400, dt.timedelta(seconds=1)],
]


@pytest.mark.parametrize("alike", ALIKE, ids=lambda alike: repr(alike[0]))
def test_what_looks_alike_has_keys_of_its_own(alike: list[Any]) -> None:
    keys = [encode(value, key=True) for value in alike]
    assert len(set(keys)) == len(alike)


def test_a_field_that_the_constructor_does_not_take_is_part_of_the_key() -> None:
    one, other = Priced(1.0), Priced(1.0)
    other.gross = 3.0
    assert encode(one, key=True) != encode(other, key=True)


# Dataclasses --------------------------------------------------------------------------------------------


def test_fields_come_back_as_they_were_whatever_post_init_makes_of_them() -> None:
    value = Priced(1.0)
    value.gross = 7.0
    again = decode(encode(value))
    assert type(again) is Priced
    assert (again.net, again.gross) == (1.0, 7.0)


def rename(value: Any, name: str, **fields: Any) -> bytes:
    """Return the bytes of a dataclass, with another name."""
    packed: bytes = msgpack.packb([name, msgpack.ExtType(2, msgpack.packb([list(pair) for pair in fields.items()]))])
    assert encode(value) == ext(5, encode_name(value, fields)), "this helper no longer builds what encode() does"
    return ext(5, packed)


def encode_name(value: Any, fields: dict[str, Any]) -> bytes:
    kind = type(value)
    pairs = msgpack.ExtType(2, msgpack.packb([list(pair) for pair in fields.items()]))
    packed: bytes = msgpack.packb([f"{kind.__module__}:{kind.__qualname__}", pairs])
    return packed


def ext(code: int, data: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


@pytest.mark.parametrize(
    "name",
    [
        f"{__name__}:Gone",
        f"{__name__}:encode",
        f"{__name__}:T",
        f"{__name__}:sys.modules",
        f"{__name__}:",
        "os:system",
        "builtins:dict",
        "subprocess:Popen",
        "no.such.module:Point",
        "Point",
        "",
    ],
)
def test_a_name_that_is_no_dataclass_of_this_process_is_damage(name: str) -> None:
    with pytest.raises(ValueError, match="dataclass"):
        decode(rename(Point(1, 2), name, x=1, y=2))


@pytest.mark.parametrize("fields", [{"x": 1}, {"x": 1, "y": 2, "z": 3}, {"x": 1, "z": 2}, {}])
def test_a_dataclass_that_has_other_fields_by_now_is_damage(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="fields"):
        decode(ext(5, encode_name(Point(1, 2), fields)))


def test_nothing_is_imported_to_read_a_value() -> None:
    sys.modules.pop("this", None)
    with pytest.raises(ValueError):
        decode(rename(Point(1, 2), "this:Point", x=1, y=2))
    assert "this" not in sys.modules


def test_a_module_that_makes_its_names_on_demand_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    module = ModuleType("lazy_for_this_test")
    module.__dict__["__getattr__"] = lambda name: asked.append(name) or Point
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError):
        decode(rename(Point(1, 2), "lazy_for_this_test:Point", x=1, y=2))
    assert asked == []


CALLED: list[str] = []


@dataclass
class Loud:
    """A dataclass that records every call of its methods."""

    x: Any
    made: Any = field(init=False, default="made")

    def __post_init__(self) -> None:
        CALLED.append("__post_init__")

    def __setattr__(self, name: str, value: Any) -> None:
        CALLED.append("__setattr__")
        object.__setattr__(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        CALLED.append("__getattribute__")
        return object.__getattribute__(self, name)

    def __eq__(self, other: object) -> bool:
        CALLED.append("__eq__")
        return NotImplemented


@dataclass
class Handmade:
    x: Any

    def __init__(self, x: Any) -> None:
        CALLED.append("__init__")
        self.x = x


@pytest.mark.parametrize("value", [Loud(1), [Loud([Handmade(2)])], {"a": (Handmade(Loud(3)),)}], ids=str)
def test_no_code_of_a_dataclass_is_called_to_make_it(value: Any) -> None:
    packed = encode(value)
    CALLED.clear()
    again = decode(packed)
    assert CALLED == []
    assert encode(again) == packed


@dataclass(slots=True)
class SlottedPlace(Slotted):
    name: str = "here"
    made: int = field(init=False, default=7)


@dataclass(frozen=True, slots=True)
class FrozenSlotted:
    x: Any
    y: Any = field(default_factory=list)


class PlainBase:
    limit: int = 3


@dataclass
class OnPlain(PlainBase):
    x: Any = None


@dataclass(kw_only=True, frozen=True, order=True)
class Ordered(Point):
    rank: int = 0


@pytest.mark.parametrize(
    "value",
    [
        *(SlottedPlace("a"), FrozenSlotted(1), FrozenSlotted(1, [2]), OnPlain(1), Ordered(1, rank=2)),
        *(Priced(2.0), Box(content=Box(content=1)), Place(1, 2, "a"), Outer.Inner(OnPlain())),
    ],
    ids=repr,
)
def test_a_dataclass_of_any_form_comes_back_with_exactly_its_fields(value: Any) -> None:
    again = decode(encode(value))
    assert type(again) is type(value)
    assert shape(again) == shape(value)
    assert getattr(again, "__dict__", None) == getattr(value, "__dict__", None)


def test_what_else_an_object_holds_is_not_kept() -> None:
    value: Any = OnPlain(1)
    value.more = 2
    assert vars(decode(encode(value))) == {"x": 1}


class Shouting:
    """A descriptor, as the documentation of dataclasses has one."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        return 0

    def __set__(self, instance: Any, value: Any) -> None:
        CALLED.append("__set__")


@dataclass
class Described:
    x: int = Shouting()  # type: ignore[assignment]


@dataclass
class WithProperty:
    x: int

    @property  # type: ignore[no-redef]
    def x(self) -> int:
        return 1

    @x.setter
    def x(self, value: int) -> None:
        CALLED.append("property")


@pytest.mark.parametrize("kind", [Described, WithProperty])
def test_a_field_whose_assignment_runs_code_is_refused_in_both_directions(kind: Any) -> None:
    value = kind(1)
    CALLED.clear()
    with pytest.raises(Unencodable, match="its field x is a"):
        encode(value)
    with pytest.raises(ValueError, match="its field x is a"):
        decode(ext(5, encode_name(value, {"x": 1})))
    assert CALLED == []


# Which dataclasses a store may name -----------------------------------------------------------------------

MODELS = """
from __future__ import annotations
import dataclasses, typing
from dataclasses import dataclass

@dataclass
class Base: x: object = None
@dataclass
class Sub(Base): pass
class Plain: pass
@dataclass
class OnPlain(Plain): x: object = None
@dataclass
class Author: x: object = None
@dataclass
class Cover: x: object = None
@dataclass
class Comment:
    x: object = None
    replies: list[Comment] = ()
@dataclass
class Post:
    x: object = None
    author: Author | None = None
    comments: typing.Sequence["Comment"] = ()
    covers: dict[str, tuple[Cover, ...]] = ()
@dataclass
class Stranger: x: object = None
@dataclass
class Box(typing.Generic[typing.TypeVar("T")]): x: object = None
class Row(typing.TypedDict): cover: Cover
Rows = typing.NewType("Rows", list)
PostId = typing.NewType("PostId", Base)
class Outer:
    @dataclass
    class Inner: x: object = None
def load(): return Stranger()
"""


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Yield another module of the app. None of its values has been encoded yet."""
    module = ModuleType("models_of_this_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(MODELS, vars(module))
    return module


def function_of(source: str, **names: Any) -> Any:
    """Return the function ``f`` of a module that has these names."""
    module = ModuleType("app_of_this_test")
    vars(module).update(names)
    exec(source, vars(module))
    return vars(module)["f"]


def stored(kind: Any) -> bytes:
    """Return an instance as another program would write it: this process has encoded none."""
    names = [f.name for f in dataclasses.fields(kind)]
    pairs = msgpack.ExtType(2, msgpack.packb([[name, None] for name in names]))
    return ext(5, msgpack.packb([f"{kind.__module__}:{kind.__qualname__}", pairs]))


def allowed(function: Any, models: ModuleType) -> set[str]:
    """Return the dataclasses of ``models`` that a stored result of ``function`` may be of."""
    types, found = Types(function), set()
    for kind in [*vars(models).values(), models.Outer.Inner]:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            try:
                decode(stored(kind), types.allows)
            except ValueError:
                continue
            found.add(kind.__qualname__)
    return found


def test_a_dataclass_that_is_not_allowed_is_named_with_what_to_write(models: ModuleType) -> None:
    said = r"models_of_this_test:Outer\.Inner is not allowed: .*; annotate the result, such as -> Outer\.Inner"
    with pytest.raises(ValueError, match=said):
        decode(stored(models.Outer.Inner), Types(function_of("def f(): ...")).allows)


WITH_POST = {"Post", "Author", "Comment", "Cover"}


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("() -> None", set()),
        ("() -> object", set()),
        ("() -> Any", set()),
        ("()", set()),
        ("() -> m.Cover", {"Cover"}),
        ("() -> 'm.Cover'", {"Cover"}),
        ("() -> m.Post", WITH_POST),
        ("() -> m.Base", {"Base", "Sub"}),
        ("() -> m.Sub", {"Sub"}),
        ("() -> m.Plain", {"OnPlain"}),
        ("() -> m.Comment", {"Comment"}),
        ("() -> m.Outer.Inner", {"Outer.Inner"}),
        ("() -> Optional[m.Cover]", {"Cover"}),
        ("() -> m.Cover | None", {"Cover"}),
        ("() -> 'm.Cover | None'", {"Cover"}),
        ("() -> Union[m.Cover, m.Author, None]", {"Cover", "Author"}),
        ("() -> list[m.Cover]", {"Cover"}),
        ("() -> list['m.Cover']", {"Cover"}),
        ("() -> List['m.Cover']", {"Cover"}),
        ("() -> dict[str, list[tuple[m.Cover, ...]]]", {"Cover"}),
        ("() -> dict[m.Author, int]", {"Author"}),
        ("() -> Annotated[m.Cover, 'm.Stranger']", {"Cover"}),
        ("() -> Literal['m.Stranger']", set()),
        ("() -> T", {"Cover"}),
        ("() -> m.Box[m.Cover]", {"Box", "Cover"}),
        ("() -> m.Row", {"Cover"}),
        ("() -> m.PostId", {"Base", "Sub"}),
        ("() -> Alias", {"Cover"}),
        (
            "(a: m.Cover, *b: m.Author, c: 'm.Base' = None, **d: m.OnPlain)",
            {"Cover", "Author", "Base", "Sub", "OnPlain"},
        ),
        ("(a: missing.Thing) -> m.Cover", {"Cover"}),
        ("(a: 'missing.Thing') -> 'm.Cover'", {"Cover"}),
        ("() -> '1 +'", set()),
        ("() -> 5", set()),
    ],
)
def test_an_annotation_names_the_dataclasses_of_a_result(
    models: ModuleType, signature: str, expected: set[str]
) -> None:
    names = {name: getattr(typing, name) for name in ("Any", "Optional", "Union", "List", "Annotated", "Literal")}
    names |= {"T": TypeVar("T", bound="m.Cover")}  # noqa: F821
    names |= {"Alias": dict[str, "list[Alias] | m.Cover"]}  # noqa: F821
    # The name is not that of its module, and it is no module: nothing is imported.
    holder = SimpleNamespace(**vars(models))
    future = "from __future__ import annotations\n" if "missing" in signature else ""
    assert allowed(function_of(f"{future}def f{signature}: ...", m=holder, **names), models) == expected


def test_a_module_names_the_dataclasses_that_it_defines_or_imports(models: ModuleType) -> None:
    assert allowed(function_of("def f(): ..."), models) == set()
    assert allowed(function_of("def f(): ...", Thing=models.Post), models) == {"Post"}
    assert allowed(function_of("def f(): ...", Outer=models.Outer), models) == {"Outer.Inner"}
    assert len(allowed(function_of("def f(): ...", models=models), models)) == 10
    assert len(allowed(models.load, models)) == 10
    # A function of another module does not allow the other names of that module.
    assert allowed(function_of("def f(): ...", load=models.load), models) == set()


def test_a_dataclass_that_this_process_has_encoded_is_known(models: ModuleType) -> None:
    function = function_of("def f(): ...")
    assert allowed(function, models) == set()
    encode([models.Cover()])
    assert allowed(function, models) == {"Cover"}


def test_a_wrapped_function_is_annotated_in_its_own_module(models: ModuleType) -> None:
    function = function_of("def f() -> 'm.Cover': ...", m=SimpleNamespace(**vars(models)))

    @functools.wraps(function)
    def wrapper() -> Any: ...

    assert allowed(wrapper, models) == {"Cover"}


def test_a_class_that_is_the_function_itself_is_allowed(models: ModuleType) -> None:
    assert allowed(models.Post, models) == WITH_POST


@pytest.mark.parametrize("function", [len, str.upper, int])
def test_a_function_without_a_module_of_its_own_allows_nothing(models: ModuleType, function: Any) -> None:
    assert allowed(function, models) == set()


@pytest.mark.parametrize("name", ["Rule", "Settings", "Entry", "CacheDirectives"])
def test_a_class_of_this_package_is_allowed_only_where_an_annotation_names_it(name: str) -> None:
    import wsgi_isr
    from wsgi_isr.cache import entry, verdict
    from wsgi_isr.config import policy, settings

    (kind,) = [getattr(module, name) for module in (settings, entry, verdict, policy) if name in vars(module)][:1]
    modules = {"wsgi_isr": wsgi_isr, "config": settings, "entry": entry, "policy": policy, name: kind}
    assert not Types(function_of("def f(): ...", **modules)).allows(kind)
    assert not Types(policy.check_templates).allows(kind)
    assert Types(function_of(f"def f() -> {name}: ...", **modules)).allows(kind)


class Proxy:
    """A proxy for another object, as a framework's ``request`` is."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        CALLED.append("__class__")
        return type

    def __getattr__(self, name: str) -> Any:
        CALLED.append(name)
        return Point


class LazyModule(ModuleType):
    def __getattribute__(self, name: str) -> Any:
        CALLED.append(name)
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("name", ["lazy_for_this_test:x.Point", "lazy_for_this_test:Point"])
def test_a_name_of_a_store_runs_no_code_of_proxies_and_lazy_modules(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = LazyModule("lazy_for_this_test")
    monkeypatch.setitem(sys.modules, "lazy_for_this_test", module)
    vars(module)["x"] = Proxy()
    CALLED.clear()
    with pytest.raises(ValueError, match="is not a dataclass"):
        decode(rename(Point(1, 2), name, x=1, y=2))
    assert CALLED == []


# Values that cannot be cached ---------------------------------------------------------------------------


class Subclass(int):
    pass


class Named(NamedTuple):
    x: int


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


class Zone(dt.tzinfo):
    pass


@dataclass
class Needy:
    x: int
    y: InitVar[int]


@dataclass
class Listing(list):  # type: ignore[type-arg]
    x: int = 0


def local() -> Any:
    @dataclass
    class Local:
        x: int = 1

    return Local()


UNKNOWN = {
    "object": object(),
    "test_codec.Subclass": Subclass(1),
    "Named": Named(1),
    "Colour": Colour.RED,
    "Number": Number.ONE,
    "function": encode,
    "type": Point,
    "bytearray": bytearray(b"x"),
    "memoryview": memoryview(b"x"),
    "complex": 1j,
    "range": range(3),
    "generator": (n for n in range(3)),
    "ExtType": msgpack.ExtType(1, b""),
    "Zone": dt.datetime(2024, 1, 1, tzinfo=Zone()),
    "Needy": Needy(1, 2),
    "Listing": Listing(),
    "Local": local(),
}


@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("place", ["alone", "deep inside"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_kept_is_named(name: str, place: str, key: bool) -> None:
    value = UNKNOWN[name]
    with pytest.raises(Unencodable, match=name):
        encode(value if place == "alone" else {"a": [(Point(value, 1),)]}, key=key)


def test_a_cycle_is_an_error_and_not_the_end_of_the_stack() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(Unencodable, match="cycle"):
        encode(cycle)


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def test_what_is_nested_as_deep_as_allowed_comes_back() -> None:
    assert decode(encode(nested(64))) == nested(64)
    with pytest.raises(Unencodable):
        encode(nested(65))


# Damage -------------------------------------------------------------------------------------------------


def only_value_error(data: bytes) -> None:
    try:
        decode(data)
    except ValueError:
        pass


@given(st.binary(max_size=60))
def test_any_bytes_at_all_are_a_value_or_a_value_error(data: bytes) -> None:
    only_value_error(data)


@given(VALUES, st.data())
def test_damaged_bytes_are_a_value_or_a_value_error(value: Any, data: st.DataObject) -> None:
    packed = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    only_value_error(bytes(packed))


@given(VALUES)
def test_bytes_that_were_cut_short_are_a_value_error(value: Any) -> None:
    packed = encode(value)
    for length in {0, len(packed) // 2, len(packed) - 1}:
        with pytest.raises(ValueError):
            decode(packed[:length])


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, *range(10, 17), 99])
@pytest.mark.parametrize("inside", [None, 1, "x", [], [1], [[1]], [None, None, None], b"x", {"a": 1}, [[[], 1]]])
def test_a_type_with_contents_of_another_is_a_value_or_a_value_error(code: int, inside: Any) -> None:
    only_value_error(ext(code, msgpack.packb(inside)))


@pytest.mark.parametrize("zone", ["", "Nowhere/Atlantis", "../../etc/passwd", "/etc/passwd", "Europe", "\0"])
def test_a_time_zone_that_is_not_there_is_a_value_error(zone: str) -> None:
    with pytest.raises(ValueError):
        decode(ext(11, msgpack.packb(["2024-01-01T00:00:00", 0, zone])))


def test_bytes_nested_without_end_are_a_value_error() -> None:
    data = b"\xc0"
    for _ in range(2000):
        data = ext(10, data)
    with pytest.raises(ValueError):
        decode(data)
    with pytest.raises(ValueError):
        decode(b"\x91" * 100_000)
