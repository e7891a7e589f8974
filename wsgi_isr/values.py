"""Python values as bytes and back, without pickle: msgpack, with types of its own for what it lacks.

With ``key=True`` equal values have equal bytes (mappings are sorted), so that they serve as keys as well. A
value of an unknown type is an error that names the type; nothing comes back as something else.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import sys
import uuid
from collections.abc import Callable
from typing import Any

import msgpack

_MAX = 64  # levels of nesting; deeper is a cycle, or no data


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

    :raises ValueError: damage, or a dataclass that this process does not have (any more).
    """
    try:
        return msgpack.unpackb(data, ext_hook=_restore, strict_map_key=False, use_list=True)
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

    kind = type(value)
    if value is None or kind in (bool, float, str, bytes):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else msgpack.ExtType(_INT, _pack(str(value)))
    if kind is list:
        return [inside(item) for item in value]
    if kind is dict:
        # As pairs: msgpack's own maps cannot have all keys that a dict can.
        pairs = [[inside(name), inside(item)] for name, item in value.items()]
        return msgpack.ExtType(_DICT, _pack(sorted(pairs, key=lambda pair: _pack(pair[0])) if key else pairs))
    if kind in (set, frozenset):
        items = sorted(map(inside, value), key=_pack)
        return msgpack.ExtType(_SET if kind is set else _FROZENSET, _pack(items))
    for code, (own, split, _) in _TYPES.items():
        if kind is own:
            return msgpack.ExtType(code, _pack(inside(split(value))))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = f"{kind.__module__}:{kind.__qualname__}"
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return msgpack.ExtType(_DATACLASS, _pack([name, inside(fields)]))
    raise Unencodable(f"{kind.__module__}.{kind.__qualname__} cannot be kept; make it a dataclass, or give its data")


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, strict_types=True)
    return packed


_INT, _DICT, _SET, _FROZENSET, _DATACLASS = range(1, 6)


def _when(text: str) -> dt.datetime:
    # `fold` is not part of the ISO text, and decides between the two times that a clock shows twice.
    moment, _, fold = text.partition("|")
    return dt.datetime.fromisoformat(moment).replace(fold=int(fold))


_TYPES: dict[int, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    10: (tuple, list, tuple),
    11: (dt.datetime, lambda v: f"{v.isoformat()}|{v.fold}", _when),
    12: (dt.date, dt.date.isoformat, dt.date.fromisoformat),
    13: (dt.time, dt.time.isoformat, dt.time.fromisoformat),
    14: (dt.timedelta, lambda v: [v.days, v.seconds, v.microseconds], lambda v: dt.timedelta(v[0], v[1], v[2])),
    15: (decimal.Decimal, str, decimal.Decimal),
    16: (uuid.UUID, lambda v: v.bytes, lambda v: uuid.UUID(bytes=v)),
}


def _restore(code: int, data: bytes) -> Any:
    value = decode(data)
    if code in _TYPES:
        return _TYPES[code][2](value)
    if code == _INT:
        return int(value)
    if code == _DICT:
        return dict(value)
    if code in (_SET, _FROZENSET):
        return set(value) if code == _SET else frozenset(value)
    if code == _DATACLASS:
        name, fields = value
        return _class(name)(**fields)
    raise ValueError(f"type {code}")


def _class(name: str) -> Any:
    """A dataclass of this process. Nothing is imported for it: what a store holds must not run code."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{name} is not a dataclass of this process")
    return found
