"""The machine and the versions of a run: figures are only true with them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTIONS = (
    "gunicorn",
    "gevent",
    "granian",
    "werkzeug",
    "flask",
    "flask-caching",
    "django",
    "whitenoise",
    "pymemcache",
)
#: Programs, the option that prints the version, and the place of the version in the output.
PROGRAMS = {
    "nginx": ("-v", r"nginx/([\d.]+)"),
    "varnishd": ("-V", r"varnish-([\d.]+)"),
    "node": ("-v", r"v([\d.]+)"),
    "wrk": ("-v", r"wrk (?:debian/)?([\d.]+)"),
    "memcached": ("-V", r"([\d.]+)"),
}
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def machine() -> str:
    """Return a line on the machine of these figures."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python} on {os.cpu_count()} cores of {_processor()} ({platform.machine()})"


def versions() -> dict[str, str]:
    """Return the versions of all software that takes part, by name; ``missing`` where it is not installed."""
    from tests.benchmarks.next_site import VERSIONS

    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    found |= {name: _program(name, *how) for name, how in PROGRAMS.items()}
    return {**found, "next": VERSIONS["next"] if shutil.which("npm") else "missing"}


def _program(name: str, option: str, pattern: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    if path is None:
        return "missing"
    done = subprocess.run([path, option], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    number = re.search(pattern, done.stdout + done.stderr)
    return number[1] if number else "unknown"


def _processor() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or "an unknown processor"


def load_average() -> float | None:
    """Return the processes that ran or waited for a core in the last minute; ``None`` where the system does not say."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
