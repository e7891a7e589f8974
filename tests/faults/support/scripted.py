"""The tests' side of :mod:`cluster.chaos.workload.site`: control its renders, and read the answers of its servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.chaos.workload.site import Database
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Answer, ask
from tests.live.support.waiting import until


class Scripted:
    """The site in ``directory``.

    :param store: the URL that its servers use.
    """

    def __init__(self, directory: Path, store: str) -> None:
        self._directory = directory
        self.store = store
        self.database = Database(directory)
        self.database.create()
        #: Environment variables of the servers. No copy is served unchecked: invalidations hold at once.
        self.env = {"CLUSTER_DIRECTORY": str(directory), "WSGI_ISR_STORE": store, "WSGI_ISR_COHERENCE": "0"}

    def fail(self, how: str) -> None:
        """Let every render fail from now on: it raises (``"raise"``), or answers with that status."""
        (self._directory / "fail").write_text(how)

    def mend(self) -> None:
        """End :meth:`fail`."""
        (self._directory / "fail").unlink()

    def hold(self) -> None:
        """Let every render wait from now on once it has read its rows."""
        (self._directory / "held").unlink(missing_ok=True)
        (self._directory / "hold").touch()

    def wait_until_held(self) -> None:
        """Wait until a render is held."""
        until((self._directory / "held").exists, "a render that is held")

    def release(self) -> None:
        """End :meth:`hold`."""
        (self._directory / "hold").unlink()


def everywhere(servers: Sequence[Gunicorn], path: str, times: int = 8) -> list[Answer]:
    """Return answers of each server, enough in a row that each of its workers has its turn."""
    return [ask(server.port, path) for _ in range(times) for server in servers]


def warm(servers: Sequence[Gunicorn], path: str, version: int) -> None:
    """Wait until every answer for ``path`` is a hit in that version."""

    def hits() -> bool:
        return seen(everywhere(servers, path)) == {(200, "HIT", version)}

    until(hits, f"{path} in version {version} in every cache")


def seen(answers: Sequence[Answer]) -> set[tuple[int, str, int | None]]:
    """Return status, label, and the version of the row that the page is named after, of all answers."""
    return {(answer.status, answer.verdict, shown(answer)) for answer in answers}


def shown(answer: Answer) -> int | None:
    """Return the newest version on a page besides that of the whole site; ``None`` for an answer without a page."""
    try:
        versions: dict[str, int] = answer.page["versions"]
    except (ValueError, KeyError):
        return None
    return max(version for row, version in versions.items() if row != "site")
