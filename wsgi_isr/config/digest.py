"""Compute a digest of the source of an app. The digest distinguishes one release from the next.

The digest covers relative paths and content. It is the same in each process, on each machine and in each version of
Python. Modification times do not count: they differ in each checkout and image.
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

#: Endings of modules. The source precedes its compiled form; some images contain only the latter.
MODULE_ENDINGS = (".py", ".pyc")
#: The maximum number of files that are read, and of their bytes. Further files count by path and size alone.
MAX_FILES, MAX_BYTES = 10_000, 64 * 1024 * 1024
#: The maximum number of directory entries that are listed. A directory beyond this limit does not count.
MAX_ENTRIES = 10 * MAX_FILES

#: Directories that an app writes into, or that contain foreign code. Python packages, templates and static files with
#: such a name count all the same.
_NOT_SOURCE = frozenset(
    {
        *("__pycache__", "node_modules", "bower_components", "site-packages", "dist-packages", "venv", "env"),
        *("data", "instance", "media", "upload", "uploads", "user_uploads", "files", "backup", "backups"),
        *("cache", "caches", "log", "logs", "run", "tmp", "temp", "var", "build", "dist", "htmlcov"),
    }
)
#: Directories that do not count below templates and static files either.
_CACHES = frozenset({"__pycache__", "node_modules"})
#: Directories that do not count below static files either.
_UPLOADS = frozenset({"upload", "uploads", "user_uploads"})
#: Hidden directories that count below templates and static files: Vite keeps its manifest in one.
_HIDDEN_SOURCE = frozenset({".vite"})
#: Endings of static files that count: text. Images and media in any directory may be uploads.
_STATIC_ENDINGS = (
    *(".css", ".scss", ".less", ".js", ".mjs", ".cjs", ".ts", ".json", ".webmanifest", ".svg", ".html", ".htm"),
    *(".txt", ".xml"),
)
#: Endings of files that count beside a module: text that a deploy changes, and an app hardly writes.
_TEXT_ENDINGS = (
    *(".md", ".rst", ".adoc", ".txt", ".html", ".htm", ".j2", ".jinja", ".jinja2", ".mako", ".tpl", ".po", ".mo"),
    *(".toml", ".yaml", ".yml", ".json", ".ini", ".cfg", ".sql"),
)
#: Endings of files that never count: compiled code, databases, logs, files of editors.
_NOT_SOURCE_ENDINGS = (
    *(".pyo", ".db", ".db3", "db.json", ".sqlite", ".sqlite3", "-wal", "-shm", "-journal", ".rdb", ".aof", ".mdb"),
    *(".log", ".out", ".pid", ".sock", ".lock", ".swp", ".swo", ".tmp", ".bak", ".orig", ".rej", ".prof", "~"),
    ".egg-info",
)
#: The length of the header of a compiled file, which contains the modification time of its source (PEP 552).
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


#: Endings of the files that count in a directory of a kind. In other kinds, all files count.
_ENDINGS = {Kind.STATIC: _STATIC_ENDINGS, Kind.TEXT: _TEXT_ENDINGS}
#: The kinds of directories in a package, by the names that frameworks look for.
_USUAL = {"templates": Kind.TEMPLATES, "static": Kind.STATIC}


class Root(NamedTuple):
    """A module, package or directory of an app.

    :param name: the same on each machine.
    :param base: the directory of imports; empty if its modules do not belong to the app.
    """

    name: str
    path: str
    base: str = ""
    kind: Kind = Kind.CODE


def resolved(module: str, base: str) -> Root | None:
    """Return the outermost regular package, or the module, of a dotted name in ``base``; ``None`` if there is none."""
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
    """Return the archive of a module (:mod:`zipimport`), or its file of machine code; ``None`` if there is none."""
    if os.path.isfile(base):
        return Root(os.path.basename(base), base)
    file = getattr(sys.modules.get(name), "__file__", None)
    return Root(name, file, base) if file and os.path.isfile(file) and os.path.dirname(file) == base else None


@functools.lru_cache(64)  # once: the process runs the code that it has loaded
def digest_of(roots: tuple[Root, ...]) -> str:
    """Return a digest of ``roots`` and of the modules beside them that they import; empty if no file is found."""
    began = time.perf_counter()
    contents = _Contents()
    queue = deque(roots)
    known = {root.path for root in roots}
    walk = _Walk(roots)
    while queue:
        root = queue.popleft()
        names: set[str] = set()
        for label, path in walk.files_of(root):
            content = contents.add(label, path)
            if content is not None and root.base and path.endswith(".py"):
                names.update(_imported(content, root))
        for name in sorted(names):
            if (beside := resolved(name, root.base)) is not None and beside.path not in known:
                known.add(beside.path)
                queue.append(beside)
    _warn_of_limits(roots, contents, walk)
    if not contents.digests:
        return ""
    release = f"source-{contents.digest()}"
    milliseconds = 1000 * (time.perf_counter() - began)
    _log.debug("release %s: %d files, %d bytes, read in %.1f ms", release, contents.files, contents.size, milliseconds)
    return release


class _Contents:
    """The digests of files, by name. Beyond the limits, the size of a file replaces its digest."""

    def __init__(self) -> None:
        self.digests: dict[str, bytes] = {}
        self.paths: set[str] = set()
        #: The number and the bytes of the files that were read, and the number of all others.
        self.files = self.size = self.unread = 0

    def add(self, label: str, path: str) -> bytes | None:
        """Add a file; return its content, or ``None`` if it is known or was not read."""
        if path in self.paths:
            return None
        self.paths.add(path)
        while label in self.digests:  # two directories in different places have one name
            label += "'"
        content = _read(path, MAX_BYTES - self.size) if self.files < MAX_FILES else None
        if content is None:
            self.digests[label] = b"%d" % _size(path)
            self.unread += 1
            return None
        self.files += 1
        self.size += len(content)
        code = content[_PYC_HEADER:] if path.endswith(".pyc") else content
        self.digests[label] = hashlib.blake2b(code, digest_size=16).digest()
        return content

    def digest(self) -> str:
        """Return the digest of all names and digests."""
        whole = hashlib.blake2b(digest_size=8)
        for label in sorted(self.digests):
            whole.update(b"%s\0%s\0" % (label.encode("utf-8", "surrogateescape"), self.digests[label].hex().encode()))
        return whole.hexdigest()


def _warn_of_limits(roots: Iterable[Root], contents: _Contents, walk: _Walk) -> None:
    if contents.unread:
        _log.warning(
            "the source of the app has %d files, %d of which count by their size alone (%d files and %d MiB are "
            'read), so a deploy may not be noticed: write release="...", or move other files out of %s',
            len(contents.paths),
            contents.unread,
            MAX_FILES,
            MAX_BYTES >> 20,
            ", ".join(root.path for root in roots),
        )
    if walk.skipped:
        _log.warning(
            "%s: too many files (the search for the source of the app stops after %d), so a deploy may not be noticed: "
            'write release="...", or move other files out of it',
            ", ".join(walk.skipped[:5]),
            MAX_ENTRIES,
        )


#: The device and inode of a file or directory.
_Place = tuple[int, int]


class _Walk:
    """The search for the files of roots that count."""

    def __init__(self, roots: Iterable[Root]) -> None:
        self._kinds: dict[_Place, Kind] = {}
        for root in sorted(roots, key=lambda root: root.kind):
            if (place := _place(root.path)) is not None:
                self._kinds[place] = root.kind
        self._seen: set[tuple[_Place, Kind]] = set()
        self._left = MAX_ENTRIES
        #: Directories with too many entries.
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

    def _files_in(self, folder: str, name: str, outer_kind: Kind) -> Iterator[tuple[str, str]]:
        """Yield the files of a directory by name, each with its path.

        :param outer_kind: the kind of the directory around it.
        """
        place = _place(folder)
        if place is None:
            return
        usual = _USUAL.get(os.path.basename(folder)) if outer_kind is Kind.CODE else None
        named = self._kinds.get(place) or usual
        kind = named or outer_kind
        if kind is Kind.LEFT_OUT or (named is None and _is_left_out(folder, kind)):
            return
        # By kind: a directory of templates may be linked from below the static files.
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
            if (entry.name.startswith(".") and entry.name not in hidden) or entry.name.endswith(_NOT_SOURCE_ENDINGS):
                continue
            if _is_folder(entry):
                yield from self._files_in(entry.path, f"{name}/{entry.name}", kind)
            elif entry.name.lower().endswith(endings) and _is_file(entry):
                yield f"{name}/{entry.name}", entry.path

    def _entries(self, folder: str) -> Sequence[os.DirEntry[str]]:
        """Return the entries of a directory, sorted by name; none if they are beyond the limit."""
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
    """Return whether a directory of this kind does not count.

    The name of a link's target decides as well: releases may share a directory of uploads.
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
    """Return whether a file is compiled, and its source is beside it.

    :param names: the files in its directory.
    """
    return name.endswith(".pyc") and name[:-1] in names


def _place(path: str) -> _Place | None:
    """Return the place of a file or directory, the same for each path to it; ``None`` if it cannot be reached."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether this is a directory, or a link to one.

    A link to a directory around it is not followed: the walk would leave the app.
    """
    try:
        if not entry.is_symlink() or not entry.is_dir():
            return entry.is_dir()
        target, parent = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
    except OSError:
        return False
    return parent != target and not parent.startswith(target.rstrip(os.sep) + os.sep)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether this is a regular file, or a link to one. Reading a pipe would never end."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _read(path: str, max_bytes: int) -> bytes | None:
    """Return the content of a file; empty if it cannot be read, ``None`` if it is longer than ``max_bytes``."""
    try:
        with open(path, "rb", buffering=0) as file:
            return None if os.fstat(file.fileno()).st_size > max_bytes else file.readall()
    except OSError:
        return b""


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _imported(content: bytes, root: Root) -> Iterator[str]:
    """Yield the dotted names that a file imports, as seen from the directory of its package."""
    # A package is read as a whole; only a module has siblings.
    package = [] if os.path.isdir(root.path) else root.name.split(".")[:-1]
    for origin, several in re.findall(_IMPORT, content):
        for one in (origin or several).split(b","):
            parts = one.split()
            name = parts[0].decode("ascii", "ignore") if parts else ""
            dots = len(name) - len(name.lstrip("."))
            if not dots:
                yield name
            elif len(package) >= dots:
                yield ".".join([*package[: len(package) - dots + 1], *filter(None, [name.lstrip(".")])])
