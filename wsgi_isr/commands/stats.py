"""The command ``wsgi-isr stats``: the counts of all instances, from the store, or of those on this machine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import click

from ..config.settings import Config
from ..errors import ConfigError, StoreError
from ..observe.aggregate import ask
from ..observe.history import History, Instance, summary
from ..observe.overview import as_dict, as_text
from ..observe.totals import Totals, merged
from ..renderers.folders import folders_here
from ..stores import open_store
from ..stores.base import Store
from .common import app_of, json_option, reported, say

#: Seconds between two tables.
EVERY = 2.0
_CLEAR = "\x1b[H\x1b[2J"


class _Found(NamedTuple):
    """Totals, where they come from, and what they do not say."""

    totals: Totals
    instances: tuple[Instance, ...]
    heading: str
    unknown: tuple[str, ...]


@click.command("stats")
@click.option("--app", "target", metavar="MODULE:APP", help="Use the store of this app. By default: WSGI_ISR_APP.")
@click.option("--store", metavar="URL", help="Use this store, not the configured one.")
@click.option("--namespace", metavar="NAME", help="Use this namespace, not the configured one.")
@click.option("--minutes", type=click.IntRange(1, 24 * 60), default=60, show_default=True, help="So far back.")
@click.option("--here", is_flag=True, help="Ask the instances of this machine, which know the last second.")
@click.option("--watch", is_flag=True, help="Print again every 2 seconds.")
@click.option("--prometheus", is_flag=True, help="Print metrics for Prometheus; implies --here.")
@json_option
def stats_command(here: bool, watch: bool, prometheus: bool, as_json: bool, minutes: int, **where: Any) -> None:
    """Print hits, renders and failures: of all instances, from the store.

    Each instance writes a record once a minute. With --here, the instances of this user on this machine are asked, and
    count since their start.
    """
    with reported(as_json):
        if here or prometheus:
            _print(_here, watch, as_json, prometheus)
            return
        with _history(**where) as history:
            _print(lambda: _of(history, minutes), watch, as_json, prometheus)


def _print(find: Any, watch: bool, as_json: bool, prometheus: bool) -> None:
    while True:
        found = find()
        if watch and sys.stdout.isatty() and not as_json:
            click.echo(_CLEAR, nl=False)
        if prometheus:
            from ..observe.prometheus import exposition

            click.echo(exposition(found.totals), nl=False)
        else:
            parts = found.totals, found.instances, time.time(), found.unknown
            say(as_dict(*parts) if as_json else {}, "" if as_json else as_text(*parts, found.heading), as_json)
        if not watch:
            return
        time.sleep(EVERY)


def _here() -> _Found:
    """Return the totals of the instances of this machine.

    :raises ConfigError: there is none.
    """
    totals = []
    silent = 0
    for place in folders_here():
        try:
            totals.append(ask(place))
        except (OSError, ValueError):
            silent += 1
    if not totals:
        problem = "an instance does not answer" if silent else "no instance of this user runs on this machine"
        remedy = "run this as the user of a server with -c python:wsgi_isr.gunicorn, or leave it out"
        raise ConfigError("--here", problem, remedy)
    unknown = [f"the counts of {silent} instances, which do not answer"] if silent else []
    heading = f"{len(totals)} instances of this machine, since their start"
    return _Found(merged(totals), (), heading, (*unknown, "the instances of other machines"))


def _of(history: History, minutes: int) -> _Found:
    """Return the totals of the records in the store.

    :raises ConfigError: the store is unreachable.
    """
    try:
        records, instances = history.records(minutes), history.instances()
    except StoreError as error:
        raise ConfigError("store", f"it cannot be read: {error}", "ask the instances of a machine, --here") from error
    unknown = ["the current minute, which is not written yet"]
    if any(each.kind == "process" for each in instances):
        unknown.append("the last minute of each process of a server without hooks")
    if not instances:
        unknown.append("everything: no instance has written a record in 25 hours (the first is due within a minute)")
    heading = f"the last {minutes} minutes of {len(instances)} instances"
    return _Found(summary(records, time.time()), tuple(instances), heading, tuple(unknown))


@contextmanager
def _history(target: str | None, store: str | None, namespace: str | None) -> Iterator[History]:
    """Yield the history of an app, or of a store and namespace.

    :raises ConfigError: no store is named, or other processes do not see it.
    """
    config = Config.load(options={"store": store, "namespace": namespace})
    if target is None and not config.names_store:
        target = os.environ.get("WSGI_ISR_APP")
    if target is not None:
        with app_of(target) as isr:
            settings = isr.configuration.settings
            _check(isr._store)
            yield History(isr._store, namespace or settings.namespace, settings.signing_key)
        return
    if not config.names_store:
        remedy = "write --app myapp:app or --store URL, set WSGI_ISR_STORE as the app has it, or ask with --here"
        raise ConfigError("store", "no store is known here", remedy)
    given = config.settings.store
    opened = given if isinstance(given, Store) else open_store(given)
    try:
        _check(opened)
        yield History(opened, config.settings.namespace, config.settings.signing_key)
    finally:
        opened.close()


def _check(store: Store) -> None:
    if not (store.keeps and store.shared):
        raise ConfigError("store", f"{store.location} is seen by no other process", "ask the instance with --here")
