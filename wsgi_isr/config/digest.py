"""Compute a digest of the content of an app's source, which distinguishes one release from the next.

The digest covers relative paths and content. So it is the same in each process, on each machine and in each version of
Python. Modification times are left out: they differ in each checkout and image.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

#: Endings of modules, the source before its compiled form: some images contain only the latter.
MODULE_ENDINGS = (".py", ".pyc")
#: The limits of files that are read, and of their bytes. Each further file counts by its path and size alone.
MAX_FILES, MAX_BYTES = 10_000, 64 * 1024 * 1024
#: The limit of directory entries that are listed. A directory with more entries than the remaining ones does not count.
MAX_SEEN = 10 * MAX_FILES

#: Directories that an app writes into, or that contain foreign code. A Python package counts in spite of such a name,
#: and so do templates and static files.
_NOT_SOURCE = frozenset(
    {
        *("__pycache__", "node_modules", "bower_components", "site-packages", "dist-packages", "venv", "env"),
        *("data", "instance", "media", "upload", "uploads", "user_uploads", "files", "backup", "backups"),
        *("cache", "caches", "log", "logs", "run", "tmp", "temp", "var", "build", "dist", "htmlcov"),
    }
)
#: Directories that are left out below templates and static files as well.
_CACHES = frozenset({"__pycache__", "node_modules"})
#: Directories that are left out below static files as well.
_UPLOADS = frozenset({"upload", "uploads", "user_uploads"})
#: Hidden directories that count below templates and static files: Vite keeps its manifest in one.
_HIDDEN_SOURCE = frozenset({".vite"})
#: Endings of static files that count: the text of a site's code. Images and media may be uploads in any directory.
_STATIC_NAMES = (
    *(".css", ".scss", ".less", ".js", ".mjs", ".cjs", ".ts", ".json", ".webmanifest", ".svg", ".html", ".htm"),
    *(".txt", ".xml"),
)
#: Endings of files that count beside a module: text that a deploy changes, and that an app hardly writes.
_TEXT_NAMES = (
    *(".md", ".rst", ".adoc", ".txt", ".html", ".htm", ".j2", ".jinja", ".jinja2", ".mako", ".tpl", ".po", ".mo"),
    *(".toml", ".yaml", ".yml", ".json", ".ini", ".cfg", ".sql"),
)
#: Endings of files that no page is rendered from: compiled code, databases, logs, files of editors.
_NOT_SOURCE_NAMES = (
    *(".pyo", ".db", ".db3", "db.json", ".sqlite", ".sqlite3", "-wal", "-shm", "-journal", ".rdb", ".aof", ".mdb"),
    *(".log", ".out", ".pid", ".sock", ".lock", ".swp", ".swo", ".tmp", ".bak", ".orig", ".rej", ".prof", "~"),
    ".egg-info",
)
#: Bytes before the code in a compiled file, with the modification time of its source among them (PEP 552).
_PYC_HEADER = 16
_IMPORT = rb"(?m)^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import\b|import[ \t]+([\w. \t,]+))"

_log = logging.getLogger("wsgi_isr")


class Kind(enum.IntEnum):
    """The content of a directory, which decides which files count. If a directory has two kinds, the greater wins."""

    LEFT_OUT = 1
    TEXT = 2
    STATIC = 3
    TEMPLATES = 4
    CODE = 5


#: Endings of the files that count in a directory of a kind; in other kinds, all files do.
_ENDINGS = {Kind.STATIC: _STATIC_NAMES, Kind.TEXT: _TEXT_NAMES}
#: Names by which frameworks find directories in a package.
_USUAL = {"templates": Kind.TEMPLATES, "static": Kind.STATIC}


class Root(NamedTuple):
    """A module, package or directory of an app.

    ``name`` is the same on each machine. ``base`` is the directory that imports start from; empty where no module there
    is the app's own.
    """

    name: str
    path: str
    base: str = ""
    kind: Kind = Kind.CODE


def resolved(module: str, base: str) -> Root | None:
    """Return the target of a dotted name in ``base``: the outermost regular package, or the module."""
    path, name = base, ""
    for part in module.split("."):
        path, name = os.path.join(path, part), f"{name}.{part}" if name else part
        if _is_package(path):
            return Root(name, path, base)
        for ending in MODULE_ENDINGS:
            if os.path.isfile(path + ending):
                return Root(name, path + ending, base)
        if not os.path.isdir(path):
            return _in_archive(name, base) if path == os.path.join(base, part) else None
    return Root(name, path, base)  # a namespace package


def _is_package(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, "__init__" + ending)) for ending in MODULE_ENDINGS)


def _in_archive(name: str, base: str) -> Root | None:
    """Return the archive that a module is imported from (:mod:`zipimport`), or its file of machine code."""
    if os.path.isfile(base):
        return Root(os.path.basename(base), base)
    file = getattr(sys.modules.get(name), "__file__", None)
    return Root(name, file, base) if file and os.path.isfile(file) and os.path.dirname(file) == base else None


@functools.lru_cache(64)  # once for each process, which runs the code that it loaded
def digest_of(roots: tuple[Root, ...]) -> str:
    """Return a digest of the content of ``roots``, and of the files beside them that they import.

    Empty if no file is found.
    """
    began = time.perf_counter()
    found: dict[str, bytes] = {}
    done: set[str] = set()
    files = size = beyond = 0
    queue = deque(roots)
    known = {root.path for root in roots}
    walk = _Walk(roots)
    while queue:
        root = queue.popleft()
        names: set[str] = set()
        for label, path in walk.files_of(root):
            if path in done:
                continue
            done.add(path)
            while label in found:  # two directories with the same name, in different places
                label += "'"
            content = _read(path, MAX_BYTES - size) if files < MAX_FILES else None
            if content is None:
                found[label] = b"%d" % _size(path)
                beyond += 1
                continue
            files, size = files + 1, size + len(content)
            if path.endswith(".pyc"):
                content = content[_PYC_HEADER:]
            found[label] = hashlib.blake2b(content, digest_size=16).digest()
            if root.base and path.endswith(".py"):
                names.update(_imported(content, root))
        for name in sorted(names):
            if (beside := resolved(name, root.base)) is not None and beside.path not in known:
                known.add(beside.path)
                queue.append(beside)
    if beyond:
        _log.warning(
            "the source of the app has %d files, %d of which count by their size alone (%d files and %d MiB are read), "
            'so that a deploy may not show: write release="...", or move elsewhere what is no source (of %s)',
            len(done),
            beyond,
            MAX_FILES,
            MAX_BYTES >> 20,
            ", ".join(root.path for root in roots),
        )
    if walk.skipped:
        _log.warning(
            "%s: too many files (%d are looked at for the source of the app), so that a deploy may not show: write "
            'release="...", or move elsewhere what is no source',
            ", ".join(walk.skipped[:5]),
            MAX_SEEN,
        )
    if not found:
        return ""
    whole = hashlib.blake2b(digest_size=8)
    for label in sorted(found):
        whole.update(b"%s\0%s\0" % (label.encode("utf-8", "surrogateescape"), found[label].hex().encode()))
    release = f"source-{whole.hexdigest()}"
    milliseconds = 1000 * (time.perf_counter() - began)
    _log.debug("release %s: %d files, %d bytes, read in %.1f ms", release, files, size, milliseconds)
    return release


_Place = tuple[int, int]


class _Walk:
    """Find the files of roots that count."""

    def __init__(self, roots: Iterable[Root]) -> None:
        self._kinds: dict[_Place, Kind] = {}
        for root in sorted(roots, key=lambda root: root.kind):
            if (place := _place(root.path)) is not None:
                self._kinds[place] = root.kind
        self._seen: set[tuple[_Place, Kind]] = set()
        self._left = MAX_SEEN
        #: Directories that have too many entries.
        self.skipped: list[str] = []

    def files_of(self, root: Root) -> Iterator[tuple[str, str]]:
        """Yield the files of a root by name, each with its path."""
        if root.kind is Kind.LEFT_OUT:
            return
        if not os.path.isdir(root.path):
            yield f"{root.name}.py" if root.path.endswith(".py") else root.name, root.path
        elif root.base and not _is_package(root.path):
            # A namespace package may contain packages of other distributions.
            entries = self._entries(root.path)
            names = {entry.name for entry in entries}
            for entry in entries:
                if entry.name.endswith(MODULE_ENDINGS) and not _has_source(entry.name, names) and _is_file(entry):
                    yield f"{root.name}/{entry.name}", entry.path
        else:
            yield from self._files_in(root.path, root.name, root.kind)

    def _files_in(self, folder: str, name: str, around: Kind) -> Iterator[tuple[str, str]]:
        """Yield the files of a directory by name, each with its path.

        :param around: the kind of the directory that contains it.
        """
        place = _place(folder)
        if place is None:
            return
        usual = _USUAL.get(os.path.basename(folder)) if around is Kind.CODE else None
        named = self._kinds.get(place) or usual
        kind = named or around
        if kind is Kind.LEFT_OUT or (named is None and _is_left_out(folder, kind)):
            return
        # With the kind: a directory of templates may be linked from below the static files.
        if (place, kind) in self._seen:
            return
        self._seen.add((place, kind))
        hidden = _HIDDEN_SOURCE if kind in (Kind.STATIC, Kind.TEMPLATES) else ()
        endings = _ENDINGS.get(kind, ("",))
        entries = self._entries(folder)
        names = {entry.name for entry in entries}
        for entry in entries:
            if _has_source(entry.name, names):
                continue
            if (entry.name.startswith(".") and entry.name not in hidden) or entry.name.endswith(_NOT_SOURCE_NAMES):
                continue
            if _is_folder(entry):
                yield from self._files_in(entry.path, f"{name}/{entry.name}", kind)
            elif entry.name.lower().endswith(endings) and _is_file(entry):
                yield f"{name}/{entry.name}", entry.path

    def _entries(self, folder: str) -> Sequence[os.DirEntry[str]]:
        """Return the entries of a directory by name; none where the walk may not list so many."""
        try:
            with os.scandir(folder) as scan:
                entries = list(islice(scan, self._left + 1))
        except OSError:
            return ()
        if len(entries) > self._left:
            self.skipped.append(folder)
            return ()
        self._left -= len(entries)
        return sorted(entries, key=lambda entry: entry.name)


def _is_left_out(folder: str, kind: Kind) -> bool:
    """Return whether a directory is no source of this kind.

    A link is judged by the name of its target as well: releases may share a directory of uploads.
    """
    if os.path.islink(folder) and _is_left_out(os.path.realpath(folder), kind):
        return True
    name = os.path.basename(folder)
    if kind in (Kind.STATIC, Kind.TEMPLATES):
        return name in _CACHES or (kind is Kind.STATIC and name in _UPLOADS)
    if os.path.lexists(os.path.join(folder, "pyvenv.cfg")):
        return True
    return name == "__pycache__" or (name in _NOT_SOURCE and not _is_package(folder))


def _has_source(name: str, names: Container[str]) -> bool:
    """Return whether a file is compiled from one beside it.

    :param names: of the files in its directory.
    """
    return name.endswith(".pyc") and name[:-1] in names


def _place(path: str) -> _Place | None:
    """Return the identity of a file or directory, by whichever path; ``None`` where it cannot be reached."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether this is a directory, or a link to one that is followed.

    A link to a directory that contains the link leads out of the app.
    """
    try:
        if not entry.is_symlink() or not entry.is_dir():
            return entry.is_dir()
        target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
    except OSError:
        return False
    return here != target and not here.startswith(target.rstrip(os.sep) + os.sep)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether this is a file. A pipe, which would never end, is none, nor is a link that cannot be followed."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _read(path: str, most: int) -> bytes | None:
    """Return the content of a file; empty where it cannot be read, ``None`` where it is longer than ``most``."""
    try:
        with open(path, "rb", buffering=0) as file:
            return None if os.fstat(file.fileno()).st_size > most else file.readall()
    except OSError:
        return b""


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _imported(content: bytes, root: Root) -> Iterator[str]:
    """Yield the dotted names that a file imports, as seen from the directory of its package."""
    # A package is read as a whole; only a single module has siblings.
    package = [] if os.path.isdir(root.path) else root.name.split(".")[:-1]
    for origin, several in re.findall(_IMPORT, content):
        for one in (origin or several).split(b","):
            words = one.split()
            name = words[0].decode("ascii", "ignore") if words else ""
            dots = len(name) - len(name.lstrip("."))
            if not dots:
                yield name
            elif len(package) >= dots:
                yield ".".join([*package[: len(package) - dots + 1], *filter(None, [name.lstrip(".")])])
