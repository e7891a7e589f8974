"""The cached functions of a process: what tells them apart, and which one a task was made for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Generic, NamedTuple, TypeVar

from . import values
from .errors import ConfigError
from .task import Task, Unknown


class Known:
    """A cached function, as others of its process know it: its ``name``, what it is ``told`` by (the name, the version
    and what it closes over), and its ``code``, if that can be seen."""

    name: str
    told: tuple[str, str, str]
    code: Any


K = TypeVar("K", bound=Known)


class Closure(NamedTuple):
    """What a function closes over, when it is made: a digest of the data, and whether that is all there is to it."""

    digest: str
    is_told: bool


def closure_of(function: Any, depth: int = 0) -> Closure:
    """Values that an argument could have are data, as they are when the function is made: what it changes later is its
    state. Functions count by their names and their own closures; classes and modules are the same for everybody."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    held, is_told = {}, depth < 8
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            content = cell.cell_contents
        except ValueError:
            continue  # nothing yet: the function itself, or what is defined after it
        try:
            held[name] = values.encode(content, key=True)
        except (values.Unencodable, ValueError):
            if isinstance(content, FunctionType) and depth < 8:
                inner = closure_of(content, depth + 1)
                if inner.digest:
                    held[name] = f"{content.__module__}:{content.__qualname__}:{inner.digest}".encode()
                is_told = is_told and inner.is_told
            else:
                is_told = is_told and isinstance(content, (type, ModuleType, BuiltinFunctionType, Known))
    if not held:
        return Closure("", is_told)
    return Closure(hashlib.blake2b(values.encode(held, key=True), digest_size=12).hexdigest(), is_told)


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
