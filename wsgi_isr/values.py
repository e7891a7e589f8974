"""Python values as bytes and back, without pickle: msgpack, with types of its own for what it lacks.

With ``key=True`` equal values have equal bytes (mappings are sorted), so that they serve as keys as well. A
value of an unknown type is an error that names the type; nothing comes back as something else.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgpack

_MAX = 64  # levels of nesting; deeper is a cycle, or no data
_UNICODE = "surrogatepass"  # a file name may be text that no UTF-8 has


class Unencodable(TypeError):
    """A value that has no bytes; the message names its type."""


def encode(value: Any, *, key: bool = False) -> bytes:
    """The bytes of a value made of None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, date,
    time, datetime, timedelta, Decimal, UUID and dataclasses.

    :param key: for comparison: the order of a mapping's keys does not count.
    :raises Unencodable: it holds something else.
    """
    return _pack(_plain(value, 0, key))


def decode(data: bytes) -> Any:
    """The reverse of :func:`encode`.

    :raises ValueError: damage, or a dataclass that this process does not have (any more), or has with other fields.
    """
    return _unpack(data, 0)


def _unpack(data: bytes, depth: int) -> Any:
    if depth > _MAX + 1:
        raise ValueError("nested too deeply")  # damage may nest until the stack of C is full

    def restore(code: int, inner: bytes) -> Any:
        return _restore(code, _unpack(inner, depth + 1))

    try:
        return msgpack.unpackb(data, ext_hook=restore, use_list=True, unicode_errors=_UNICODE)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _plain(value: Any, depth: int, key: bool) -> Any:
    """The value in msgpack's own types; exact types only, so that a subclass does not lose what it adds."""
    if depth > _MAX:
        raise Unencodable("nested too deeply, or in a cycle")

    def inside(item: Any) -> Any:
        return _plain(item, depth + 1, key)

    kind: Any = type(value)
    if value is None or kind in (bool, float, str, bytes):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else msgpack.ExtType(_INT, _pack(f"{value:x}"))
    if kind is list:
        return [inside(item) for item in value]
    if kind is dict:
        # As pairs: msgpack's own maps cannot have all keys that a dict can.
        pairs = [[inside(name), inside(item)] for name, item in value.items()]
        return msgpack.ExtType(_DICT, _pack(sorted(pairs, key=lambda pair: _pack(pair[0])) if key else pairs))
    if kind in (set, frozenset):
        items = sorted(map(inside, value), key=_pack)
        return msgpack.ExtType(_SET if kind is set else _FROZENSET, _pack(items))
    for code, (own, split, _) in _types().items():
        if kind is own:
            return msgpack.ExtType(code, _pack(inside(split(value))))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: getattr(value, name) for name in _fields(kind)}
        return msgpack.ExtType(_DATACLASS, _pack([_name(kind), inside(fields)]))
    raise Unencodable(f"{kind.__module__}.{kind.__qualname__} cannot be kept; make it a dataclass, or give its data")


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, strict_types=True, unicode_errors=_UNICODE)
    return packed


_INT, _DICT, _SET, _FROZENSET, _DATACLASS = range(1, 6)


def _zone(zone: Any) -> Any:
    """What a time zone is made of; its offset at the moment alone would make another one of it."""
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        made_of: tuple[Any, ...] = zone.__getinitargs__()  # type: ignore[attr-defined]
        return made_of
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return zone.key
    raise Unencodable(f"the time zone {zone!r} cannot be kept; make it a datetime.timezone or a ZoneInfo")


def _zone_of(made_of: Any) -> dt.tzinfo | None:
    if isinstance(made_of, str):
        from zoneinfo import ZoneInfo  # takes long, and few need it

        return ZoneInfo(made_of)
    return None if made_of is None else dt.timezone(*made_of)


# `fold` is not part of the ISO text, and decides between the two times that a clock shows twice.
def _split(value: Any) -> Any:
    return [value.replace(tzinfo=None).isoformat(), value.fold, _zone(value.tzinfo)]


def _joined(kind: Any) -> Callable[[Any], Any]:
    return lambda v: kind.fromisoformat(v[0]).replace(fold=v[1], tzinfo=_zone_of(v[2]))


@functools.cache
def _types() -> dict[int, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]]:
    # These take long to import, and not everybody keeps data.
    import decimal
    import uuid

    return {
        10: (tuple, list, tuple),
        11: (dt.datetime, _split, _joined(dt.datetime)),
        12: (dt.date, dt.date.isoformat, dt.date.fromisoformat),
        13: (dt.time, _split, _joined(dt.time)),
        14: (dt.timedelta, lambda v: [v.days, v.seconds, v.microseconds], lambda v: dt.timedelta(v[0], v[1], v[2])),
        15: (decimal.Decimal, str, decimal.Decimal),
        16: (uuid.UUID, lambda v: v.bytes, lambda v: uuid.UUID(bytes=v)),
    }


def _restore(code: int, value: Any) -> Any:
    if code in _types():
        return _types()[code][2](value)
    if code == _INT:
        return int(value, 16)  # decimal digits have a limit (sys.set_int_max_str_digits)
    if code == _DICT:
        return dict(value)
    if code in (_SET, _FROZENSET):
        return set(value) if code == _SET else frozenset(value)
    if code == _DATACLASS:
        return _dataclass(*value)
    raise ValueError(f"type {code}")


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


@functools.lru_cache(256)
def _fields(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass that can be made again from them.

    :raises Unencodable: it cannot.
    """
    fields = dataclasses.fields(kind)
    # A container's contents are no fields, and neither is an InitVar.
    special = any("__new__" in vars(base) for base in kind.__mro__[:-1])
    if special or set(inspect.signature(kind).parameters) != {f.name for f in fields if f.init}:
        raise Unencodable(f"{_name(kind)} cannot be kept: it is not made of its fields alone")
    if _class(_name(kind)) is not kind:
        raise Unencodable(f"{_name(kind)} cannot be kept: it cannot be found by its name; define it in a module")
    return tuple(f.name for f in fields)


def _dataclass(name: str, values: dict[str, Any]) -> Any:
    kind = _class(name)
    if kind is None or set(_fields(kind)) != set(values):
        raise ValueError(f"{name} is not a dataclass of this process, or has other fields")
    made = kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.init})
    for field, value in values.items():  # whatever its __post_init__ has made of them
        object.__setattr__(made, field, value)
    return made


def _class(name: str) -> Any:
    """A dataclass of this process, or None. Nothing is imported for it, not even by a module's ``__getattr__``:
    what a store holds must not run code."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None
