"""Runs the code blocks of one page of the documentation: ``python -m tests.docs.blocks docs/index.md``.

The blocks of a page run from top to bottom, in one folder and one namespace, as a reader would type them:

- ``python`` is executed. Where its first line names a file (``# app.py``), it is written there instead.
- ``console`` runs each line that begins with ``$`` in bash, and compares the output. ``...`` stands for any text. A
  command that starts a server stays in the background until the page ends.
- ``sh`` defines what later commands use. ``toml`` configures an app. ``yaml`` is parsed. ``nginx`` is checked by nginx.

A block that cannot run has a comment with the reason above it: ``<!-- not run: needs systemd -->``. Ports in the text
(8000, 11211 ...) are replaced by free ones.
"""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

ROOT = Path(__file__).parents[2]
PRELUDE = Path(__file__).with_name("prelude.py")
#: The pages whose blocks run.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REASON = re.compile(r"<!-- not run: (?P<reason>[^\n]+) -->\n\s*\Z")
SERVER = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:gunicorn|wsgi-isr serve|uwsgi|waitress-serve|flask .*\brun\b|memcached)\b")
#: Ports on the pages, in ascending order. The free ports in their place have the same order: nodes are listed by name.
SHOWN = ("5000", "8000", "8001", "8002", "8003", "8080", "11211", "11212", "11213")
PORTS = re.compile(rf"\b({'|'.join(SHOWN)})\b")
FILE = re.compile(r"^(?:#|\{#|<!--|//) ?(?P<name>[\w./-]+\.\w+)(?: ?#\}| ?-->)?$")
#: Seconds: of one command; until a server listens.
PATIENCE = 60.0
COMPARE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block of a page; ``reason`` says why it does not run, and is empty where it does."""

    language: str
    source: str
    reason: str
    line: int


class Failure(AssertionError):
    """A block does not do what the page says."""


# Reading -----------------------------------------------------------------------------------------------------


_fences = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[\w{}-]*)[^\n]*\n"))
_hidden = DirectiveInHTMLCommentLexer("invisible-code-block", "python")


def regions(document: Document) -> Iterator[tuple[Region, Block]]:
    """Return the code blocks of a page with their places. Directives in braces are no code."""
    for region in _fences(document):
        language = region.lexemes["language"]
        if language.startswith("{"):
            continue
        reason = REASON.search(document.text[: region.start])
        line = document.text.count("\n", 0, region.start) + 1
        yield region, Block(language, region.lexemes["source"], reason["reason"] if reason else "", line)


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    return [block for _, block in regions(Document(page.read_text("utf-8"), str(page)))]


# Running -----------------------------------------------------------------------------------------------------


class Desk:
    """The folder, the ports and the servers of one page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(SHOWN, _free_ports(len(SHOWN)), strict=True))
        self.servers: list[subprocess.Popen[bytes]] = []
        self.definitions = ""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WSGI_ISR_", "PYTEST_"))}
        # gunicorn has a control socket in the home directory: one for all servers of a user.
        self.env = {
            **kept,
            "HOME": str(folder),
            "PATH": path,
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        }

    def with_ports(self, text: str) -> str:
        return PORTS.sub(lambda match: str(self.ports[match[1]]), text)

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.with_ports(text), encoding="utf-8")

    # Commands

    def console(self, source: str) -> None:
        for command, expected in re.findall(r"^\$ (.*(?:\\\n.*)*)\n?((?:(?!\$ ).*\n?)*)", source, re.MULTILINE):
            if SERVER.match(command):
                self._serve(command)
                continue
            done = self._run(self.with_ports(command))
            got = done.stdout.replace("\r", "")
            for shown, port in self.ports.items():
                got = got.replace(str(port), shown)
            if expected.strip() and not doctest.OutputChecker().check_output(expected, got, COMPARE):
                raise Failure(f"$ {command}\nshown:\n{expected}\ngot:\n{got}\n{self._logs()}")
            if not expected.strip() and done.returncode:
                raise Failure(f"$ {command}\nexit code {done.returncode}\n{got}\n{self._logs()}")

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"{self.definitions}\n{command}"],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )

    def _serve(self, command: str) -> None:
        given = re.search(r"(?:--bind|--port|-p|--http-socket|--listen)[ =](?:\S*:)?(\d+)", command)
        is_flask = "flask " in command
        shown = given[1] if given else "5000" if is_flask else "8000"
        if not given:
            command += " --port 5000" if is_flask else " --bind 127.0.0.1:8000"
        with open(self.folder / f"server-{len(self.servers)}.log", "wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {self.with_ports(command)}"],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.servers.append(process)
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[shown]), 1):
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"$ {command}\ndoes not listen\n{self._logs()}")
            time.sleep(0.02)

    def _logs(self) -> str:
        return "\n".join(f"{file.name}:\n{file.read_text()}" for file in sorted(self.folder.glob("server-*.log")))

    def close(self) -> None:
        for process in reversed(self.servers):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    # Files

    def toml(self, source: str, namespace: dict[str, object]) -> None:
        self.write("isr.toml", source)
        os.environ["WSGI_ISR_CONFIG"] = str(self.folder / "isr.toml")
        try:
            exec("ISR(lambda environ, start_response: [], store='memory://')", {"ISR": namespace["ISR"]})
        finally:
            del os.environ["WSGI_ISR_CONFIG"]

    def nginx(self, source: str) -> None:
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        inside = source if "server {" in source else f"server {{ listen 8080;\n{source}\n}}"
        conf = f"pid {self.folder}/nginx.pid; error_log stderr; events {{}}\nhttp {{ access_log off;\n{inside}\n}}"
        self.write("nginx.conf", conf.replace("/var/cache/nginx", str(self.folder / "cache")))
        command = [program, "-t", "-q", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise Failure(done.stderr)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return sorted(probe.getsockname()[1] for probe in probes)


def parser(desk: Desk) -> object:
    """Return the parser for Sybil."""
    python = PythonEvaluator()

    def evaluate(example: Example) -> None:
        block, source = example.parsed
        first = FILE.match(source.partition("\n")[0])
        if first is not None and block.language not in ("nginx", "toml"):
            if block.language == "python":
                compile(source, first["name"], "exec")
            desk.write(first["name"], source)
        elif block.language == "python":
            example.parsed = source
            python(example)
        elif block.language == "console":
            desk.console(source)
        elif block.language == "sh":
            subprocess.run(["bash", "-n", "-c", source], check=True)
            desk.definitions += desk.with_ports(source)
        elif block.language == "toml":
            desk.toml(source, example.namespace)
        elif block.language == "yaml":
            assert list(yaml.safe_load_all(source))
        elif block.language == "nginx":
            desk.nginx(source)
        else:
            raise Failure(f"a block of {block.language or 'no language'} does not run: write the reason above it")

    def parse(document: Document) -> Iterable[Region]:
        for region, block in regions(document):
            if block.reason:
                continue
            region.parsed = (block, _Text(block.source))
            region.evaluator = evaluate
            yield region
        for region in _hidden(document):
            region.parsed, region.evaluator = region.lexemes["source"], python
            yield region

    return parse


class _Text(str):
    """The source of a block, as Sybil's evaluator wants it."""

    line_offset = 0


def run(page: Path, folder: Path) -> int:
    """Run the blocks of a page in a folder. Return how many ran."""
    desk = Desk(folder)
    os.chdir(folder)
    sys.path[:0] = [str(folder)]
    os.environ["WSGI_ISR_STORE"] = "memory://"
    document = Sybil(parsers=[parser(desk)], path=str(ROOT)).parse(page)
    document.namespace["__name__"] = "page"
    exec(compile(PRELUDE.read_text("utf-8"), str(PRELUDE), "exec"), document.namespace)
    count = 0
    try:
        for example in document.examples():
            is_shown = isinstance(example.parsed, tuple)
            try:
                example.evaluate()
            except BaseException:
                print(f"{page.relative_to(ROOT)}, line {example.line}:", file=sys.stderr)
                raise
            count += is_shown
    finally:
        desk.close()
    return count


if __name__ == "__main__":
    import tempfile

    # Before the test gives up: servers are ended on the way out.
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("took longer than two minutes"))
    signal.alarm(120)
    with tempfile.TemporaryDirectory() as scratch:
        print(run(Path(sys.argv[1]).resolve(), Path(scratch)))
        os.chdir(ROOT)
