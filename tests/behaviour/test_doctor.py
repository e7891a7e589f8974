"""``wsgi-isr doctor``: each broken set-up is found, with the line to write."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.behaviour.nodes import Nodes
from tests.behaviour.visitor import Clock
from wsgi_isr.cache.app_records import AppRecord, Apps, Registry
from wsgi_isr.cache.journal import Journal
from wsgi_isr.commands import checks
from wsgi_isr.commands.checks import Finding, file_system
from wsgi_isr.commands.doctor import examine_store
from wsgi_isr.commands.main import main
from wsgi_isr.config.settings import Config
from wsgi_isr.middleware.runtime import runtime
from wsgi_isr.stores.base import NodeReport
from wsgi_isr.stores.memory import MemoryStore

GOOD = NodeReport("1.6.40", 0.1, 7200.0, 10, 3, 1024, 16, 64 * 2**20)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("patient", None)


def doctor(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and the findings of the command."""
    result = CliRunner().invoke(main, ["doctor", *arguments, "--json"], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


def failures(*arguments: str) -> list[tuple[str, str, str]]:
    """Return the failed checks of a set-up that is broken: name, result, line to write."""
    code, findings = doctor(*arguments)
    failed = [(one["check"], one["result"], one["write"]) for one in findings if not one["ok"]]
    assert code == (1 if failed else 0)
    assert all(write for _, _, write in failed), failed
    return failed


def failed(store: MemoryStore, workers: int = 1, **options: Any) -> list[Finding]:
    """Return the failed checks of a store."""
    config = Config.load(options={"store": store, **options})
    found = [finding for finding in examine_store(config, store, workers) if not finding.ok]
    assert all(finding.write for finding in found), found
    return found


class Reporting(Nodes):
    """A store whose nodes make the given report."""

    remote = True
    made = GOOD

    def report(self, node: str) -> NodeReport:
        return self.made


def reporting(**different: Any) -> Reporting:
    store = Reporting(Clock())
    store.made = GOOD._replace(**different)
    return store


def test_a_good_set_up_has_no_failure_and_one_page_takes_the_whole_path(folder: Path) -> None:
    code, findings = doctor("--store", f"sqlite:///{folder}/store.db", "--workers", "8")
    assert (code, [one for one in findings if not one["ok"]]) == (0, [])
    assert findings[-1]["result"] == "MISS -> HIT -> EXPIRED, 2 renders"


def test_nothing_of_the_check_stays_in_the_store() -> None:
    store = MemoryStore()
    assert failed(store) == []
    assert [key for key in [*store._pages.items, *store._control.items] if store.get(key) is not None] == []


def test_the_text_has_the_line_to_write_below_each_failure() -> None:
    result = CliRunner().invoke(main, ["doctor", "--store", "null://"])
    lines = result.stdout.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.startswith("FAIL  sharing")]
    assert lines[number + 1] == "      write: WSGI_ISR_STORE=sqlite:///store.db"


# Broken set-ups ---------------------------------------------------------------------------------------


def test_an_unknown_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_ISR_REVALIDTE", "60")
    ((check, result, write),) = failures()
    assert (check, "WSGI_ISR_REVALIDTE" in result, "WSGI_ISR_REVALIDATE" in write) == ("configuration", True, True)


def test_a_file_that_is_no_toml(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "isr.toml").write_text("[rules\n")
    monkeypatch.setenv("WSGI_ISR_CONFIG", str(folder / "isr.toml"))
    ((check, result, _),) = failures()
    assert (check, "is not TOML" in result) == ("configuration", True)


def test_a_store_of_an_unknown_scheme() -> None:
    ((check, _, write),) = failures("--store", "memcache://a:1")
    assert (check, "memcached" in write) == ("store", True)


def test_a_store_that_keeps_nothing() -> None:
    assert ("sharing", "null:// keeps nothing: no page is cached", "WSGI_ISR_STORE=sqlite:///store.db") in failures(
        "--store", "null://"
    )


def test_a_store_of_one_process_with_several_workers() -> None:
    ((check, result, write),) = failures("--store", "memory://", "--workers", "4")
    assert (check, "4 workers" in result) == ("sharing", True)
    assert write.startswith("WSGI_ISR_STORE=sqlite:///")


def test_a_store_that_depends_on_the_current_directory(folder: Path) -> None:
    ((check, _, write),) = failures("--store", "sqlite:///here.db")
    assert (check, write) == ("sharing", f"WSGI_ISR_STORE=sqlite:///{folder}/here.db")


def test_a_node_that_is_away() -> None:
    store = Reporting(Clock())
    store.unplugged = {"b:1"}
    found = [finding for finding in failed(store) if finding.check == "nodes"]
    assert [finding.result for finding in found] == ["cannot be reached: b:1: unplugged"]
    assert found[0].write.startswith("nc -vz b 1")


def test_a_file_that_is_no_data_base(folder: Path) -> None:
    (folder / "store.db").write_bytes(b"no data base" * 1000)
    found = failures("--store", f"sqlite:///{folder}/store.db")
    assert found[0][0] in ("store", "nodes")


def test_a_file_below_a_file(folder: Path) -> None:
    (folder / "file").write_text("")
    assert failures("--store", f"sqlite:///{folder}/file/store.db")


def test_a_store_that_gives_one_lock_to_two() -> None:
    class Generous(MemoryStore):
        def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
            return super().add(key, value, ttl) or True

    assert "a lock" in [finding.check for finding in failed(Generous())]


def test_a_store_that_loses_values() -> None:
    class Forgetful(MemoryStore):
        def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
            pass

    found = failed(Forgetful())
    assert {"invalidations", "item size"} <= {finding.check for finding in found}


def test_pages_that_are_larger_than_the_store_takes() -> None:
    (finding,) = failed(MemoryStore(max_bytes=1024 * 1024))
    assert (finding.check, finding.write.partition(",")[0]) == ("item size", "max_body=131072")


def test_a_node_that_evicts() -> None:
    found = [one for one in failed(reporting(evictions=100_000)) if one.check == "evictions"]
    assert found[0].write == "memcached -m 128"


def test_more_workers_than_a_node_has_connections() -> None:
    found = [one for one in failed(reporting(), workers=80) if one.check == "connections"]
    assert "80 workers may open 16 each" in found[0].result
    assert found[0].write == "memcached -c 2560, or ?pool=11 in store="


@pytest.mark.parametrize(("ahead", "said"), [(90.0, "90 s ahead of"), (-90.0, "90 s behind")])
def test_a_node_whose_clock_is_wrong(ahead: float, said: str) -> None:
    found = [one for one in failed(reporting(ahead=ahead)) if one.check == "clocks"]
    assert said in found[0].result
    assert found[0].write == "timedatectl set-ntp true"


def test_a_file_that_every_user_may_read(folder: Path) -> None:
    store = folder / "store.db"
    doctor("--store", f"sqlite:///{store}")
    store.chmod(0o644)
    ((check, result, write),) = failures("--store", f"sqlite:///{store}")
    assert (check, "may read" in result, write) == ("permissions", True, f"chmod o-rwx {store}")


def test_a_folder_that_every_user_may_write_to(folder: Path) -> None:
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    ((check, result, write),) = failures("--store", f"sqlite:///{folder}/open/store.db")
    assert (check, "may write" in result, write) == ("permissions", True, f"chmod o-rwx {folder}/open")


def test_a_file_on_a_network_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "file_system", lambda place: "nfs4")
    ((check, result, write),) = failures("--store", f"sqlite:///{folder}/store.db")
    assert (check, "nfs4" in result, "memcached" in write) == ("permissions", True, True)


def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount(folder: Path) -> None:
    mounts = folder / "mounts"
    mounts.write_text("/dev/a / ext4 rw 0 0\nhost:/x /srv/a\\040b nfs4 rw 0 0\n/dev/b /srv/a tmpfs rw 0 0\n")
    found = [file_system(place, str(mounts)) for place in ("/srv/a b/c", "/srv/a", "/srv/ab")]
    assert found == ["nfs4", "tmpfs", "ext4"]
    assert file_system("/", str(folder / "none")) == ""


def test_an_invalidation_that_waits_in_the_journal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"sqlite:///{folder}/store.db"
    path = str(folder / "journal")
    Journal(path).keep("default", ["tag:posts"], "expire", [store], [store])
    monkeypatch.setenv("WSGI_ISR_JOURNAL", path)
    ((check, result, write),) = failures("--store", store)
    assert (check, result, write) == ("journal", f"1 invalidations wait in {path}", "wsgi-isr replay")


def test_a_journal_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("WSGI_ISR_JOURNAL", str(folder / "file" / "journal"))
    found = failures("--store", f"sqlite:///{folder}/store.db")
    assert [check for check, _, _ in found] == ["journal"]


def test_two_apps_that_share_a_namespace_and_a_host() -> None:
    store, now = MemoryStore(), time.time()
    registry = Registry(store, "default")
    for name in ("shop", "blog"):
        known = registry.apps() or Apps((), ())
        registry.write(AppRecord(name, ("/",), True, store.nodes, (("example.org", ""),), now, now), known)
    (finding,) = failed(store)
    assert (finding.check, finding.write) == ("namespace", "WSGI_ISR_NAMESPACE=shop, a name for each app")


def test_development_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_ISR_DEVELOPMENT", "bypass")
    assert ("development", 'development="bypass": no page is cached', "WSGI_ISR_DEVELOPMENT=auto") in failures(
        "--store", "memory://"
    )


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checks, "requirements", lambda: iter([("werkzeug", "99.1", True), ("nothing-such", "1", False)])
    )
    ((check, result, write),) = failures("--store", "memory://")
    assert (check, "is older than 99.1" in result) == ("versions", True)
    assert write == "pip install --upgrade 'werkzeug>=99.1'"


def test_an_app_that_does_not_import_and_one_in_debug_mode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures("--app", "patient:app")[0][0] == "configuration"
    (folder / "patient.py").write_text(
        "from flask import Flask\n"
        "from wsgi_isr import ISR\n"
        "app = Flask(__name__)\n"
        "app.debug = True\n"
        f"app.wsgi_app = ISR(app.wsgi_app, revalidate=60, store='sqlite:///{folder}/store.db')\n"
    )
    runtime.instances.clear()
    ((check, result, write),) = failures("--app", "patient:app")
    assert (check, "debug mode" in result, "WSGI_ISR_DEVELOPMENT=cache" in write) == ("development", True, True)


def test_an_app_without_hosts_is_no_failure_and_gets_the_line_all_the_same(folder: Path) -> None:
    (folder / "patient.py").write_text(
        "from wsgi_isr import ISR\n"
        "app = ISR(lambda environ, start_response: [], revalidate=60, "
        f"store='sqlite:///{folder}/store.db')\n"
    )
    code, findings = doctor("--app", "patient:app")
    (hosts,) = [one for one in findings if one["check"] == "hosts"]
    assert (code, hosts["ok"], hosts["write"]) == (0, True, 'hosts=["example.com"]')


def test_a_control_character_of_a_name_does_not_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "requirements", lambda: iter([("evil\x1b[31m", "1", True)]))
    result = CliRunner().invoke(main, ["doctor", "--store", "memory://"])
    assert "\x1b" not in result.stdout
