"""A static site: pages as files, so that any web server shows them without the app.

``/a/b`` is ``a/b/index.html``, which a server of files shows at ``/a/b/``; everything else is a file of its own name.
Which file that is, is decided in :func:`file_of`; nothing is ever written anywhere else than below the folder.
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
from .html_links import Here, decoded_html, with_base

#: Bytes of one name, on every file system that matters.
LONGEST_NAME = 255
#: Where a folder says which files are of which site: never one that somebody else has put there is removed.
NOTES = ".wsgi-isr.json"
_HTML = ("text/html", "application/xhtml+xml")


class NoFile(Exception):
    """A page that cannot be a file; says why. ``failed``: somebody has to do something about it."""

    def __init__(self, reason: str, failed: bool = True) -> None:
        self.reason = reason
        self.failed = failed
        super().__init__(reason)


class Answer(NamedTuple):
    """What is to be written: what the app answered."""

    code: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """The first value of a header; empty where there is none."""
        return next((value for given, value in self.headers if given.lower() == name), "")

    @property
    def is_html(self) -> bool:
        """Whether it is a page to look at."""
        return self.header("content-type").partition(";")[0].strip().lower() in _HTML

    @property
    def is_css(self) -> bool:
        """Whether it is a style sheet."""
        return self.header("content-type").partition(";")[0].strip().lower() == "text/css"

    def unpacked(self) -> bytes:
        """The body as it is meant: a server of files knows nothing of ``Content-Encoding``.

        :raises NoFile: it is packed in a way that cannot be undone here.
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
    """The names of the folders and of the file for a decoded public path.

    :raises NoFile: there is none that a server of files would show at this path.
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
    """What stands for a redirect where only files are served."""
    url = html.escape(target)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Moved</title>'
        f'<link rel="canonical" href="{url}"><meta http-equiv="refresh" content="0; url={url}"></head>'
        f'<body><p>Moved to <a href="{url}">{url}</a>.</p></body></html>\n'
    ).encode()


class StaticSite:
    """Where a static site is written. Its methods may be called from several threads.

    :param root: made if it is not there. :param here: the site that the pages are of.
    :raises ConfigError: it cannot be.
    """

    def __init__(self, root: str, here: Here) -> None:
        try:
            os.makedirs(root, exist_ok=True)
        except OSError as error:
            raise ConfigError("--export", f"{root}: {error.strerror}", "name a folder") from error
        self.root = os.path.realpath(root)
        self._here = here
        self._lock = threading.Lock()
        self._taken: dict[tuple[str, ...], str] = {}
        self.written = 0
        self.unchanged = 0
        self.removed = 0
        #: Pages whose file became that of another one, and of which.
        self.lost: dict[str, str] = {}
        # mkstemp makes files that nobody else may read, but a web server is somebody else.
        mask = os.umask(0)
        os.umask(mask)
        self._mode = 0o666 & ~mask

    def put(self, path: str, answer: Answer) -> None:
        """Write the answer for a public path, as it is written in URLs, unless the file is the same already.

        :raises NoFile: it cannot be a file. :raises OSError: the disk.
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
        """Write the site's own page for what is not there, which many servers of files look for."""
        if answer.is_html and answer.body:
            self._write(("404.html",), "the 404 page", answer.unpacked())

    def finish(self, whole: bool, sources: str = "") -> None:
        """Note which files are of this site. Called once, at the end.

        :param whole: that is all of it: what the export before has written and this one has not is of pages that are
            gone, and removed. Otherwise it stays.
        :param sources: where the pages came from. After another run than the one before, everything stays: who
            exports one page does not mean that there are no others.
        :raises OSError: the disk.
        """
        notes = self._notes()
        site = self._here.at(self._here.mount)
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
        """The sources and files of each site. Nothing where nobody can read them: then nothing is removed."""
        try:
            with open(os.path.join(self.root, NOTES), encoding="utf-8") as file:
                notes = json.load(file)
            return {str(site): (str(told), [str(name) for name in files]) for site, (told, files) in notes.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _file(self, name: str) -> tuple[int, int] | None:
        """What tells a file from others, if there is one."""
        try:
            found = os.lstat(os.path.join(self.root, name))
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino

    def _remove(self, name: str) -> None:
        target = os.path.join(self.root, name)
        with contextlib.suppress(OSError, ValueError):  # it is no file any more, or gone already; or no name at all
            # Somebody may have written notes of their own, or put a link in the way.
            if os.path.commonpath([os.path.realpath(os.path.dirname(target)), self.root]) != self.root:
                return
            os.unlink(target)
            self.removed += 1
            while (target := os.path.dirname(target)) != self.root:
                os.rmdir(target)  # until one has something in it

    def _redirect(self, path: str, text: str, answer: Answer) -> None:
        target = urljoin(self._here.at(path), answer.header("location"))
        split = urlsplit(target)
        if split.scheme not in ("http", "https"):
            raise NoFile("it redirects to no page")
        if self._here.holds(target):
            # Of any host that the files are served at.
            target = split._replace(scheme="", netloc="").geturl() or "/"
            if unquote(split.path, errors="surrogateescape").rstrip("/") == text.rstrip("/"):
                return  # with or without a slash: that is done by whoever serves the files, and would be a loop
        self._write(file_of(text, True), path, redirect_page(target))

    def _write(self, names: tuple[str, ...], path: str, body: bytes) -> None:
        parent = os.path.join(self.root, *names[:-1])
        # A link that leads out of the folder may lie in the way.
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
        """A file with this content, to be put in the place of another one: nobody sees half of it."""
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
            # Whoever comes first in the alphabet has it: so it is the same one in each run, whatever the threads do.
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
