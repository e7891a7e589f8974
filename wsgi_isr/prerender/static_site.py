"""Write a static site: pages as files that any web server can show without the app.

``/a/b`` becomes ``a/b/index.html``, which a file server shows at ``/a/b/``. Any other response becomes a file with the
name in its path. :func:`file_of` decides the file. Nothing is written outside of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import gzip
import html
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from ..errors import ConfigError
from .html_links import SiteAddress, decoded_html, with_base

#: Bytes of one name, on every common file system.
LONGEST_NAME = 255
#: The file that records which files belong to which site: an export removes no files of other origin.
NOTES = ".wsgi-isr.json"
_HTML = ("text/html", "application/xhtml+xml")


class NoFile(Exception):
    """A page cannot be a file. ``failed`` tells whether the operator must act on it."""

    def __init__(self, reason: str, failed: bool = True) -> None:
        self.reason = reason
        self.failed = failed
        super().__init__(reason)


class Answer(NamedTuple):
    """A response of the app, to be written."""

    code: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """Return the first value of a header; empty where there is none."""
        return next((value for given, value in self.headers if given.lower() == name), "")

    @property
    def is_html(self) -> bool:
        """Return whether the response is an HTML page."""
        return self.header("content-type").partition(";")[0].strip().lower() in _HTML

    @property
    def is_css(self) -> bool:
        """Return whether the response is a style sheet."""
        return self.header("content-type").partition(";")[0].strip().lower() == "text/css"

    def unpacked(self) -> bytes:
        """Return the decoded body: a file server knows nothing of ``Content-Encoding``.

        :raises NoFile: the encoding cannot be undone here.
        """
        coding = self.header("content-encoding").strip().lower()
        if coding in ("", "identity"):
            return self.body
        if coding not in ("gzip", "x-gzip"):
            raise NoFile(f"content-encoding: {coding}")
        try:
            return gzip.decompress(self.body)
        except (OSError, EOFError, zlib.error):
            raise NoFile("content-encoding: gzip, but it is not") from None


def file_of(path: str, is_html: bool) -> tuple[str, ...]:
    """Return the names of the directories and of the file for a decoded public path.

    :raises NoFile: no file would be shown at this path by a file server.
    """
    *folders, last = path.removeprefix("/").split("/")
    if not last:
        if not is_html:
            raise NoFile("it is no HTML, and its path ends in a slash", failed=False)
        last = "index.html"
    elif is_html and not last.lower().endswith((".html", ".htm")):
        folders, last = [*folders, last], "index.html"
    names = (*folders, last)
    for name in names:
        if name in ("", ".", "..") or "\\" in name or not name.isprintable():
            raise NoFile(f"{name!r} is not the name of a file")
        if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
            raise NoFile(f"the name of its file would be longer than {LONGEST_NAME} bytes")
    if names[0] == NOTES:
        raise NoFile("an export keeps its own notes there")
    return names


def redirect_page(target: str) -> bytes:
    """Return a page that replaces a redirect on a file server."""
    url = html.escape(target)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Moved</title>'
        f'<link rel="canonical" href="{url}"><meta http-equiv="refresh" content="0; url={url}"></head>'
        f'<body><p>Moved to <a href="{url}">{url}</a>.</p></body></html>\n'
    ).encode()


class StaticSite:
    """The directory that a static site is written to. Several threads may call its methods.

    :param root: created if it does not exist.
    :param address: the site of the pages.
    :raises ConfigError: ``root`` cannot be created.
    """

    def __init__(self, root: str, address: SiteAddress) -> None:
        try:
            os.makedirs(root, exist_ok=True)
        except OSError as error:
            raise ConfigError("--export", f"{root}: {error.strerror}", "name a folder") from error
        self.root = os.path.realpath(root)
        self._address = address
        self._lock = threading.Lock()
        self._taken: dict[tuple[str, ...], str] = {}
        self.written = 0
        self.unchanged = 0
        self.removed = 0
        #: Pages whose file belongs to another page, with that page.
        self.lost: dict[str, str] = {}
        # mkstemp makes files for this user only; a web server runs as another user.
        mask = os.umask(0)
        os.umask(mask)
        self._mode = 0o666 & ~mask

    def put(self, path: str, answer: Answer) -> None:
        """Write the response for a public path, as written in URLs, unless the file has this content already.

        :raises NoFile: the response cannot be a file.
        :raises OSError: the disk.
        """
        if "?" in path:
            raise NoFile("a page with a query has no file", failed=False)
        text = unquote(path, errors="surrogateescape")
        if answer.code in (301, 302, 303, 307, 308):
            self._redirect(path, text, answer)
            return
        if answer.code != 200 and answer.code != 203:
            raise NoFile(f"status-{answer.code}")
        names, body = file_of(text, answer.is_html), answer.unpacked()
        if answer.is_html and names[-1] == "index.html" and not text.endswith(("/", "/index.html")):
            page, codec = decoded_html(body, answer.header("content-type"))
            body = with_base(page, path).encode(codec)
        self._write(names, path, body)

    def put_not_found(self, answer: Answer) -> None:
        """Write the site's own page for missing paths, which many file servers use."""
        if answer.is_html and answer.body:
            self._write(("404.html",), "the 404 page", answer.unpacked())

    def finish(self, whole: bool, sources: str = "") -> None:
        """Record the files of this site, once, at the end of an export.

        :param whole: the export is complete. Files of the last export that this one lacks are then removed, because
            their pages are gone.
        :param sources: the sources of the pages. Files of an export from other sources stay: an export of one page does
            not mean that the site has no other pages.
        :raises OSError: the disk.
        """
        notes = self._notes()
        site = self._address.at(self._address.mount)
        mine = {"/".join(names) for names in self._taken}
        before, files_before = notes.get(site, (sources, []))
        gone = set(files_before) - mine
        if whole and before == sources:
            kept = mine.union(*(files for other, (_, files) in notes.items() if other != site))
            files = set(map(self._file, kept))
            for name in sorted(gone - kept):
                # Two names may be one file: through a link, or where case does not matter.
                if self._file(name) not in files:
                    self._remove(name)
        else:
            mine |= gone
        notes[site] = (sources, sorted(mine))
        with self._unfinished(self.root, json.dumps(notes, indent=1, sort_keys=True).encode()) as unfinished:
            os.replace(unfinished, os.path.join(self.root, NOTES))

    def _notes(self) -> dict[str, tuple[str, list[str]]]:
        """Return the sources and files of each site.

        An unreadable record gives nothing, so that nothing is removed.
        """
        try:
            with open(os.path.join(self.root, NOTES), encoding="utf-8") as file:
                notes = json.load(file)
            return {
                str(site): (str(sources), [str(name) for name in files]) for site, (sources, files) in notes.items()
            }
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _file(self, name: str) -> tuple[int, int] | None:
        """Return the identity of a file, if it exists."""
        try:
            found = os.lstat(os.path.join(self.root, name))
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino

    def _remove(self, name: str) -> None:
        target = os.path.join(self.root, name)
        with contextlib.suppress(OSError, ValueError):  # no file any more, gone already, or no valid name
            # A user may have edited the record, or put a link in the way.
            if os.path.commonpath([os.path.realpath(os.path.dirname(target)), self.root]) != self.root:
                return
            os.unlink(target)
            self.removed += 1
            while (target := os.path.dirname(target)) != self.root:
                os.rmdir(target)  # raises at the first directory that is not empty

    def _redirect(self, path: str, text: str, answer: Answer) -> None:
        target = urljoin(self._address.at(path), answer.header("location"))
        split = urlsplit(target)
        if split.scheme not in ("http", "https"):
            raise NoFile("it redirects to no page")
        if self._address.holds(target):
            # Without scheme and host, the files may be served at any host.
            target = split._replace(scheme="", netloc="").geturl() or "/"
            if unquote(split.path, errors="surrogateescape").rstrip("/") == text.rstrip("/"):
                return  # the file server redirects so itself; a page would make a loop
        self._write(file_of(text, True), path, redirect_page(target))

    def _write(self, names: tuple[str, ...], path: str, body: bytes) -> None:
        parent = os.path.join(self.root, *names[:-1])
        # A link in the way may lead out of the directory.
        if os.path.commonpath([os.path.realpath(parent), self.root]) != self.root:
            raise NoFile("a link in the folder leads out of it")
        try:
            os.makedirs(parent, exist_ok=True)
            with self._unfinished(parent, body) as unfinished, self._lock:
                self._place(unfinished, names, path)
        except OSError as error:
            raise self._in_the_way(error, names) from error

    @contextlib.contextmanager
    def _unfinished(self, parent: str, body: bytes) -> Iterator[str]:
        """Yield a temporary file with this content, for an atomic replacement: no reader sees half of it."""
        descriptor, name = tempfile.mkstemp(prefix=".isr-", dir=parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                os.fchmod(descriptor, self._mode)
            yield name
        finally:
            if os.path.lexists(name):
                os.unlink(name)

    def _place(self, unfinished: str, names: tuple[str, ...], path: str) -> None:
        target = os.path.join(self.root, *names)
        same = os.path.isfile(target) and not os.path.islink(target) and filecmp.cmp(unfinished, target, shallow=False)
        holder = self._taken.setdefault(names, path)
        if holder != path and not same:
            # The first path in the alphabet gets the file, so that each run gives the same result, in any order of
            # threads.
            if holder < path:
                raise NoFile(f"its file is that of {holder}")
            self.lost[holder], self._taken[names] = path, path
        if same:
            self.unchanged += holder == path
            return
        os.replace(unfinished, target)
        self.written += 1

    @staticmethod
    def _in_the_way(error: OSError, names: tuple[str, ...]) -> NoFile | OSError:
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
            return NoFile(f"another file or folder is in the way of {'/'.join(names)}")
        return NoFile("its path is too long for a file") if error.errno == errno.ENAMETOOLONG else error
