"""Invalidations with an unreachable node: they are reported, kept, and delivered once the node is back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from cluster.parts.proxy import Proxy
from tests.faults.support.scripted import Scripted, everywhere, seen, warm
from tests.live.support.server import Gunicorn
from tests.live.support.waiting import until
from tests.support.memcached import Memcached
from wsgi_isr import InvalidationError, invalidate
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.stores import open_store

CACHED_SITE = "cluster.chaos.workload.cached_site:application"
#: Two pages, selected by these arguments, and the stored names of their tags.
CUT, KEPT = "/about", "/shop/x"
CUT_TAG, KEPT_TAG = "path:/about", "route:/shop/<name>"
SELECTION = ["--path", CUT, "--route", "/shop/<name>"]
#: The names of keys in memcached's commands, as this package builds them.
KEY = re.compile(rb"isr[0-9]+:[!-~]+")


@dataclass(frozen=True)
class Cluster:
    """Two nodes behind proxies: ``CUT_TAG`` belongs on the first, which will be cut off, ``KEPT_TAG`` on the other."""

    nodes: Sequence[Memcached]
    proxies: Sequence[Proxy]
    store: str
    namespace: str
    journal: Path

    def key(self, tag: str) -> str:
        """Return the key of a tag."""
        return Keyspace(self.namespace).tag(tag)

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``wsgi-isr`` as a job does."""
        program = shutil.which("wsgi-isr", path=str(Path(sys.executable).parent))
        assert program is not None, "the package is not installed"
        env = {variable: value for variable, value in os.environ.items() if not variable.startswith(FROM_OUTSIDE)}
        env |= {"WSGI_ISR_STORE": self.store, "WSGI_ISR_NAMESPACE": self.namespace}
        command = [program, name, *arguments, "--journal", str(self.journal)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    def kept(self) -> list[list[object]]:
        """Return the namespace, the tags and the mode of each line of the journal."""
        return [json.loads(line)[:3] for line in self.journal.read_text().splitlines() if line.strip()]

    def named(self, node: int) -> set[str]:
        """Return every control key that was ever sent to a node, or is on it."""
        said = KEY.findall(b"".join(self.proxies[node].requests))
        return {key for key in {*map(bytes.decode, said), *self.nodes[node].contents()} if key.split(":")[2] in "te"}

    def at(self, node: int, tag: str) -> list[bytes]:
        """Return a node's value of a tag, read behind the proxy."""
        return self.nodes[node].say(f"get {self.key(tag)}")


@pytest.fixture
def cluster(nodes: Sequence[Memcached], tmp_path: Path) -> Iterator[Cluster]:
    proxies = [Proxy(node.port) for node in nodes]
    names = [proxy.name for proxy in proxies]
    store = f"memcached://{','.join(names)}?timeout=1&connect_timeout=1"
    opened = open_store(store)

    def may_serve(namespace: str) -> bool:
        return [opened.node_of(Keyspace(namespace).tag(tag)) for tag in (CUT_TAG, KEPT_TAG)] == names

    # The ports decide which node has a tag, and they differ each time.
    namespace = next(filter(may_serve, (f"site{number}" for number in count())))
    opened.close()
    yield Cluster(nodes, proxies, store, namespace, tmp_path / "journal")
    for proxy in proxies:
        proxy.refuse()


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Scripted:
    site = Scripted(tmp_path, cluster.store)
    site.env["WSGI_ISR_NAMESPACE"] = cluster.namespace
    return site


@pytest.fixture
def servers(site: Scripted, tmp_path: Path) -> Iterator[list[Gunicorn]]:
    """Run an instance of two workers, with both pages in version 1 in every cache."""
    with Gunicorn(tmp_path / "server.log", site.env, CACHED_SITE, preload=True) as server:
        for page in (CUT, KEPT):
            warm([server], page, 1)
        yield [server]


def test_what_a_cut_off_node_missed_is_named_and_kept_and_delivered_once_it_is_back(
    cluster: Cluster, site: Scripted, servers: list[Gunicorn]
) -> None:
    before = cluster.at(0, CUT_TAG)
    assert before[0].startswith(b"VALUE")
    cluster.proxies[0].refuse()
    site.database.commit(["about", "shop"])

    refused = cluster.command("invalidate", *SELECTION)
    assert refused.returncode == 1
    assert f"not delivered: {CUT_TAG} ({cluster.proxies[0].name}: " in refused.stderr
    assert f"delivered: {KEPT_TAG}; kept in {cluster.journal}" in refused.stderr
    assert cluster.kept() == [[cluster.namespace, [CUT_TAG], "expire"]]
    # Delivered invalidations hold already.
    assert {answer.page["versions"]["shop"] for answer in everywhere(servers, KEPT)} == {2}

    too_early = cluster.command("replay")
    assert (too_early.returncode, CUT_TAG in too_early.stderr) == (1, True)
    assert cluster.kept() == [[cluster.namespace, [CUT_TAG], "expire"]]

    # The node comes back with its old items, and takes the previous page for current.
    cluster.proxies[0].listen()
    until(lambda: seen(everywhere(servers, CUT)) == {(200, "HIT", 1)}, "the page of before, as the node knows it")
    assert cluster.at(0, CUT_TAG) == before

    replayed = cluster.command("replay")
    assert (replayed.returncode, replayed.stdout, replayed.stderr) == (0, f"delivered: {CUT_TAG}\n", "")
    assert cluster.kept() == []
    assert cluster.at(0, CUT_TAG) != before
    assert {answer.page["versions"]["about"] for answer in everywhere(servers, CUT)} == {2}

    again = cluster.command("replay")
    assert (again.returncode, again.stdout) == (0, "nothing is waiting\n")


def test_an_error_of_the_command_is_one_line(cluster: Cluster) -> None:
    cluster.proxies[0].refuse()
    for name, arguments in (("invalidate", SELECTION), ("replay", ())):
        refused = cluster.command(name, *arguments)
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (1, "", 1)


def test_nothing_for_a_node_that_is_away_is_told_to_another(
    cluster: Cluster, site: Scripted, servers: list[Gunicorn]
) -> None:
    cluster.proxies[0].refuse()
    for mode in ("stale", "expire", "purge"):
        assert cluster.command("invalidate", *SELECTION, "--mode", mode).returncode == 1
    with pytest.raises(InvalidationError):
        invalidate(everything=True, paths=[CUT], store=cluster.store, namespace=cluster.namespace, journal=False)
    assert everywhere(servers, CUT)  # processes that render without that node do not name it either
    cluster.proxies[0].listen()
    assert cluster.command("replay").returncode == 0

    opened = open_store(cluster.store)
    for node, tag in enumerate((CUT_TAG, KEPT_TAG)):
        assert cluster.key(tag) in cluster.named(node)
        assert {opened.node_of(key) for key in cluster.named(node)} == {cluster.proxies[node].name}
    opened.close()


def test_the_journal_keeps_every_mode_and_delivers_in_order(cluster: Cluster) -> None:
    cluster.proxies[0].refuse()
    for mode in ("stale", "purge"):
        cluster.command("invalidate", "--path", CUT, "--mode", mode)
    assert cluster.kept() == [[cluster.namespace, [CUT_TAG], mode] for mode in ("stale", "purge")]
    cluster.proxies[0].listen()
    assert cluster.command("replay").stdout == f"delivered: {CUT_TAG}\n"
    assert cluster.kept() == []


def test_the_next_invalidation_delivers_what_was_kept(cluster: Cluster) -> None:
    cluster.proxies[0].refuse()
    cluster.command("invalidate", "--path", CUT, "--json")
    cluster.proxies[0].listen()
    done = cluster.command("invalidate", "--tag", "posts", "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert (said["ok"], said["tags"], said["replayed"]) == (True, ["tag:posts"], [CUT_TAG])
    assert cluster.kept() == []
    assert cluster.at(0, CUT_TAG)[0].startswith(b"VALUE")


def test_machines_are_told_what_was_delivered_and_what_was_not(cluster: Cluster) -> None:
    cluster.proxies[0].refuse()
    refused = cluster.command("invalidate", *SELECTION, "--json")
    assert refused.returncode == 1
    said = json.loads(refused.stdout)
    assert (said["ok"], said["delivered"], list(said["undelivered"])) == (False, [KEPT_TAG], [CUT_TAG])
    assert cluster.proxies[0].name in said["undelivered"][CUT_TAG]
    assert said["journal"] == str(cluster.journal)


def test_a_node_that_was_killed_gets_what_was_kept_when_it_runs_again(
    cluster: Cluster, site: Scripted, servers: list[Gunicorn]
) -> None:
    cluster.nodes[0].kill()
    cluster.proxies[0].refuse()  # as a killed node's system does
    site.database.commit(["about"])
    assert cluster.command("invalidate", "--path", CUT).returncode == 1
    cluster.nodes[0].start()
    cluster.proxies[0].listen()
    assert cluster.command("replay").returncode == 0
    assert {answer.page["versions"]["about"] for answer in everywhere(servers, CUT)} == {2}


def test_a_node_that_hangs_is_not_taken_for_one_that_was_told(
    cluster: Cluster, site: Scripted, servers: list[Gunicorn]
) -> None:
    site.database.commit(["about"])
    with cluster.nodes[0].paused():
        receipt = invalidate(
            paths=[CUT],
            routes=["/shop/<name>"],
            store=cluster.store,
            namespace=cluster.namespace,
            journal=str(cluster.journal),
        )
        assert receipt.pending == (CUT_TAG,)
        with pytest.raises(InvalidationError) as refused:
            receipt.raise_for_pending()
        assert refused.value.delivered == (KEPT_TAG,)
        assert list(refused.value.undelivered) == [CUT_TAG]
        assert refused.value.undelivered[CUT_TAG].node == cluster.proxies[0].name  # type: ignore[attr-defined]
    invalidate(paths=[CUT], store=cluster.store, namespace=cluster.namespace).raise_for_pending()
    until(lambda: "DEGRADED" not in {a.verdict for a in everywhere(servers, CUT)}, "workers that know the node again")
    assert {answer.page["versions"]["about"] for answer in everywhere(servers, CUT)} == {2}
