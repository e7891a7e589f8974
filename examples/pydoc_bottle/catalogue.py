"""The modules of the site: the public ones of the standard library that can be imported here."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import NamedTuple

#: Never imported, with everything below them; each has the harmful effect of its import.
HARMFUL = {
    "antigravity": "opens a browser",
    "curses.has_key": "takes the place of the function of that name",
    "distutils": "is setuptools, where that is installed",
    "idlelib": "is a program with windows",
    "lib2to3": "writes its grammars to the disk",
    "readline": "sets up the terminal",
    "rlcompleter": "sets up the terminal",
    "this": "prints a poem",
    "tkinter.tix": "changes the classes of tkinter",
    "turtledemo": "is a program with windows",
}
#: The last part of the names of programs and tests.
NOT_DOCUMENTED = re.compile(r"_.*|tests?|xx.*")


class Module(NamedTuple):
    """``summary`` is one line of text, and may be empty. A package has modules of this site below it."""

    name: str
    summary: str
    is_package: bool

    @property
    def package(self) -> str:
        return package_of(self.name)


def package_of(name: str) -> str:
    """Return the top-level name: ``json`` for ``json.decoder``, and for ``json`` itself."""
    return name.partition(".")[0]


@cache
def names() -> frozenset[str]:
    """Return the names of all modules with a page, without any import. No other module is ever imported."""
    library = sysconfig.get_path("stdlib")
    found = _below([library, os.path.join(library, "lib-dynload")], "")
    return frozenset(filter(_is_public, {*found, *sys.builtin_module_names})) | {"__future__"}


@cache
def _packages() -> frozenset[str]:
    return frozenset(name.rpartition(".")[0] for name in names())


def _below(directories: list[str], prefix: str) -> Iterator[str]:
    # pkgutil.walk_packages would import every package to look into it.
    for module in pkgutil.iter_modules(directories, prefix):
        if _is_public(module.name):
            yield module.name
            if module.ispkg:
                inside = os.path.join(directories[0], module.name.rpartition(".")[2])
                yield from _below([inside], f"{module.name}.")


def _is_public(name: str) -> bool:
    return (
        package_of(name) in sys.stdlib_module_names
        and name not in HARMFUL
        and not NOT_DOCUMENTED.fullmatch(name.rpartition(".")[2])
    )


#: Modules whose page depends on the earlier import of another module, which has parts of them.
COMPLETED_BY = {"pyexpat": ("xml.parsers.expat",)}


def load(name: str) -> ModuleType | None:
    """Import a module; ``None`` if it has no page here, or is for another platform."""
    if name not in names():
        return None
    try:
        for first in COMPLETED_BY.get(name, ()):
            importlib.import_module(first)
        return importlib.import_module(name)
    except ImportError:  # asyncio.windows_events, or a library that this Python was built without
        return None


@cache
def find(name: str) -> Module | None:
    """Return a module by its name; ``None`` if there is none."""
    module = load(name)
    if module is None:
        return None
    return Module(name, _summary(name, module.__doc__ or ""), name in _packages())


@cache
def modules() -> tuple[Module, ...]:
    """Return all of them, by name. The first call takes a second: it imports them."""
    return tuple(module for name in sorted(names(), key=str.lower) if (module := find(name)) is not None)


def packages() -> list[Module]:
    """Return the top-level modules that have modules below them."""
    return [module for module in modules() if module.is_package and "." not in module.name]


def modules_of(package: str) -> list[Module]:
    """Return a top-level module and everything below it, by name."""
    return [module for module in modules() if module.package == package]


def _summary(name: str, doc: str, longest: int = 110) -> str:
    """Return the first sentence of a docstring, on one line."""
    paragraphs = [" ".join(paragraph.strip("\n~=-").split()) for paragraph in doc.strip().split("\n\n")]
    if paragraphs[0].lower() == name and len(paragraphs) > 1:
        del paragraphs[0]
    told = re.sub(rf"^(?:Module )?{re.escape(name)}(\.py)?( --?|:) ", "", paragraphs[0])
    sentence = re.split(r"(?<=[a-z)'\"])\. (?=[A-Z])|:$|(?<=[\w)])\.$", told)[0]
    if len(sentence) <= longest:
        return sentence
    return sentence[:longest].rpartition(" ")[0].rstrip(",;:-. ") + " …"
