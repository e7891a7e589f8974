"""The common parts of commands: load the app, and print results.

An error is one line, or one object with ``--json``. Exit codes: 0 done, 1 not entirely done, 2 wrong usage.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click

from ..cache.courier import courier
from ..config.origin import Site
from ..errors import ConfigError, InvalidationError
from ..middleware.isr import ISR
from ..middleware.loading import isr_of
from ..prerender.site_client import site_at


@contextmanager
def reported(as_json: bool) -> Iterator[None]:
    """Run the block; print an error as one line, or as one JSON object, and exit with its code."""
    try:
        yield
    except InvalidationError as error:
        undelivered = {tag: str(cause) for tag, cause in error.undelivered.items()}
        failed = {"ok": False, "delivered": error.delivered, "undelivered": undelivered, "journal": error.journal}
        say(failed, str(error), as_json, err=True)
        sys.exit(1)
    except ConfigError as error:
        say({"ok": False, "error": str(error)}, str(error), as_json, err=True)
        sys.exit(2)


def say(data: dict[str, Any], text: str, as_json: bool, err: bool = False) -> None:
    """Print ``data`` as JSON, or ``text``.

    :param err: print the text to stderr.
    """
    click.echo(json.dumps(data) if as_json else text, err=err and not as_json)


@contextmanager
def app_of(target: str) -> Iterator[ISR]:
    """Yield the app that ``target`` names, and close it afterwards.

    Modules are found as by servers, with the current directory in ``sys.path``. The output of the app goes to stderr,
    because stdout is for the result of the command.

    :raises ConfigError: there is no such app.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with redirect_stdout(sys.stderr), courier.off():
        try:
            isr = isr_of(target)
        except ConfigError:
            raise
        except Exception as error:
            module = target.partition(":")[0]
            cause = " ".join(f"{error!r}".split())
            raise ConfigError(target, f"raised {cause}", f"see where: python -c 'import {module}'") from error
        try:
            yield isr
        finally:
            isr.close()


def site_to_render(isr: ISR, url: str | None, quiet: bool = False) -> Site:
    """Return the site to render pages for; warn if neither ``url`` nor the configuration names the site.

    :raises ConfigError: ``url`` is malformed.
    """
    site, is_named = site_at(isr, url)
    if (presence := isr._engine.presence) is not None:
        presence.came(site)
    if not is_named and not quiet:
        click.echo(
            f"warning: pages are rendered for {site.scheme}://{site.host}. The host is part of the key, so visitors of "
            "another host do not get them. Write --url https://example.com, or set WSGI_ISR_CANONICAL_URL.",
            err=True,
        )
    return site


def actor() -> str:
    """Return the user of a command, for timelines."""
    try:
        return f"{getpass.getuser()}, wsgi-isr"
    except (OSError, KeyError, ImportError):  # no name for this user id, as in a container
        return "wsgi-isr"


url_option = click.option(
    "--url", metavar="URL", help="Scheme and host to render pages for, and the mount point, if any."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
