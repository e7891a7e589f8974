"""The command ``wsgi-isr``. Exit codes: 0 done, 1 not (entirely) done, 2 wrong usage."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import click

from ..config.settings import Config, Settings
from ..errors import ConfigError, StoreError
from ..process import invalidate, replay
from ..stores import open_store
from ..stores.base import Store
from .common import reported, say, url_option
from .demo import demo_command
from .prerender import prerender_command
from .refresh import invalidate_in, refresh_command, say_invalidated
from .serve import serve_command

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsgi_isr")
def main() -> None:
    """Incremental static regeneration for WSGI apps."""
    # A command prints its result itself, in one line; without a handler, logging would add a line.
    logging.getLogger("wsgi_isr").addHandler(logging.NullHandler())


main.add_command(demo_command)
main.add_command(prerender_command)
main.add_command(refresh_command)


def _store_options(command: Command) -> Command:
    """Add the options of all commands that use the store."""
    for option in (
        click.option("--store", metavar="URL", help="The store, instead of the configured one."),
        click.option("--namespace", metavar="NAME", help="The namespace, instead of the configured one."),
        click.option("--journal", metavar="FILE", help="The file for undelivered invalidations; none: keep nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):
        command = option(command)
    return command


@main.command("invalidate")
@click.option(
    "--tag",
    "tags",
    metavar="T",
    multiple=True,
    help="Everything with this tag. --tag, --path, --prefix and --route can be repeated.",
)
@click.option("--path", "paths", metavar="P", multiple=True, help="The page at this path.")
@click.option("--prefix", "prefixes", metavar="P", multiple=True, help="Everything at and below this path.")
@click.option("--route", "routes", metavar="R", multiple=True, help="Every page of the rule with this pattern.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--mode", type=click.Choice(["stale", "expire", "purge"]), default="expire", show_default=True)
@click.option("--refresh", is_flag=True, help="Then render the pages at the paths; needs --app, or WSGI_ISR_APP.")
@click.option("--app", "target", metavar="MODULE:APP", help="The app whose store and rules are used.")
@url_option
@_store_options
def invalidate_command(refresh: bool, target: str | None, url: str | None, as_json: bool, **arguments: Any) -> None:
    """Invalidate pages. Exits with 1 if an invalidation is pending, and names it."""
    with reported(as_json):
        target = target or (os.environ.get("WSGI_ISR_APP") if refresh else None)
        if target is not None:
            sys.exit(0 if invalidate_in(target, refresh, url, as_json, arguments) else 1)
        if refresh:
            raise ConfigError("--refresh", "no app is known that could render", "give --app myapp:app")
        say_invalidated(invalidate(**arguments), as_json)


@main.command("replay")
@_store_options
def replay_command(as_json: bool, **arguments: Any) -> None:
    """Deliver the invalidations in the journal now. The processes of the app do so by themselves."""
    with reported(as_json):
        delivered = replay(**arguments)
        said = f"delivered: {', '.join(delivered)}" if delivered else "nothing is waiting"
        say({"ok": True, "delivered": delivered}, said, as_json)


class Finding(NamedTuple):
    """One line of ``doctor``."""

    what: str
    ok: bool
    said: str


@main.command()
@click.option("--store", metavar="URL", help="The store to check, instead of the configured one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(store: str | None, as_json: bool) -> None:
    """Check the configuration (environment and WSGI_ISR_CONFIG), the store behind it, and the CDN in front."""
    findings = list(_examine(store))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.said}")
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


def _examine(url: str | None) -> Iterator[Finding]:
    try:
        config = Config.load(options={"store": url})
    except ConfigError as error:
        yield Finding("configuration", False, str(error))
        return
    yield Finding("configuration", True, "loads")
    named = config.settings.store
    try:
        store = open_store(named)
    except ConfigError as error:
        yield Finding("store", False, f"{error.problem} ({error.remedy})")
        return
    try:
        yield Finding("store", True, f"{named}, values up to {store.max_value:,} bytes")
        yield from _exercise(store)
    finally:
        store.close()
    yield from _purge(config.settings)


def _purge(settings: Settings) -> Iterator[Finding]:
    """Purge a tag that no page has at each edge of the CDN."""
    if (cdn := settings.edge) is None:
        return
    from ..cdn.purge import edges_of

    for edge in edges_of(cdn, time.monotonic, time.sleep):
        try:
            edge.purge([f"doctor-{os.urandom(4).hex()}"], False)
            yield Finding(edge.place, True, "takes purges")
        except StoreError as error:
            yield Finding(edge.place, False, str(error))
        finally:
            edge.close()


def _exercise(store: Store) -> Iterator[Finding]:
    """Check each promise of the store that the package relies on, once, under a random key."""
    unique = os.urandom(8).hex()
    key, tag = f"isr0:doctor:p:{unique}", f"isr0:doctor:t:{unique}"
    try:
        granted = [store.add(key, b"one", 60), store.add(key, b"two", 60)]
        yield Finding(
            "locks", granted == [True, False], "of two owners, one got it" if granted[1] is False else "shared"
        )
        held = store.gets(key)
        kept = held is not None and held.value == b"one"
        yield Finding(
            "values", kept, "come back as they were stored" if kept else "do not come back: nothing is cached"
        )
        if held is not None:
            swaps = [store.cas(key, b"three", held.token, 60), store.cas(key, b"four", held.token, 60)]
            yield Finding("late writers", swaps == [True, False], "lose" if swaps[1] is False else "win")
        store.delete(key)
        store.set(tag, b"tag", 60)
        reached = store.get(tag) == b"tag"
        yield Finding("invalidations", reached, "reach the store" if reached else "are forgotten")
        store.delete(tag)
    except StoreError as error:
        yield Finding("store", False, f"cannot be reached: {error}")


main.add_command(serve_command)
