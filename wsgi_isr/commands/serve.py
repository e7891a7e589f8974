"""The command ``wsgi-isr serve``: run gunicorn or granian, and wrap the app if it is not wrapped."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import click

from ..errors import ConfigError
from ..middleware.loading import app_to_serve

_HOOKS = "python:wsgi_isr.gunicorn"
# The app, as gunicorn takes it: an import path and a call.
_EXPRESSION = "wsgi_isr.middleware.loading:app_to_serve('%s')"


@click.command(
    "serve",
    context_settings={"ignore_unknown_options": True},
    options_metavar="",
    # gunicorn has its own -h, -v and the like.
    add_help_option=False,
)
@click.option(
    "--server", type=click.Choice(["gunicorn", "granian"]), default="gunicorn", help="The server; gunicorn by default."
)
@click.argument("arguments", metavar="MODULE:APP [SERVER OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def serve_command(context: click.Context, server: str, arguments: tuple[str, ...]) -> None:
    """Run gunicorn or granian with renderer processes.

    It runs `gunicorn -c python:wsgi_isr.gunicorn MODULE:APP`, whose worker answers prepared pages itself, or granian
    with the same renderers. An app without an ISR is wrapped, with the options of the environment (WSGI_ISR_...) and of
    the file in WSGI_ISR_CONFIG. gunicorn's `--worker-class` chooses another worker.
    """
    if {"-h", "--help"} & {*arguments} or not arguments:
        click.echo(context.get_help())
        context.exit(0 if arguments else 2)
    try:
        command = command_for(arguments) if server == "gunicorn" else granian_command_for(arguments)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    sys.stdout.flush()
    os.execv(command[0], command)


def command_for(arguments: tuple[str, ...]) -> list[str]:
    """Return the command line of gunicorn.

    :raises ConfigError: gunicorn is missing, would ignore a configuration file, or cannot import the app.
    """
    if find_spec("gunicorn") is None:
        raise ConfigError("serve", "gunicorn is not installed", "pip install 'wsgi_isr[gunicorn]'")
    given, of_environment = _as_gunicorn_reads(list(arguments))
    if len(given.args) != 1 or given.args[0] not in (arguments[0], arguments[-1]):
        raise ConfigError("serve", "needs one app", "write wsgi-isr serve myapp:app [gunicorn options]")
    target: str = given.args[0]
    _refuse_configuration(target, given.config or of_environment.config)
    with _where_the_app_is(given.chdir, "", *filter(None, (given.pythonpath or "").split(","))):
        _check(target)
    # The target precedes or follows all options: in between, the same text may be the value of an option.
    options = arguments[1:] if arguments[0] == target else arguments[:-1]
    name = [] if given.proc_name or of_environment.proc_name else ["--name", target]
    expression = _EXPRESSION % target
    return [sys.executable, *_gunicorn(), "--config", _HOOKS, *name, *options, expression]


def granian_command_for(arguments: tuple[str, ...]) -> list[str]:
    """Return the command line of granian.

    :raises ConfigError: granian is missing, refuses its options, or has no app that can be imported.
    """
    if find_spec("granian") is None:
        raise ConfigError("serve", "granian is not installed", "pip install 'wsgi_isr[granian]'")
    from ..servers.granian import parse, target_of

    given = parse(arguments)
    if not given["env_files"]:  # granian reads them later, and the app may need them
        with _where_the_app_is(None, str((given["working_dir"] or Path()).resolve()), ""):
            _check(target_of(given["app"], given["factory"]))
    return [sys.executable, "-m", "wsgi_isr.servers.granian", *arguments]


def _gunicorn() -> list[str]:
    # After -m, SIGUSR2 could not upgrade gunicorn: it would run its __main__.py, beside which is a module `http`.
    script = os.path.join(os.path.dirname(sys.executable), "gunicorn")
    return [script] if os.path.exists(script) else ["-m", "gunicorn"]


def _as_gunicorn_reads(arguments: list[str]) -> tuple[Namespace, Namespace]:
    """Return the parsed command line, and the parsed ``GUNICORN_CMD_ARGS``."""
    from gunicorn.config import Config

    def refuse(message: str) -> NoReturn:
        raise ConfigError("serve", message, "see gunicorn --help")

    config = Config(prog="gunicorn")
    parser = config.parser()
    parser.error = refuse  # gunicorn's own message begins with all options
    return parser.parse_args(arguments), parser.parse_args(config.get_cmd_args_from_env())


def _refuse_configuration(target: str, named: str | None) -> None:
    """Refuse a configuration file. gunicorn reads one file, that of the hooks, and would ignore any other."""
    from gunicorn.config import get_default_config_file

    if named == _HOOKS:
        return
    if found := named or get_default_config_file():
        command = f'gunicorn -c {found} "{_EXPRESSION % target}"'
        remedy = f"begin it with `from wsgi_isr.gunicorn import *`, then run: {command}"
        raise ConfigError("serve", f"{found} would not be read", remedy)


@contextlib.contextmanager
def _where_the_app_is(chdir: str | None, *folders: str) -> Iterator[None]:
    """Run the block in the directory, and with the module path, of the server's import of the app."""
    before, path = os.getcwd(), list(sys.path)
    if chdir:
        os.chdir(chdir)
    sys.path[:0] = folders
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


def _check(target: str) -> None:
    """Import the app, so that an error is one line, and not a traceback of each worker."""
    try:
        app_to_serve(target)
    except ConfigError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"does not import: {type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        raise ConfigError(target, problem, f"see where: python -c 'import {target.partition(':')[0]}'") from error
