"""``tests/ensure_servers.py``, on machines made of an empty PATH and a scripted apt-get."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "ensure_servers.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ensure_servers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = load()
#: Packages whose program has another name.
PROGRAM_OF = {
    "chromium-driver": "chromedriver",
    "systemd": "systemd-analyze",
    "varnish": "varnishd",
    "varnish-modules": "libvmod_xkey.so",
    "prometheus": "promtool",
}


class Machine:
    """A directory of programs, and an apt-get that records its arguments."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.policy = root / "policy-rc.d"
        self.calls: list[list[str]] = []
        self.policies: list[str | None] = []
        self.ignored: list[bool] = []
        self.failing = ""

    def add(self, *names: str) -> None:
        for name in names:
            program = self.bin / name
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)

    def apt_get(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        words = command[4:]  # after apt-get -qq -o DPkg::...
        self.calls.append(words)
        self.policies.append(self.policy.read_text() if self.policy.exists() else None)
        self.ignored.append(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
        if words[0] == self.failing:
            return subprocess.CompletedProcess(command, 100, "Reading...\nE: no network\n")
        if words[0] == "install" and "--download-only" not in words:
            self.add(*(PROGRAM_OF.get(word, word) for word in words[3:]))
        return subprocess.CompletedProcess(command, 0, "")

    def main(self, is_root: bool = True, only: Sequence[str] = ()) -> int:
        code = servers.main(str(self.bin), is_root, self.apt_get, self.policy, only)
        assert isinstance(code, int)
        return code


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_happens_where_everything_is_there(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.add("memcached", "nginx", "google-chrome", "chromedriver", "firefox-esr", "systemd-analyze", "curl")
    machine.add("varnishd", "libvmod_xkey.so", "valkey-server", "promtool", "apt-get")
    assert machine.main() == 0
    assert machine.calls == []
    assert capfd.readouterr() == ("", "")


def test_root_installs_only_what_is_missing(machine: Machine) -> None:
    machine.add("nginx", "chromium", "apt-get")
    assert machine.main() == 0
    install = [
        "install",
        "--yes",
        "--no-install-recommends",
        "memcached",
        "chromium-driver",
        "firefox-esr",
        "systemd",
        "curl",
        "varnish",
        "varnish-modules",
        "redis-server",
        "prometheus",
    ]
    assert machine.calls == [["update"], [*install, "--download-only"], install]


@pytest.mark.parametrize("program", ["redis-server", "valkey-server"])
def test_valkey_does_in_place_of_redis(machine: Machine, program: str) -> None:
    machine.add(program)
    assert servers.missing(str(machine.bin), ["redis-server"]) == []


def test_services_may_not_start_while_packages_are_unpacked(machine: Machine) -> None:
    machine.add("apt-get")
    before = signal.getsignal(signal.SIGTERM)
    assert machine.main() == 0
    assert machine.policies == [None, None, servers.POLICY_TEXT]
    assert machine.ignored == [False, False, True]
    assert not machine.policy.exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_temporary_policy_says_no_when_it_is_run(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with servers.no_services(policy):
        assert subprocess.run([policy, "memcached", "start"], check=False).returncode == 101


def test_the_administrators_policy_stays(machine: Machine) -> None:
    machine.add("apt-get")
    machine.policy.write_text("#!/bin/sh\nexit 0\n")
    assert machine.main() == 0
    assert machine.policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_a_policy_left_behind_by_a_killed_run_is_removed(machine: Machine) -> None:
    machine.add("apt-get")
    machine.policy.write_text(servers.POLICY_TEXT)
    assert machine.main() == 0
    assert not machine.policy.exists()


@pytest.mark.parametrize("step", ["update", "install"])
def test_a_failing_apt_get_is_one_line_with_its_last_words(
    machine: Machine, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    machine.add("nginx", "apt-get")
    machine.failing = step
    assert machine.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "The tests need memcached, chromium, chromium-driver, firefox-esr, systemd, curl, varnish, varnish-modules, "
        "redis-server, prometheus; please install"
    )
    assert line.endswith(f"apt-get {step} failed: E: no network")
    assert not machine.policy.exists()


def test_who_is_not_root_is_told_what_to_install(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add("memcached", "apt-get")
    assert machine.main(is_root=False) == 1
    assert capsys.readouterr().err == (
        "The tests need nginx, chromium, chromium-driver, firefox-esr, systemd, curl, varnish, varnish-modules, "
        "redis-server, prometheus; please install (names as in Debian: apt-get install nginx chromium chromium-driver "
        "firefox-esr systemd curl varnish varnish-modules redis-server prometheus)\n"
    )
    assert machine.calls == []


def test_root_without_apt_get_is_told_what_to_install(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "The tests need memcached, nginx, chromium, chromium-driver, firefox-esr, systemd, curl, varnish, "
        "varnish-modules, redis-server, prometheus;"
    )
    assert machine.calls == []


def test_who_needs_only_some_of_them_is_given_only_those(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add("memcached")
    assert machine.main(is_root=False, only=["memcached", "nginx"]) == 1
    assert capsys.readouterr().err.startswith("This needs nginx; please install")
    machine.add("nginx")
    assert machine.main(is_root=False, only=["memcached", "nginx"]) == 0


def test_a_library_is_found_in_the_folder_of_any_machine(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "some-machine" / "vmods"
    folder.mkdir(parents=True)
    path = f"{machine.bin}:{tmp_path}/lib/*/vmods"
    assert servers.missing(path, ["varnish-modules"]) == ["varnish-modules"]
    (folder / "libvmod_xkey.so").touch(mode=0o644)
    assert servers.missing(path, ["varnish-modules"]) == []
