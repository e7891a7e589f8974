"""The cached functions of a process: their identity, and the function of a task."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import sys
import threading
from collections import OrderedDict
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
from typing import Any, Generic, NamedTuple, TypeVar

from ..cache.task import Task, Unknown
from ..errors import ConfigError
from . import codec

_log = logging.getLogger("wsgi_isr.data")

#: Levels of nested functions that are examined.
_DEEPEST = 8
#: Methods of classes in C, not bound to an object.
_OF_CLASSES = (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType)


class Known:
    """A cached function in the registry.

    ``told`` is its identity: name, version and a digest of its closure. ``code`` is its code, if it has any in Python.
    """

    name: str
    told: tuple[str, str, str]
    code: Any
    _watched: tuple[Any, Closure] | None = None

    def watch(self, function: Any, closure: Closure) -> None:
        """Note that ``function`` may be made while a request is answered, and may hold the visitor's data.

        :param closure: the function's closure as it is now.
        """
        self._watched = function, closure
        if closure.untold:
            _log.warning(
                "%s is not kept: it is made in a view with %s; pass that as an argument", self.name, closure.untold
            )

    def is_personal(self) -> bool:
        """Return whether the function may hold data of one visitor that is not in its key.

        Each call checks that: a view may fill a dict, or bind a name, after it has made the function.
        """
        if self._watched is None:
            return False
        function, closure = self._watched
        if closure.untold:
            return True
        if closure_of(function) == closure:
            return False
        _log.warning(
            "%s is not kept: what it closes over has changed since a view made it; pass that as an argument", self.name
        )
        return True


K = TypeVar("K", bound=Known)


class Closure(NamedTuple):
    """The data that a function holds besides its code.

    :param digest: of that data; empty without data.
    :param untold: the first value that has no identity, in words for people; empty if all have one.
    """

    digest: str
    untold: str


def closure_of(function: Any) -> Closure:
    """Return the closure of a function: its variables, its defaults and its attributes.

    - A value that may be an argument is identified by its data.
    - A module's function or class is the same for all visitors, and identified by its name.
    - Another function or method is identified by its code and by its own closure. So is ``function`` if it is nested.
    - Other objects have no identity.
    """
    teller = _Teller()
    inner = function.__func__ if type(function) is MethodType else function
    if type(inner) is FunctionType:
        held = teller.held_by(inner, "")
        if inner.__code__.co_flags & inspect.CO_NESTED:
            # A nested function's name is not unique: a view may make one of two, by visitor. In a module a name is
            # unique.
            held["()"] = _told_of(inner.__code__)
        return Closure(_digest(held) if held else "", teller.untold)
    teller.tell(inner, "its function")
    return Closure("", teller.untold)


class _Teller:
    """Describes closures as data in one walk. A function that is met again is described by its number."""

    def __init__(self) -> None:
        self.untold = ""
        self._seen: dict[int, int] = {}
        self._depth = 0

    def held_by(self, function: Any, path: str) -> dict[str, Any]:
        """Return the closure of a function, by name, without values that have no identity."""
        module = sys.modules.get(function.__globals__.get("__name__"))
        if getattr(module, "__dict__", None) is not function.__globals__:
            self._miss(f"{path}globals", "which are those of no module")
        held = {name: self.tell(content, path + name) for name, content in self._contents(function, path)}
        return {name: told for name, told in held.items() if told is not None}

    def _contents(self, function: Any, path: str) -> Iterator[tuple[str, Any]]:
        code, own = function.__code__, function.__name__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:
                if name != own:  # a recursive function's name is bound after it is made
                    self._miss(path + name, "which is not defined yet")
                continue
            if not (name == own and issubclass(type(content), Known) and content.code is code):
                yield name, content
        defaults = function.__defaults__ or ()
        for name, content in zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults, strict=False):
            yield f"{name}=", content
        for name, content in (function.__kwdefaults__ or {}).items():
            yield f"{name}=", content
        for name, content in vars(function).items():
            yield f".{name}", content

    def tell(self, content: Any, path: str) -> list[Any] | None:
        """Return the identity of a value as data; ``None`` if it has none."""
        try:
            return ["data", codec.encode(content, key=True, whole=True)]
        except (codec.Unencodable, ValueError):
            pass
        # isinstance() would run a proxy's code, which may return a different result for each visitor.
        kind = type(content)
        told: list[Any] | None = None
        if issubclass(kind, Known):
            if not content.is_personal():
                told = ["cached", *content.told, _told_of(content.code)]
        elif (name := _global_name(content)) is not None:
            told = ["name", name]
        elif id(content) in self._seen:
            told = ["again", self._seen[id(content)]]
        elif self._depth < _DEEPEST:
            self._seen[id(content)] = len(self._seen)
            self._depth += 1
            told = self._tell_parts(content, kind, path)
            self._depth -= 1
        if told is None:
            self._miss(path, f"a {kind.__name__}")
        return told

    def _tell_parts(self, content: Any, kind: type, path: str) -> list[Any] | None:
        if kind is FunctionType:
            name = f"{content.__module__}:{content.__qualname__}"
            return ["function", name, _told_of(content.__code__), self.held_by(content, f"{path}: ")]
        if kind is MethodType:
            return ["method", self.tell(content.__func__, path), self.tell(content.__self__, f"the object of {path}")]
        if kind is BuiltinFunctionType:  # also a bound one, such as a dict's
            return ["builtin", content.__qualname__, self.tell(content.__self__, f"the object of {path}")]
        if kind is functools.partial and not vars(content):
            parts = [self.tell(part, path) for part in (content.func, *content.args, *content.keywords.values())]
            return ["partial", [*content.keywords], parts]
        return None

    def _miss(self, path: str, what: str) -> None:
        self.untold = self.untold or f"{path}, {what}"


def _global_name(content: Any) -> str | None:
    """Return the name by which every process finds this very object in a module; ``None`` without one."""
    kind = type(content)
    if issubclass(kind, ModuleType):
        name = object.__getattribute__(content, "__dict__").get("__name__")
        return name if isinstance(name, str) and sys.modules.get(name) is content else None
    if kind in _OF_CLASSES:
        owner = _global_name(content.__objclass__)
        return owner and f"{owner}.{content.__name__}"
    if not issubclass(kind, (type, FunctionType, BuiltinFunctionType)):
        return None
    module, qualname = content.__module__, content.__qualname__
    if isinstance(module, str) and codec.found(module, qualname) is content:
        return f"{module}:{qualname}"
    return None


@functools.lru_cache(1024)
def _told_of(code: CodeType | None) -> str:
    """Return a digest of code, the same in every process of one version of Python."""
    if code is None:
        return ""
    names = [[*code.co_names], [*code.co_varnames], [*code.co_freevars], [*code.co_cellvars]]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    return _digest([code.co_code, names, counts, [_told_of_constant(constant) for constant in code.co_consts]])


def _told_of_constant(constant: Any) -> Any:
    if isinstance(constant, CodeType):
        return _told_of(constant)
    if isinstance(constant, tuple):
        return [_told_of_constant(part) for part in constant]
    if isinstance(constant, frozenset):
        return sorted(map(repr, constant))  # their order differs between processes
    return f"{type(constant).__name__} {constant!r}"


def _digest(told: Any) -> str:
    return hashlib.blake2b(codec.encode(told, key=True), digest_size=12).hexdigest()


class Functions(Generic[K]):
    """The cached functions of this process, by which a task finds its function.

    The key is name, version and closure, since the functions of one factory share a name. The number is bounded,
    because a function in a view is a new one with each request.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, str], K] = OrderedDict()

    def add(self, function: K) -> None:
        """Add a function, in place of one with the same identity.

        The latest counts, as everywhere in Python: a module may have been reloaded.
        """
        with self._lock:
            self._known[function.told] = function
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def use(self, function: K) -> None:
        """Add a function that is about to be called, so that its tasks find it.

        :raises ConfigError: a function with the same name has other code (two lambdas of one module, say). Each would
            get the other's results.
        """
        known = self._known.get(function.told)
        if known is function:
            return
        if known is not None and known.code != function.code:
            problem = "another cached function has this name, and would get its results"
            raise ConfigError(function.name, problem, "give each a name of its own, or another version=")
        self.add(function)

    def find(self, task: Task) -> K:
        """Return the function of a task.

        :raises Unknown: this process does not have the function.
        """
        _, version, _, around = (*json.loads(task.text), "")[:4]
        found = self._known.get((task.rule, json.dumps(version), around))
        if found is None:
            raise Unknown(f"{task.rule} is not defined in this process")
        return found
