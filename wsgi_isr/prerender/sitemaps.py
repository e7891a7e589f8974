"""Read the pages of a sitemap, and of the sitemaps that it names."""

from __future__ import annotations

import os
from collections import deque
from typing import NamedTuple
from urllib.parse import urlsplit

from . import html_links
from .site_client import Fail, SiteClient, shown
from .static_site import NoFile

#: The depth of sitemaps that name sitemaps.
DEPTH = 4


class Pages(NamedTuple):
    """Paths of the site, each with the sitemap that names it; and sitemaps that failed, with the reasons."""

    paths: dict[str, str]
    problems: list[tuple[str, str]]


def pages_of_sitemap(given: str, client: SiteClient) -> Pages:
    """Return the site's pages in a sitemap, and in the sitemaps that it names.

    :param given: a file, or a path of the site.
    """
    pages = Pages({}, [])
    first = _Sitemap(given, os.path.isfile(given))
    todo, seen, elsewhere = deque([(first, DEPTH)]), {first}, ""
    while todo:
        sitemap, depth = todo.popleft()
        name = sitemap.name
        try:
            found = html_links.read_sitemap(_read(sitemap, client))
        except Exception as error:  # errors of the app as well, if it makes the sitemap
            known = isinstance(error, (ValueError, Fail, NoFile))
            pages.problems.append((name, getattr(error, "strerror", None) or (str(error) if known else shown(error))))
            continue
        for url in found.pages:
            if (path := client.own_path(url)) is None:
                elsewhere = elsewhere or url
            else:
                pages.paths.setdefault(path, name)
        for url in found.maps:
            if (nested := _nested(sitemap, url, client)) is None:
                elsewhere = elsewhere or url
            elif nested not in seen and depth > 1:
                seen.add(nested)
                todo.append((nested, depth - 1))
    if elsewhere and not pages.paths:
        # All URLs have another host: the site is wrong.
        other = urlsplit(elsewhere)
        problem = f"names no page of {client.address.at(client.address.mount)}, but {elsewhere}"
        pages.problems.append((given, f"{problem}: give --url {other.scheme}://{other.netloc}"))
    return pages


class _Sitemap(NamedTuple):
    """A file, or a path of the site. A sitemap of the site must not name files of this machine."""

    name: str
    is_file: bool


def _nested(index: _Sitemap, url: str, client: SiteClient) -> _Sitemap | None:
    """Return a sitemap that an index names: the file beside the index, if the index is a file."""
    if index.is_file:
        beside = os.path.join(os.path.dirname(index.name), os.path.basename(urlsplit(url).path))
        if os.path.isfile(beside):
            return _Sitemap(beside, True)
    path = client.own_path(url)
    return None if path is None else _Sitemap(path, False)


def _read(sitemap: _Sitemap, client: SiteClient) -> bytes:
    if sitemap.is_file:
        with open(sitemap.name, "rb") as file:
            return file.read(html_links.LARGEST_SITEMAP + 1)
    name = sitemap.name
    path = client.own_path(name) if name.startswith(("/", "http://", "https://")) else None
    if path is None:
        raise Fail("there is no such file; name one, or a path of the site like /sitemap.xml")
    answer = client.fetch(path)
    if answer.code != 200:
        raise Fail(f"status-{answer.code}")
    return answer.unpacked()
