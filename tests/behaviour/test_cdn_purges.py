"""Behind a CDN: purges before an invalidation is acknowledged, and edges that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.behaviour.behind_cdn import URL, kept_for, tokens
from tests.behaviour.conftest import MakeSite
from tests.behaviour.nodes import Nodes
from tests.behaviour.origin import Origin, answer
from tests.behaviour.visitor import Clock, Site
from tests.support.cdn import TOKEN, ZONE, Answer, FakeCdn, Purge, rate_limited
from wsgi_isr import InvalidationError, Rule, cached, invalidate, replay
from wsgi_isr.cache import edges
from wsgi_isr.commands.main import main
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.testing import without_cache


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Repeat purges at once. The folder of a job is empty: a journal in it would be delivered."""
    monkeypatch.setattr(edges, "LATE", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cdn() -> Iterator[FakeCdn]:
    with FakeCdn("fastly") as fake:
        yield fake


# Purges -------------------------------------------------------------------------------------------------


def behind(make_site: MakeSite, cdn: FakeCdn, **options: Any) -> Site:
    # Not the default journal, which all tests would share.
    options.setdefault("journal", False)
    return make_site(
        {"/": Rule(revalidate=60), "/<x>": Rule(revalidate=60, tags=["t:{x}"])},
        **cdn.options(),
        canonical_url=URL,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"tags": ["t:a"]}, ["tag:t:a"]),
        ({"paths": ["/a"]}, ["path:/a"]),
        ({"prefixes": ["/"]}, ["prefix:/"]),
        ({"routes": ["/<x>"]}, ["route:/<x>"]),
        ({"everything": True}, ["all"]),
    ],
)
def test_an_invalidation_purges_the_very_tags_that_the_page_carries(
    make_site: MakeSite, cdn: FakeCdn, arguments: dict[str, Any], names: list[str]
) -> None:
    site = behind(make_site, cdn)
    carried = site.visit("/a").headers["Surrogate-Key"].split()
    receipt = site.isr.invalidate(**arguments)
    assert receipt.pending == ()
    assert {*cdn.purges[0].tags} == tokens(*names) <= {*carried}
    assert f"cdn://fastly/{ZONE}" in receipt.acknowledged


def test_the_invalidation_of_cached_data_purges_the_pages_that_used_it(
    make_site: MakeSite, cdn: FakeCdn, origin: Origin
) -> None:
    @cached(revalidate=60, tags=["data"])
    def number() -> int:
        return 1

    origin.on("/a", answer(lambda environ: str(number()).encode()))
    site = behind(make_site, cdn)
    site.visit("/a")
    carried = {*site.visit("/a").headers["Surrogate-Key"].split()}
    site.isr.invalidate(tags=["data"])
    assert {*cdn.purges[0].tags} <= carried
    number.invalidate()
    assert cdn.purges[1].tags
    assert {*cdn.tags} <= carried


@pytest.mark.parametrize("mode", ["stale", "expire", "purge"])
def test_only_the_mode_stale_is_a_soft_purge(make_site: MakeSite, cdn: FakeCdn, mode: str) -> None:
    behind(make_site, cdn).isr.invalidate(tags=["t:a"], mode=mode)
    assert cdn.purges[0].is_soft is (mode == "stale")


def test_the_purge_waits_until_every_process_has_seen_the_invalidation(
    make_site: MakeSite, cdn: FakeCdn, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    site, other = (behind(make_site, cdn, store=store, coherence=2) for _ in range(2))
    other.visit("/a")
    found: list[tuple[str, int]] = []

    def look(seconds: float) -> None:
        found.append((other.visit("/a").label, cdn.requests))

    assert other.visit("/a").label == "HIT"
    clock.on_pause = look
    site.isr.invalidate(tags=["t:a"])
    clock.on_pause = None
    assert found == [("HIT", 0)], "the other process still serves its copy, so the purge must not come yet"
    assert cdn.purges
    assert clock.paused == [2 + edges.IN_FLIGHT]
    assert other.visit("/a").label == "EXPIRED"


def test_each_purge_is_repeated_for_answers_that_arrive_late(make_site: MakeSite, cdn: FakeCdn) -> None:
    site = behind(make_site, cdn)
    site.isr.invalidate(tags=["t:a"])
    site.isr.invalidate(tags=["t:b"])
    site.isr.close(20)
    assert sorted(cdn.tags) == sorted([*tokens("tag:t:a"), *tokens("tag:t:b")] * 2)


def test_a_successful_post_purges_the_page(make_site: MakeSite, cdn: FakeCdn) -> None:
    site = behind(make_site, cdn)
    site.visit("/a")
    site.visit("/a", method="POST")
    assert {*cdn.purges[0].tags} == tokens("path:/a")


def test_a_refreshed_page_is_purged(make_site: MakeSite, cdn: FakeCdn) -> None:
    site = behind(make_site, cdn)
    site.visit("/a")
    assert site.isr.refresh("/a") is True
    assert {*cdn.purges[0].tags} == tokens("path:/a")


def test_each_edge_is_purged_and_a_failing_one_does_not_keep_the_others_from_it(
    make_site: MakeSite, tmp_path: Path
) -> None:
    with FakeCdn("varnish", token="") as one, FakeCdn("varnish", token="") as two:
        site = make_site(
            revalidate=60,
            canonical_url=URL,
            cdn="varnish",
            cdn_purge_url=[one.url, two.url],
            journal=str(tmp_path / "journal"),
        )
        one.scripted = [Answer(403)]
        receipt = site.isr.invalidate(tags=["a"])
        assert receipt.pending == ("tag:a",)
        assert two.purges[0].tags == (*tokens("tag:a"),)
        assert set(receipt.nodes) - set(receipt.acknowledged) == {one.url.replace("http://", "cdn://varnish/")}


def test_what_an_edge_misses_is_kept_named_and_delivered(
    make_site: MakeSite, cdn: FakeCdn, clock: Clock, tmp_path: Path
) -> None:
    site = behind(make_site, cdn, journal=str(tmp_path / "journal"))
    cdn.scripted = [rate_limited(30)]
    receipt = site.isr.invalidate(tags=["t:a"], mode="stale")
    assert receipt.pending == ("tag:t:a",)
    assert receipt.journal == str(tmp_path / "journal")
    with pytest.raises(InvalidationError, match="429"):
        receipt.raise_for_pending()
    assert site.isr.deliver_kept() is True
    assert cdn.requests == 1, "the limit of the API has not passed"
    clock.advance(30)
    assert site.isr.deliver_kept() is False
    assert cdn.purges[0] == Purge((*tokens("tag:t:a"),), True)
    assert (tmp_path / "journal").read_text().strip() == ""


def test_tags_kept_for_an_edge_go_out_together(make_site: MakeSite, cdn: FakeCdn, clock: Clock, tmp_path: Path) -> None:
    site = behind(make_site, cdn, journal=str(tmp_path / "journal"))
    cdn.scripted = [rate_limited(30)]
    for number in range(50):
        site.isr.invalidate(tags=[f"t:{number}"])
    assert cdn.requests == 1
    clock.advance(60)
    assert replay(store=site.store, journal=str(tmp_path / "journal")) == ()  # another process without the CDN
    assert site.isr.deliver_kept() is False
    assert len(cdn.purges[0].tags) == 50


def test_without_a_journal_a_failing_edge_is_an_error(make_site: MakeSite, cdn: FakeCdn) -> None:
    site = behind(make_site, cdn)
    cdn.scripted = [Answer(401)]
    with pytest.raises(InvalidationError, match="token is refused") as raised:
        site.isr.invalidate(tags=["t:a"])
    assert TOKEN not in str(raised.value)
    assert raised.value.journal is None


def test_an_app_behind_a_cdn_has_a_journal_by_default(make_site: MakeSite, cdn: FakeCdn, tmp_path: Path) -> None:
    site = behind(make_site, cdn, journal=None)
    assert site.isr._journal is not None
    assert os.path.basename(site.isr._journal.path) == "journal"


def test_tags_that_a_node_gets_later_are_purged_again(
    make_site: MakeSite, cdn: FakeCdn, clock: Clock, tmp_path: Path
) -> None:
    store = Nodes(clock)
    site = behind(make_site, cdn, store=store, journal=str(tmp_path / "journal"))
    store.unplugged = {*store.nodes}
    assert site.isr.invalidate(tags=["t:a"]).pending
    before = len(cdn.purges)
    store.unplugged = set()
    assert site.isr.deliver_kept() is False
    assert any(purge.tags == (*tokens("tag:t:a"),) for purge in cdn.purges[before:])


def test_tests_and_development_never_purge_the_cdn(make_site: MakeSite, cdn: FakeCdn) -> None:
    site = behind(make_site, cdn)
    with without_cache():
        site.isr.invalidate(tags=["t:a"])
        assert "Surrogate-Control" not in site.visit("/a").headers
    developed = behind(make_site, cdn, development="bypass")
    developed.isr.invalidate(tags=["t:a"])
    assert "Surrogate-Control" not in developed.visit("/a").headers
    assert cdn.requests == 0


@pytest.mark.parametrize("url", ["null://", "memory://"])
def test_a_store_that_keeps_nothing_does_not_keep_a_job_from_the_purge(
    cdn: FakeCdn, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("WSGI_ISR_CDN", "fastly")
    for name, value in {"ZONE": ZONE, "TOKEN": TOKEN, "PURGE_URL": cdn.url}.items():
        monkeypatch.setenv(f"WSGI_ISR_CDN_{name}", value)
    assert invalidate(tags=["a"], store=url).acknowledged[-1] == f"cdn://fastly/{ZONE}"
    assert {*cdn.tags} == tokens("tag:a")


def test_with_the_cache_switched_off_the_cdn_keeps_nothing_and_is_purged(
    make_site: MakeSite, cdn: FakeCdn, clock: Clock, tmp_path: Path
) -> None:
    site = behind(make_site, cdn, store="null://", journal=str(tmp_path / "journal"))
    assert kept_for(site.visit("/a"), "fastly") == "no-store"
    cdn.scripted = [rate_limited(30)]
    assert site.isr.invalidate(tags=["t:a"]).pending == ("tag:t:a",)
    clock.advance(30)
    assert site.isr.deliver_kept() is False
    assert {*cdn.tags} == tokens("tag:t:a")


# Jobs -------------------------------------------------------------------------------------------------


def test_a_job_purges_the_cdn_that_its_environment_names(
    cdn: FakeCdn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CDN": "fastly", "CDN_ZONE": ZONE, "CDN_TOKEN": TOKEN, "CDN_PURGE_URL": cdn.url}.items():
        monkeypatch.setenv(f"WSGI_ISR_{name}", value)
    receipt = invalidate(tags=["a"], store=f"sqlite:///{tmp_path}/store.db")
    assert receipt.acknowledged[-1] == f"cdn://fastly/{ZONE}"
    assert {*cdn.tags} == tokens("tag:a")
    assert len(cdn.tags) >= 2, "purged, and again before the job ends"


def test_a_job_without_the_credentials_of_the_cdn_is_warned(make_site: MakeSite, cdn: FakeCdn, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/store.db"
    site = behind(make_site, cdn, store=store, signing_key="k" * 20)
    site.visit("/a")
    site.settle()
    program = "from wsgi_isr.commands.main import main; main()"
    command = [sys.executable, "-c", program, "invalidate", "--tag", "t:a", "--store", store, "--json"]
    environ = {**os.environ, "WSGI_ISR_SIGNING_KEY": "k" * 20}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    (warning,) = [text for text in json.loads(done.stdout)["warnings"] if "CDN" in text]
    assert "WSGI_ISR_CDN=fastly" in warning
    assert TOKEN not in done.stdout + done.stderr
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))


@pytest.mark.parametrize("token", [TOKEN, "another"])
def test_doctor_says_whether_the_cdn_takes_purges(cdn: FakeCdn, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    options = {"STORE": "memory://", "CDN": "fastly", "CDN_ZONE": ZONE, "CDN_TOKEN": token, "CDN_PURGE_URL": cdn.url}
    for name, value in options.items():
        monkeypatch.setenv(f"WSGI_ISR_{name}", value)
    done = CliRunner().invoke(main, ["doctor"])
    is_right = token == TOKEN
    assert done.exit_code == (0 if is_right else 1)
    (line,) = [line for line in done.output.splitlines() if "cdn://" in line]
    assert line.startswith("ok" if is_right else "FAIL")
    assert "another" not in done.output
    assert TOKEN not in done.output
