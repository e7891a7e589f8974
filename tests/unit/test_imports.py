"""The arrows between modules point one way: the layers of the package, as a table that is enforced.

Read from the source with ``ast``, so that imports inside functions and under ``TYPE_CHECKING`` count
as well: a layer should not even know the names of what lies above it.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "wsgi_isr"
ROOT = Path(__file__).parents[2]

# Modules without the package's name; "" is its __init__, "x.*" is everything in the package x.
# A name stands before its wildcard. An import may point to the own layer or a lower one.
LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "values and decisions",
        frozenset(
            {
                "errors",
                "events",
                "options",
                "values",
                "rules",
                "spelling",
                "keys",
                "entry",
                "freshness",
                "headers",
                "config",
                "listing",
                "crawlers",
                "coding",
                "links",
            }
        ),
    ),
    ("the contract of stores", frozenset({"stores.base"})),
    ("stores", frozenset({"stores", "stores.*"})),
    ("subscribers", frozenset({"instrumentation", "instrumentation.*"})),
    (
        "coordination",
        frozenset(
            {
                "local",
                "stamps",
                "lease",
                "flight",
                "isolation",
                "worker",
                "releases",
                "remote",
                "task",
                "render",
                "fill",
                "sites",
                "registry",
                "courier",
                "pages",
            }
        ),
    ),
    (
        "faces",
        frozenset(
            {
                "page",
                "data",
                "fetch",
                "draft",
                "invalidate",
                "journal",
                "capture",
                "development",
                "digest",
                "looks",
                "frameworks",
                "functions",
                "identity",
                "respond",
                "sessions",
                "source",
                "writes",
                "admin",
                "admin.*",
            }
        ),
    ),
    ("wiring", frozenset({"engine", "wrapping", "middleware", "process", "loading"})),
    (
        "entrances",
        frozenset(
            {
                "",
                "__main__",
                "children",
                "cli",
                "commands",
                "commands.*",
                "demo",
                "demo.*",
                "export",
                "gunicorn",
                "making",
                "prerender",
                "renderer",
                "renderers",
                "serve",
                "sitemaps",
                "testing",
                "testing.*",
            }
        ),
    ),
)

# Where a layer may know less than everything below it: the layers and the single modules it may know.
ONLY: dict[str, frozenset[str]] = {
    "the contract of stores": frozenset({"errors"}),
    "stores": frozenset({"stores", "the contract of stores", "errors"}),
    "subscribers": frozenset({"subscribers", "values and decisions"}),
    # Works on any store, so it may know none.
    "coordination": frozenset({"coordination", "the contract of stores", "values and decisions"}),
}

# What the layers below the faces must not speak: HTTP, WSGI and servers.
HTTP = frozenset({"werkzeug", "http", "wsgiref", "flask", "gunicorn", "requests", "urllib3"})
NO_HTTP = frozenset({"the contract of stores", "stores", "coordination"})
# Directories beside the package. They import it, never the other way.
OUTSIDE = frozenset({"cluster", "examples", "tests"})


class Arrow(NamedTuple):
    """One import: from which module and line, to which dotted name."""

    source: str
    line: int
    target: str


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package under ``root``, by its name inside the package."""
    package = root / PACKAGE
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(name: str, path: Path, known: dict[str, Path]) -> list[Arrow]:
    """What a module imports. ``from package import x`` is an arrow to the module ``package.x`` where
    there is one, and to ``package`` itself otherwise."""
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
    """The name inside the package of an imported dotted name; ``None`` for anything else."""
    top, _, rest = target.partition(".")
    return rest if top == PACKAGE else None


def layer_of(module: str) -> int | None:
    """The number of a module's layer, from 0; ``None`` where the table does not have it."""
    names = [module]
    if "." in module:
        names.append(module.partition(".")[0] + ".*")
    for name in names:
        for number, (_, members) in enumerate(LAYERS):
            if name in members:
                return number
    return None


def shown(module: str) -> str:
    return f"{PACKAGE}.{module}" if module else PACKAGE


def violations(root: Path) -> list[str]:
    """What breaks the rules in the package under ``root``, one sentence each."""
    known = modules(root)
    problems = [
        f"{shown(name)} is in no layer: add it to LAYERS in {Path(__file__).name}"
        for name in known
        if layer_of(name) is None
    ]
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for arrow in arrows(name, path, known):
            target = inside(arrow.target)
            if target is not None and target in known and target != "":
                graph[name].add(target)
            problem = forbidden(arrow)
            if problem:
                problems.append(f"{shown(name)}, line {arrow.line}, imports {arrow.target}: {problem}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # In the order of the sorter, each is imported by the next.
        problems.append("a cycle: " + " <- ".join(shown(name) for name in error.args[1]))
    return problems


def forbidden(arrow: Arrow) -> str:
    """Why an arrow must not be; empty where it may."""
    top = arrow.target.partition(".")[0]
    if top in OUTSIDE:
        return "the package does not know what is beside it"
    source = layer_of(arrow.source)
    if source is None:  # reported already
        return ""
    layer = LAYERS[source][0]
    target = inside(arrow.target)
    if target is None:
        return f"the layer {layer!r} does not know HTTP" if top in HTTP and layer in NO_HTTP else ""
    if target == "":
        return "nobody inside imports the package's __init__"
    number = layer_of(target)
    if number is None:
        return f"there is no {shown(target)} in LAYERS"
    if number > source:
        return f"the layer {layer!r} is below {LAYERS[number][0]!r}"
    if layer in ONLY and not {LAYERS[number][0], target} & ONLY[layer]:
        return f"the layer {layer!r} knows only {', '.join(sorted(ONLY[layer]))}"
    return ""


def test_imports_in_the_package_point_down() -> None:
    assert modules(ROOT), "the package was not found"
    assert violations(ROOT) == []


def test_a_module_stands_in_one_layer_only() -> None:
    members = [member for _, layer in LAYERS for member in layer]
    assert len(members) == len(set(members))


def test_every_exception_names_a_layer_or_a_module_of_the_table() -> None:
    names = {name for name, _ in LAYERS}
    members = {member for _, layer in LAYERS for member in layer}
    assert set(ONLY) <= names
    assert names >= NO_HTTP
    assert frozenset().union(*ONLY.values()) <= names | members


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
            "__init__.py": "from .middleware import ISR\n",
            "errors.py": "import json\n",
            "rules.py": "import werkzeug.routing\nfrom . import errors\n",
            "stores/base.py": "from ..errors import StoreError\n",
            "stores/memory.py": "from .base import Store\n",
            "stores/__init__.py": "from .memory import MemoryStore\n",
            "fill.py": "import threading\nfrom wsgi_isr import rules\nfrom .stores.base import Store\n",
            "respond.py": "from werkzeug.http import http_date\nfrom . import fill\n",
            "middleware.py": "from .stores import open_store\nfrom . import fill, respond\n",
        },
    )
    assert violations(root) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        pytest.param(
            {"rules.py": "from .fill import Fill\n", "fill.py": ""},
            "wsgi_isr.rules, line 1, imports wsgi_isr.fill: the layer 'values and decisions' is below 'coordination'",
            id="a decision knows coordination",
        ),
        pytest.param(
            {"fill.py": "def f():\n    import wsgi_isr.respond\n", "respond.py": ""},
            "wsgi_isr.fill, line 2, imports wsgi_isr.respond: the layer 'coordination' is below 'faces'",
            id="coordination knows a face, inside a function",
        ),
        pytest.param(
            {"lease.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import werkzeug.http\n"},
            "wsgi_isr.lease, line 3, imports werkzeug.http: the layer 'coordination' does not know HTTP",
            id="coordination knows HTTP, for its types",
        ),
        pytest.param(
            {"fill.py": "from .stores.memory import MemoryStore\n", "stores/memory.py": ""},
            "wsgi_isr.fill, line 1, imports wsgi_isr.stores.memory: the layer 'coordination' knows only "
            "coordination, the contract of stores, values and decisions",
            id="coordination knows one store",
        ),
        pytest.param(
            {"stores/memory.py": "from ..entry import Entry\n", "entry.py": ""},
            "wsgi_isr.stores.memory, line 1, imports wsgi_isr.entry: the layer 'stores' knows only "
            "errors, stores, the contract of stores",
            id="a store knows pages",
        ),
        pytest.param(
            {"stores/memory.py": "", "stores/base.py": "from .memory import MemoryStore\n"},
            "wsgi_isr.stores.base, line 1, imports wsgi_isr.stores.memory: "
            "the layer 'the contract of stores' is below 'stores'",
            id="the contract knows a store",
        ),
        pytest.param(
            {"capture.py": "from . import ISR\n"},
            "wsgi_isr.capture, line 1, imports wsgi_isr: nobody inside imports the package's __init__",
            id="a name from the __init__, relative",
        ),
        pytest.param(
            {"stores/memory.py": "from wsgi_isr import __version__\n"},
            "wsgi_isr.stores.memory, line 1, imports wsgi_isr: nobody inside imports the package's __init__",
            id="a name from the __init__, absolute",
        ),
        pytest.param(
            {"middleware.py": "import cluster.nodes\n"},
            "wsgi_isr.middleware, line 1, imports cluster.nodes: the package does not know what is beside it",
            id="the package knows the cluster",
        ),
        pytest.param(
            {"lease.py": "from . import flight\n", "flight.py": "from .lease import Lease\n"},
            "a cycle: wsgi_isr.flight <- wsgi_isr.lease <- wsgi_isr.flight",
            id="a cycle within a layer",
        ),
        pytest.param(
            {"helpers.py": ""},
            "wsgi_isr.helpers is in no layer: add it to LAYERS in test_imports.py",
            id="a module without a layer",
        ),
        pytest.param(
            {"keys.py": "from .rulez import Rule\n"},
            "wsgi_isr.keys, line 1, imports wsgi_isr.rulez: there is no wsgi_isr.rulez in LAYERS",
            id="a module that does not exist",
        ),
    ],
)
def test_a_forbidden_arrow_is_found_and_nothing_else(tmp_path: Path, sources: dict[str, str], expected: str) -> None:
    (problem,) = violations(tree(tmp_path, sources))
    if expected.startswith("a cycle"):  # which begins anywhere on the circle
        assert problem.startswith("a cycle: ")
        assert set(problem.removeprefix("a cycle: ").split(" <- ")) == {"wsgi_isr.flight", "wsgi_isr.lease"}
    else:
        assert problem == expected
