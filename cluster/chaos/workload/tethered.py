"""Processes that end with their standard input: when it is closed, or its owner dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from ...parts.part import ROOT

#: Variables that would change the experiment, and are not passed on.
FROM_OUTSIDE = ("WSGI_ISR_", "GUNICORN_", "BLOG_", "DJANGO_", "LIBRARY_", "LIVE_", "CLUSTER_", "PYTHONWARN")
T = TypeVar("T")


def stop_on_eof() -> threading.Event:
    """Return an event that is set when standard input ends."""
    stopping = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        stopping.set()

    threading.Thread(target=listen, name="tether", daemon=True).start()
    return stopping


class Tethered(Generic[T]):
    """Run a module that writes lines: ``with Tethered("tests...module", ...) as process:``.

    :param parse: converts each line.
    :param directory: for its output.
    """

    def __init__(
        self, name: str, module: str, directory: Path, env: Mapping[str, str], parse: Callable[[bytes], T]
    ) -> None:
        self._out, self._err = directory / f"{name}.out", directory / f"{name}.err"
        self._module = module
        self._env = env
        self._parse = parse
        self._read = 0
        #: The parsed lines, as of the last :meth:`look`.
        self.lines: list[T] = []

    def __enter__(self) -> Tethered[T]:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={**outside, "PYTHONPATH": str(ROOT), **self._env},
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30 if kind is None else 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            if kind is None:
                raise
        if kind is None:
            self.look()

    def end(self) -> None:
        """End the process, and ignore its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def look(self) -> None:
        """Read the new lines. :raises AssertionError: the process has failed."""
        code = self._process.poll()
        assert not code, f"{self._module} ended with {code}: {self._err.read_text()}"
        with self._out.open("rb") as out:
            out.seek(self._read)
            whole, newline, _ = out.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        self.lines += map(self._parse, whole.splitlines())
