"""The commands ``wsgi-isr off`` and ``wsgi-isr on``: turn the switch of an app (:mod:`wsgi_isr.cache.switch`)."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import click

from ..cache.switch import ON, PASS, SERVE_STALE, Record
from ..cache.switchboard import Switchboard, Turned
from ..config.settings import Config
from ..errors import ConfigError, listed
from ..middleware.process import switchboard_for
from ..observe.explanation import shown
from .common import app_of, json_option, reported, say

Command = TypeVar("Command", bound=Callable[..., Any])

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(s|m|h|d|)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_WORDS = {PASS: "off", SERVE_STALE: "serving stale pages", ON: "on"}


class _Target(NamedTuple):
    """The switch of a command, and the patterns of the app's rules; ``None`` where the app is not loaded."""

    board: Switchboard
    rules: Collection[str] | None


def _target_options(command: Command) -> Command:
    """Add the options that name an app or a store."""
    for option in (
        click.option("--store", metavar="URL", help="Use this store, not the configured one."),
        click.option("--namespace", metavar="NAME", help="Use this namespace, not the configured one."),
        click.option(
            "--app",
            "target",
            metavar="MODULE:APP",
            help="Use the store and the rules of this app. Without any store: WSGI_ISR_APP.",
        ),
        json_option,
    ):
        command = option(command)
    return command


@click.command("off")
@click.option("--for", "duration", metavar="DURATION", help="End after 90s, 10m, 2h or 1d. Default: wsgi-isr on.")
@click.option(
    "--rule",
    "rules",
    metavar="R",
    multiple=True,
    help="Only the pages of the rule with this pattern, and no data. Can be repeated.",
)
@click.option(
    "--serve-stale", is_flag=True, help="Serve pages that are there whatever their age, and render none anew."
)
@_target_options
def off_command(
    duration: str | None,
    rules: Sequence[str],
    serve_stale: bool,
    target: str | None,
    store: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Turn the cache off in every process, without a restart: the app answers each request.

    Replaces an earlier `off`. Exits with 1 if no node of the store could be told.
    """
    with reported(as_json):
        seconds = None if duration is None else _seconds(duration)
        with _target(target, store, namespace) as (board, known):
            turned = board.turn(SERVE_STALE if serve_stale else PASS, seconds, rules, known=known)
        _say_turned(turned, as_json)


@click.command("on")
@_target_options
def on_command(target: str | None, store: str | None, namespace: str | None, as_json: bool) -> None:
    """Turn the cache on again, after `wsgi-isr off`.

    Exits with 1 if no node of the store could be told.
    """
    with reported(as_json):
        with _target(target, store, namespace) as (board, _):
            turned = board.turn(ON)
        _say_turned(turned, as_json)


def _seconds(duration: str) -> float:
    """Return a duration in seconds.

    :raises ConfigError: the text is no duration.
    """
    if (match := _DURATION.fullmatch(duration.strip())) is None:
        raise ConfigError("--for", f"{duration!r} is not a duration", "write 90s, 10m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


@contextmanager
def _target(target: str | None, store: str | None, namespace: str | None) -> Iterator[_Target]:
    """Yield the switch of the app that is named, or of the store.

    :raises ConfigError: neither is known, or both are given.
    """
    if target is not None and (
        given := [name for name, value in (("store", store), ("namespace", namespace)) if value]
    ):
        raise ConfigError(f"--{given[0]}", "the app has its own", f"leave out --{given[0]} or --app")
    knows_store = Config.load(options={"store": store, "namespace": namespace}).names_store
    if target is None and not knows_store and (target := os.environ.get("WSGI_ISR_APP")) is None:
        remedy = "write --app myapp:app or --store URL, or set WSGI_ISR_STORE as the app has it"
        raise ConfigError("store", "no store is known here", remedy)
    if target is None:
        with switchboard_for(store, namespace) as board:
            yield _Target(board, None)
        return
    with app_of(target) as isr:
        yield _Target(isr._engine.switchboard, set(isr.configuration.rules.policies))


def _say_turned(turned: Turned, as_json: bool) -> None:
    """Print the result; exit with 1 if no node could be told."""
    ok = turned.is_delivered
    if as_json:
        say(_as_dict(turned), "", as_json)
    else:
        for warning in turned.warnings:
            click.echo(shown(f"warning: {warning}"), err=True)
        for node, error in turned.missed:
            click.echo(shown(f"warning: {node} was not told: {error}"), err=True)
        for line in _lines(turned):
            click.echo(line, err=not ok)
    if not ok:
        sys.exit(1)


def _lines(turned: Turned) -> Iterator[str]:
    """Yield lines for a terminal. Another program may have written the record that was in effect."""
    return map(shown, _texts(turned))


def _texts(turned: Turned) -> Iterator[str]:
    place = f"{turned.store}, namespace {turned.namespace!r}"
    if not turned.has_changed:
        yield f"nothing done: {turned.note} ({place})"
        return
    yield f"the cache is {_described(turned.record)}"
    if turned.before is not None:
        yield f"before: {_described(turned.before)}, by {turned.before.actor}"
    if turned.record.mode != ON and turned.record.until is None:
        yield "it has no end: write wsgi-isr on"
    if turned.nodes and turned.is_delivered:
        told = len(turned.nodes) - len(turned.missed)
        yield f"in {place}: acknowledged by {told} of {len(turned.nodes)} node{'s' if len(turned.nodes) > 1 else ''}"
    if turned.file is not None:
        reach = "the processes on this machine whose app has that state folder obey it"
        if not turned.is_delivered:
            reach += "; run the command on each machine, and again once a node is back"
        yield f"in the file {turned.file}: {reach}"


def _described(record: Record) -> str:
    if record.mode == ON:
        return _WORDS[ON]
    scope = "" if record.rules is None else f" for {listed(record.rules)}"
    until = "" if record.until is None else time.strftime(", until %Y-%m-%d %H:%M:%S", time.localtime(record.until))
    return f"{_WORDS[record.mode]}{scope}{until}"


def _as_dict(turned: Turned) -> dict[str, Any]:
    return {
        "ok": turned.is_delivered,
        "changed": turned.has_changed,
        "note": turned.note,
        "switch": turned.record._asdict(),
        "before": None if turned.before is None else turned.before._asdict(),
        "store": turned.store,
        "namespace": turned.namespace,
        "nodes": turned.nodes,
        "missed": {node: str(error) for node, error in turned.missed},
        "file": turned.file,
        "warnings": turned.warnings,
    }
