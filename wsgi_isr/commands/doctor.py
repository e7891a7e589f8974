"""The command ``wsgi-isr doctor``: run all :mod:`.checks`, then one page through the whole path."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..config.settings import Config, Settings
from ..config.wrapping import configured
from ..errors import ConfigError, ISRError, StoreError
from ..middleware.isr import ISR
from ..observe.explanation import shown
from ..pages.request_key import RENDER, PageKey, canonical
from ..stores import open_store
from ..stores.base import Many, NodeReport, Store, Token, Versioned
from .checks import CHECKS, Finding, Subject
from .common import app_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


@click.command("doctor")
@click.option("--store", metavar="URL", help="Check this store, not the configured one.")
@click.option("--app", "target", metavar="MODULE:APP", help="Check the configuration and the store of this app.")
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1),
    envvar="WEB_CONCURRENCY",
    default=1,
    show_default=True,
    help="The worker processes on all machines together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(store: str | None, target: str | None, workers: int, as_json: bool) -> None:
    """Check the configuration, the store, and one page on its whole way.

    Without --app, the configuration is that of the environment and of WSGI_ISR_CONFIG. The line to write is below each
    failure. Exits with 1 if a check fails.
    """
    findings = list(_examine(store, target, workers))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {shown(finding.result)}")
            if finding.write:
                click.echo(f"      write: {shown(finding.write)}")
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


def _examine(url: str | None, target: str | None, workers: int) -> Iterator[Finding]:
    try:
        if target is None:
            config = Config.load(options={"store": url})
            if not config.names_store:
                config = configured(None, None, {}, "")
            yield from _of_config(config, workers)
            return
        if url is not None:
            raise ConfigError("--store", "the app has its own", "leave out --store or --app")
        with app_of(target) as isr:
            yield from _of_app(isr, workers)
    except ConfigError as error:
        yield Finding("configuration", False, f"{error.option}: {error.problem}", error.remedy)


def _of_app(isr: ISR, workers: int) -> Iterator[Finding]:
    if (sign := isr._development) is not None:
        problem = f"{sign.text}: no page is cached"
        yield Finding("development", False, problem, "debug=False in production, or WSGI_ISR_DEVELOPMENT=cache")
    settings = isr.configuration.settings
    if not settings.hosts and settings.canonical_url is None:
        result = "not named: clients can invent hosts, and each has pages of its own"
        yield Finding("hosts", True, result, 'hosts=["example.com"]')
    yield from _of_config(isr.configuration, workers)


def _of_config(config: Config, workers: int) -> Iterator[Finding]:
    yield Finding("configuration", True, "loads")
    named = config.settings.store
    try:
        store = named if isinstance(named, Store) else open_store(named)
    except ConfigError as error:
        yield Finding("store", False, error.problem, error.remedy)
        return
    try:
        yield Finding("store", True, f"{store.location}, values up to {store.max_value:,} bytes")
        yield from examine_store(config, store, workers)
    finally:
        if store is not named:
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
            yield Finding(edge.place, False, str(error), "see docs/how-to/cdn.md")
        finally:
            edge.close()


def examine_store(config: Config, store: Store, workers: int) -> Iterator[Finding]:
    """Run all checks of a store."""
    subject = Subject(config, store, workers, dict(_reports(store)))
    is_good = True
    for check in CHECKS:
        try:
            for finding in check(subject):
                is_good = is_good and finding.ok
                yield finding
        except StoreError as error:
            is_good = False
            yield Finding(check.__name__, False, f"cannot be checked: {error}", "see the findings above")
    if is_good and store.keeps and config.settings.cdn is None and config.settings.off is None:
        yield from whole_path(store)  # behind a CDN, it would purge; while the cache is off, it has no way


def _reports(store: Store) -> Iterator[tuple[str, NodeReport]]:
    for node in store.nodes:
        try:
            if (report := store.report(node)) is not None:
                yield node, report
        except StoreError:
            continue  # the check of the nodes says so


# One page ---------------------------------------------------------------------------------------------


def whole_path(store: Store) -> Iterator[Finding]:
    """Send one page through the cache, in a namespace of its own: rendered, hit, invalidated, rendered again."""
    renders = 0

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        nonlocal renders
        renders += 1
        start_response("200 OK", [("Content-Type", "text/plain"), ("Cache-Tag", "doctor")])
        return [str(renders).encode()]

    traced = _Traced(store)
    isr = ISR(
        app,
        {"/doctor": 60},
        store=traced,
        namespace=f"doctor-{os.urandom(8).hex()}",
        release="none",
        adopt_release="none",
        journal=False,
        coherence=0,
        development="cache",
        hosts=["localhost"],
        import_name="wsgi_isr",
        background_threads=1,
    )
    isr._engine.presence = None  # no app has this namespace
    try:
        labels = [_ask(isr), _ask(isr)]
        isr.invalidate(tags=["doctor"])
        labels.append(_ask(isr))
        way = " -> ".join(labels)
        remedy = "" if labels == ["MISS", "HIT", "EXPIRED"] else "report it with the output of: wsgi-isr doctor --json"
        yield Finding("a page", not remedy, f"{way}, {renders} renders", remedy)
    except ISRError as error:
        yield Finding("a page", False, f"{error}", "see the findings above")
    finally:
        isr.close(5)
        traced.sweep()


def _ask(isr: ISR) -> str:
    """Send a request for the page, and return its ``X-ISR``."""
    labels: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        labels.extend(value for name, value in headers if name == "X-ISR")
        return None

    environ = canonical(PageKey("http", "localhost", "", "/doctor"))
    del environ[RENDER]
    body: Iterable[bytes] = isr(environ, start_response)
    b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return labels[-1]


class _Traced(Store):
    """A store that remembers the keys that were written, and removes them in the end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[str, None] = {}
        self.max_value, self.keeps, self.shared = store.max_value, store.keeps, False
        self.nodes, self.remote, self.scheme = store.nodes, store.remote, store.scheme

    def sweep(self) -> None:
        """Remove what was written."""
        for key in self._written:
            try:
                self._store.delete(key)
            except StoreError:
                continue

    def node_of(self, key: str) -> str:
        return self._store.node_of(key)

    def is_displaced(self, key: str) -> bool:
        return self._store.is_displaced(key)

    def get(self, key: str) -> bytes | None:
        return self._store.get(key)

    def get_many(self, keys: Sequence[str]) -> Many:
        return self._store.get_many(keys)

    def gets(self, key: str) -> Versioned | None:
        return self._store.gets(key)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._written[key] = None
        self._store.set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._written[key] = None
        return self._store.add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._written[key] = None
        return self._store.cas(key, value, token, ttl)

    def delete(self, key: str) -> bool:
        return self._store.delete(key)

    def close(self) -> None:
        """Leave the store open: it is not this object's."""
