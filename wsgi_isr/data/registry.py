"""The cached functions of a process, by which a task finds its function."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from ..cache.task import Task, Unknown
from ..errors import ConfigError
from .closure import Identified
from .data_key import DataKey

F = TypeVar("F", bound=Identified)


class Functions(Generic[F]):
    """The cached functions of this process by identity.

    :param max_functions: the bound of their number, because a view may make a new function in each request.
    """

    def __init__(self, max_functions: int = 4096) -> None:
        self._max_functions = max_functions
        self._lock = threading.Lock()
        self._functions: OrderedDict[tuple[str, str, str], F] = OrderedDict()

    def add(self, function: F) -> None:
        """Add a function, in place of one with the same identity.

        The latest counts, as everywhere in Python: a module may have been reloaded.
        """
        with self._lock:
            self._functions[function.identity] = function
            if len(self._functions) > self._max_functions:
                self._functions.popitem(last=False)

    def use(self, function: F) -> None:
        """Add a function that is about to be called, so that its tasks find it.

        :raises ConfigError: a function with the same identity has other code (two lambdas of one module, say). Each
            would get the results of the other.
        """
        known = self._functions.get(function.identity)
        if known is function:
            return
        if known is not None and known.code != function.code:
            problem = "another cached function has this name, and would get its results"
            raise ConfigError(function.name, problem, "give each a name of its own, or another version=")
        self.add(function)

    def find(self, task: Task) -> F:
        """Return the function of a task.

        :raises Unknown: this process does not have the function.
        """
        found = self._functions.get(DataKey.parse(task.text).identity)
        if found is None:
            raise Unknown(f"{task.rule} is not defined in this process")
        return found
