"""Values as text that is the same in every process, and reveals nothing of the machine or its environment."""

from __future__ import annotations

import builtins
import enum
import inspect
import os
import re
import reprlib
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Replaces a hidden value.
HIDDEN = "…"

#: Data of a module ("*": of any, and of classes) that belongs to the process or its machine.
OF_THE_PROCESS: dict[str, set[str]] = {
    "*": {"environ", "environb", "os_environ", "PYTHONDOCS"},
    "copyreg": {"dispatch_table"},
    "gc": {"callbacks", "garbage"},
    "linecache": {"cache"},
    "mimetypes": {"common_types", "encodings_map", "inited", "suffix_map", "types_map"},
    "multiprocessing.process": {"ORIGINAL_DIR"},
    "site": {"ENABLE_USER_SITE", "PREFIXES", "USER_BASE", "USER_SITE"},
    "sys": {
        *("argv", "orig_argv", "flags", "warnoptions", "dont_write_bytecode", "pycache_prefix", "tracebacklimit"),
        *("executable", "prefix", "exec_prefix", "base_prefix", "base_exec_prefix"),
        *("path", "path_hooks", "path_importer_cache", "meta_path", "modules"),
        *("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"),
    },
    "tempfile": {"tempdir"},
    "time": {"altzone", "daylight", "timezone", "tzname"},
    "warnings": {"defaultaction", "filters", "onceregistry"},
    "xml.sax": {"default_parser_list"},
    "zoneinfo": {"TZPATH"},
}

#: Attributes that only some processes have, or that differ between processes.
NOT_ALWAYS_THERE = {
    *("__warningregistry__", "__slotnames__", "__static_attributes__", "__firstlineno__"),
    *("last_type", "last_value", "last_traceback", "last_exc", "ps1", "ps2"),
}

_ADDRESS = re.compile(r" at 0x[0-9a-f]+", re.IGNORECASE)
_HANDLERS = re.compile(r"\[<weakref.*?>\]")  # logging.shutdown: all handlers of this process
_ENVIRON = re.compile(r"environ\(\{.*\}\)", re.DOTALL)  # to the last brace: rather too much than a secret


def _places() -> re.Pattern[str]:
    """Match the directories of this installation and of its user. Directories of every machine reveal nothing."""
    places = {sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), os.getcwd(), os.path.expanduser("~")}
    telling = sorted((place for place in places if len(Path(place).parts) > 3), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, telling)) or r"(?!)")


_PLACES = _places()


def scrub(text: str) -> str:
    """Remove addresses of objects, paths of this machine, and its environment."""
    if len(text) < 8:
        return text
    text = _HANDLERS.sub(f"[{HIDDEN}]", _ADDRESS.sub("", text))
    return _PLACES.sub(HIDDEN, _ENVIRON.sub(f"environ({{{HIDDEN}}})", text))


class _Values(reprlib.Repr):
    """Like pydoc's own, but sets are ordered, and a value without a literal is shown by its type.

    Otherwise repr() could reveal the state of a lock, a logger or a file in this process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 20
        self.maxdict = 10
        # Cut later: a path that is cut in its middle would not be recognised.
        self.maxstring = self.maxother = self.maxlong = 1 << 20

    def repr_set(self, x: Any, level: int) -> str:
        return super().repr_set(_in_order(x), level) if x else "set()"

    def repr_frozenset(self, x: Any, level: int) -> str:
        return super().repr_frozenset(_in_order(x), level) if x else "frozenset()"

    def repr_instance(self, x: Any, level: int) -> str:
        text = super().repr_instance(x, level)
        if not text.startswith("<") or isinstance(x, (type, enum.Enum)) or inspect.isroutine(x):
            return text
        return f"<{type(x).__module__}.{type(x).__qualname__} object>"


def _in_order(elements: Iterable[Any]) -> Any:
    return sorted(elements, key=builtins.repr)


_values = _Values()


def spell(value: object, longest: int = 240) -> str:
    """Return a value as text."""
    text = scrub(_values.repr(value))
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]} {HIDDEN} {text[-half:]}"


def is_hidden(module: str, name: str) -> bool:
    """Return whether a module's page must leave out this piece of data."""
    return name in OF_THE_PROCESS["*"] or name in OF_THE_PROCESS.get(module, ())
