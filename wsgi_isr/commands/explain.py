"""The command ``wsgi-isr explain``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from ..errors import ConfigError
from .common import app_of, json_option, reported, say


@click.command("explain")
@click.argument("url", metavar="URL")
@click.option("--app", "target", metavar="MODULE:APP", help="The app.  [default: WSGI_ISR_APP]")
@click.option("--method", metavar="METHOD", default="GET", show_default=True, help="The method of the request.")
@click.option(
    "-H", "--header", "headers", metavar="NAME: VALUE", multiple=True, help="A header of the request. Can be repeated."
)
@json_option
def explain_command(url: str, target: str | None, method: str, headers: Sequence[str], as_json: bool) -> None:
    """Say how a request would be answered now, and why.

    URL is a whole URL, or a path for the first known site. Nothing is rendered. Exits with 1 if the cache has no page
    for the request: the app answers it itself.
    """
    with reported(as_json):
        if (target := target or os.environ.get("WSGI_ISR_APP")) is None:
            raise ConfigError("--app", "no app is named", "write --app myapp:app, or set WSGI_ISR_APP")
        sent = dict(map(_header, headers))
        with app_of(target) as isr:
            told = isr.explain(url, method=method, headers=sent)
        if as_json:
            click.echo(json.dumps(told.as_dict(), indent=2))
        else:
            say({}, told.text(), as_json)
    sys.exit(0 if told.is_cacheable else 1)


def _header(text: str) -> tuple[str, str]:
    """Return the name and the value of a header.

    :raises ConfigError: the text is no header.
    """
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isprintable():
        raise ConfigError("--header", f"{text!r} is no header", "write --header 'Accept-Language: de'")
    return name.strip(), value.strip()
