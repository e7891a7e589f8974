"""A release of an app is identified by the content of its own source, and by nothing else."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import pytest

from wsgi_isr import ISR, ConfigError, wrap
from wsgi_isr.config import digest, source
from wsgi_isr.config.digest import digest_of
from wsgi_isr.config.source import PLATFORM_VARIABLES, project_folder, release_of, state_folder

ROOT = Path(__file__).parents[2]

SHOP = {
    "shop/__init__.py": "from .views import application\n",
    "shop/views.py": "import prices\n\ndef application(environ, start_response):\n    return []\n",
    "shop/templates/index.html": "<h1>Shop</h1>",
    "shop/static/style.css": "h1 { color: red }",
    "prices.py": "TEA = 3\n",
    "unrelated.py": "TEA = 4\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


Load = Callable[[Path, str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Return a function that imports a module from a folder, as a new process does."""
    before = set(sys.modules)

    def forget() -> None:
        for name in set(sys.modules) - before:
            del sys.modules[name]
        importlib.invalidate_caches()
        digest_of.cache_clear()

    def load(folder: Path, module: str) -> Any:
        forget()
        with monkeypatch.context() as path:
            path.setattr(sys, "path", [str(folder), *sys.path])
            return importlib.import_module(module)

    yield load
    forget()


@pytest.fixture
def release(load: Load) -> Callable[..., str]:
    """Return the release of the app in a folder, in a new process."""

    def release(folder: Path, module: str = "shop", app: str = "application") -> str:
        loaded = load(folder, module)
        return release_of(getattr(loaded, app), module, {})

    return release


Release = Callable[..., str]


def test_the_same_content_elsewhere_is_the_same_release(tmp_path: Path, release: Release) -> None:
    first = release(write(tmp_path / "one", SHOP))
    copy = tmp_path / "another" / "place"
    shutil.copytree(tmp_path / "one", copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))  # as of a checkout, or of an image
    assert first.startswith("source-")
    assert release(copy) == first


@pytest.mark.parametrize("name", ["shop/views.py", "shop/templates/index.html", "shop/static/style.css", "prices.py"])
def test_a_change_of_code_of_a_template_of_a_static_file_or_of_a_module_beside_it_is_a_release(
    tmp_path: Path, release: Release, name: str
) -> None:
    first = release(write(tmp_path, SHOP))
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
    assert release(tmp_path) != first


def test_a_file_that_is_new_gone_or_renamed_is_a_release(tmp_path: Path, release: Release) -> None:
    seen = [release(write(tmp_path, SHOP))]
    (tmp_path / "shop/templates/about.html").write_text("About")
    seen.append(release(tmp_path))
    (tmp_path / "shop/templates/about.html").rename(tmp_path / "shop/templates/contact.html")
    seen.append(release(tmp_path))
    (tmp_path / "shop/templates/contact.html").unlink()
    seen.append(release(tmp_path))
    assert len(set(seen)) == 3
    assert seen[0] == seen[3]


@pytest.mark.parametrize(
    "name",
    [
        "shop/__pycache__/views.cpython-311.pyc",
        "shop/uploads/photo.jpg",
        "shop/static/uploads/photo.jpg",
        "shop/data/orders.json",
        "shop/media/photo.jpg",
        "shop/instance/config.py",
        "shop/shop.db",
        "shop/shop.sqlite3-wal",
        "shop/shop.log",
        "shop/.env",
        "shop/.git/HEAD",
        "shop/node_modules/left-pad/index.js",
        "shop/env/pyvenv.cfg",
        "shop/py3/pyvenv.cfg",
        "shop/views.py~",
        ".wsgi_isr/store.db",
        "unrelated.py",
        "uploads/photo.jpg",
        "venv/pyvenv.cfg",
    ],
)
def test_what_an_app_writes_and_what_is_no_part_of_it_is_none(tmp_path: Path, release: Release, name: str) -> None:
    first = release(write(tmp_path, SHOP))
    write(tmp_path, {name: "changed"})
    assert release(tmp_path) == first


def test_a_package_is_source_whatever_its_name(tmp_path: Path, release: Release) -> None:
    files = {**SHOP, "shop/data/__init__.py": "", "shop/data/orders.py": "x = 1"}
    first = release(write(tmp_path, files))
    write(tmp_path, {"shop/data/orders.py": "x = 2"})
    assert release(tmp_path) != first


def test_of_a_module_alone_those_count_that_it_imports_and_the_usual_folders(tmp_path: Path, release: Release) -> None:
    files = {
        "site_app.py": "from lib import tools\nimport os, helpers\n\ndef app(environ, start):\n    return []\n",
        "helpers.py": "import deeper.inside\n",
        "deeper/inside.py": "",
        "lib/tools.py": "",
        "views/index.tpl": "",
        "notes.py": "",
    }
    first = release(write(tmp_path, files), "site_app", "app")
    for name in ("notes.py", "lib/readme.log", "others/a.jpg"):
        write(tmp_path, {name: "changed = 1"})
        assert release(tmp_path, "site_app", "app") == first, name
    seen = {first}
    for name in ("helpers.py", "deeper/inside.py", "lib/tools.py", "views/index.tpl"):
        write(tmp_path, {name: files[name] + "changed = 1"})
        seen.add(release(tmp_path, "site_app", "app"))
    assert len(seen) == 5


def compiled(folder: Path) -> None:
    """Replace the source of a project by compiled files, as an image without source does."""
    # In a new process each time: names that this one has met before are marshalled in another way.
    mode = ("--invalidation-mode", "timestamp")
    subprocess.run([sys.executable, "-m", "compileall", "-b", "-q", "-d", "/srv", *mode, str(folder)], check=True)
    for path in [*folder.rglob("*.py")]:
        path.unlink()


@pytest.mark.parametrize("module", ["shop", "blog", "company.shop"])
def test_compiled_files_count_where_there_is_no_source(tmp_path: Path, release: Release, module: str) -> None:
    seen = []
    for number, price in enumerate((3, 3, 4)):
        code = f"TEA = {price}\n\ndef application(environ, start_response):\n    return []\n"
        files = {"shop/__init__.py": code, "blog.py": code, "company/shop.py": code}
        folder = write(tmp_path / f"{number}" / "project", files)
        for path in folder.rglob("*.py"):
            os.utime(path, (1000 * number, 1000 * number))  # which a compiled file holds
        compiled(folder)
        seen.append(release(folder, module))
    assert seen[0].startswith("source-")
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("name", ["shop/views.pyc", "shop/__pycache__/other.pyc", "shop/deep/__pycache__/a.pyc"])
def test_a_compiled_file_beside_its_source_does_not_count(tmp_path: Path, release: Release, name: str) -> None:
    first = release(write(tmp_path, SHOP))
    write(tmp_path, {name: "changed"})
    assert release(tmp_path) == first


MODULE = {"blog.py": "def app(environ, start_response):\n    return []\n"}


@pytest.mark.parametrize(
    "name",
    [
        *("content/post.md", "content/2024/deep/post.rst", "translations/de/LC_MESSAGES/messages.po", "config.toml"),
        *("translations/de/LC_MESSAGES/messages.mo", "settings.yaml", "menu.yml", "menu.json", "about.html", "a.txt"),
        *("queries/posts.sql", "pages/index.j2", "setup.ini"),
    ],
)
def test_text_beside_a_module_counts(tmp_path: Path, release: Release, name: str) -> None:
    first = release(write(tmp_path, MODULE), "blog", "app")
    write(tmp_path, {name: "changed"})
    assert release(tmp_path, "blog", "app") != first


@pytest.mark.parametrize(
    "name",
    [
        *("data/orders.json", "instance/config.toml", "uploads/a.md", "logs/a.txt", "var/a.json", "tmp/a.html"),
        *("db.json", "photo.jpg", "notes.py", "orders.csv", "blog.db", "venv/lib/a.txt", "py3/pyvenv.cfg"),
        *(".git/a.txt", "node_modules/a/package.json", "dist/a.html", "build/a.html", "static/photo.jpg", "a.xml"),
        *("others/__init__.py", "others/views.py", "a.egg-info/requires.txt"),
    ],
)
def test_what_an_app_writes_beside_a_module_does_not_count(tmp_path: Path, release: Release, name: str) -> None:
    first = release(write(tmp_path, MODULE), "blog", "app")
    write(tmp_path, {name: "changed"})
    assert release(tmp_path, "blog", "app") == first


def test_text_beside_a_module_in_the_folder_of_a_user_does_not_count(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    first = release(write(tmp_path, MODULE), "blog", "app")
    write(tmp_path, {"letters/a.md": "changed"})
    assert release(tmp_path, "blog", "app") == first


def test_text_beside_a_module_that_the_module_imports_from_elsewhere_does_not_count(
    tmp_path: Path, release: Release
) -> None:
    files = {
        "app/blog.py": "import lib.tools\n\ndef app(environ, start_response):\n    return []\n",
        "lib/tools.py": "",
        "lib/a.txt": "",
    }
    first = release(write(tmp_path, files), "app.blog", "app")
    write(tmp_path, {"lib/a.txt": "changed"})
    assert release(tmp_path, "app.blog", "app") == first
    write(tmp_path, {"app/a.txt": "changed"})
    assert release(tmp_path, "app.blog", "app") != first


def test_looking_for_text_beside_a_module_has_an_end(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(digest, "MAX_ENTRIES", 20)
    first = release(write(tmp_path, {**MODULE, **{f"pictures/{n:02}.jpg": "" for n in range(30)}}), "blog", "app")
    assert first
    (line,) = [record.getMessage() for record in caplog.records]
    assert 'write release="..."' in line
    write(tmp_path, {"pictures/a.md": "changed"})
    assert release(tmp_path, "blog", "app") == first
    write(tmp_path, {"texts/a.md": "changed"})
    assert release(tmp_path, "blog", "app") != first


def test_modules_of_a_namespace_package_are_found_by_relative_imports(tmp_path: Path, release: Release) -> None:
    files = {
        "company/shop/wsgi.py": "from .pages import app\nfrom ..common import money\n",
        "company/shop/pages.py": "def app(environ, start_response):\n    return []\n",
        "company/common/money.py": "",
        "company/billing/other.py": "",
    }
    seen = [release(write(tmp_path, files), "company.shop.wsgi", "app")]
    for name in ("company/billing/other.py", "company/shop/pages.py", "company/common/money.py"):
        write(tmp_path, {name: files[name] + "\nchanged = 1"})
        seen.append(release(tmp_path, "company.shop.wsgi", "app"))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_an_installed_app_counts_and_its_neighbours_do_not(tmp_path: Path, release: Release) -> None:
    place = tmp_path / "lib/python3/site-packages"
    first = release(write(place, SHOP))
    write(place, {"prices.py": "TEA = 5"})
    assert release(place) == first
    write(place, {"shop/templates/index.html": "new"})
    assert release(place) != first


def test_an_app_in_an_archive_is_the_archive(tmp_path: Path, release: Release) -> None:
    (tmp_path / "files").mkdir()
    archive = Path(shutil.make_archive(str(tmp_path / "shop"), "zip", write(tmp_path / "files", SHOP)))
    first = release(archive)
    assert first
    assert release(archive) == first
    write(tmp_path / "files", {"shop/templates/index.html": "new"})
    shutil.make_archive(str(tmp_path / "shop"), "zip", tmp_path / "files")
    assert release(archive) != first


FLASK = """
import flask
from flask import Blueprint

app = flask.Flask(__name__, template_folder="../pages", static_folder="../assets")
extra = Blueprint("extra", __name__, template_folder="../more")
app.register_blueprint(extra)
"""


def test_flask_s_folders_of_templates_and_static_files_count_wherever_they_are(
    tmp_path: Path, release: Release
) -> None:
    files = {
        "web/__init__.py": FLASK,
        "pages/a.html": "",
        "assets/a.css": "",
        "more/b.html": "",
        "templates/c.html": "",
    }
    seen = [release(write(tmp_path, files), "web", "app")]
    for name in ("templates/c.html", "pages/a.html", "assets/a.css", "more/b.html"):
        write(tmp_path, {name: "changed"})
        seen.append(release(tmp_path, "web", "app"))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4


@pytest.mark.parametrize("folder", ["media", "files", "log", "data", "run", "build", "cache"])
def test_a_template_counts_in_a_folder_of_any_name(tmp_path: Path, release: Release, folder: str) -> None:
    name = f"web/templates/{folder}/a.html"
    files = {"web/__init__.py": "import flask\n\napp = flask.Flask(__name__)\n", name: "old"}
    first = release(write(tmp_path, files), "web", "app")
    write(tmp_path, {name: "new"})
    assert release(tmp_path, "web", "app") != first
    for cache in ("__pycache__", "node_modules"):
        write(tmp_path, {f"web/templates/{cache}/a.html": "a"})
    second = release(tmp_path, "web", "app")
    write(tmp_path, {f"web/templates/{cache}/a.html": "b" for cache in ("__pycache__", "node_modules")})
    assert release(tmp_path, "web", "app") == second


@pytest.mark.parametrize("folder", ["static", "assets"])
@pytest.mark.parametrize("manifest", ["dist/manifest.json", "build/manifest.json", ".vite/manifest.json"])
def test_a_manifest_of_assets_counts(tmp_path: Path, release: Release, folder: str, manifest: str) -> None:
    name = f"web/{folder}/{manifest}"
    text = f"import flask\n\napp = flask.Flask(__name__, static_folder={folder!r})\n"
    first = release(write(tmp_path, {"web/__init__.py": text, name: '{"a.js": "a.1.js"}'}), "web", "app")
    write(tmp_path, {name: '{"a.js": "a.2.js"}'})
    assert release(tmp_path, "web", "app") != first


@pytest.mark.parametrize("name", ["shop/templates/data/a.html", "shop/static/dist/manifest.json"])
def test_templates_and_static_files_of_a_package_are_found_by_the_usual_names(
    tmp_path: Path, release: Release, name: str
) -> None:
    first = release(write(tmp_path, {**SHOP, name: "old"}))
    write(tmp_path, {name: "new"})
    assert release(tmp_path) != first


@pytest.mark.parametrize(
    "name", ["profile_pics/1.jpg", "a.PNG", "film.mp4", "paper.pdf", "uploads/a.json", "user_uploads/a.css", "all.zip"]
)
@pytest.mark.parametrize("folder", ["static", "assets"])
def test_images_media_and_uploads_below_static_files_do_not_count(
    tmp_path: Path, release: Release, folder: str, name: str
) -> None:
    text = f"import flask\n\napp = flask.Flask(__name__, static_folder={folder!r})\n"
    first = release(write(tmp_path, {"web/__init__.py": text, f"web/{folder}/a.css": ""}), "web", "app")
    write(tmp_path, {f"web/{folder}/{name}": "changed"})
    assert release(tmp_path, "web", "app") == first


@pytest.mark.parametrize("name", ["a.css", "a.js", "a.mjs", "manifest.json", "icons/a.svg", "robots.txt"])
def test_the_text_of_static_files_counts(tmp_path: Path, release: Release, name: str) -> None:
    first = release(write(tmp_path, SHOP))
    write(tmp_path, {f"shop/static/{name}": "changed"})
    assert release(tmp_path) != first


@pytest.mark.parametrize("folder", ["web/received", "web/static/received", "web/templates/received"])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_flask_s_folder_of_uploads_does_not_count(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch, folder: str, is_absolute: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    where = str(tmp_path / folder) if is_absolute else folder
    text = f"import flask\n\napp = flask.Flask(__name__)\napp.config['UPLOAD_FOLDER'] = {where!r}\n"
    first = release(write(tmp_path, {"web/__init__.py": text, f"{folder}/a.css": ""}), "web", "app")
    write(tmp_path, {f"{folder}/b.css": "changed"})
    assert release(tmp_path, "web", "app") == first


def test_a_folder_of_uploads_that_holds_the_static_files_is_not_left_out(tmp_path: Path, release: Release) -> None:
    text = "import flask\n\napp = flask.Flask(__name__)\napp.config['UPLOAD_FOLDER'] = app.static_folder\n"
    first = release(write(tmp_path, {"web/__init__.py": text, "web/static/a.css": ""}), "web", "app")
    write(tmp_path, {"web/static/a.css": "changed"})
    assert release(tmp_path, "web", "app") != first


def test_a_flask_app_is_found_behind_middlewares(tmp_path: Path, load: Load) -> None:
    from werkzeug.middleware.proxy_fix import ProxyFix

    module = load(write(tmp_path, {"web/__init__.py": FLASK}), "web")
    assert release_of(ProxyFix(module.app.wsgi_app), "web", {}) == release_of(module.app, "web", {}) != ""


DJANGO = {
    "manage.py": "",
    "mysite/__init__.py": "",
    "mysite/settings.py": (
        "from pathlib import Path\nBASE = Path(__file__).parent.parent\nSECRET_KEY = 'x'\n"
        "ROOT_URLCONF = 'mysite.urls'\n"
        "WSGI_APPLICATION = 'mysite.wsgi.application'\nINSTALLED_APPS = ['django.contrib.contenttypes', 'polls']\n"
        "TEMPLATES = [{'BACKEND': 'django.template.backends.django.DjangoTemplates', 'DIRS': [BASE / 'pages']}]\n"
        "STATICFILES_DIRS = [BASE / 'assets', ('x', BASE / 'more')]\n"
        "MEDIA_ROOT = BASE / 'mysite' / 'received'\nSTATIC_ROOT = str(BASE / 'mysite' / 'collected')\n"
    ),
    "mysite/urls.py": "urlpatterns = []\n",
    "mysite/wsgi.py": (
        "import os\nos.environ['DJANGO_SETTINGS_MODULE'] = 'mysite.settings'\n"
        "from django.core.wsgi import get_wsgi_application\nfrom wsgi_isr import ISR\n"
        "application = ISR(get_wsgi_application(), revalidate=60)\n"
    ),
    "polls/__init__.py": "",
    "polls/models.py": "",
    "polls/templates/polls/a.html": "",
    "pages/base.html": "",
    "assets/a.css": "",
    "more/b.css": "",
    "media/photo.jpg": "",
    "unrelated/__init__.py": "",
}


def django_release(folder: Path, code: str = "", **env: str) -> tuple[str, str]:
    """Return the release and the state folder of the project for a server that begins now."""
    say = "from mysite.wsgi import application as a; print(a.configuration.settings.release, a.configuration.folder)"
    done = subprocess.run(
        [sys.executable, "-c", code or say],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    release, _, state = done.stdout.strip().partition(" ")
    return release, state


def test_a_django_project_is_its_package_its_own_apps_and_its_folders(tmp_path: Path) -> None:
    write(tmp_path, DJANGO)
    first = django_release(tmp_path)
    assert first[0].startswith("source-")
    assert first[1] == str(tmp_path / ".wsgi_isr")
    for name in (
        "unrelated/__init__.py",
        "media/photo.jpg",
        "mysite/received/a.txt",
        "mysite/collected/staticfiles.json",
        "db.sqlite3",
    ):
        write(tmp_path, {name: "# changed"})
    assert django_release(tmp_path, PYTHONHASHSEED="7") == first
    seen = {first}
    for name in ("mysite/urls.py", "polls/models.py", "polls/templates/polls/a.html", "pages/base.html", "more/b.css"):
        write(tmp_path, {name: DJANGO[name] + "# changed\n"})
        seen.add(django_release(tmp_path))
    assert len(seen) == 6


def test_a_management_command_keeps_data_under_the_release_of_the_servers(tmp_path: Path) -> None:
    write(tmp_path, DJANGO)
    command = (
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'mysite.settings'\n"
        "import django; django.setup()\n"
        "from wsgi_isr.middleware.process import _begin_alone; from wsgi_isr.config.wrapping import configured\n"
        "c = configured(None, None, {}, ''); print(c.settings.release, c.folder)"
    )
    assert django_release(tmp_path, command) == django_release(tmp_path)


# Names by the platform ---------------------------------------------------------------------------------


def app(environ: Any, start_response: Any) -> list[bytes]:
    return []


def test_the_platform_s_own_name_comes_first() -> None:
    environ = {variable: f"{number:07x}" for number, variable in enumerate(PLATFORM_VARIABLES)}
    for number, variable in enumerate(PLATFORM_VARIABLES):
        assert release_of(app, __name__, environ) == f"{number:07x}"
        environ[variable] = ""
    assert release_of(app, __name__, environ).startswith("source-")


@pytest.mark.parametrize("variable", ["GIT_COMMIT", "SOURCE_COMMIT"])
@pytest.mark.parametrize("value", ["unknown", "HEAD", "main", "dev", "abc123", "f" * 65, "dirty-1234567", "$(git rev)"])
def test_a_variable_of_anybody_s_is_believed_only_if_it_looks_like_a_hash(variable: str, value: str) -> None:
    assert release_of(app, __name__, {variable: value}).startswith("source-")
    for commit in ("1234567", "0123456789abcdef0123456789ABCDEF01234567", "e" * 64):
        assert release_of(app, __name__, {variable: f"{commit}\n"}) == commit


def test_the_variable_that_names_the_release_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wsgi_isr")
    release_of(app, __name__, {"K_REVISION": "shop-00012-abc"})
    assert [record.getMessage() for record in caplog.records] == ["release 'shop-00012-abc', from K_REVISION"]


def test_the_option_is_before_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDER_GIT_COMMIT", "abc")
    assert ISR(app, store="null://").configuration.settings.release == "abc"
    monkeypatch.setenv("WSGI_ISR_RELEASE", "2024-06-01")
    assert ISR(app, store="null://").configuration.settings.release == "2024-06-01"
    assert ISR(app, store="null://", release="mine").configuration.settings.release == "mine"
    assert ISR(app, store="null://", release=None).configuration.settings.release == ""
    monkeypatch.setenv("WSGI_ISR_RELEASE", "none")
    assert ISR(app, store="null://").configuration.settings.release == ""


@pytest.mark.parametrize("option", ["release", "adopt_release"])
def test_what_is_no_name_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match='write a name, "auto" or "none"'):
        ISR(app, store="null://", **{option: 7})


def test_an_app_whose_source_cannot_be_found_is_of_no_release(caplog: pytest.LogCaptureFixture) -> None:
    space: dict[str, Any] = {"__name__": "nowhere"}
    exec("def app(environ, start_response): return []", space)
    assert release_of(space["app"], "nowhere", {}) == ""
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "no source of nowhere is found" in line
    assert 'write release="..."' in line


def test_an_app_that_is_typed_into_python_is_told_nothing_of_releases() -> None:
    code = "from wsgi_isr import ISR\ndef app(environ, start_response): ...\nISR(app, store='null://')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_script_without_an_app_is_told_nothing_of_releases(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source, "_of_django", lambda folders: [])  # which another test may have set up
    assert release_of(None, "nowhere", {}) == ""
    assert caplog.records == []


class Odd:
    """An app whose attributes cannot be read."""

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    @property
    def wsgi_app(self) -> Any:
        raise RuntimeError("not now")


def test_an_app_that_cannot_be_looked_at_is_wrapped_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ISR(Odd(), store="null://").configuration.settings.release.startswith("source-")
    monkeypatch.setattr(source, "_located", None)
    assert ISR(Odd(), store="null://").configuration.settings.release == ""


# Cost and time of the digest ---------------------------------------------------------------------------


def test_it_is_read_when_the_app_is_wrapped_since_this_process_runs_the_code_of_then(
    tmp_path: Path, load: Load
) -> None:
    loaded = load(write(tmp_path, SHOP), "shop")
    first = ISR(loaded.application, store="null://", import_name="shop")
    write(tmp_path, {"shop/templates/index.html": "new"})
    later = ISR(loaded.application, store="null://", import_name="shop")
    assert first.configuration.settings.release == later.configuration.settings.release != ""


def test_beyond_a_number_of_files_and_bytes_the_size_alone_counts_and_that_is_said(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = {f"shop/templates/{number:02d}.html": "x" * 100 for number in range(20)}
    monkeypatch.setattr(digest, "MAX_FILES", 10)
    first = release(write(tmp_path, {**SHOP, **files}))
    (line,) = [record.getMessage() for record in caplog.records]
    assert 'write release="..."' in line
    assert "14 of which count by their size alone" in line
    write(tmp_path, {"shop/templates/19.html": "y" * 100})
    assert release(tmp_path) == first
    write(tmp_path, {"shop/templates/19.html": "y" * 101})
    assert release(tmp_path) != first
    monkeypatch.setattr(digest, "MAX_FILES", 100)
    monkeypatch.setattr(digest, "MAX_BYTES", 200)
    caplog.clear()
    first = release(tmp_path)
    write(tmp_path, {"shop/templates/19.html": "z" * 101})
    assert release(tmp_path) == first
    assert "count by their size alone" in caplog.text


def test_files_without_end_and_links_to_what_the_app_is_in_are_not_followed(tmp_path: Path, release: Release) -> None:
    first = release(write(tmp_path, SHOP))
    os.mkfifo(tmp_path / "shop/pipe")
    (tmp_path / "shop/shared").symlink_to("/")
    (tmp_path / "shop/round").symlink_to(tmp_path / "shop")
    assert release(tmp_path) == first


@pytest.mark.parametrize("place", ["shop/templates/shared", "shop/shared"])
def test_a_folder_that_is_linked_counts(tmp_path: Path, release: Release, place: str) -> None:
    write(tmp_path, {"common/a.html": "old", "common/deep/b.html": "old"})
    project = write(tmp_path / "project", SHOP)
    (project / place).symlink_to(tmp_path / "common")
    seen = [release(project)]
    for name in ("common/a.html", "common/deep/b.html"):
        write(tmp_path, {name: "new"})
        seen.append(release(project))
    assert len(set(seen)) == 3


def test_a_folder_that_is_linked_twice_counts_by_the_rules_of_both_places(tmp_path: Path, release: Release) -> None:
    write(tmp_path, {"common/a.html": "old", "common/a.tpl": "old"})
    project = write(tmp_path / "project", SHOP)
    for place in ("shop/static/common", "shop/templates/common"):
        (project / place).symlink_to(tmp_path / "common")
    first = release(project)
    write(tmp_path, {"common/a.tpl": "new"})
    assert release(project) != first


def test_links_in_a_circle_have_an_end(tmp_path: Path, release: Release) -> None:
    write(tmp_path, {"one/a.html": "", "two/b.html": ""})
    (tmp_path / "one/two").symlink_to(tmp_path / "two")
    (tmp_path / "two/one").symlink_to(tmp_path / "one")
    project = write(tmp_path / "project", SHOP)
    (project / "shop/templates/one").symlink_to(tmp_path / "one")
    first = release(project)
    write(tmp_path, {"two/b.html": "new"})
    assert release(project) != first


@pytest.mark.parametrize("name", ["uploads", "media", "data"])
def test_a_link_to_a_folder_of_what_an_app_writes_does_not_count(tmp_path: Path, release: Release, name: str) -> None:
    project = write(tmp_path / "project", SHOP)
    write(tmp_path, {f"{name}/a.json": "old"})
    (project / "shop/pictures").symlink_to(tmp_path / name)
    first = release(project)
    write(tmp_path, {f"{name}/a.json": "new"})
    assert release(project) == first


def test_templates_that_are_linked_to_a_folder_of_any_name_count(tmp_path: Path, release: Release) -> None:
    project = write(tmp_path / "project", SHOP)
    write(tmp_path, {"build/a.html": "old"})
    (project / "shop/templates/built").symlink_to(tmp_path / "build")
    first = release(project)
    write(tmp_path, {"build/a.html": "new"})
    assert release(project) != first


def test_a_folder_of_uploads_that_is_named_by_another_path_does_not_count(tmp_path: Path, release: Release) -> None:
    (tmp_path / "current").symlink_to(tmp_path / "project")
    text = f"import flask\n\napp = flask.Flask(__name__)\napp.config['UPLOAD_FOLDER'] = '{tmp_path}/current/web/got'\n"
    first = release(write(tmp_path / "project", {"web/__init__.py": text, "web/got/a.css": ""}), "web", "app")
    write(tmp_path, {"project/web/got/a.css": "changed"})
    assert release(tmp_path / "project", "web", "app") == first


def test_a_link_that_cannot_be_followed_is_no_file(tmp_path: Path, release: Release) -> None:
    first = release(write(tmp_path, SHOP))
    (tmp_path / "shop/static/loop").symlink_to("loop")
    (tmp_path / "shop/static/gone").symlink_to("nowhere")
    assert release(tmp_path) == first


def test_a_digest_that_fails_costs_the_release_and_not_the_start(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(roots: object) -> str:
        raise PermissionError("not yours")

    monkeypatch.setattr(source, "digest_of", fail)
    assert release(write(tmp_path, SHOP)) == ""
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "not yours" in line
    assert 'write release="..."' in line


def test_reading_the_source_of_an_example_takes_milliseconds(figure: Callable[[str], None]) -> None:
    import time

    import examples.blog_flask  # noqa: F401 - found by its name

    digest_of.cache_clear()
    began = time.perf_counter()
    assert release_of(app, "examples.blog_flask", {})
    took = 1000 * (time.perf_counter() - began)
    figure(f"the source of the examples, read in {took:.0f} ms")
    assert took < 1000


def test_this_package_is_no_part_of_an_app(tmp_path: Path) -> None:
    assert all(root.name != "wsgi_isr" for root in source._roots(wrap, "wsgi_isr.middleware.loading"))


# The folder of state -----------------------------------------------------------------------------------


def test_the_state_of_an_app_is_beside_its_package_wherever_the_server_was_started(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "pro#ject 100%"
    loaded = load(write(folder, SHOP), "shop")
    assert project_folder(loaded.application) == str(folder)
    isr = ISR(loaded.application)
    assert getattr(isr._store, "path", None) == str(folder / ".wsgi_isr/store.db")
    assert isr.configuration.folder == state_folder(loaded.application) == str(folder / ".wsgi_isr")


def test_the_state_of_an_installed_app_and_of_no_app_is_in_the_current_directory(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(write(tmp_path / "site-packages", SHOP), "shop")
    assert state_folder(loaded.application, "shop") == str(tmp_path / ".wsgi_isr")
    monkeypatch.setattr(source, "_of_django", lambda folders: [])
    assert state_folder(None) == str(tmp_path / ".wsgi_isr")


def test_a_store_that_is_named_is_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert getattr(ISR(app, store="sqlite:///a/b.db")._store, "path", None) == str(tmp_path / "a/b.db")


def test_of_flask_it_is_beside_the_package_of_the_app(tmp_path: Path, load: Load) -> None:
    module = load(write(tmp_path, {"web/__init__.py": FLASK}), "web")
    assert isinstance(module.app, flask.Flask)
    assert state_folder(module.app.wsgi_app, __name__) == str(tmp_path / ".wsgi_isr")
