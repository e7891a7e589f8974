"""The closure of a cached function as a digest: the same data in every process has the same digest.

A function in a view may hold data of one client. A digest in the key tells such functions apart. With a value
that has no identity, such as an object of the client, no result is stored.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import sys
from collections.abc import Iterator
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

from . import codec

_log = logging.getLogger("wsgi_isr.data")

#: Levels of nested functions that are examined.
_MAX_DEPTH = 8
#: Methods of classes in C, not bound to an object.
_METHODS_IN_C = (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType)


class Closure(NamedTuple):
    """The data that a function holds besides its code.

    :param digest: of that data; empty without data.
    :param unidentified: the first value without an identity, in words for people; empty if all values have one.
    """

    digest: str
    unidentified: str

    @property
    def is_complete(self) -> bool:
        """Return whether the digest covers all values of the closure."""
        return not self.unidentified


class Identified:
    """A function with an identity: name, version and closure digest.

    ``code`` is the code of the function, if it has any in Python.
    """

    name: str
    identity: tuple[str, str, str]
    code: Any
    _watched: tuple[Any, Closure] | None = None

    def watch(self, function: Any, closure: Closure) -> None:
        """Check the closure of ``function`` on each call: a view may have made it, with data of one client.

        :param closure: the function's closure as it is now.
        """
        self._watched = function, closure
        if not closure.is_complete:
            _log.warning(
                "%s is not kept: it is made in a view with %s; pass that as an argument",
                self.name,
                closure.unidentified,
            )

    def is_personal(self) -> bool:
        """Return whether the function may hold data of one client that is not in its key."""
        return self.has_personal_closure()

    def has_personal_closure(self) -> bool:
        """Return whether a watched closure may hold data of one client that is not in its digest.

        Each call checks the closure again: a view may fill a dict, or bind a name, after it has made the function.
        """
        if self._watched is None:
            return False
        function, closure = self._watched
        if not closure.is_complete:
            return True
        if closure_of(function) == closure:
            return False
        message = "%s is not kept: what it closes over has changed since a view made it; pass that as an argument"
        _log.warning(message, self.name)
        return True


def closure_of(function: Any) -> Closure:
    """Return the closure of a function: its variables, its defaults and its attributes.

    - A value that may be an argument is identified by its data.
    - A module's function or class is the same for all clients, and identified by its name.
    - Another function or method is identified by its code and by its own closure. So is ``function`` if it is nested.
    - Other objects have no identity.
    """
    walk = _Walk()
    inner = function.__func__ if type(function) is MethodType else function
    if type(inner) is FunctionType:
        held = walk.describe_closure(inner, "")
        if inner.__code__.co_flags & inspect.CO_NESTED:
            # The names of nested functions are not unique: a view may choose one of two by client.
            held["()"] = _code_digest(inner.__code__)
        return Closure(_digest(held) if held else "", walk.unidentified)
    walk.describe(inner, "its function")
    return Closure("", walk.unidentified)


class _Walk:
    """A walk through a closure that describes it as data. A function met again is described by its number."""

    def __init__(self) -> None:
        self.unidentified = ""
        self._seen: dict[int, int] = {}
        self._depth = 0

    def describe_closure(self, function: Any, path: str) -> dict[str, Any]:
        """Return the closure of a function, by name, without values that have no identity."""
        module = sys.modules.get(function.__globals__.get("__name__"))
        if getattr(module, "__dict__", None) is not function.__globals__:
            self._note_unidentified(f"{path}globals", "which are those of no module")
        held = {name: self.describe(value, path + name) for name, value in self._values(function, path)}
        return {name: description for name, description in held.items() if description is not None}

    def _values(self, function: Any, path: str) -> Iterator[tuple[str, Any]]:
        code, own = function.__code__, function.__name__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                if name != own:  # a recursive function's name is bound after it is made
                    self._note_unidentified(path + name, "which is not defined yet")
                continue
            if not (name == own and issubclass(type(value), Identified) and value.code is code):
                yield name, value
        defaults = function.__defaults__ or ()
        for name, value in zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults, strict=False):
            yield f"{name}=", value
        for name, value in (function.__kwdefaults__ or {}).items():
            yield f"{name}=", value
        for name, value in vars(function).items():
            yield f".{name}", value

    def describe(self, value: Any, path: str) -> list[Any] | None:
        """Return the identity of a value as data; ``None`` if it has none."""
        try:
            return ["data", codec.encode(value, key=True, whole=True)]
        except (codec.Unencodable, ValueError):
            pass
        # isinstance() would run a proxy's code, which may return a different result for each client.
        kind = type(value)
        description: list[Any] | None = None
        if issubclass(kind, Identified):
            if not value.is_personal():
                description = ["cached", *value.identity, _code_digest(value.code)]
        elif (name := _global_name(value)) is not None:
            description = ["name", name]
        elif id(value) in self._seen:
            description = ["again", self._seen[id(value)]]
        elif self._depth < _MAX_DEPTH:
            self._seen[id(value)] = len(self._seen)
            self._depth += 1
            description = self._describe_parts(value, kind, path)
            self._depth -= 1
        if description is None:
            self._note_unidentified(path, f"a {kind.__name__}")
        return description

    def _describe_parts(self, value: Any, kind: type, path: str) -> list[Any] | None:
        if kind is FunctionType:
            name = f"{value.__module__}:{value.__qualname__}"
            return ["function", name, _code_digest(value.__code__), self.describe_closure(value, f"{path}: ")]
        if kind is MethodType:
            return [
                "method",
                self.describe(value.__func__, path),
                self.describe(value.__self__, f"the object of {path}"),
            ]
        if kind is BuiltinFunctionType:  # also a bound one, such as a dict's
            return ["builtin", value.__qualname__, self.describe(value.__self__, f"the object of {path}")]
        if kind is functools.partial and not vars(value):
            parts = [self.describe(part, path) for part in (value.func, *value.args, *value.keywords.values())]
            return ["partial", [*value.keywords], parts]
        return None

    def _note_unidentified(self, path: str, what: str) -> None:
        self.unidentified = self.unidentified or f"{path}, {what}"


def _global_name(value: Any) -> str | None:
    """Return the name by which every process finds this very object in a module; ``None`` without one."""
    kind = type(value)
    if issubclass(kind, ModuleType):
        name = object.__getattribute__(value, "__dict__").get("__name__")
        return name if isinstance(name, str) and sys.modules.get(name) is value else None
    if kind in _METHODS_IN_C:
        owner = _global_name(value.__objclass__)
        return owner and f"{owner}.{value.__name__}"
    if not issubclass(kind, (type, FunctionType, BuiltinFunctionType)):
        return None
    module, qualname = value.__module__, value.__qualname__
    if isinstance(module, str) and codec.find_object(module, qualname) is value:
        return f"{module}:{qualname}"
    return None


@functools.lru_cache(1024)
def _code_digest(code: CodeType | None) -> str:
    """Return a digest of code, the same in every process of one version of Python."""
    if code is None:
        return ""
    names = [[*code.co_names], [*code.co_varnames], [*code.co_freevars], [*code.co_cellvars]]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    return _digest([code.co_code, names, counts, [_describe_constant(constant) for constant in code.co_consts]])


def _describe_constant(constant: Any) -> Any:
    if isinstance(constant, CodeType):
        return _code_digest(constant)
    if isinstance(constant, tuple):
        return [_describe_constant(part) for part in constant]
    if isinstance(constant, frozenset):
        return sorted(map(repr, constant))  # their order differs between processes
    return f"{type(constant).__name__} {constant!r}"


def _digest(description: Any) -> str:
    return hashlib.blake2b(codec.encode(description, key=True), digest_size=12).hexdigest()
