"""The command ``wsgi-isr refresh``, and the parts of ``invalidate`` that load the app."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from ..cache.invalidation import Receipt
from ..config import options as o
from ..config.origin import Site
from ..errors import ConfigError, ISRError, listed
from ..middleware.isr import ISR
from ..prerender.site_client import check_shared
from .common import actor, app_of, json_option, reported, say, site_to_render, url_option


@click.command("refresh")
@click.argument("target", metavar="MODULE:APP")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--only-if-cached", is_flag=True, help="Skip pages that are not cached.")
@url_option
@json_option
def refresh_command(target: str, paths: Sequence[str], only_if_cached: bool, url: str | None, as_json: bool) -> None:
    """Render the pages at these paths now, with current data.

    Exits with 1 if a render fails. The last good page then stays.
    """
    with reported(as_json):
        check_paths(paths)
        with app_of(target) as isr:
            check_shared(isr)
            pages = refresh_all(isr, paths, site_to_render(isr, url), only_if_cached)
        ok = say_refreshed(pages, {}, as_json)
    sys.exit(0 if ok else 1)


def check_paths(paths: Sequence[str]) -> None:
    """Check that each text is a path, with or without a query.

    :raises ConfigError: a text is no path.
    """
    for path in paths:
        o.parse_path(path.partition("?")[0], "PATH")


def refresh_all(isr: ISR, paths: Sequence[str], site: Site, only_if_cached: bool = False) -> list[dict[str, Any]]:
    """Refresh all pages, in spite of failures; return the result of each, for JSON."""
    pages: list[dict[str, Any]] = []
    for path in dict.fromkeys(paths):
        try:
            if only_if_cached and isr._engine.cache.kept(isr._pages.at(path, site).task) is None:
                pages.append({"path": path, "ok": True, "changed": False, "cached": False})
                continue
            pages.append({"path": path, "ok": True, "changed": isr.refresh(path, site=site)})
        except ISRError as error:
            cause = f" ({error.__cause__!r})" if error.__cause__ is not None else ""
            pages.append({"path": path, "ok": False, "error": " ".join(f"{error}{cause}".split())})
    return pages


def say_refreshed(pages: list[dict[str, Any]], before: dict[str, Any], as_json: bool) -> bool:
    """Print the results of pages, and return whether no render failed.

    :param before: the result of the step before, for JSON.
    """
    ok = all(page["ok"] for page in pages)
    if as_json:
        say({**before, "ok": ok, "pages": pages}, "", as_json)
        return ok
    for page in pages:
        if not page["ok"]:
            click.echo(page["error"], err=True)
        elif not page.get("cached", True):
            click.echo(f"{page['path']}: skipped, it is not cached")
        else:
            click.echo(f"{page['path']}: rendered, {'changed' if page['changed'] else 'the same as before'}")
    return ok


def invalidate_in(target: str, refresh: bool, url: str | None, as_json: bool, arguments: dict[str, Any]) -> bool:
    """Run ``invalidate --app``: invalidate in the store of the app, then render pages if ``refresh`` is set.

    :param arguments: the arguments of the command.
    :raises ConfigError: the arguments do not fit together.
    :raises InvalidationError: a tag is pending or lost, so no page was rendered.
    """
    paths = arguments["paths"]
    if refresh and not paths:
        raise ConfigError("--refresh", "no page is named", "write --path /blog/a as well")
    if refresh:
        check_paths(paths)
    if given := [name for name in ("store", "namespace", "journal") if arguments.pop(name) is not None]:
        raise ConfigError(f"--{given[0]}", "the app has its own", f"leave out --{given[0]} or --app")
    with app_of(target) as isr:
        check_shared(isr)
        site = site_to_render(isr, url) if refresh else None
        receipt = isr.invalidate(**arguments, actor=actor())
        pages = refresh_all(isr, paths, site) if site is not None and not receipt.pending else []
    if receipt.pending or not (refresh and as_json):  # otherwise, one JSON object has both results
        say_invalidated(receipt, as_json)
    return say_refreshed(pages, receipt_as_dict(receipt), as_json) if refresh else True


def receipt_as_dict(receipt: Receipt) -> dict[str, Any]:
    """Return the receipt for JSON."""
    undelivered = {name: str(cause) for name, cause in receipt.failures}
    delivered = [name for name in receipt.tags if name not in undelivered]
    fields = {name: value for name, value in receipt._asdict().items() if name != "failures"}
    return {
        "ok": not undelivered,
        **fields,
        "pending": receipt.pending,
        "delivered": delivered,
        "undelivered": undelivered,
    }


def say_invalidated(receipt: Receipt, as_json: bool) -> None:
    """Print the receipt and its warnings.

    With ``as_json``, exit with 1 if a tag is pending.

    :raises InvalidationError: a tag is pending, without ``as_json``.
    """
    if as_json:
        say(receipt_as_dict(receipt), "", as_json)
        if receipt.pending:
            sys.exit(1)
        return
    for warning in receipt.warnings:
        click.echo(f"warning: {warning}", err=True)
    receipt.raise_for_pending()
    for note in receipt.notes:
        click.echo(f"nothing done: {note}", err=True)
    if not receipt.notes:
        nodes = f"{len(receipt.acknowledged)} of {len(receipt.nodes)} node{'s' if len(receipt.nodes) > 1 else ''}"
        click.echo(f"invalidated ({receipt.mode}): {listed(receipt.tags)}")
        click.echo(f"in {receipt.store}, namespace {receipt.namespace!r}: acknowledged by {nodes}")
