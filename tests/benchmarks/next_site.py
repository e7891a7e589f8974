"""A site of Next.js with the same page: made by npm in a temporary folder, built, and run by ``next start``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from cluster.parts import ports
from cluster.parts.part import Part, program
from tests.benchmarks.report import CannotRun
from tests.benchmarks.servers import Server, started

#: Pinned, so that two runs measure the same.
VERSIONS = {"next": "16.4.6", "react": "19.3.1", "react-dom": "19.3.1"}
#: Seconds for the installation, and for the build.
PATIENCE = 120
#: Lines of the page. Next.js sends the content twice, as HTML and for its client code; together they are 20 KB.
LINES = 172
LAYOUT = """\
export default function Layout({ children }) {
  return <html lang="en"><body>{children}</body></html>
}
"""
PAGE = """\
export const revalidate = 3600
export default function Page() {
  return <main dangerouslySetInnerHTML={{ __html: "<p>A page is rendered once.</p>\\n".repeat(%d) }} />
}
"""


class Next(Part):
    """``next start`` of a site that is built.

    :param directory: that of the site.
    """

    role: ClassVar[str] = "next"
    last_signal: ClassVar[str] = "TERM"

    def __init__(self, directory: Path) -> None:
        super().__init__("next", directory / "log")
        self.directory = directory

    def command(self) -> Sequence[str]:
        script = "node_modules/next/dist/bin/next"
        return [program("node", "nodejs"), script, "start", "-H", ports.HOST, "-p", str(self.port)]

    def environment(self) -> Mapping[str, str]:
        return _environment()

    def is_ready(self) -> bool:
        return ports.answers(self.port)


@contextlib.contextmanager
def site() -> Iterator[Future[Path]]:
    """Build the site in the background, and yield its folder to come.

    It raises ``CannotRun`` where npm is missing, or cannot reach its registry.
    """
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as builder:
        yield builder.submit(build, Path(name))


@contextlib.contextmanager
def next_start(folder: Path) -> Iterator[Server]:
    """Run the server of a site that is built, on the worker's core."""
    with started(Next(folder)) as server:
        yield server


def build(folder: Path) -> Path:
    """Install Next.js in a folder, build the site there, and return the folder.

    :raises CannotRun: npm is missing, or cannot reach its registry.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise CannotRun("npm is missing; please install it (Debian: apt-get install npm)")
    served = folder / "app/blog/served"
    served.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "site", "private": True, "dependencies": VERSIONS}))
    (folder / "app/layout.js").write_text(LAYOUT)
    (served / "page.js").write_text(PAGE % LINES)
    _do(folder, "npm install", npm, "install", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1")
    _do(folder, "next build", npm, "exec", "--offline", "next", "build")
    return folder


def _do(folder: Path, what: str, *command: str) -> None:
    """Run a command. :raises CannotRun: it fails, or takes too long."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{what} took longer than {PATIENCE} s; is the registry reachable?") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise CannotRun(f"{what} failed: {said[0]}")


def _environment() -> dict[str, str]:
    return {**os.environ, "NEXT_TELEMETRY_DISABLED": "1", "NODE_ENV": "production"}
