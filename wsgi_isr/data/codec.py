"""Encode Python values as bytes, and decode them: msgpack with extension types, and no pickle.

With ``key=True`` equal values have equal bytes (mappings are sorted), so the bytes serve as keys. A value of an
unknown type raises an error that names the type. No value is decoded as another type.

The bytes of a dataclass instance hold the name of its class. A program that can write to a store can write any name. So
the decoder sets the fields without a call of the constructor. The decoder makes only dataclasses that the cached
function expects (:class:`Types`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgpack

_MAX_NESTING = 64  # levels of nesting; deeper values are cycles, or no data
_UNICODE = "surrogatepass"  # a file name may hold surrogates, which UTF-8 lacks


class Unencodable(TypeError):
    """A value cannot be encoded; the message names its type."""


def encode(value: Any, *, key: bool = False, whole: bool = False) -> bytes:
    """Return the bytes of a value.

    The value consists of None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, date, time, datetime,
    timedelta, Decimal, UUID and dataclasses.

    :param key: give equal values equal bytes: the order of a mapping's keys does not count.
    :param whole: refuse a dataclass with attributes that are no fields. By default these attributes are left out.
    :raises Unencodable: the value holds another type.
    """
    return _pack(_to_msgpack(value, 0, key, whole))


Allows = Callable[[type], bool]


def decode(data: bytes, allows: Allows) -> Any:
    """Return the value that :func:`encode` has encoded. No code of a dataclass is called.

    :param allows: returns whether a dataclass may be made: :meth:`Types.allows`, or :func:`allow_all` for bytes that
        have never been in a store.
    :raises ValueError: the bytes are damaged; or a dataclass is missing in this process, has other fields, or is not
        allowed.
    """
    return _unpack(data, 0, allows)


def allow_all(kind: type) -> bool:
    """Return ``True`` for every dataclass. The bytes must come from a process of this site."""
    return True


def _unpack(data: bytes, depth: int, allows: Allows) -> Any:
    if depth > _MAX_NESTING + 1:
        raise ValueError("nested too deeply")  # damaged bytes may overflow the stack of C

    def restore(code: int, inner: bytes) -> Any:
        return _restore(code, _unpack(inner, depth + 1, allows), allows)

    try:
        return msgpack.unpackb(data, ext_hook=restore, use_list=True, unicode_errors=_UNICODE)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _to_msgpack(value: Any, depth: int, key: bool, whole: bool) -> Any:
    """Return the value in the types of msgpack. Subclasses of these types are refused: additions would be lost."""
    if depth > _MAX_NESTING:
        raise Unencodable("nested too deeply, or in a cycle")

    def plain(item: Any) -> Any:
        return _to_msgpack(item, depth + 1, key, whole)

    kind: Any = type(value)
    if value is None or kind in (bool, float, str, bytes):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else msgpack.ExtType(_INT, _pack(f"{value:x}"))
    if kind is list:
        return [plain(item) for item in value]
    if kind is dict:
        # A dict becomes pairs: not all types of a dict's keys can be keys of a msgpack map.
        pairs = [[plain(name), plain(item)] for name, item in value.items()]
        return msgpack.ExtType(_DICT, _pack(sorted(pairs, key=lambda pair: _pack(pair[0])) if key else pairs))
    if kind in (set, frozenset):
        items = sorted(map(plain, value), key=_pack)
        return msgpack.ExtType(_SET if kind is set else _FROZENSET, _pack(items))
    for code, (extended, split, _) in _extensions().items():
        if kind is extended:
            return msgpack.ExtType(code, _pack(plain(split(value))))
    is_dataclass: bool = dataclasses.is_dataclass(kind)
    if is_dataclass:
        fields = {name: getattr(value, name) for name in _fields(kind)}
        if whole and (others := _attributes(value) - fields.keys()):
            raise Unencodable(f"{_stored_name(kind)} has attributes that are no fields: {', '.join(sorted(others))}")
        _encoded[_stored_name(kind)] = kind
        return msgpack.ExtType(_DATACLASS, _pack([_stored_name(kind), plain(fields)]))
    raise Unencodable(f"{kind.__module__}.{kind.__qualname__} cannot be kept; make it a dataclass, or pass its data")


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, strict_types=True, unicode_errors=_UNICODE)
    return packed


_INT, _DICT, _SET, _FROZENSET, _DATACLASS = range(1, 6)


def _zone_arguments(zone: Any) -> Any:
    """Return the arguments that make a time zone. The current offset alone would make another zone."""
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        arguments: tuple[Any, ...] = zone.__getinitargs__()  # type: ignore[attr-defined]
        return arguments
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return zone.key
    raise Unencodable(f"the time zone {zone!r} cannot be kept; make it a datetime.timezone or a ZoneInfo")


def _zone_from(arguments: Any) -> dt.tzinfo | None:
    if isinstance(arguments, str):
        from zoneinfo import ZoneInfo  # slow to import, and few apps need it

        return ZoneInfo(arguments)
    return None if arguments is None else dt.timezone(*arguments)


# A clock that is set back shows some times twice. `fold` distinguishes the two (PEP 495). The ISO text lacks `fold`.
def _time_parts(value: Any) -> Any:
    return [value.replace(tzinfo=None).isoformat(), value.fold, _zone_arguments(value.tzinfo)]


def _time_from(kind: Any) -> Callable[[Any], Any]:
    return lambda v: kind.fromisoformat(v[0]).replace(fold=v[1], tzinfo=_zone_from(v[2]))


@functools.cache
def _extensions() -> dict[int, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]]:
    # These modules take long to import, and not all apps cache data.
    import decimal
    import uuid

    return {
        10: (tuple, list, tuple),
        11: (dt.datetime, _time_parts, _time_from(dt.datetime)),
        12: (dt.date, dt.date.isoformat, dt.date.fromisoformat),
        13: (dt.time, _time_parts, _time_from(dt.time)),
        14: (dt.timedelta, lambda v: [v.days, v.seconds, v.microseconds], lambda v: dt.timedelta(v[0], v[1], v[2])),
        15: (decimal.Decimal, str, decimal.Decimal),
        16: (uuid.UUID, lambda v: v.bytes, lambda v: uuid.UUID(bytes=v)),
    }


def _restore(code: int, value: Any, allows: Allows) -> Any:
    if code in _extensions():
        return _extensions()[code][2](value)
    if code == _INT:
        return int(value, 16)  # decimal digits have a limit (sys.set_int_max_str_digits)
    if code == _DICT:
        return dict(value)
    if code in (_SET, _FROZENSET):
        return set(value) if code == _SET else frozenset(value)
    if code == _DATACLASS:
        name, fields = value
        return _make_dataclass(name, fields, allows)
    raise ValueError(f"type {code}")


# Dataclasses --------------------------------------------------------------------------------------------

#: The dataclasses that this process has encoded, by name.
_encoded: dict[str, type] = {}


def _stored_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


@functools.lru_cache(256)
def _fields(kind: Any) -> tuple[str, ...]:
    """Return the fields of a dataclass.

    :raises Unencodable: the dataclass cannot be made from its fields.
    """
    fields = dataclasses.fields(kind)
    # The contents of a container and an InitVar are not fields, and would be lost.
    special = any("__new__" in vars(base) for base in kind.__mro__[:-1])
    if special or set(inspect.signature(kind).parameters) != {f.name for f in fields if f.init}:
        raise Unencodable(f"{_stored_name(kind)} cannot be kept: it is not made of its fields alone")
    for f in fields:
        # A setter (a property's, say) would run code of the class with a value from the store.
        setter = inspect.getattr_static(kind, f.name, None)
        if hasattr(type(setter), "__set__") and not inspect.ismemberdescriptor(setter):
            raise Unencodable(f"{_stored_name(kind)} cannot be kept: its field {f.name} is a {type(setter).__name__}")
    if _dataclass_named(_stored_name(kind)) is not kind:
        raise Unencodable(f"{_stored_name(kind)} cannot be kept: it cannot be found by its name; define it in a module")
    return tuple(f.name for f in fields)


def _attributes(value: Any) -> set[str]:
    """Return the names of the attributes that an object holds, in a ``__dict__`` or in slots."""
    held = set(getattr(value, "__dict__", ()))
    for base in type(value).__mro__:
        for name, slot in vars(base).items():
            if inspect.ismemberdescriptor(slot) and hasattr(value, name):
                held.add(name)
    return held


def _make_dataclass(name: str, values: dict[str, Any], allows: Allows) -> Any:
    kind = _dataclass_named(name)
    if kind is None or set(_fields(kind)) != set(values):
        raise ValueError(f"{name} is not a dataclass of this process, or has other fields")
    if not allows(kind):
        problem = "no annotation of the function names it, and its module neither defines nor imports it"
        raise ValueError(f"{name} is not allowed: {problem}; annotate the result, such as -> {kind.__qualname__}")
    made = object.__new__(kind)
    for field, value in values.items():
        object.__setattr__(made, field, value)  # works for frozen fields, and for fields that are no arguments
    return made


def _dataclass_named(name: str) -> Any:
    """Return the dataclass of that name, or ``None`` if this process has none. See :func:`find_object`."""
    module, _, qualname = name.partition(":")
    kind = find_object(module, qualname)
    return kind if issubclass(type(kind), type) and dataclasses.is_dataclass(kind) else None


def find_object(module: str, qualname: str) -> Any:
    """Return the object of that name in a module of this process, or ``None``.

    The names come from the store. So nothing is imported, and no code is run, such as the ``__getattr__`` of a module
    or a proxy.
    """
    inner: Any = sys.modules.get(module)
    for part in qualname.split("."):
        # isinstance() would run a proxy's code.
        if issubclass(type(inner), ModuleType):
            inner = object.__getattribute__(inner, "__dict__").get(part)
        elif issubclass(type(inner), type):
            inner = type.__getattribute__(inner, "__dict__").get(part)
        else:
            return None
    return inner


class Types:
    """The dataclasses that stored results of a function may contain.

    These are allowed:

    - a dataclass in an annotation of the function, alone or nested (``list[Post]``), its subclasses, and those in its
      fields' annotations;
    - a dataclass that the function's module defines, or imports, alone or with the module of the dataclass;
    - a dataclass that this process has encoded.

    Dataclasses of this package are allowed only if an annotation names them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        # Names in annotations are those of the module of the unwrapped function.
        self._function = inspect.unwrap(function)
        self._allowed: set[type] = set()

    def allows(self, kind: type) -> bool:
        """Return whether ``kind`` may be made from a stored result."""
        if kind in self._allowed:
            return True
        # The check is made here: a module may have been incomplete when the function was defined.
        if _is_annotated(kind, self._function) or _is_in_scope(kind, self._function):
            self._allowed.add(kind)
            return True
        return False


def _is_in_scope(kind: type, function: Any) -> bool:
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return False
    namespace = getattr(function, "__globals__", {})
    if _encoded.get(_stored_name(kind)) is kind or kind.__module__ == namespace.get("__name__"):
        return True
    module = sys.modules.get(kind.__module__)
    outermost = find_object(kind.__module__, kind.__qualname__.partition(".")[0])
    return any(value is kind or value is outermost or value is module for value in list(namespace.values()))


def _is_annotated(kind: type, function: Any) -> bool:
    seen: set[Any] = set()
    if isinstance(function, type):
        _note_classes(function, {}, seen)
    for hint in inspect.get_annotations(function).values():
        _note_classes(hint, getattr(function, "__globals__", {}), seen)
    return any(base in seen for base in kind.__mro__ if base is not object)


def _note_classes(hint: Any, names: dict[str, Any], seen: set[Any]) -> None:
    """Add to ``seen`` every class in an annotation, and in the annotations of a dataclass's or TypedDict's fields."""
    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        if (hint, id(names)) in seen:  # a recursive alias
            return
        seen.add((hint, id(names)))
        try:
            # typing.get_type_hints() is no alternative: it fails for all annotations if it fails for one.
            evaluated = eval(hint, names)
        except Exception:
            return  # the name may be imported for type checkers only
        _note_classes(evaluated, names, seen)
        return
    origin = typing.get_origin(hint)
    parts: list[Any] = []
    if origin is typing.Annotated:
        parts = [hint.__origin__]
    elif origin is not None and origin is not typing.Literal:
        parts = [origin, *typing.get_args(hint)]
    elif isinstance(hint, typing.TypeVar):
        parts = [hint.__bound__, *hint.__constraints__]
    elif hasattr(hint, "__supertype__"):  # a NewType
        parts = [hint.__supertype__]
    elif issubclass(type(hint), type) and hint not in seen:
        seen.add(hint)
        if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
            for base in hint.__mro__:
                inner = getattr(sys.modules.get(base.__module__), "__dict__", {})
                for part in inspect.get_annotations(base).values():
                    _note_classes(part, inner, seen)
    elif type(hint).__name__ == "TypeAliasType" and id(hint) not in seen:  # Python 3.12
        seen.add(id(hint))
        parts = [hint.__value__]
    for part in parts:
        _note_classes(part, names, seen)
