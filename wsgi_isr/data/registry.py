"""The cached functions of a process: what tells them apart, and which one a task was made for."""

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
from . import codec as values

_log = logging.getLogger("wsgi_isr.data")

#: Functions in functions that are looked into.
_DEEPEST = 8
#: Methods of classes in C, not bound to an object.
_OF_CLASSES = (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType)


class Known:
    """A cached function, as others of its process know it: its ``name``, what it is ``told`` by (the name, the version
    and what it closes over), and its ``code``, if that can be seen."""

    name: str
    told: tuple[str, str, str]
    code: Any
    _watched: tuple[Any, Closure] | None = None

    def watch(self, function: Any, closure: Closure) -> None:
        """Note that ``function`` may be made while a visitor is answered, and hold something of that visitor.

        :param closure: of the function, now.
        """
        self._watched = function, closure
        if closure.untold:
            _log.warning(
                "%s is not kept: it is made in a view with %s; pass that as an argument", self.name, closure.untold
            )

    def is_personal(self) -> bool:
        """Return whether it may hold something of one visitor that is no part of its key.

        This is asked for each call: a view may fill a dict, or bind a name, after it has made the function.
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
    """What a function holds besides its code: a digest, and the first thing that cannot be told by data and names,
    as words for people. Both are empty where there is none."""

    digest: str
    untold: str


def closure_of(function: Any) -> Closure:
    """Return what a function holds: the variables that it closes over, its defaults and its attributes.

    Values that an argument could have are told by their data. A module's function or class is the same for everybody,
    and told by its name. A function or method that no module has by its name is told by its code and by what it holds
    itself; and so is ``function``, where it is made inside of another one. Nothing else is told.
    """
    teller = _Teller()
    inner = function.__func__ if type(function) is MethodType else function
    if type(inner) is FunctionType:
        held = teller.held_by(inner, "")
        if inner.__code__.co_flags & inspect.CO_NESTED:
            # Its name is not its own: a view may make one of two, by who asks. A module has one function of a name.
            held["()"] = _told_of(inner.__code__)
        return Closure(_digest(held) if held else "", teller.untold)
    teller.tell(inner, "its function")
    return Closure("", teller.untold)


class _Teller:
    """Tells what functions hold, as data, in one walk: a function that is met again is told by its number."""

    def __init__(self) -> None:
        self.untold = ""
        self._seen: dict[int, int] = {}
        self._depth = 0

    def held_by(self, function: Any, path: str) -> dict[str, Any]:
        """Return what a function holds, by name, but for what is not told."""
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
                if name != own:  # its own name is bound once it is made
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
        """Return what tells this thing from others, as data; ``None`` where nothing does."""
        try:
            return ["data", values.encode(content, key=True, whole=True)]
        except (values.Unencodable, ValueError):
            pass
        # isinstance() would ask a proxy what it stands for, and that may be another thing for each visitor.
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
        if kind is BuiltinFunctionType:  # a bound one, too: that of a dict, say
            return ["builtin", content.__qualname__, self.tell(content.__self__, f"the object of {path}")]
        if kind is functools.partial and not vars(content):
            parts = [self.tell(part, path) for part in (content.func, *content.args, *content.keywords.values())]
            return ["partial", [*content.keywords], parts]
        return None

    def _miss(self, path: str, what: str) -> None:
        self.untold = self.untold or f"{path}, {what}"


def _global_name(content: Any) -> str | None:
    """Return the name by which every process finds this very thing in one of its modules; ``None`` without one."""
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
    if isinstance(module, str) and values.found(module, qualname) is content:
        return f"{module}:{qualname}"
    return None


@functools.lru_cache(1024)
def _told_of(code: CodeType | None) -> str:
    """Return what tells code from other code, in every process of one version of Python."""
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
        return sorted(map(repr, constant))  # their order is another one in each process
    return f"{type(constant).__name__} {constant!r}"


def _digest(told: Any) -> str:
    return hashlib.blake2b(values.encode(told, key=True), digest_size=12).hexdigest()


class Functions(Generic[K]):
    """The cached functions of this process, so that a task finds the one that it was made for.

    By name, version and what a function closes over: those that one factory makes have a name in common. Bounded,
    because a function that is defined in a view is another one with each request.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, str], K] = OrderedDict()

    def add(self, function: K) -> None:
        """Of several of one name the latest counts, as everywhere in Python: a module may have been loaded anew."""
        with self._lock:
            self._known[function.told] = function
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def use(self, function: K) -> None:
        """It is about to be called: it has to be found.

        :raises ConfigError: another one is, and is not the same code: two lambdas of one module, say. They would get
            each other's results.
        """
        known = self._known.get(function.told)
        if known is function:
            return
        if known is not None and known.code != function.code:
            problem = "another cached function has this name, and would get its results"
            raise ConfigError(function.name, problem, "give each a name of its own, or another version=")
        self.add(function)

    def find(self, task: Task) -> K:
        """:raises Unknown: this process does not have the function."""
        _, version, _, around = (*json.loads(task.text), "")[:4]
        found = self._known.get((task.rule, json.dumps(version), around))
        if found is None:
            raise Unknown(f"{task.rule} is not defined in this process")
        return found
