"""A site of numbered pages, each of which shows the release that made it and the version of its row.

Gunicorn runs ``application``. Tests use :class:`Numbered`, which commits new versions. Both use the directory
``NUMBERED_DIRECTORY``. ``NUMBERED_SLOW``: seconds that a render waits, as for a database. ``NUMBERED_REVALIDATE``:
seconds for which a page of :data:`RENEWED` is fresh.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsgi_isr import ISR, Rule

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

APP = "tests.support.numbered:application"
#: Pages that are renewed by time, that stay until they are invalidated, and that are gone as soon as they are made.
RENEWED, KEPT, RARE = "/renewed/%d", "/kept/%d", "/rare/%d"
#: Filler that gives a page a usual size.
PADDING = "x" * 8000


def tag(number: int) -> str:
    """Return the tag of a row."""
    return f"row:{number}"


def version_of(page: bytes) -> int:
    """Return the version that a page shows."""
    return int(json.loads(page)["version"])


class Numbered:
    """The data of the site.

    :param directory: of the test.
    :param slow: see ``NUMBERED_SLOW`` above.
    :param revalidate: see ``NUMBERED_REVALIDATE`` above.
    """

    def __init__(self, directory: Path, slow: float = 0.02, revalidate: float = 1.0) -> None:
        self._directory = directory / "rows"
        self._directory.mkdir()
        self.env = {
            "NUMBERED_DIRECTORY": str(self._directory),
            "NUMBERED_SLOW": f"{slow:g}",
            "NUMBERED_REVALIDATE": f"{revalidate:g}",
        }

    def commit(self, number: int) -> int:
        """Commit the next version of a row, and return it."""
        version = _version(self._directory, number) + 1
        unfinished = self._directory / "unfinished"
        unfinished.write_text(str(version))
        unfinished.replace(self._directory / str(number))
        return version


def _version(directory: Path, number: int) -> int:
    try:
        return int((directory / str(number)).read_text())
    except FileNotFoundError:
        return 1


def site(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Return the app behind the cache."""
    number = environ["PATH_INFO"].rpartition("/")[2]
    page: dict[str, Any] = {"release": os.environ.get("WSGI_ISR_RELEASE", ""), "padding": PADDING}
    if number.isdigit():
        page["version"] = _version(Path(os.environ["NUMBERED_DIRECTORY"]), int(number))
        time.sleep(float(os.environ["NUMBERED_SLOW"]))
    body = json.dumps(page).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def __getattr__(name: str) -> ISR:
    if name != "application":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    global application
    tags = ["row:{number}"]
    application = ISR(
        site,
        {
            "/renewed/<number>": Rule(revalidate=float(os.environ["NUMBERED_REVALIDATE"]), tags=tags),
            "/kept/<number>": Rule(revalidate=False, tags=tags),
            "/rare/<number>": Rule(revalidate=1, expire=1, tags=tags),
        },
    )
    return application
