"""The pages of a sitemap, wherever it and those that it names are."""

from __future__ import annotations

import os
from collections import deque
from typing import NamedTuple
from urllib.parse import urlsplit

from . import links
from .export import NoFile
from .making import Fail, Maker, shown

#: Sitemaps of sitemaps, and so on.
DEPTH = 4


class Pages(NamedTuple):
    """Paths of the site, each with the sitemap that names it; and sitemaps that came to nothing, and why."""

    paths: dict[str, str]
    problems: list[tuple[str, str]]


def pages_of_sitemap(given: str, maker: Maker) -> Pages:
    """What a sitemap, and those that it names, list of the site. ``given`` is a file, or a path of the site."""
    pages = Pages({}, [])
    todo, seen, elsewhere = deque([(given, DEPTH)]), {given}, ""
    while todo:
        name, depth = todo.popleft()
        try:
            found = links.read_sitemap(_read(name, maker))
        except Exception as error:  # of the app as well, where it makes the sitemap
            known = isinstance(error, (ValueError, Fail, NoFile))
            pages.problems.append((name, getattr(error, "strerror", None) or (str(error) if known else shown(error))))
            continue
        for url in found.pages:
            if (path := _own(url, maker)) is None:
                elsewhere = elsewhere or url
            else:
                pages.paths.setdefault(path, name)
        for url in found.maps:
            if (nested := _nested(name, url, maker)) is None:
                elsewhere = elsewhere or url
            elif nested not in seen and depth > 1:
                seen.add(nested)
                todo.append((nested, depth - 1))
    if elsewhere and not pages.paths:
        # Of another host altogether: that is the wrong site, and not a link to somewhere else.
        other = urlsplit(elsewhere)
        said = f"names no page of {maker.here.at(maker.here.mount)}, but {elsewhere}"
        pages.problems.append((given, f"{said}: give --url {other.scheme}://{other.netloc}"))
    return pages


def _own(url: str, maker: Maker) -> str | None:
    absolute = links.absolute(url, maker.here.at("/"))
    return maker.here.path_of(absolute) if absolute else None


def _nested(index: str, url: str, maker: Maker) -> str | None:
    """A sitemap that an index names: the file beside it, where the index is one."""
    if os.path.isfile(index):
        beside = os.path.join(os.path.dirname(index), os.path.basename(urlsplit(url).path))
        if os.path.isfile(beside):
            return beside
    return _own(url, maker)


def _read(sitemap: str, maker: Maker) -> bytes:
    if os.path.isfile(sitemap):
        with open(sitemap, "rb") as file:
            return file.read(links.LARGEST_SITEMAP + 1)
    path = _own(sitemap, maker) if sitemap.startswith(("/", "http://", "https://")) else None
    if path is None:
        raise Fail("there is no such file; name one, or a path of the site like /sitemap.xml")
    answer = maker.ask(path)
    if answer.code != 200:
        raise Fail(f"status-{answer.code}")
    return answer.unpacked()
