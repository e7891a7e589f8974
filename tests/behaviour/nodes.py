"""A store of three nodes that can be unplugged, and a site with a page for each of twelve tags on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.behaviour.conftest import MakeSite
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.stores.base import Many, Token, Versioned, route
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.stores.nodes.rendezvous import Ring


class Nodes(MemoryStore):
    """Keys that are spread over three nodes; each of them can be unplugged."""

    nodes = ("a:1", "b:1", "c:1")

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self._ring = Ring(self.nodes)
        self.unplugged: set[str] = set()

    def node_of(self, key: str) -> str:
        where = route(key)
        return where.node or self._ring.ranking(where.text)[0]

    def _ask(self, key: str) -> None:
        if self.node_of(key) in self.unplugged:
            raise StoreUnavailable(self.node_of(key), "unplugged")

    def get(self, key: str) -> bytes | None:
        self._ask(key)
        return super().get(key)

    def get_many(self, keys: Sequence[str]) -> Many:
        away = {key for key in keys if self.node_of(key) in self.unplugged}
        found = super().get_many([key for key in keys if key not in away])
        return Many(found.values, {key: StoreUnavailable(self.node_of(key), "unplugged") for key in away})

    def gets(self, key: str) -> Versioned | None:
        self._ask(key)
        return super().gets(key)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._ask(key)
        super().set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._ask(key)
        return super().add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._ask(key)
        return super().cas(key, value, token, ttl)

    def delete(self, key: str) -> bool:
        self._ask(key)
        return super().delete(key)


TAGS = [f"t{number}" for number in range(12)]
RULES = {f"/{tag}": Rule(revalidate=3600, tags=[tag]) for tag in TAGS}


def spread(make_site: MakeSite, clock: Clock, **options: Any) -> tuple[Site, Nodes]:
    """A page for each of twelve tags, on three nodes."""
    store = Nodes(clock)
    site = make_site(RULES, store=store, coherence=0, **options)
    for path in RULES:
        site.visit(path)
    return site, store
