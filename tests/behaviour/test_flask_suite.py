"""Flask's own test suite, with every app wrapped by a middleware without rules.

The suite comes from the source distribution of the installed Flask, through pip (and from pytest's cache on later
runs). A test that fails with a middleware that does nothing as well is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run(command: list[str], cwd: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, within five minutes."""
    return subprocess.run(command, cwd=cwd, env=environ, check=False, timeout=300, text=True, capture_output=True)


def download(to: Path) -> Path:
    """Return the source distribution of the installed Flask."""
    wanted = f"flask-{version('flask')}.tar.gz"
    if not (to / wanted).exists():
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "flask", f"flask=={version('flask')}", "--dest", str(to)]
        done = run(command, to, dict(os.environ))
        if done.returncode:
            pytest.fail(f"pip could not download Flask's tests:\n{done.stdout}\n{done.stderr}", pytrace=False)
    return to / wanted


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of Flask's tests, unpacked."""
    to = tmp_path_factory.mktemp("flask")
    cache = request.config.cache
    archive = download(to if cache is None else cache.mkdir("flask-sdist"))
    with tarfile.open(archive) as tar:
        # Python 3.10 and 3.11 have filters since some patch release; the archive is pip's, checked by its hash.
        tar.extractall(to, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return to / archive.name.removesuffix(".tar.gz")


def outcomes(suite: Path, tmp_path: Path, wrapper: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return the outcome of each of Flask's tests by name, and the numbers of wrapped apps and requests."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("WSGI_ISR_", "PYTEST_"))}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE)])
    environ["PYTHONDONTWRITEBYTECODE"] = "1"
    environ["WRAP_WITH"] = wrapper
    environ["WRAP_REPORT"] = str(tmp_path / f"{wrapper}.json")
    results = tmp_path / f"{wrapper}.xml"
    options = ["-p", "flask_suite_plugin", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, "-q", f"--junitxml={results}", "tests"]
    done = run(command, suite, environ)
    assert results.exists(), f"Flask's tests did not run:\n{done.stdout}\n{done.stderr}"
    ends: dict[str, str] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        end = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        ends[f"{case.get('classname')}::{case.get('name')}"] = end[0] if end else "passed"
    return ends, json.loads((tmp_path / f"{wrapper}.json").read_text(encoding="utf-8"))


def test_flask_s_own_tests_pass_with_every_app_wrapped(suite: Path, tmp_path: Path) -> None:
    plain, expected = outcomes(suite, tmp_path, "nothing")
    wrapped, counted = outcomes(suite, tmp_path, "isr")

    assert wrapped.keys() == plain.keys()
    assert {name: end for name, end in wrapped.items() if end != plain[name]} == {}
    # Without this check, the test could not fail where nothing ran or nothing was wrapped.
    assert sum(end == "passed" for end in wrapped.values()) > 400
    assert sum(end in ("failure", "error") for end in wrapped.values()) < 5
    assert counted == expected
    assert counted["apps"] > 200
    assert counted["requests"] > 400
