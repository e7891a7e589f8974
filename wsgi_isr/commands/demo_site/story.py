"""The story of the demo. Each step sends HTTP requests, and checks the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any, NamedTuple

from .site import REVALIDATE, SLOW
from .visitor import Answer, Visitor

#: The number of visitors who request one page at once.
CROWD = 20
#: The maximum time for a new page after a stale one, in seconds.
MAX_WAIT = 10.0

_HARBOUR, _LIBRARY, _WEATHER = "/news/harbour", "/news/library", "/weather"


class Step(NamedTuple):
    """The result of a step.

    :param sentence: the step, for people.
    :param ok: whether the step holds.
    :param seen: the observations, one line each.
    """

    name: str
    sentence: str
    ok: bool
    seen: list[str]
    answers: list[Answer]

    def as_json(self) -> dict[str, Any]:
        """Return the step for JSON."""
        answers = [
            {
                "request": answer.request,
                "status": answer.status,
                "x_isr": answer.verdict or None,
                "age": answer.age,
                "ms": answer.milliseconds,
                "render": answer.render or None,
            }
            for answer in self.answers
        ]
        return {"step": self.name, "ok": self.ok, "sentence": self.sentence, "seen": self.seen, "answers": answers}


class StepFailed(Exception):
    """A step does not hold. The message is the expected observation."""


class Story:
    """The steps, against a site that has no pages yet.

    :param port: the port of the site.
    :param pause: waits for some seconds.
    """

    def __init__(self, port: int, pause: Callable[[float], None]) -> None:
        self._port = port
        self._pause = pause
        self._answers: list[Answer] = []
        self._seen: list[str] = []

    def play(self) -> Iterator[Step]:
        """Play the steps, and yield each result. Stop after a failure, because later steps rely on earlier ones."""
        for name, sentence, action in self._steps():
            self._answers, self._seen = [], []
            try:
                action()
                ok = True
            except StepFailed as failure:
                ok = False
                self._seen.append(f"expected: {failure}")
            except (OSError, HTTPException) as failure:
                ok = False
                self._seen.append(f"no answer: {failure!r}")
            yield Step(name, sentence, ok, self._seen, self._answers)
            if not ok:
                return

    def _steps(self) -> Iterator[tuple[str, str, Callable[[], None]]]:
        yield "MISS", f"The first visitor of an article waits {SLOW} s for its render.", self._miss
        yield "HIT", "Later visitors get the page from the cache.", self._hit
        yield "CROWD", f"{CROWD} visitors request a new page at once. One render serves all of them.", self._crowd
        stale = f"After {REVALIDATE} s, the front page is stale. A visitor gets it at once, and a render begins."
        yield "STALE", stale, self._stale
        yield "INVALIDATE", "The article is invalidated. The next visitor gets a new page.", self._invalidate
        yield "ERROR", "The backend fails. Visitors get the last good page, not an error.", self._error
        yield "HEAL", "The backend works again. After the back-off, the page is rendered.", self._heal
        yield "SESSION", "A visitor with a session gets a personal page, which is not stored.", self._session

    def _miss(self) -> None:
        self._expect(self._get(_HARBOUR), "MISS", render=1)

    def _hit(self) -> None:
        for _ in range(3):
            self._expect(self._get(_HARBOUR), "HIT", render=1)

    def _crowd(self) -> None:
        with ThreadPoolExecutor(CROWD) as crowd:
            answers = list(crowd.map(lambda _: Visitor(self._port).get(_LIBRARY), range(CROWD)))
        self._answers += answers
        renders = {answer.render for answer in answers}
        slowest = max(answer.seconds for answer in answers)
        verdicts = [answer.verdict for answer in answers]
        counted = ", ".join(f"{verdicts.count(verdict)} x {verdict}" for verdict in dict.fromkeys(verdicts))
        self._seen.append(f"GET {_LIBRARY}  {CROWD} answers  X-ISR: {counted}  slowest {slowest * 1000:.0f} ms")
        _require(all(answer.status == 200 for answer in answers), "status 200 for all")
        _require(renders == {1}, f"render 1 for all, not the renders {sorted(renders)}")
        self._expect(self._get(_LIBRARY), "HIT", render=1)

    def _stale(self) -> None:
        self._expect(self._get("/"), "MISS", render=1)
        self._pause(REVALIDATE + 0.1)
        self._expect(self._get("/"), "STALE", render=1)
        answer = self._next_render("/")
        _require(answer.status == 200 and answer.render > 1, "status 200 and a later render")

    def _invalidate(self) -> None:
        self._expect(self._get(_HARBOUR), "HIT", render=1)
        self._post("/demo/invalidate", path=_HARBOUR)
        for _ in range(3):
            answer = self._get(_HARBOUR)
            _require(answer.status == 200 and answer.render == 2, "status 200 and render 2")

    def _error(self) -> None:
        self._expect(self._get(_WEATHER), "MISS", render=1)
        self._post("/demo/fail")
        self._post("/demo/invalidate", path=_WEATHER)
        for _ in range(2):
            self._expect(self._get(_WEATHER), "STALE-IF-ERROR", render=1)

    def _heal(self) -> None:
        self._post("/demo/heal")
        answer = self._next_render(_WEATHER)
        _require(answer.status == 200 and answer.render == 2, "status 200 and render 2")

    def _session(self) -> None:
        visitor = Visitor(self._port)
        self._post("/login", visitor, name="Kim")
        own = self._get(_HARBOUR, visitor)
        self._seen.append(f"the page says: {own.greeting}")
        _require(own.verdict == "BYPASS" and "Kim" in own.greeting, "X-ISR: BYPASS, and the visitor's name")
        answer = self._get(_HARBOUR)
        self._seen.append(f"the page says: {answer.greeting}")
        self._expect(answer, "HIT", render=2)
        _require("Kim" not in answer.body, "a page without the name for a visitor without a session")

    def _next_render(self, path: str) -> Answer:
        """Request the page until another render replaces the first one. Return and show the last answer."""
        deadline = time.monotonic() + MAX_WAIT
        while (answer := Visitor(self._port).get(path)).render == 1 and time.monotonic() < deadline:
            self._pause(0.05)
        return self._show(answer)

    def _get(self, path: str, visitor: Visitor | None = None) -> Answer:
        return self._show((visitor or Visitor(self._port)).get(path))

    def _post(self, url: str, visitor: Visitor | None = None, /, **form: str) -> None:
        answer = self._show((visitor or Visitor(self._port)).post(url, **form))
        _require(answer.status in (200, 303), "status 200 or 303")

    def _show(self, answer: Answer) -> Answer:
        self._answers.append(answer)
        self._seen.append(str(answer))
        return answer

    def _expect(self, answer: Answer, verdict: str, render: int) -> None:
        holds = (answer.status, answer.verdict, answer.render) == (200, verdict, render)
        _require(holds, f"200  X-ISR: {verdict}  render {render}")


def _require(holds: bool, expected: str) -> None:
    if not holds:
        raise StepFailed(expected)
