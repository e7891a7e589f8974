"""granian as a real process, by ``wsgi-isr serve --server granian``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.parts import ports, processes
from cluster.parts.part import Part

from .server import MEASURED, ROOT, Gunicorn, _Process

#: The arguments of the Python interpreter.
PROGRAM = ("-c", "from wsgi_isr.commands.main import main; main()", "serve", "--server", "granian")


class _Granian(_Process):
    """The process, and its command line."""

    stop_patience = 8.0

    def command(self) -> Sequence[str]:
        place = ["--host", ports.HOST, "--port", str(self.port), "--workers", str(self._workers)]
        return [sys.executable, *self.program, *place, *self._arguments]

    def launch(self) -> None:
        Part.launch(self)  # granian binds its port itself

    def workers(self) -> list[int]:
        """Return the process ids of the live workers, in order; multiprocessing has a child of its own at times."""
        return [pid for pid in super().workers() if "resource_tracker" not in processes.command_line(pid)]

    def has_all_workers(self) -> bool:
        """Return whether all workers are there, and each serves.

        A worker handles SIGTERM before it starts the threads that serve. A SIGTERM in between would be lost.
        """
        workers = self.workers()
        try:
            serving = [pid for pid in workers if any(name.startswith("tokio") for name in processes.thread_names(pid))]
        except (FileNotFoundError, ProcessLookupError):  # it ended just now
            return False
        return len(serving) == len(workers) == self._workers


class Granian(Gunicorn):
    """Run granian until the block ends. Its parameters are those of :class:`Gunicorn`, as far as granian has them."""

    def __init__(
        self,
        log: Path,
        env: Mapping[str, str],
        target: str = MEASURED,
        *,
        workers: int = 2,
        arguments: Sequence[str] = (),
        directory: Path = ROOT,
        program: Sequence[str] = PROGRAM,
        is_asked: bool = True,
    ) -> None:
        self.log = log
        # Between two workers of a reload, seconds.
        options = [target, "--respawn-interval", "0.2", *arguments]
        self._process = _Granian(log, options, directory, workers, env, program, True, is_asked)
        self.port = self._process.port
