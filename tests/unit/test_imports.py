"""Imports between the folders of the package point one way, as the table below says.

Read from the source with ``ast``, so that imports inside functions and under ``TYPE_CHECKING`` count as well: a folder
should not even know the names of the ones above it.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "wsgi_isr"
ROOT = Path(__file__).parents[2]

# Folders and single modules of the package, lowest first; "" is its __init__. An import may point to the own folder or
# to a lower line, never to another folder of the same line.
ORDER: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"events"}),
    frozenset({"config", "stores"}),
    frozenset({"cache"}),
    frozenset({"pages", "data"}),
    frozenset({"observe", "sessions"}),
    frozenset({"engine"}),
    frozenset({"middleware"}),
    frozenset({"process"}),
    frozenset({"renderers", "prerender"}),
    frozenset({"servers"}),
    frozenset({"gunicorn", "testing"}),
    frozenset({"commands"}),
    frozenset({""}),
)

# Folders and modules that may not know everything below them, and the ones that they may know.
ONLY: dict[str, frozenset[str]] = {
    # The contract knows no store.
    "stores.base": frozenset({"errors"}),
    "stores": frozenset({"stores", "errors"}),
    # The core works on any store, so it may know none.
    "cache": frozenset({"cache", "stores.base", "stores.files", "config", "events", "errors"}),
}

# Folders that must not know HTTP, WSGI and servers.
HTTP = frozenset({"werkzeug", "http", "wsgiref", "flask", "gunicorn", "requests", "urllib3"})
NO_HTTP = frozenset({"stores", "cache"})
# Directories beside the package. They import it, never the other way.
OUTSIDE = frozenset({"cluster", "examples", "tests"})


class Arrow(NamedTuple):
    """One import: from which module and line, to which dotted name."""

    source: str
    line: int
    target: str


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the package under ``root``, by its name inside the package."""
    package = root / PACKAGE
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(name: str, path: Path, known: dict[str, Path]) -> list[Arrow]:
    """Return the names of the modules that a module imports.

    ``from package import x`` counts as the module ``package.x`` where there is one, otherwise as ``package``.
    """
    here = ".".join(part for part in (PACKAGE, name) if part)
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found += [Arrow(name, node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                is_module = inside(target) in known
                found.append(Arrow(name, node.lineno, target if is_module else base))
    return list(dict.fromkeys(found))  # several names of one module are one arrow


def inside(target: str) -> str | None:
    """Return the name inside the package of an imported dotted name; ``None`` for anything else."""
    top, _, rest = target.partition(".")
    return rest if top == PACKAGE else None


def folder_of(module: str) -> str:
    """Return the folder of a module, or the module itself where it is in none."""
    return module.partition(".")[0]


def line_of(folder: str) -> int | None:
    """Return the number of a folder's line in ``ORDER``; ``None`` where the table does not have it."""
    return next((number for number, members in enumerate(ORDER) if folder in members), None)


def shown(module: str) -> str:
    return f"{PACKAGE}.{module}" if module else PACKAGE


def violations(root: Path) -> list[str]:
    """Return a sentence for each break of the rules in the package under ``root``."""
    known = modules(root)
    folders = dict.fromkeys(map(folder_of, known))
    problems = [
        f"{shown(folder)} is not in ORDER: add it in {Path(__file__).name}"
        for folder in folders
        if line_of(folder) is None
    ]
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for arrow in arrows(name, path, known):
            target = inside(arrow.target)
            if target is not None and target in known and target != "":
                graph[name].add(target)
            if problem := forbidden(arrow):
                problems.append(f"{shown(name)}, line {arrow.line}, imports {arrow.target}: {problem}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # In the order of the sorter, each is imported by the next.
        problems.append("a cycle: " + " <- ".join(shown(name) for name in error.args[1]))
    return problems


def forbidden(arrow: Arrow) -> str:
    """Return why an arrow must not be; empty where it may."""
    if arrow.target.partition(".")[0] in OUTSIDE:
        return "the package does not know the directories beside it"
    source = folder_of(arrow.source)
    if (line := line_of(source)) is None:  # reported already
        return ""
    module = inside(arrow.target)
    if module is None:
        speaks = arrow.target.partition(".")[0] in HTTP and source in NO_HTTP
        return f"{source} does not speak HTTP" if speaks else ""
    if module == "":
        return "no module inside imports the package's __init__"
    target = folder_of(module)
    if (number := line_of(target)) is None:
        return f"there is no {shown(target)} in ORDER"
    for restricted in (arrow.source, source):
        if restricted in ONLY and ONLY[restricted].isdisjoint({module, target}):
            return f"{restricted} knows only {', '.join(sorted(ONLY[restricted]))}"
    if target != source and number >= line:
        return f"{target} is {'beside' if number == line else 'above'} {source}"
    return ""


def test_imports_in_the_package_point_down() -> None:
    assert modules(ROOT), "the package was not found"
    assert violations(ROOT) == []


def test_a_folder_stands_in_one_line_only() -> None:
    members = [member for line in ORDER for member in line]
    assert len(members) == len(set(members))


def test_nothing_is_listed_that_does_not_exist() -> None:
    known = set(modules(ROOT))
    folders = set(map(folder_of, known))
    assert frozenset().union(*ORDER) == folders
    assert folders >= NO_HTTP
    assert set(ONLY) <= folders | known
    assert frozenset().union(*ONLY.values()) <= folders | known


def test_the_top_of_the_package_is_short() -> None:
    # A folder of an earlier version may be left, with compiled files alone.
    entries = [path for path in (ROOT / PACKAGE).iterdir() if path.is_file() or [*path.rglob("*.py")]]
    assert len(entries) <= 20


def tree(root: Path, sources: dict[str, str]) -> Path:
    for name, source in sources.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)
    return root


def test_a_package_without_fault_passes(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "__init__.py": "from .middleware.isr import ISR\n",
            "errors.py": "import json\n",
            "config/rules.py": "import werkzeug.routing\nfrom .. import errors\n",
            "stores/base.py": "from ..errors import StoreError\n",
            "stores/memory.py": "from .base import Store\n",
            "stores/__init__.py": "from .memory import MemoryStore\n",
            "cache/lookup.py": "import threading\nfrom wsgi_isr.config import rules\nfrom ..stores.base import Store\n",
            "pages/respond.py": "from werkzeug.http import http_date\nfrom ..cache import lookup\n",
            "middleware/isr.py": "from ..stores import open_store\nfrom ..cache import lookup\n",
        },
    )
    assert violations(root) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        pytest.param(
            {"config/rules.py": "from ..cache.lookup import Cache\n", "cache/lookup.py": ""},
            "wsgi_isr.config.rules, line 1, imports wsgi_isr.cache.lookup: cache is above config",
            id="rules know the cache",
        ),
        pytest.param(
            {"cache/lookup.py": "def f():\n    import wsgi_isr.pages.respond\n", "pages/respond.py": ""},
            "wsgi_isr.cache.lookup, line 2, imports wsgi_isr.pages.respond: "
            "cache knows only cache, config, errors, events, stores.base, stores.files",
            id="the cache knows pages, inside a function",
        ),
        pytest.param(
            {"pages/respond.py": "from ..data import cached\n", "data/cached.py": ""},
            "wsgi_isr.pages.respond, line 1, imports wsgi_isr.data.cached: data is beside pages",
            id="pages know data",
        ),
        pytest.param(
            {"cache/lease.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import werkzeug.http\n"},
            "wsgi_isr.cache.lease, line 3, imports werkzeug.http: cache does not speak HTTP",
            id="the cache knows HTTP, for its types",
        ),
        pytest.param(
            {"cache/lookup.py": "from ..stores.memory import MemoryStore\n", "stores/memory.py": ""},
            "wsgi_isr.cache.lookup, line 1, imports wsgi_isr.stores.memory: "
            "cache knows only cache, config, errors, events, stores.base, stores.files",
            id="the cache knows one store",
        ),
        pytest.param(
            {"stores/memory.py": "from ..cache.entry import Entry\n", "cache/entry.py": ""},
            "wsgi_isr.stores.memory, line 1, imports wsgi_isr.cache.entry: stores knows only errors, stores",
            id="a store knows entries",
        ),
        pytest.param(
            {"stores/memory.py": "", "stores/base.py": "from .memory import MemoryStore\n"},
            "wsgi_isr.stores.base, line 1, imports wsgi_isr.stores.memory: stores.base knows only errors",
            id="the contract knows a store",
        ),
        pytest.param(
            {"pages/capture.py": "from .. import ISR\n"},
            "wsgi_isr.pages.capture, line 1, imports wsgi_isr: no module inside imports the package's __init__",
            id="a name from the __init__, relative",
        ),
        pytest.param(
            {"stores/memory.py": "from wsgi_isr import __version__\n"},
            "wsgi_isr.stores.memory, line 1, imports wsgi_isr: no module inside imports the package's __init__",
            id="a name from the __init__, absolute",
        ),
        pytest.param(
            {"middleware/isr.py": "import cluster.nodes\n"},
            "wsgi_isr.middleware.isr, line 1, imports cluster.nodes: "
            "the package does not know the directories beside it",
            id="the package knows the cluster",
        ),
        pytest.param(
            {"cache/lease.py": "from . import flight\n", "cache/flight.py": "from .lease import Lease\n"},
            "a cycle: wsgi_isr.cache.flight <- wsgi_isr.cache.lease <- wsgi_isr.cache.flight",
            id="a cycle within a folder",
        ),
        pytest.param(
            {"helpers.py": ""},
            "wsgi_isr.helpers is not in ORDER: add it in test_imports.py",
            id="a module without a place",
        ),
        pytest.param(
            {"cache/keyspace.py": "from ..rulez import Rule\n"},
            "wsgi_isr.cache.keyspace, line 1, imports wsgi_isr.rulez: there is no wsgi_isr.rulez in ORDER",
            id="a module that does not exist",
        ),
    ],
)
def test_a_forbidden_arrow_is_found_and_nothing_else(tmp_path: Path, sources: dict[str, str], expected: str) -> None:
    (problem,) = violations(tree(tmp_path, sources))
    if expected.startswith("a cycle"):  # the cycle may begin with any of its modules
        assert problem.startswith("a cycle: ")
        named = set(problem.removeprefix("a cycle: ").split(" <- "))
        assert named == {"wsgi_isr.cache.flight", "wsgi_isr.cache.lease"}
    else:
        assert problem == expected
