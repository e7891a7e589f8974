"""The command ``wsgi-isr``. Exit codes: 0 done, 1 not (entirely) done, 2 wrong usage."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

import click

from .config import Config
from .errors import ConfigError, StoreError
from .stores import open_store
from .stores.base import Store


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsgi_isr")
def main() -> None:
    """Incremental static regeneration for WSGI apps."""


class Finding(NamedTuple):
    """One line of ``doctor``."""

    what: str
    ok: bool
    said: str


@main.command()
@click.option("--store", metavar="URL", help="The store to look at, instead of the configured one.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(store: str | None, as_json: bool) -> None:
    """Check the configuration (environment and WSGI_ISR_CONFIG) and the store behind it."""
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


def _exercise(store: Store) -> Iterator[Finding]:
    """Each promise of the store that the package lives on, once, under a key that nobody else has."""
    key = f"isr-doctor:{os.urandom(8).hex()}"
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
    except StoreError as error:
        yield Finding("store", False, f"cannot be reached: {error}")
