"""A site whose processes count their commands to the store, and write the counts down when they end."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsgi_isr import ISR, Rule
from wsgi_isr.events import Event, Rendered
from wsgi_isr.stores.base import Many, Versioned, route
from wsgi_isr.stores.memcached.store import MemcachedStore

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: A page has the tag of its number, modulo this.
TAGS = int(os.environ.get("LIVE_TAGS", "1"))


class Counting(MemcachedStore):
    """Count the keys that are read, by plane, and the calls of ``add``."""

    def get(self, key: str) -> bytes | None:
        self._count([key])
        return super().get(key)

    def gets(self, key: str) -> Versioned | None:
        self._count([key])
        return super().gets(key)

    def get_many(self, keys: Sequence[str]) -> Many:
        self._count(keys)
        return super().get_many(keys)

    def close(self) -> None:
        path = Path(os.environ["LIVE_DIRECTORY"]) / f"counts.{os.getpid()}"
        path.write_text(json.dumps(counts))
        super().close()

    def _count(self, keys: Sequence[str]) -> None:
        for key in keys:
            suffix = ":lock" if key.endswith((":lock", ":failures")) else ""
            suffix = ":timeline" if key.endswith(":timeline") else suffix  # read in the background, for explanations
            counts[route(key).text.split(":")[2] + suffix] += 1


counts: Counter[str] = Counter()


def _app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    if environ["REQUEST_METHOD"] == "GET":
        time.sleep(float(os.environ["LIVE_SLOW"]))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1000")])
    return [b"x" * 1000]


def _note(event: Event) -> None:
    if isinstance(event, Rendered):
        counts["renders"] += 1


def _tags(parameters: dict[str, Any]) -> list[str]:
    return [str(parameters["number"] % TAGS)]


def _site() -> Callable[..., Iterable[bytes]]:
    rule = Rule(revalidate=float(os.environ["LIVE_REVALIDATE"]), tags=_tags)
    isr = ISR(_app, {"/p/<int:number>": rule}, store=Counting.from_url(os.environ["LIVE_STORE"]))
    isr.subscribe(_note)
    return isr


application = _site()
