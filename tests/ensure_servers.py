"""Make sure that the programs which some tests run are on this machine.

Names of packages as arguments: only those.

Found: nothing happens. Missing, and we are root on a system with apt-get: they are installed.
Otherwise: one line that says what to install, and exit code 1.

Needs the standard library only, and starts none of these programs.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Program(NamedTuple):
    """A program under any of its names, and the Debian package that has it.

    A library of a program counts as one: its name ends in ``.so``.
    """

    names: tuple[str, ...]
    package: str


PROGRAMS = (
    Program(("memcached",), "memcached"),
    Program(("nginx",), "nginx"),
    Program(("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"), "chromium"),
    Program(("chromedriver",), "chromium-driver"),
    Program(("firefox-esr",), "firefox-esr"),
    Program(("systemd-analyze",), "systemd"),
    Program(("curl",), "curl"),
    Program(("varnishd",), "varnish"),
    Program(("libvmod_xkey.so",), "varnish-modules"),
    Program(("redis-server", "valkey-server"), "redis-server"),
    Program(("promtool",), "prometheus"),
)

# Debian has nginx in /usr/sbin, which is not on everybody's PATH.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
# Modules of Varnish; the folder has the name of the machine.
VMODS = "/usr/lib/*/varnish/vmods"
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# Temporary, by wsgi_isr's tests/ensure_servers.py: packages start no service.\nexit 101\n"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def missing(path: str, only: Sequence[str] = ()) -> list[str]:
    """The packages of the programs that are not on ``path``, in the order of :data:`PROGRAMS`.

    :param only: of these packages; all of them by default.
    """
    wanted = [program for program in PROGRAMS if not only or program.package in only]
    return [program.package for program in wanted if not any(is_there(name, path) for name in program.names)]


def is_there(name: str, path: str) -> bool:
    """Return whether one of the folders of ``path``, each of which may be a pattern, has a program or a library."""
    if not name.endswith(".so"):
        return shutil.which(name, path=path) is not None
    # A library need not be executable, and its folder may not have been there at the start.
    return any(glob.glob(os.path.join(folder, name)) for folder in path.split(os.pathsep))


@contextlib.contextmanager
def no_services(policy: Path = POLICY) -> Iterator[None]:
    """Keep packages from starting their service while they are unpacked and configured.

    Debian's maintainer scripts ask ``policy-rc.d`` (invoke-rc.d(8)); 101 means no. One that exists is
    the administrator's decision and stays; one that a killed run of ours left behind is taken over.

    Signals that would end us are ignored meanwhile, by us and by what we start: half of an
    installation is worse than some seconds of patience.
    """
    try:
        handle = os.open(policy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        ours = policy.read_text(errors="replace") == POLICY_TEXT
    else:
        ours = True
        with os.fdopen(handle, "w") as file:
            file.write(POLICY_TEXT)
        policy.chmod(0o755)  # whatever the umask
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if ours:
            policy.unlink(missing_ok=True)


def install(packages: Sequence[str], apt_get: str, run: Run = subprocess.run, policy: Path = POLICY) -> str:
    """Install ``packages``; returns why that failed, in one line, or an empty string."""
    # A second apt at work is waited for, instead of failing at its lock.
    command = [apt_get, "-qq", "-o", "DPkg::Lock::Timeout=300"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}

    def step(*words: str) -> str:
        done = run(
            [*command, *words],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        last = (done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return f"apt-get {words[0]} failed: {last}" if done.returncode else ""

    wanted = ("install", "--yes", "--no-install-recommends", *packages)
    # The download is a step of its own: it takes the time, and may be interrupted.
    problem = step("update") or step(*wanted, "--download-only")
    if problem:
        return problem
    try:
        with no_services(policy):
            return step(*wanted)
    except OSError as error:
        return str(error)


def main(
    path: str | None = None,
    is_root: bool | None = None,
    run: Run = subprocess.run,
    policy: Path = POLICY,
    only: Sequence[str] = (),
) -> int:
    """The exit code; the first arguments stand in for the machine in this script's own tests, the last one is its
    command line."""
    if path is None:
        path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN, VMODS))
    if is_root is None:
        is_root = os.geteuid() == 0

    wanted = missing(path, only)
    if not wanted:
        return 0
    apt_get = shutil.which("apt-get", path=path)
    problem = ""
    if is_root and apt_get:
        print(f"Installing: {' '.join(wanted)} (once; takes a few minutes)", flush=True)
        problem = install(wanted, apt_get, run, policy)
        wanted = missing(path, only)
        if not wanted:
            return 0
    print(
        f"{'This needs' if only else 'The tests need'} {', '.join(wanted)}; please install (names as in Debian: "
        f"apt-get install {' '.join(wanted)}){'. ' + problem if problem else ''}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main(only=sys.argv[1:]))
