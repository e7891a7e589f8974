"""The pages, without any caching."""

from __future__ import annotations

import difflib
import itertools
import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request, static_file, template

from . import catalogue, render
from .search import LONGEST, MOST, search

HERE = Path(__file__).parent
PYTHON = ".".join(platform.python_version_tuple()[:2])

site = Bottle()


@site.hook("before_request")
def begin() -> None:
    request.environ["pydoc_bottle.began"] = time.perf_counter()


def page(view: str, **data: Any) -> str:
    """Render a view with its footer, which names time and process."""

    def took() -> str:
        milliseconds = 1000 * (time.perf_counter() - request.environ["pydoc_bottle.began"])
        return f"{milliseconds:.{0 if milliseconds >= 10 else 1}f}"

    now = datetime.now(timezone.utc)
    data.update(
        python=PYTHON,
        rendered_at=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        rendered_by=os.getpid(),
        took=took,
        current=request.path,
        query=data.get("query", ""),
        longest=LONGEST,
    )
    html: str = template(view, template_lookup=[str(HERE / "views")], **data)
    return html


@site.get("/")
def index() -> str:
    modules = catalogue.modules()
    alone = sorted((module for module in modules if "." not in module.name and not module.is_package), key=_bare)
    return page(
        "index",
        total=len(modules),
        packages=[(package, catalogue.modules_of(package.name)) for package in catalogue.packages()],
        alone=len(alone),
        letters=[(letter, list(group)) for letter, group in itertools.groupby(alone, lambda module: _bare(module)[0])],
    )


def _bare(module: catalogue.Module) -> str:
    return module.name.strip("_").upper()


@site.get("/package/<name>")
def package(name: str) -> str:
    found = catalogue.find(name)
    if found is None or not found.is_package or "." in name:
        raise HTTPError(404, f"There is no package {name!r}.")
    return page("package", package=found, modules=catalogue.modules_of(name))


@site.get("/module/<name>")
def module(name: str) -> str:
    loaded = catalogue.load(name)
    if loaded is None:
        raise HTTPError(404, f"There is no module {name!r}.")
    found = catalogue.find(name)
    parts = name.split(".")
    above = [(".".join(parts[:count]), parts[count - 1]) for count in range(1, len(parts))]
    return page("module", module=found, above=above, last=parts[-1], doc=render.document(loaded))


@site.get("/search")
def results() -> str:
    query = " ".join(request.query.q.split())[:LONGEST]
    return page("search", query=query, found=search(query), most=MOST)


@site.get("/about")
def about() -> str:
    return page("about", version=platform.python_version(), names=len(catalogue.names()))


@site.get("/static/<name>")
def static(name: str) -> HTTPResponse:
    return static_file(name, root=HERE / "static")


@site.error(404)
def nothing_here(error: HTTPError) -> str:
    wanted = request.path.rpartition("/")[2]
    close = difflib.get_close_matches(wanted, catalogue.names(), 4, 0.7)
    similar = [found for name in close if (found := catalogue.find(name)) is not None]
    return page("error", title="Not here", message=_message(error), similar=similar)


@site.error(405)
@site.error(500)
def sorry(error: HTTPError) -> str:
    title = {405: "That cannot be done here", 500: "Something broke"}[error.status_code]
    return page("error", title=title, message="", similar=[])


def _message(error: HTTPError) -> str:
    # Bottle's own message quotes the whole path.
    return error.body if str(error.body).startswith("There is no") else "There is no such page."
