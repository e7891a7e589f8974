"""The command ``wsgi-isr``. Exit codes: 0 done, 1 not entirely done, 2 wrong usage."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..config.settings import Config
from ..errors import ConfigError
from ..middleware.process import invalidate, replay
from .common import actor, reported, say, url_option
from .demo import demo_command
from .doctor import doctor_command
from .explain import explain_command
from .prerender import prerender_command
from .refresh import invalidate_in, refresh_command, say_invalidated
from .serve import serve_command
from .stats import stats_command
from .switch import off_command, on_command

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsgi_isr")
def main() -> None:
    """Incremental static regeneration for WSGI apps."""
    # A command prints its own result. Without a handler, logging would print warnings as well.
    logging.getLogger("wsgi_isr").addHandler(logging.NullHandler())


main.add_command(demo_command)
main.add_command(doctor_command)
main.add_command(explain_command)
main.add_command(prerender_command)
main.add_command(refresh_command)
main.add_command(off_command)
main.add_command(on_command)


def _store_options(command: Command) -> Command:
    """Add the options of commands that use the store."""
    for option in (
        click.option("--store", metavar="URL", help="Use this store, not the configured one."),
        click.option("--namespace", metavar="NAME", help="Use this namespace, not the configured one."),
        click.option("--journal", metavar="FILE", help="The file for undelivered invalidations; none: no file."),
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
    help="Pages and data with this tag. --tag, --path, --prefix and --route can be repeated.",
)
@click.option("--path", "paths", metavar="P", multiple=True, help="The page at this path.")
@click.option("--prefix", "prefixes", metavar="P", multiple=True, help="The pages at and below this path.")
@click.option("--route", "routes", metavar="R", multiple=True, help="The pages of the rule with this pattern.")
@click.option("--all", "everything", is_flag=True, help="All pages and data.")
@click.option("--mode", type=click.Choice(["stale", "expire", "purge"]), default="expire", show_default=True)
@click.option("--refresh", is_flag=True, help="Then render the pages at the paths. Needs --app or WSGI_ISR_APP.")
@click.option(
    "--app",
    "target",
    metavar="MODULE:APP",
    help="Use the store and the rules of this app. Without any store: WSGI_ISR_APP.",
)
@url_option
@_store_options
def invalidate_command(refresh: bool, target: str | None, url: str | None, as_json: bool, **arguments: Any) -> None:
    """Invalidate pages and data.

    Exits with 1, and names the tags, if an invalidation is pending.
    """
    with reported(as_json):
        knows_store = Config.load(
            options={name: arguments[name] for name in ("store", "namespace", "journal")}
        ).names_store
        if target is None and (refresh or not knows_store):
            target = os.environ.get("WSGI_ISR_APP")
        if target is not None:
            sys.exit(0 if invalidate_in(target, refresh, url, as_json, arguments) else 1)
        if refresh:
            raise ConfigError("--refresh", "no app is named that renders the pages", "write --app myapp:app")
        if not knows_store:
            remedy = "write --app myapp:app or --store URL, or set WSGI_ISR_STORE as the app has it (null:// for none)"
            raise ConfigError("store", "no store is known here", remedy)
        say_invalidated(invalidate(**arguments, actor=actor()), as_json)


@main.command("replay")
@_store_options
def replay_command(as_json: bool, **arguments: Any) -> None:
    """Deliver the invalidations in the journal now. The processes of the app deliver them as well, later."""
    with reported(as_json):
        delivered = replay(**arguments)
        text = f"delivered: {', '.join(delivered)}" if delivered else "nothing is waiting"
        say({"ok": True, "delivered": delivered}, text, as_json)


main.add_command(serve_command)
main.add_command(stats_command)
