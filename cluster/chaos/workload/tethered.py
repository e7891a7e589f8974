"""Processes that end when their standard input does: when it is closed, or its owner dies."""

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

#: Variables that would change what a history is about, and are not passed on.
FROM_OUTSIDE = ("WSGI_ISR_", "GUNICORN_", "BLOG_", "DJANGO_", "LIBRARY_", "LIVE_", "CLUSTER_", "PYTHONWARN")
T = TypeVar("T")


def until_told() -> threading.Event:
    """In such a process: set when it is time to come to an end."""
    told = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        told.set()

    threading.Thread(target=listen, name="tether", daemon=True).start()
    return told


class Tethered(Generic[T]):
    """``with Tethered("tests...module", ...) as process:`` a module that runs, and writes lines.

    :param parse: makes something of each line. :param directory: for its output.
    """

    def __init__(
        self, name: str, module: str, directory: Path, env: Mapping[str, str], parse: Callable[[bytes], T]
    ) -> None:
        self._out, self._err = directory / f"{name}.out", directory / f"{name}.err"
        self._module = module
        self._env = env
        self._parse = parse
        self._read = 0
        #: What it has written so far, as of the last :meth:`look`.
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
        """End it, whatever it has to say."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def look(self) -> None:
        """Read on. :raises AssertionError: it has ended in an error."""
        code = self._process.poll()
        assert not code, f"{self._module} ended with {code}: {self._err.read_text()}"
        with self._out.open("rb") as out:
            out.seek(self._read)
            whole, newline, _ = out.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        self.lines += map(self._parse, whole.splitlines())
