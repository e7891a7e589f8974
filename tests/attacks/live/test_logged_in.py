"""Each answer belongs to its request: two visitors with a session and a stranger, all at once.

The servers are real ones. Renderer processes regenerate their pages each second.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.attacks.support.attack import Attack, dice, scaled
from tests.live.support.server import Gunicorn
from tests.live.support.waiting import until
from wsgi_isr.pages.own_writes import COOKIE as WROTE

ABOUT = [f"/about/{number}" for number in range(5)]
#: The first page does not read the session. The second one reads the session after its headers are sent, too late for
#: ``Vary``. So every visitor gets the page of a stranger.
PLAIN, LAZY = "/plain", "/lazy"
PAGES = ["/", *ABOUT, PLAIN, LAZY, "/touched", "/private", "/data", "/about/x.css", "/about/x;y.css"]
#: With a dot, so that no signature in base64 has one of them by chance.
USERS, STRANGER = ("alice.liddell", "bob.hatter"), "nobody"
CARD = re.compile(r"\[user=(\S+) token=(\S+) by=(\d+)\]")
#: Requests of each server, and visitors at once for each of the three.
REQUESTS, AT_ONCE = 1000, 2


@dataclass
class Answer:
    """The answer to one request."""

    status: int
    cookies: list[str]
    verdict: str
    body: str

    @property
    def everything(self) -> str:
        return f"{self.status} {self.cookies} {self.body}"


@dataclass
class Visitor:
    """One browser. A stranger keeps no cookies."""

    name: str
    port: int
    jar: dict[str, str] = field(default_factory=dict)
    token: str = "none"
    _connection: HTTPConnection | None = None

    def ask(self, path: str, method: str = "GET", new_connection: bool = True, **form: str) -> Answer:
        """Send a request, on the previous connection unless a new one is wanted."""
        if self._connection is None or new_connection:
            self.close()
            self._connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if method == "POST" else {}
        if self.jar:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        try:
            self._connection.request(method, path, urlencode(form) if method == "POST" else None, headers)
            response = self._connection.getresponse()
            body = response.read().decode()
        except (HTTPException, ConnectionError):
            if new_connection:
                raise
            return self.ask(path, method, True, **form)  # the server had closed an idle connection
        cookies = response.headers.get_all("Set-Cookie", [])
        if self.name != STRANGER:
            for line in cookies:
                self.jar.update({name: morsel.value for name, morsel in SimpleCookie(line).items()})
        # The cookie after a write is the cache's own, and the same for all visitors.
        cookies = [line for line in cookies if line.partition(";")[0] != f"{WROTE}=1"]
        return Answer(response.status, cookies, response.getheader("X-ISR", ""), body)

    def log_in(self) -> None:
        """Post the form, and store the token of the session."""
        assert self.ask("/login", "POST", user=self.name).status == 303
        found = CARD.search(self.ask("/").body)
        assert found is not None
        assert found[1] == self.name
        self.token = found[2]

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class Checks:
    """Check answers, from several threads."""

    def __init__(self, attack: Attack, visitors: list[Visitor]) -> None:
        self._attack = attack
        self._lock = threading.Lock()
        self._secrets = {visitor.token: visitor for visitor in visitors if visitor.token != "none"}
        self._given: set[str] = set()
        self.verdicts: Counter[tuple[bool, str]] = Counter()

    def judge(self, visitor: Visitor, path: str, method: str, answer: Answer) -> None:
        """Count an answer, and check that it belongs to its visitor."""
        with self._lock:
            problem = self._problem(visitor, path, method, answer)
            self._attack.check(not problem, f"{visitor.name} at {path}: {problem}: {answer}")
            self.verdicts[visitor.name == STRANGER, answer.verdict] += 1

    def sees(self, visitor: Visitor, path: str) -> int:
        """Return the id of the process that rendered a page."""
        answer = visitor.ask(path)
        self.judge(visitor, path, "GET", answer)
        return int(CARD.findall(answer.body)[0][2])

    def _problem(self, visitor: Visitor, path: str, method: str, answer: Answer) -> str:
        if answer.status != (303 if method == "POST" else 200):
            return "another status"
        for token, owner in self._secrets.items():
            others = [token] if owner is not visitor else []  # of the same user's other browser as well
            others += [owner.name] if owner.name != visitor.name else []
            if any(other in answer.everything for other in others):
                return f"something of {owner.name}"
        for cookie in answer.cookies:
            # Each cookie holds a random value, so a second one is a copy.
            if cookie in self._given:
                return "a cookie that was given before"
            self._given.add(cookie)
            if path != "/touched":
                return "a cookie of a page that sets none"
        if method == "GET":
            mine, strangers = (visitor.name, visitor.token), (STRANGER, "none")
            may_be = {PLAIN: [strangers], LAZY: [strangers, mine]}.get(path, [mine])
            found = CARD.findall(answer.body)
            if len(found) != 1 or found[0][:2] not in may_be:
                return f"{found}, not one of {may_be}"
        return ""


@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
@pytest.mark.parametrize("framework", ["flask", "django"])
def test_every_visitor_gets_their_own_answer(framework: str, worker_class: str, tmp_path: Path, attack: Attack) -> None:
    env = {"WSGI_ISR_STORE": f"sqlite:///{tmp_path}/pages.sqlite3"}
    target = f"tests.attacks.support.{framework}_accounts:application"
    with (
        Gunicorn(tmp_path / "log", env, target, worker_class=worker_class) as server,
        contextlib.closing(Visitor(STRANGER, server.port)) as stranger,
    ):
        until(server.renderers, "renderer processes")
        visitors = [Visitor(name, server.port) for name in (*USERS, STRANGER) for _ in range(AT_ONCE)]
        for visitor in visitors:
            if visitor.name != STRANGER:
                visitor.log_in()
        checks = Checks(attack, visitors)

        def visit(number: int) -> None:
            visitor, chance = visitors[number % len(visitors)], dice(f"{framework} {worker_class} {number}")
            for _ in range(scaled(REQUESTS) // len(visitors) // 2):
                method = chance.choices(["GET", "HEAD", "POST"], [20, 1, 1])[0]
                path = chance.choice(ABOUT if method == "POST" else PAGES)
                answer = visitor.ask(path, method, chance.random() < 0.2)
                checks.judge(visitor, path, method, answer)
            visitor.close()

        for half in (0, 1):
            with ThreadPoolExecutor(len(visitors)) as people:
                list(people.map(visit, range(half * len(visitors), (half + 1) * len(visitors))))
            # The second half begins with stale pages.
            until(lambda: stranger.ask(PLAIN).verdict == "STALE", "a page that is due")
            until(lambda: checks.sees(stranger, PLAIN) in server.renderers(), "a page by a renderer process")
        assert server.complaints() == []
        assert server.stop() == 0
    for verdict in ("HIT", "STALE"):
        assert checks.verdicts[True, verdict], f"no stranger got a page that was {verdict}: {checks.verdicts}"
    attack.over(f"requests by {len(visitors)} visitors")
