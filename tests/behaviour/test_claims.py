"""The age of the pages that visitors see, and the options of stores: the claims of the README and the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin
from tests.behaviour.visitor import Clock
from wsgi_isr.errors import ConfigError
from wsgi_isr.events import Rendered
from wsgi_isr.stores import BUILT_IN, open_store
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.memory import MAX_BYTES
from wsgi_isr.stores.nodes.wire import DEFAULTS
from wsgi_isr.stores.redis.connection import Access
from wsgi_isr.stores.sqlite.store import _MAX_BYTES, _TIMEOUT

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STORES = (ROOT / "docs" / "reference" / "stores.md").read_text(encoding="utf-8")
DAY = 86400


def test_a_page_that_is_asked_for_all_the_time_is_about_a_minute_old_and_rendered_once_a_minute(
    make_site: MakeSite, clock: Clock
) -> None:
    site = make_site(revalidate=60)
    ages = []
    for _ in range(200):
        ages.append(site.visit_and_settle("/a").age)
        clock.advance(3)
    assert max(ages) == 60
    assert len(site.happened(Rendered)) <= 1 + 600 // 60


def test_a_page_that_nobody_has_asked_for_is_shown_once_more_as_it_was(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(DAY)
    seen = site.visit_and_settle("/a")
    assert (seen.label, seen.age, seen.text) == ("STALE", DAY, "/a v1")
    seen = site.visit("/a")
    assert (seen.label, seen.age, seen.text) == ("HIT", 0, "/a v2")


def test_past_expire_the_next_visitor_waits_for_the_new_page(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=3600)
    site.visit("/a")
    clock.advance(3599)
    assert site.visit_and_settle("/a").label == "STALE"
    clock.advance(3600)
    seen = site.visit("/a")
    assert (seen.label, seen.age, seen.text) == ("EXPIRED", 0, "/a v3")


def test_that_is_what_the_readme_says(origin: Origin) -> None:
    said = " ".join(README.split())
    for claim in (
        "A page that is asked for all the time is about `revalidate` seconds old at most",
        "A page that no client has asked for since yesterday is shown once more as it was then",
        "With `expire=3600`, the next visitor waits for the new page as soon as the old one is an hour old",
    ):
        assert claim in said


# The options of stores ---------------------------------------------------------------------------------

ROWS = [
    [cell.strip(" `") for cell in line.strip("|").split("|")]
    for line in STORES.partition("| store | option | meaning | default |")[2].partition("\n\n")[0].splitlines()[2:]
]
TABLE = {(store, option): default for store, options, _, default in ROWS for option in options.split("`, `")}
PLACES = {
    "sqlite": "sqlite:///store.db",
    "memcached": "memcached://127.0.0.1:1",
    "memory": "memory://",
    "null": "null://",
    "redis": "redis://127.0.0.1:1",
}
#: Other names of a store's scheme.
ALIASES = {"rediss": "redis", "valkey": "redis", "valkeys": "redis"}


@pytest.mark.parametrize("scheme", BUILT_IN)
def test_the_reference_has_each_option_of_a_store_and_no_other(scheme: str) -> None:
    store = ALIASES.get(scheme, scheme)
    with pytest.raises(ConfigError, match="has no option 'nonsense'") as caught:
        open_store(f"{scheme}:{PLACES[store].partition(':')[2]}?nonsense=1")
    known = re.findall(r"\w+", caught.value.remedy.partition("known: ")[2])
    assert [option for owner, option in TABLE if owner == store] == known


def test_their_defaults_are_those_of_the_code() -> None:
    defaults = {
        ("sqlite", "max_bytes"): _MAX_BYTES,
        ("sqlite", "timeout"): _TIMEOUT,
        ("memory", "max_bytes"): MAX_BYTES,
        ("memcached", "timeout"): DEFAULTS.timeout,
        ("memcached", "connect_timeout"): DEFAULTS.connect_timeout,
        ("memcached", "deadline"): DEFAULTS.deadline,
        ("memcached", "pool"): DEFAULTS.pool,
        ("memcached", "max_value"): Store.max_value,
        ("redis", "timeout"): DEFAULTS.timeout,
        ("redis", "connect_timeout"): DEFAULTS.connect_timeout,
        ("redis", "deadline"): DEFAULTS.deadline,
        ("redis", "pool"): DEFAULTS.pool,
        ("redis", "max_value"): Store.max_value,
        ("redis", "default_ttl"): Access().default_ttl,
        ("redis", "database"): Access().database,
        ("redis", "accept_loss"): float(Access().accepts_loss),
    }
    assert {place: float(TABLE[place].partition(" ")[0]) for place in defaults} == defaults
    assert TABLE["redis", "prefix"] == Access().prefix
    rest = {"tls", "tls_ca", "tls_cert", "tls_key", "prefix", "sentinel"}
    assert {place[1] for place in TABLE if place not in defaults} == rest
