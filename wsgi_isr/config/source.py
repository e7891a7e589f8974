"""Find the source of an app. Its content distinguishes one release from the next.

The source is the app's package or module, and the modules beside it that are imported. The directories of templates and
static files that the framework knows belong to it as well. The source is read when the app is wrapped. The
process runs the code that it has loaded, so a later change counts from the next start on.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from .digest import MODULE_ENDINGS, Kind, Root, digest_of, resolved
from .frameworks import is_django, is_flask, nested

#: Variables by which platforms name a deployment, the most specific first.
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

#: Variables that any build may set. With a value such as "unknown", all deploys would be one release.
_ONLY_COMMITS = ("SOURCE_COMMIT", "GIT_COMMIT")
_COMMIT = re.compile("[0-9a-fA-F]{7,64}")

#: Directories beside an app whose framework is unknown.
_USUAL_FOLDERS = {"templates": Kind.TEMPLATES, "views": Kind.TEMPLATES, "static": Kind.STATIC}

_PACKAGE = __name__.partition(".")[0]
_STDLIB = os.path.dirname(os.__file__)

_log = logging.getLogger("wsgi_isr")


def release_of(app: Any, module: str, environ: Mapping[str, str]) -> str:
    """Return the name of this release of an app; empty if no source is found.

    :param module: the name of the module that wraps the app.
    :param environ: the environment variables of the process.
    """
    for variable in PLATFORM_VARIABLES:
        value = environ.get(variable, "").strip()
        if value and (variable not in _ONLY_COMMITS or _COMMIT.fullmatch(value)):
            _log.info("release %r, from %s", value, variable)
            return value
    roots = _roots_if_possible(app, module)
    try:
        release = digest_of(roots) if roots else ""
    except Exception as error:
        _log.warning(
            'the source of the app cannot be read (%r), so a deploy is not noticed: write release="..."', error
        )
        return ""
    # Neither a script without an app nor an app in an interactive Python is deployed.
    is_interactive = module == "__main__" and not getattr(sys.modules["__main__"], "__file__", None)
    if not release and app is not None and not is_interactive:
        _log.warning(
            'no source of %s is found, so a deploy is not noticed: write release="...", or release=None if that is '
            "intended",
            module or "the app",
        )
    return release


def project_folder(app: Any, module: str = "") -> str:
    """Return the directory that an app is imported from: the parent of its package, or the directory of its module.

    For an app without a file, or an installed one (site-packages), return the current directory.
    """
    own = (root.base for root in _roots_if_possible(app, module) if root.base)
    return next(own, "") or os.getcwd()


def state_folder(app: Any, module: str = "") -> str:
    """Return the directory for the package's files for an app, such as the default store; it may not exist yet.

    :param module: the name of the module that wraps the app.
    """
    return os.path.join(project_folder(app, module), ".wsgi_isr")


# The roots of the source -------------------------------------------------------------------------------


def _roots_if_possible(app: Any, module: str) -> tuple[Root, ...]:
    try:
        return _roots(app, module)
    except Exception as error:  # any object may be an app
        _log.debug("the search for the source of the app failed: %r", error)
        return ()


def _roots(app: Any, module: str) -> tuple[Root, ...]:
    """Return the roots of the source of an app and of the module that wraps it."""
    names: list[str] = []
    folders: list[tuple[str, Kind]] = []
    others: list[str] = []
    of_django = app is None
    for inner in nested(app) if app is not None else ():
        if is_flask(inner):
            names.append(inner.import_name)
            uploads = inner.config.get("UPLOAD_FOLDER")
            if uploads and isinstance(uploads, (str, os.PathLike)):
                # A relative path counts from the current directory in Flask's docs, and from the app in other code.
                folders += [(os.path.join(place, uploads), Kind.LEFT_OUT) for place in (os.getcwd(), inner.root_path)]
            for part in (inner, *inner.blueprints.values()):
                if not _is_installed(part.root_path):
                    if part.template_folder:
                        folders.append((os.path.join(part.root_path, part.template_folder), Kind.TEMPLATES))
                    if part.static_folder:
                        folders.append((part.static_folder, Kind.STATIC))
        elif is_django(inner):
            of_django = True
        else:
            others.append(_module_of(inner))
    is_known = bool(names) or of_django
    if of_django:
        names += _of_django(folders)
    roots = [root for name in names if (root := _located(name)) is not None]
    # Installed middlewares and frameworks are not the app's source: their roots have no base.
    roots += [root for name in others if (root := _located(name)) is not None and root.base]
    roots += [root for name in [module] if (root := _located(name)) is not None]
    roots += [Root(".", folder, kind=Kind.TEXT) for root in roots if (folder := _beside(root))]
    bases = list(dict.fromkeys(root.base for root in roots if root.base))
    if not is_known:
        folders += [(os.path.join(base, usual), kind) for base in bases for usual, kind in _USUAL_FOLDERS.items()]
    base = bases[0] if bases else ""
    for folder, kind in folders:
        path = os.path.abspath(folder)
        roots.append(Root(_label(path, base), path, kind=kind))
    existing = [root for root in dict.fromkeys(roots) if os.path.exists(root.path)]
    source = [root.path + os.sep for root in existing if root.kind is not Kind.LEFT_OUT]
    # Uploads may go into the directory of static files, or of the app. The app's own files there still count.
    return tuple(
        root
        for root in existing
        if root.kind is not Kind.LEFT_OUT or not any(path.startswith(root.path + os.sep) for path in source)
    )


def _beside(root: Root) -> str:
    """Return the directory of a module, whose text files may belong to the app.

    For a package, and for a module in a home directory or the root directory, return an empty text.
    """
    folder = os.path.dirname(root.path)
    is_module = bool(root.base) and root.path.endswith(MODULE_ENDINGS) and os.path.isfile(root.path)
    return folder if is_module and folder not in (os.path.expanduser("~"), os.path.abspath(os.sep)) else ""


def _module_of(app: Any) -> str:
    module = getattr(app, "__module__", None)
    return module if isinstance(module, str) else type(app).__module__


def _of_django(folders: list[tuple[str, Kind]]) -> list[str]:
    """Return the modules of this process's Django project, and add the project's directories to ``folders``."""
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
        folders += [(os.fspath(folder), Kind.TEMPLATES) for folder in engine.get("DIRS", ())]
    folders += [(os.fspath(folder), Kind.TEMPLATES) for folder in settings.LOCALE_PATHS]
    folders += [(os.fspath(folder), Kind.LEFT_OUT) for folder in (settings.MEDIA_ROOT, settings.STATIC_ROOT) if folder]
    for one in getattr(settings, "STATICFILES_DIRS", ()):
        # An item may be a pair: a prefix, and the directory.
        folders.append((os.fspath(one[1] if isinstance(one, (list, tuple)) else one), Kind.STATIC))
    return [name for name in names if isinstance(name, str) and name]  # ROOT_URLCONF may be the patterns themselves


def _is_installed(path: str) -> bool:
    """Return whether a file belongs to Python itself or to an installed package."""
    parts = path.split(os.sep)
    return path.startswith(_STDLIB + os.sep) or "site-packages" in parts or "dist-packages" in parts


def _located(module: str) -> Root | None:
    """Return the outermost package, or the module, of a dotted name; ``None`` if it has no file."""
    if module == "__main__":
        main = sys.modules["__main__"]
        if getattr(main, "__spec__", None) is None:
            return _of_file(getattr(main, "__file__", None))
        module = str(main.__spec__.name).removesuffix(".__main__")  # type: ignore[union-attr]
    top = module.partition(".")[0]
    if not top or top == _PACKAGE:
        return None
    for base in _bases(top):
        if (found := resolved(module, base)) is not None:
            return found._replace(base=_base(base))
    return _of_file(getattr(sys.modules.get(module), "__file__", None))


def _of_file(file: str | None) -> Root | None:
    if not file:
        return None
    path = os.path.abspath(file)
    return Root(os.path.basename(path).removesuffix(".py"), path, _base(os.path.dirname(path)))


def _bases(top: str) -> Iterator[str]:
    """Yield the directories that a top-level name is imported from; a namespace package may have several."""
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


def _label(folder: str, base: str) -> str:
    """Return a name for a directory that is the same wherever the project is."""
    return os.path.relpath(folder, base) if base and folder.startswith(base + os.sep) else os.path.basename(folder)
