"""Where an app's own source is, and a digest of its content: what tells one release from the next.

The source is found from the app: the package or module that it comes from, those beside it that they import, and the
folders of templates and static files that its framework knows. It is read when the app is wrapped. Files that change
later belong to the next start: this process runs the code that it has loaded.

The digest is made of relative paths and content, so that it is the same in each process, on each machine and in each
version of Python. Modification times are no part of it: a checkout or an image has other ones.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from .frameworks import is_django, is_flask, nested

#: Variables by which platforms name what they have deployed, most telling first.
PLATFORM_VARIABLES = (
    "SOURCE_VERSION",  # Heroku's builds, Scalingo, Dokku
    "RENDER_GIT_COMMIT",
    "HEROKU_SLUG_COMMIT",
    "HEROKU_BUILD_COMMIT",
    "RAILWAY_GIT_COMMIT_SHA",
    "K_REVISION",  # Cloud Run, Knative
    "GAE_VERSION",  # App Engine
    "FLY_IMAGE_REF",
    "VERCEL_GIT_COMMIT_SHA",
    "KOYEB_GIT_SHA",
    "PLATFORM_TREE_ID",  # Platform.sh, Upsun
    "CC_COMMIT_ID",  # Clever Cloud
    "NF_DEPLOYMENT_SHA",  # Northflank
    "SOURCE_COMMIT",  # Coolify
    "GIT_COMMIT",
)

#: Files that are read, and bytes of them. What is beyond counts by its path and size alone.
MAX_FILES, MAX_BYTES = 10_000, 64 * 1024 * 1024
#: Files beyond these do not count at all.
MAX_SEEN = 10 * MAX_FILES

#: Folders of what an app writes, or of what others have written. One that is a Python package is source all the same.
_NOT_SOURCE = frozenset(
    {
        *("__pycache__", "node_modules", "bower_components", "site-packages", "dist-packages", "venv", "env"),
        *("data", "instance", "media", "upload", "uploads", "user_uploads", "files", "backup", "backups"),
        *("cache", "caches", "log", "logs", "run", "tmp", "temp", "var", "build", "dist", "htmlcov"),
    }
)
#: Endings of files that no page is made of: compiled code, databases, logs, what editors leave behind.
_NOT_SOURCE_NAMES = (
    *(".pyc", ".pyo", ".db", ".db3", ".sqlite", ".sqlite3", "-wal", "-shm", "-journal", ".rdb", ".aof", ".mdb"),
    *(
        ".log",
        ".out",
        ".pid",
        ".sock",
        ".lock",
        ".swp",
        ".swo",
        ".tmp",
        ".bak",
        ".orig",
        ".rej",
        ".prof",
        "~",
        ".egg-info",
    ),
)
#: Folders beside an app of which nothing else says where its templates are: those that frameworks look into.
_USUAL_FOLDERS = ("templates", "views", "static")

_IMPORT = rb"(?m)^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import\b|import[ \t]+([\w. \t,]+))"
_OURS = __name__.partition(".")[0]
_STDLIB = os.path.dirname(os.__file__)

_log = logging.getLogger("wsgi_isr")


class Root(NamedTuple):
    """A module, package or folder of an app.

    ``name`` is the same on each machine. ``base`` is the folder that imports begin from; empty where nothing that is
    imported from there is the app's own.
    """

    name: str
    path: str
    base: str = ""


def release_of(app: Any, module: str, environ: Mapping[str, str]) -> str:
    """Return what tells this release of an app from others; empty where nothing does.

    :param module: the name of the module that wraps the app. :param environ: the process's environment.
    """
    for variable in PLATFORM_VARIABLES:
        if environ.get(variable):
            return environ[variable]
    roots = _roots_if_possible(app, module)
    release = digest_of(roots) if roots else ""
    if not release:
        _log.debug("no source of %s is found, so that its pages belong to no release", module or "the app")
    return release


def project_folder(app: Any, module: str = "") -> str:
    """Return the folder that the app is imported from: the parent of its package, or the folder of its module.

    It is the current directory for an app that is installed among others' packages, or has no file.
    """
    own = (root.base for root in _roots_if_possible(app, module) if root.base)
    return next(own, "") or os.getcwd()


def state_folder(app: Any, module: str = "") -> str:
    """Return the folder for what the package keeps for an app, such as the default store. It may not exist yet.

    :param module: the name of the module that wraps the app.
    """
    return os.path.join(project_folder(app, module), ".wsgi_isr")


# Where the source is -----------------------------------------------------------------------------------


def _roots_if_possible(app: Any, module: str) -> tuple[Root, ...]:
    try:
        return _roots(app, module)
    except Exception as error:  # of an app that is made in a way that nobody has thought of, and that works
        _log.debug("the source of the app cannot be looked for: %r", error)
        return ()


def _roots(app: Any, module: str) -> tuple[Root, ...]:
    """Return the parts of an app that can be told from itself and from the module that wraps it."""
    names: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    of_django = app is None
    for inner in nested(app) if app is not None else ():
        if is_flask(inner):
            names.append(inner.import_name)
            for part in (inner, *inner.blueprints.values()):
                if not _is_installed(part.root_path):
                    folders += [os.path.join(part.root_path, part.template_folder)] if part.template_folder else []
                    folders += [part.static_folder] if part.static_folder else []
        elif is_django(inner):
            of_django = True
        else:
            others.append(_module_of(inner))
    is_known = bool(names) or of_django
    if of_django:
        names += _of_django(folders)
    roots = [root for name in names if (root := _located(name)) is not None]
    # Middlewares and frameworks are others' source.
    roots += [root for name in others if (root := _located(name)) is not None and root.base]
    roots += [root for name in [module] if (root := _located(name)) is not None]
    bases = list(dict.fromkeys(root.base for root in roots if root.base))
    if not is_known:
        folders += [os.path.join(base, usual) for base in bases for usual in _USUAL_FOLDERS]
    base = bases[0] if bases else ""
    roots += [Root(_label(folder, base), folder) for folder in map(os.path.abspath, folders)]
    return tuple(root for root in dict.fromkeys(roots) if os.path.exists(root.path))


def _module_of(app: Any) -> str:
    module = getattr(app, "__module__", None)
    return module if isinstance(module, str) else type(app).__module__


def _of_django(folders: list[str]) -> list[str]:
    """Return the modules of the Django project that is set up in this process, and add its folders."""
    conf = sys.modules.get("django.conf")
    if conf is None or not conf.settings.configured:
        return []
    settings = conf.settings
    names = [getattr(settings, "SETTINGS_MODULE", None), getattr(settings, "ROOT_URLCONF", None)]
    names.append(str(getattr(settings, "WSGI_APPLICATION", None) or "").rpartition(".")[0])
    from django.apps import apps

    if apps.apps_ready:
        installed = [config for config in apps.get_app_configs() if not _is_installed(config.path)]
        names += [config.name for config in installed]
    for engine in settings.TEMPLATES:
        folders += map(os.fspath, engine.get("DIRS", ()))
    for name in ("STATICFILES_DIRS", "LOCALE_PATHS"):
        # A folder of static files may be a pair: a prefix, and the folder.
        folders += [os.fspath(one[1] if isinstance(one, (list, tuple)) else one) for one in getattr(settings, name, ())]
    return [name for name in names if isinstance(name, str) and name]  # ROOT_URLCONF may be the patterns themselves


def _is_installed(path: str) -> bool:
    """Return whether a file is one of Python's own, or of a package that was installed."""
    parts = path.split(os.sep)
    return path.startswith(_STDLIB + os.sep) or "site-packages" in parts or "dist-packages" in parts


def _located(module: str) -> Root | None:
    """Return the package or module by this name: of a package in a package, the outermost one. ``None`` without a
    file."""
    if module == "__main__":
        main = sys.modules["__main__"]
        if getattr(main, "__spec__", None) is None:
            return _of_file(getattr(main, "__file__", None))
        module = str(main.__spec__.name).removesuffix(".__main__")  # type: ignore[union-attr]
    top = module.partition(".")[0]
    if not top or top == _OURS:
        return None
    for base in _bases(top):
        if (found := _resolved(module, base)) is not None:
            return found._replace(base=_base(base))
    return _of_file(getattr(sys.modules.get(module), "__file__", None))


def _of_file(file: str | None) -> Root | None:
    if not file:
        return None
    path = os.path.abspath(file)
    return Root(os.path.basename(path).removesuffix(".py"), path, _base(os.path.dirname(path)))


def _bases(top: str) -> Iterator[str]:
    """Yield the folders that a top-level name is imported from: of a namespace package there may be several."""
    known = sys.modules.get(top)
    places = [*getattr(known, "__path__", ())]
    if not places and getattr(known, "__file__", None):
        places = [str(known.__file__)]  # type: ignore[union-attr]
    if known is None:
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            spec = None
        if spec is not None:
            places = [*(spec.submodule_search_locations or ())]
            if not places and spec.has_location and spec.origin:
                places = [spec.origin]
    for place in places:
        yield os.path.dirname(os.path.abspath(place))


def _base(folder: str) -> str:
    return "" if _is_installed(folder + os.sep) else folder


def _resolved(module: str, base: str) -> Root | None:
    """Return what a dotted name is in ``base``: the outermost regular package, or the module."""
    path, name = base, ""
    for part in module.split("."):
        path, name = os.path.join(path, part), f"{name}.{part}" if name else part
        if os.path.isfile(os.path.join(path, "__init__.py")):
            return Root(name, path, base)
        if os.path.isfile(path + ".py"):
            return Root(name, path + ".py", base)
        if not os.path.isdir(path):
            return _in_archive(name, base) if path == os.path.join(base, part) else None
    return Root(name, path, base)  # a namespace package


def _in_archive(name: str, base: str) -> Root | None:
    """Return the archive that a module is imported from (:mod:`zipimport`), or its compiled file."""
    if os.path.isfile(base):
        return Root(os.path.basename(base), base)
    file = getattr(sys.modules.get(name), "__file__", None)
    return Root(name, file, base) if file and os.path.isfile(file) and os.path.dirname(file) == base else None


def _label(folder: str, base: str) -> str:
    """Return a name for a folder that is the same wherever the project is."""
    return os.path.relpath(folder, base) if base and folder.startswith(base + os.sep) else os.path.basename(folder)


# Its content -------------------------------------------------------------------------------------------


@functools.lru_cache(64)  # once for each process, which runs the code that it has loaded
def digest_of(roots: tuple[Root, ...]) -> str:
    """Return a digest of the content of ``roots``, and of what they import from beside them; empty without a file."""
    began = time.perf_counter()
    found: dict[str, bytes] = {}
    done: set[str] = set()
    files = size = beyond = 0
    queue = deque(roots)
    known = {root.path for root in roots}
    while queue:
        root = queue.popleft()
        names: set[str] = set()
        for label, path in _files_of(root):
            if path in done or len(done) >= MAX_SEEN:
                continue
            done.add(path)
            while label in found:  # two folders of the same name, in other places
                label += "'"
            content = _read(path, MAX_BYTES - size) if files < MAX_FILES else None
            if content is None:
                found[label] = b"%d" % _size(path)
                beyond += 1
                continue
            files, size = files + 1, size + len(content)
            found[label] = hashlib.blake2b(content, digest_size=16).digest()
            if root.base and path.endswith(".py"):
                names.update(_imported(content, root))
        for name in sorted(names):
            if (beside := _resolved(name, root.base)) is not None and beside.path not in known:
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
    if not found:
        return ""
    whole = hashlib.blake2b(digest_size=8)
    for label in sorted(found):
        whole.update(b"%s\0%s\0" % (label.encode("utf-8", "surrogateescape"), found[label].hex().encode()))
    release = f"source-{whole.hexdigest()}"
    milliseconds = 1000 * (time.perf_counter() - began)
    _log.debug("release %s: %d files, %d bytes, read in %.1f ms", release, files, size, milliseconds)
    return release


def _files_of(root: Root) -> Iterator[tuple[str, str]]:
    """Yield the files of a root by name, each with its path."""
    if not os.path.isdir(root.path):
        yield f"{root.name}.py" if root.path.endswith(".py") else root.name, root.path
    elif root.base and not os.path.isfile(os.path.join(root.path, "__init__.py")):
        # A namespace package has parts of others' as well.
        for entry in _entries(root.path):
            if entry.name.endswith(".py") and entry.is_file():
                yield f"{root.name}/{entry.name}", entry.path
    else:
        yield from _files_in(root.path, root.name)


def _files_in(folder: str, name: str) -> Iterator[tuple[str, str]]:
    entries = _entries(folder)
    names = {entry.name for entry in entries}
    if "pyvenv.cfg" in names or (os.path.basename(folder) in _NOT_SOURCE and "__init__.py" not in names):
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.endswith(_NOT_SOURCE_NAMES):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files_in(entry.path, f"{name}/{entry.name}")
        elif entry.is_file():  # and no pipe, which would never end
            yield f"{name}/{entry.name}", entry.path


def _entries(folder: str) -> Sequence[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return ()


def _read(path: str, most: int) -> bytes | None:
    """Return the content of a file, which is empty where it cannot be read; ``None`` where it is longer than
    ``most``."""
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
    """Yield the dotted names that a file imports, as they would be found from the folder of its package."""
    # A package is read as a whole; only a module alone has others beside it.
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
