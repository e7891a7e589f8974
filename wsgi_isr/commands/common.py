"""The common parts of commands: how they find the app, and how they print results.

An error is one line, or one object with ``--json``. Exit codes: 0 done, 1 not (entirely) done, 2 wrong usage.
"""

from __future__ import annotations

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
    """Print errors as one line, or as one JSON object, and exit with their code."""
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


def say(for_machines: dict[str, Any], for_people: str, as_json: bool, err: bool = False) -> None:
    """Print a result, as text or as JSON."""
    click.echo(json.dumps(for_machines) if as_json else for_people, err=err and not as_json)


@contextmanager
def app_of(target: str) -> Iterator[ISR]:
    """Yield the app that ``target`` names, and close it afterwards.

    The app is found as servers find it: the current directory included. Its output goes to stderr: stdout is for the
    result of the command.

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
            said = " ".join(f"{error!r}".split())
            raise ConfigError(target, f"raised {said}", f"see where: python -c 'import {module}'") from error
        try:
            yield isr
        finally:
            isr.close()


def site_of(isr: ISR, url: str | None, quiet: bool = False) -> Site:
    """Return the site to render pages for; warn if it is not configured.

    :raises ConfigError: ``url`` is malformed.
    """
    site, named = site_at(isr, url)
    if (presence := isr._engine.presence) is not None:
        presence.came(site)
    if not named and not quiet:
        click.echo(
            f"warning: pages are made for {site.scheme}://{site.host}, and visitors of another host will not find "
            "them: the host is part of the key. Give --url https://example.com, or set WSGI_ISR_CANONICAL_URL.",
            err=True,
        )
    return site


url_option = click.option(
    "--url", metavar="URL", help="Scheme and host to render pages for, and the mount point if there is one."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
