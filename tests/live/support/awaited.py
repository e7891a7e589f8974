"""Pages and log lines that a test waits for."""

from __future__ import annotations

from .server import Gunicorn
from .visitor import Answer, ask
from .waiting import until


def stale(server: Gunicorn, path: str = "/") -> Answer:
    """Return the page at ``path`` once it is served stale; its render is then in progress."""

    def found() -> Answer | None:
        answer = ask(server.port, path)
        assert answer.status == 200, answer
        return answer if answer.verdict == "STALE" else None

    return until(found, f"a stale page at {path}")


def renewed(server: Gunicorn, path: str, old: Answer) -> Answer:
    """Return the page at ``path`` once it differs from ``old``."""

    def found() -> Answer | None:
        answer = ask(server.port, path)
        assert answer.status == 200, answer
        return answer if answer.body != old.body else None

    return until(found, f"a new page at {path}")


def warnings(server: Gunicorn, words: str) -> int:
    """Return the number of lines with these words in the log of a server."""
    return sum(words in line for line in server.log.read_text().splitlines())
