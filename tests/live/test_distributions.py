"""The wheel and the sdist hold the package and nothing else, and work where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: The files of a wheel besides the modules of the package.
DATA = {"wsgi_isr/py.typed", *(f"wsgi_isr/commands/demo_site/{name}" for name in ("demo.js", "page.html", "style.css"))}
#: Files of the repository that are of use to its developers alone.
PRIVATE = ("cluster/", "docs/", "examples/", ".ci/", "Makefile", "CONTRIBUTING.md", ".gitignore", ".editorconfig")
#: Serve one page over HTTP, ask for it twice, and print the verdicts and the renders.
SERVE = """
import http.client, threading, wsgiref.simple_server
from wsgi_isr import ISR

renders = []

def app(environ, start_response):
    renders.append(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello"]

class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *arguments):
        pass

isr = ISR(app, revalidate=60, store="memory://", development="cache")
with wsgiref.simple_server.make_server("127.0.0.1", 0, isr, handler_class=Quiet) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("GET", "/")
        answer = connection.getresponse()
        print(answer.status, answer.getheader("X-ISR"), answer.read().decode())
        connection.close()
    server.shutdown()
isr.close()
print(*renders)
"""


class Distributions(NamedTuple):
    """The files that one build makes."""

    wheel: Path
    sdist: Path


def run(*command: object, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Return the output of a command that must succeed."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, *kinds: str) -> Path:
    """Return the folder with the distributions of a source tree."""
    run(sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", source / "dist", source, cwd=source.parent)
    return source / "dist"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Return the distributions of a copy of the checkout: a build leaves files behind."""
    source = tmp_path_factory.mktemp("build") / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    dist = build(source, "--sdist", "--wheel")
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return Distributions(wheel, sdist)


def files_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def test_the_index_would_accept_both_distributions(made: Distributions, tmp_path: Path) -> None:
    verdicts = run(sys.executable, "-m", "twine", "check", "--strict", made.wheel, made.sdist, cwd=tmp_path)
    assert verdicts.count("PASSED") == 2


def test_the_wheel_has_the_package_and_nothing_else(made: Distributions) -> None:
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "wsgi_isr").rglob("*.py")}
    files = {name for name in files_of(made.wheel) if ".dist-info/" not in name}
    assert files == package | DATA
    folders = {name.partition("/")[0] for name in files_of(made.wheel)}
    assert sorted(folders - {"wsgi_isr"}) == [made.wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"]


def test_the_sdist_has_no_file_for_developers_alone(made: Distributions) -> None:
    with tarfile.open(made.sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers()]
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg", *DATA} <= set(names)
    assert [name for name in names if name.startswith(PRIVATE)] == []


def test_a_wheel_from_the_sdist_has_the_same_files(made: Distributions, tmp_path: Path) -> None:
    with tarfile.open(made.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [wheel] = build(tmp_path / made.sdist.name.removesuffix(".tar.gz"), "--wheel").glob("*.whl")
    assert files_of(wheel) == files_of(made.wheel)


def test_the_wheel_alone_in_an_empty_environment_serves_a_page_from_its_cache(
    made: Distributions, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python, command = (tmp_path / "venv" / "bin" / name for name in ("python", "wsgi-isr"))
    # The package of the checkout must not hide that of the wheel.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("WSGI_ISR_")}
    alone = partial(run, cwd=tmp_path, environment=environment)
    alone(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", made.wheel)
    place = alone(python, "-c", "import wsgi_isr; print(wsgi_isr.__file__)")
    assert Path(place).is_relative_to(tmp_path / "venv")
    assert made.wheel.name.split("-")[1] in alone(command, "--version")
    assert "prerender" in alone(command, "--help")
    assert alone(python, "-c", SERVE).splitlines() == ["200 MISS Hello", "200 HIT Hello", "/"]
