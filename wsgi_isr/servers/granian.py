"""Run granian with renderer processes: ``python -m wsgi_isr.servers.granian MODULE:APP [GRANIAN OPTIONS]``.

``wsgi-isr serve --server granian`` checks the app and the options, and becomes this program. The main process never
imports the app: each worker and each supervisor of renderers does. So a reload (SIGHUP) brings the new code.

granian's command line makes its server; it gets the one of this module instead. The rest is granian's documented
interface: its hooks, and the function that loads the app in each worker.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from granian import _signals, cli
from granian.constants import Interfaces
from granian.server.mp import MPServer, WorkerProcess

from ..cache import renderer_pool
from ..config import development
from ..errors import ConfigError
from ..middleware.loading import app_to_serve
from ..middleware.process import close_all
from ..observe import aggregate
from ..renderers.child_process import die_with
from .instance_renderers import InstanceRenderers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: Options that differ from granian's own defaults. The command line and ``GRANIAN_...`` variables replace them.
DEFAULTS: dict[str, Any] = {
    "interface": Interfaces.WSGI,
    "websockets": False,
    # Without this, granian ends all workers after the end of one.
    "respawn_failed_workers": True,
    # gunicorn's graceful_timeout. Without one, a request that hangs delays the stop for ever.
    "workers_kill_timeout": 30,
    # granian's default is half the backlog: 512 threads, which wait for one lock of the interpreter.
    "blocking_threads": 2 * multiprocessing.cpu_count() + 1,
}
_VARIABLES = "GRANIAN"
#: The signals that end a worker.
_ENDING = (signal.SIGINT, signal.SIGTERM)
#: A signal that does nothing but end a system call of the main thread; how often it is sent, and after which pauses.
_WAKING, _NUDGES, _BETWEEN = signal.SIGURG, 20, 0.05
#: The order of multiprocessing's finalizers: the drain comes before those of other code.
_FIRST = 1000

_log = logging.getLogger("wsgi_isr")


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the parameters that granian reads from a command line and the environment.

    :raises ConfigError: granian refuses the command line, or it asks for another interface than WSGI.
    """
    try:
        context = cli.cli.make_context("granian", list(arguments), auto_envvar_prefix=_VARIABLES, default_map=DEFAULTS)
    except click.UsageError as error:
        raise ConfigError("serve", error.format_message(), "granian --help lists its options") from error
    if (interface := context.params["interface"]) is not Interfaces.WSGI:
        raise ConfigError("serve", f"--interface {interface} is not WSGI", "write --interface wsgi, or leave it out")
    return context.params


def target_of(app: str, factory: bool) -> str:
    """Return the app as :func:`app_to_serve` takes it: ``module:attribute``, with ``()`` for ``--factory``."""
    return f"{app}()" if factory else app


class _App:
    """The app of the workers: each worker calls this object once. It can be pickled, for workers that are spawned."""

    def __init__(self, target: str, has_reloader: bool, kill_timeout: float | None = None) -> None:
        self._target = target
        self._main = os.getpid()
        self._has_reloader = has_reloader
        self._kill_timeout = kill_timeout
        #: The folder of the renderers' sockets.
        self.folder: str | None = None

    def __call__(self) -> WSGIApplication:
        """Prepare this worker for its end, and return the app."""
        # The worker has inherited the handlers of the main process, which ignore a signal here. granian sets its own
        # ones after the import.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _signals.set_main_signals = self._set_main_signals
        # A main process that was killed cannot stop its workers.
        die_with(self._main, by=signal.SIGTERM)
        # multiprocessing ends a worker without atexit. Requests in progress have been answered by then.
        Finalize(None, close_all, exitpriority=_FIRST)
        renderer_pool.folder = aggregate.folder = self.folder
        development.has_reloader = self._has_reloader
        return app_to_serve(self._target)

    def _set_main_signals(self, interrupt: Callable[[int, FrameType | None], object], _reload: object = None) -> None:
        _handle_in_any_thread(interrupt, lambda: _end_orphan(self._main, self._kill_timeout))

    def load(self) -> WSGIApplication:
        """Return the app, for renderers."""
        return app_to_serve(self._target)


def _end_orphan(main: int, timeout: float | None) -> None:
    """End this worker after ``timeout`` seconds if the main process is gone: no other process ends one that hangs.

    :param timeout: the option ``workers_kill_timeout``; ``None`` waits for all requests.
    """
    if timeout and os.getppid() != main:
        timer = threading.Timer(timeout, os._exit, (1,))
        timer.daemon = True
        timer.start()


def _handle_in_any_thread(
    interrupt: Callable[[int, FrameType | None], object], asked_to_end: Callable[[], None]
) -> None:
    """Set granian's handler for the end of a worker, and wake the main thread for it.

    A worker often gets two signals at once: Ctrl-C in a terminal and systemd reach all processes, and the main process
    stops its workers as well. The kernel may give both to a thread of granian's own. The main thread, where Python
    runs handlers, is then not woken and waits for ever. A byte on a socket tells a thread of ours, which wakes it.

    Our thread does not call the handler: a child that the app has forked may write such bytes as well.

    :param asked_to_end: called in our thread after each signal to end.
    """
    hear, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        interrupt(number, frame)

    for number in _ENDING:
        signal.signal(number, handle)
    signal.signal(_WAKING, lambda *_: None)
    main = threading.get_ident()

    def wake(hear: socket.socket, _tell: socket.socket) -> None:
        while numbers := hear.recv(64):
            if {*numbers} & {*_ENDING}:
                asked_to_end()
            # Repeated: the main thread may have been about to sleep.
            for _ in range(_NUDGES if {*numbers} & {*_ENDING} else 0):
                if asked:
                    break
                signal.pthread_kill(main, _WAKING)
                time.sleep(_BETWEEN)

    threading.Thread(target=wake, args=(hear, tell), name="wsgi-isr-signals", daemon=True).start()


class _Worker(WorkerProcess):
    """A worker as the main process sees it."""

    def is_alive(self) -> bool:
        """Return whether the worker is alive.

        Another thread of granian's waits for the worker as well, and may have collected its exit code a moment ago. For
        that moment, multiprocessing takes the worker for alive, and granian would report that it kills the worker.
        """
        if not super().is_alive():  # type: ignore[no-untyped-call]
            return False
        try:
            os.kill(self._id(), 0)  # type: ignore[no-untyped-call]
        except ProcessLookupError:
            return False
        return True


class Server(MPServer):
    """granian's server, with renderer processes beside its workers."""

    _app: _App
    _renderers: InstanceRenderers | None = None

    def serve(self, *_arguments: Any, **_options: Any) -> None:
        """Serve until a signal."""
        self._app = _App(target_of(self.target, self.factory), self.reload_on_changes, self.workers_kill_timeout)
        if not self.reload_on_changes:  # workers restart when the code changes; renderers would keep the old code
            self.on_startup(self._begin)
            self.on_reload(self._begin)
            self.on_shutdown(self._end)
        super().serve(target_loader=self._app, wrap_loader=False)

    def _begin(self) -> None:
        """Start renderers, which replace earlier ones."""
        try:
            if self._renderers is None:
                self._renderers = InstanceRenderers(self._app.load, close_listeners)
            else:
                self._renderers.begin()
        except OSError as error:
            _log.warning("no renderer processes (%s): pages are rendered in threads of the workers", error)
        self._app.folder = renderer_pool.folder

    def _spawn_worker(self, *arguments: Any, **options: Any) -> WorkerProcess:
        """Replace killed renderers before the start of a worker. granian has no hook for that."""
        if self._renderers is not None:
            try:
                self._renderers.look_after()
            except OSError as error:
                _log.warning("no new renderer processes (%s)", error)
        worker = super()._spawn_worker(*arguments, **options)
        worker.__class__ = _Worker
        return worker

    def _end(self) -> None:
        if self._renderers is not None:
            self._renderers.end()


def close_listeners() -> None:
    """Close every listening socket in a child that does not serve: it would accept connections after the server's end.

    granian keeps the numbers of its sockets to itself, and the main process has no listeners of other code.
    """
    for number in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the descriptor of the directory itself
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                found = socket.socket(fileno=number)
                if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.detach()
                found.close()


def main() -> None:
    """Run granian's command line with this module's server."""
    cli.Server = Server  # type: ignore[attr-defined]
    cli.cli(prog_name="granian", auto_envvar_prefix=_VARIABLES, default_map=DEFAULTS)


if __name__ == "__main__":
    main()
