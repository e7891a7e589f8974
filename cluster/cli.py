"""The command ``python -m cluster``. Exit codes: 0 done, 1 not (entirely) done, 2 wrong usage."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import click

from .errors import CannotStart, ClusterError, Down, NoSuchPart
from .parts import processes
from .simulation.command import simulate
from .supervisor import control, keeper
from .supervisor.state import DEFAULT, UP_LOG, Directory, State
from .supervisor.stopping import Stopped, stoppable
from .supervisor.topology import DEFAULT_APP, Topology, uncached

# Modules that few commands need are imported inside those commands, so that `status` starts fast.

#: Seconds for a cluster to start or end.
PATIENCE = 60.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    *("--directory", "path"),
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT,
    show_default=True,
    help="Where the cluster keeps its files: one cluster for each.",
)
@click.pass_context
def main(context: click.Context, path: Path) -> None:
    """Run a whole cluster on this machine: memcached nodes, gunicorn instances of an app, and nginx in front."""
    if sys.platform != "linux":
        click.echo("a cluster needs Linux: processes are told apart by /proc, and tethered by prctl", err=True)
        sys.exit(1)
    context.obj = Directory(path)


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors into one line and an exit code."""
    try:
        yield
    except NoSuchPart as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    except ClusterError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except BrokenPipeError:  # click's: the reader of our output has closed the pipe
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"{where}{error.strerror or error}", err=True)
        sys.exit(1)


class _Range(click.FloatRange):
    """A number within bounds. NaN compares as within any bounds, so it is rejected explicitly."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


# Up and down ------------------------------------------------------------------------------------------


def _count(name: str, default: int, summary: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.IntRange(1, 32), default=default, show_default=True, help=summary)


@main.command()
@_count("--nodes", 3, "memcached nodes.")
@_count("--instances", 3, "gunicorn instances.")
@_count("--workers", 2, "Workers of each instance.")
@click.option("--app", default=DEFAULT_APP, show_default=True, metavar="MODULE:ATTR", help="A WSGI app, within ISR.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Of the balancer; 0: a free one."
)
@click.option("--network", is_flag=True, help="Put a network between instances and nodes that can be cut (see cut).")
@click.option(
    "--read-timeout",
    type=_Range(0.1, 600),
    default=12.0,
    show_default=True,
    help="Seconds that an instance may take before the balancer asks another one.",
)
@click.option("--detach", is_flag=True, help="Come back when all is ready; it ends with `down`.")
@click.pass_obj
def up(directory: Directory, /, detach: bool, **options: Any) -> None:
    """Start a cluster, and keep it until Ctrl-C or `down`. Nothing of it is left behind then."""
    if detach:
        with reported():
            try:
                with stoppable():
                    _detach(directory)
            except Stopped:
                click.echo("stopped; nothing is left")
                sys.exit(1)
            state = directory.read()
            _show(state)
            # In the background, the warning is otherwise only in a log file.
            if not state.cached:
                click.echo(uncached(state.app))
        return
    sys.exit(keeper.keep(lambda: _supervise(Topology(**options), directory), directory.forget))


def _supervise(topology: Topology, directory: Directory) -> int:
    from .chaos.faults import carry_out
    from .supervisor.supervise import Cluster, serve

    try:
        with reported(), Cluster(topology, directory, _say) as cluster:
            with _unread():
                _show(directory.read())
                click.echo("Ctrl-C ends it; in another terminal: python -m cluster --help")
            serve(cluster, carry_out)
    except Stopped:
        _say("stopped; nothing is left")
    return 0


def _unread() -> suppress:
    """Ignore output errors: a closed pipe or a full disk does not end the cluster."""
    return suppress(OSError)


def _say(line: str) -> None:
    with _unread():
        click.echo(f"{time.strftime('%H:%M:%S')}  {line}")


def _detach(directory: Directory) -> None:
    """Run the same command in a session of its own and wait until it is ready. :raises ClusterError: it failed."""
    if directory.is_owned():
        raise CannotStart(f"a cluster runs in {directory.path} already: python -m cluster down ends it")
    directory.claim()
    log = directory.path / UP_LOG
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "cluster", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE
    try:
        while started.poll() is None:
            if directory.is_ready():
                started.returncode = 0  # another process waits for it from now on
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"it is not ready after {PATIENCE:g} s (see {log})")
            time.sleep(0.05)
    finally:
        if started.returncode is None:
            started.terminate()
            started.wait()
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    raise ClusterError(lines[-1] if lines else f"it ended with exit code {started.returncode} (see {log})")


@main.command()
@click.pass_obj
def down(directory: Directory) -> None:
    """End the cluster in any state."""
    with reported():
        state = directory.read()
        _end_supervisor(state)
        deadline = time.monotonic() + PATIENCE
        while directory.is_owned() or processes.same(*state.keeper):
            if time.monotonic() > deadline:
                raise ClusterError(f"it has not ended within {PATIENCE:g} s: kill -9 {state.pid} ends it at once")
            time.sleep(0.02)
        click.echo("stopped; nothing is left")


@main.command()
@click.option("--app", default=DEFAULT_APP, show_default=True, metavar="MODULE:ATTR", help="A WSGI app, within ISR.")
def check(app: str) -> None:
    """Start a cluster, read pages through it, inject faults and end it. Exits with 1 if a step fails."""
    from .check import check as play

    sys.exit(keeper.keep(lambda: play(app)))


def _end_supervisor(state: State) -> None:
    if (found := processes.same(state.pid, state.started)) is not None:
        # A hung supervisor ignores SIGTERM; its keeper ends the rest.
        processes.send(found, signal.SIGKILL if found.is_stopped else signal.SIGTERM)
    if (keeper := processes.same(*state.keeper)) is not None:
        processes.send(keeper, signal.SIGCONT)  # Ctrl-Z stops both


# Inspection -------------------------------------------------------------------------------------------


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(directory: Directory, as_json: bool) -> None:
    """Show every part and its state. Exits with 1 where one does not run."""
    with reported():
        state = directory.read()
    if as_json:
        parts = [{**asdict(part), "state": part.state} for part in state.parts]
        click.echo(json.dumps({**asdict(state), "directory": str(directory.path), "parts": parts}, indent=2))
    else:
        _show(state)
    sys.exit(0 if state.ready and all(part.state == "running" for part in state.parts) else 1)


def _show(state: State) -> None:
    rows = [("PART", "ROLE", "ADDRESS", "PID", "STATE")]
    rows += [(part.name, part.role, part.address, str(part.pid or "-"), part.state) for part in state.parts]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo(f"\n{state.app} at {state.url}/\nWSGI_ISR_STORE={state.store}")


@main.command()
@click.argument("part", required=False)
@click.option("-f", "--follow", is_flag=True, help="Show new lines as they come.")
@click.option("-n", "--lines", type=click.IntRange(0), default=20, show_default=True, help="Of each part.")
@click.pass_obj
def logs(directory: Directory, part: str | None, follow: bool, lines: int) -> None:
    """Show the output of the parts, even after the cluster has ended."""
    with reported():
        found = {path.stem: path for path in sorted(directory.logs.glob("*.log"))}
        if not found:
            raise Down(f"no cluster has run in {directory.path}: python -m cluster up")
        if part is not None and part not in found:
            raise NoSuchPart(f"there is no part {part!r}: {', '.join(found)}")
        try:
            _print_logs(directory.logs, part or "*", lines, follow)
        except KeyboardInterrupt:
            pass


def _print_logs(logs: Path, wanted: str, last: int, follow: bool) -> None:
    opened: dict[Path, BinaryIO] = {}
    limit: int | None = last
    try:
        while True:
            for path in sorted(logs.glob(f"{wanted}.log")):
                _open_again(path, opened)
            width = max((len(path.stem) for path in opened), default=0)
            for path, log in opened.items():
                place, text = log.tell(), log.read()
                whole = text[: text.rfind(b"\n") + 1] if follow else text
                log.seek(place + len(whole))
                lines = whole.decode("utf-8", "replace").splitlines()
                for line in lines if limit is None else lines[max(0, len(lines) - limit) :]:
                    click.echo(f"{path.stem.ljust(width)}  {line}" if wanted == "*" else line)
            if not follow:
                return
            limit = None
            time.sleep(0.2)
    finally:
        for log in opened.values():
            log.close()


def _open_again(path: Path, opened: dict[Path, BinaryIO]) -> None:
    """Reopen each log that is new or replaced: the next cluster removes the logs of this one."""
    before = opened.get(path)
    try:
        if before is None or not os.path.samestat(os.fstat(before.fileno()), path.stat()):
            opened[path] = path.open("rb")
            if before is not None:
                before.close()
    except FileNotFoundError:
        pass


# Faults -----------------------------------------------------------------------------------------------


def _order(directory: Directory, name: str, **arguments: Any) -> None:
    with reported():
        directory.read()
        click.echo(control.send(directory.control, {"do": name, "with": arguments}))


def _fault(name: str, summary: str, argument: str | None = "part") -> None:
    """Add a command that sends an order."""

    def command(directory: Directory, /, **arguments: Any) -> None:
        _order(directory, name, **arguments)

    made = click.pass_obj(command)
    if argument is not None:
        made = click.argument(argument)(made)
    main.command(name, help=summary)(made)


_fault("kill", "Kill a part (SIGKILL); it stays dead until `restart`.")
_fault("pause", "Let a part hang (SIGSTOP): it takes connections, and does not answer.")
_fault("resume", "End `pause`.")
_fault("restart", "Stop a part, if it runs, and start it again at its address.")
_fault("flush", "Empty a node.", "node")
_fault("cut", "Cut a node off the instances (up --network).", "node")
_fault("heal", "End `cut` and `slow`.", "node")
_fault("reload", "Let the balancer read its configuration again.", None)
_fault("roll", "Restart the instances one by one, as RELEASE of the app.", "release")


@main.command("slow")
@click.argument("node")
@click.argument("seconds", type=_Range(0, 30))
@click.pass_obj
def slow_command(directory: Directory, /, **arguments: Any) -> None:
    """Let a node answer up to SECONDS late (up --network)."""
    _order(directory, "slow", **arguments)


# Load and chaos ---------------------------------------------------------------------------------------


def _plot_file(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    from .load import plot

    if path is not None and path.suffix not in (".svg", ".png"):
        raise click.BadParameter("a plot is a .svg or a .png file")
    if path is not None and path.suffix == ".png" and plot.drawn_by() is None:
        raise click.BadParameter("no Chromium draws a .png here: name a .svg file, or apt-get install chromium")
    return path


plot_option = click.option(
    *("--plot", "plot_path"),
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_plot_file,
    metavar="FILE.svg|.png",
    help="What happened over time, with what was done to parts.",
)


@main.command("load")
@click.option("--seconds", type=_Range(0.1, 3600), default=10.0, show_default=True)
@click.option("--connections", type=click.IntRange(1, 500), default=32, show_default=True)
@click.option("--rate", type=_Range(0), default=0.0, help="Requests per second; all that are answered.")
@click.option("--path", "paths", multiple=True, metavar="PATH", help="A page; instead of the start page and its links.")
@click.option("--seed", type=int, default=0, help="Of the order in which pages are asked for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plot_option
@click.pass_obj
def load_command(
    directory: Directory,
    /,
    seconds: float,
    connections: int,
    rate: float,
    paths: Sequence[str],
    seed: int,
    as_json: bool,
    plot_path: Path | None,
) -> None:
    """Let visitors ask for pages, and report what they got. Exits with 1 where one got no answer, or a 5xx.

    It asks the cluster that runs. The report includes faults injected from another terminal.
    """
    from .load import generator as load
    from .load import plot, report

    if wrong := [path for path in paths if not path.startswith("/")]:
        raise click.BadParameter(f"{wrong[0]!r} does not begin with /", param_hint="--path")
    with reported():
        state = directory.read()
        host = state.url.partition("://")[2]
        port = int(host.rpartition(":")[2])
        pages = [load.asked(path) for path in paths] or load.discover(port)
        samples = load.run(port, pages, seconds=seconds, connections=connections, rate=rate, seed=seed)
        found = report.made_of(directory, samples, connections, host)
        click.echo(json.dumps(found.as_json(), indent=2) if as_json else str(found))
        if plot_path is not None:
            plot.write(plot.of_load(found, state.app), plot_path)
            if not as_json:
                click.echo(f"plot              {plot_path}")
    sys.exit(1 if found.failed else 0)


@main.command("chaos")
@click.option("--seed", type=int, default=None, help="Of the schedule; a random one by default.")
@click.option("--seconds", type=_Range(5, 3600), default=30.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plot_option
@click.pass_obj
def chaos_command(
    directory: Directory, /, seed: int | None, seconds: float, as_json: bool, plot_path: Path | None
) -> None:
    """Strike a cluster with faults while it is read and invalidated, and check that no promise is broken.

    A cluster of its own, with a site whose pages show which version of its data they are made of. Exits with 1 where
    a visitor got a page older than an acknowledged invalidation allows, or a 5xx while an instance lived.
    """
    own = Directory(directory.path / "chaos")
    chosen = random.randrange(1_000_000) if seed is None else seed
    plot_path = plot_path or own.path / f"seed-{chosen}.svg"
    sys.exit(keeper.keep(lambda: _chaos(own, chosen, seconds, as_json, plot_path), own.forget))


def _chaos(own: Directory, seed: int, seconds: float, as_json: bool, plot_path: Path) -> int:
    from .chaos import run
    from .load import plot

    say = (lambda _line: None) if as_json else click.echo
    with reported():
        outcome = run.run(own, seed, seconds, say)
        click.echo(json.dumps(outcome.as_json(), indent=2) if as_json else str(outcome))
        plot.write(outcome.svg(), plot_path)
        say(f"plot: {plot_path}")
    return 1 if outcome.violations or outcome.failed else 0


main.add_command(simulate)
