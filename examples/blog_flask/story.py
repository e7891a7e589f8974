"""The story of the blog, played over HTTP. Each step is a method that returns an observation, or fails."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from .browser import Answer, Browser
from .server import Server, listen

POST = "/posts/what-vary-says"
ADMIN, READER = "Robin Vale", "Kim Ferro"
COHERENCE = 0.1  # seconds: the default of the option of this name
PATIENCE = 20.0  # seconds that a step waits before it fails


class StepFailed(Exception):
    """The step failed. The message has the unexpected observation."""


def require(holds: bool, seen: object) -> None:
    """Fail the step unless ``holds``."""
    if not holds:
        raise StepFailed(str(seen))


class Story:
    """One run, from the first visitor to the end of the server.

    :param faults: the directory of :mod:`.faults`.
    :param lease: seconds after which another process takes over a killed render of ``/stats``.
    :param slow: the least time that ``/stats`` takes, in seconds.
    """

    def __init__(self, server: Server, faults: Path, lease: float, slow: float) -> None:
        self.server = server
        self.faults = faults
        self.lease = lease
        self.slow = slow
        self.first: Answer  # to the first request for POST
        self.admin = self.visitor()

    def steps(self) -> Iterator[tuple[str, str, Callable[[], str]]]:
        """Yield name, sentence and action of each step, in order."""
        yield "MISS", "the first request renders the page", self.miss
        yield "HIT", "later requests get the stored page", self.hit
        yield "304", "a client with the page gets 304 without a body", self.not_modified
        yield "HEAD", "HEAD has the headers of GET and no body", self.head
        yield "CROWD", "12 requests at once for a new page: one render", self.crowd
        yield "STALE", "visitors get the old page during the render", self.stale
        yield "ERROR", "a failed render keeps the last good page", self.error
        yield "LOGIN", "a page that sets a cookie is not stored", self.login_page
        yield "SESSION", "a logged-in user neither gets nor leaves a copy", self.session
        yield "MIXED", "visitors in turn get their own pages", self.mixed
        yield "ADMIN", "the administrator's page is not cached", self.admin_page
        yield "COMMENT", "a comment shows at once, for every visitor", self.comment
        yield "BROWSER", "a returning browser gets 304, or the new page", self.come_back
        yield "PUBLISH", "a job beside the server publishes a post", self.publish
        yield "EDITOR", "saving works while the store is away", self.editor
        yield "WRONG", "an invalidation of nothing is a warning", self.wrong
        yield "KILL", "another process takes over a killed render", self.kill
        yield "DEPLOY", "an edit and a reload: stale once, then new", self.deploy
        yield "DEVELOP", "a development server shows each edit at once", self.develop
        yield "STOP", "the server ends when asked to", self.stop

    def visitor(self) -> Browser:
        """Return a new visitor without cookies."""
        return Browser(self.server.port)

    # The steps

    def miss(self) -> str:
        self.first = answer = self.visitor().get(POST)
        require(answer.status == 200 and answer.verdict == "MISS", answer)
        require(bool(answer["ETag"] and answer.stamp), f"no ETag or no stamp: {answer}")
        require("Set-Cookie" not in answer.headers, "an anonymous visitor got a cookie")
        require(self.renders(POST) == 1, f"{self.renders(POST)} renders")
        return f"X-ISR: MISS, 1 render, {_ms(answer)}"

    def hit(self) -> str:
        answers = [self.visitor().get(POST) for _ in range(10)]
        for answer in answers:
            require(answer.status == 200 and answer.verdict == "HIT", answer)
            require(answer.body == self.first.body, f"another body: rendered {answer.stamp}")
            require(answer["ETag"] == self.first["ETag"], f"another ETag: {answer['ETag']}")
        aged = self.poll(POST, lambda answer: _age(answer) >= 1, "an Age of 1 or more")
        require(aged.verdict == "HIT" and aged.stamp == self.first.stamp, aged)
        require(self.renders(POST) == 1, f"{self.renders(POST)} renders")
        fastest = min(answer.seconds for answer in answers)
        return f"X-ISR: HIT, same stamp and ETag, Age: {aged['Age']}, still 1 render, {fastest * 1000:.0f} ms"

    def not_modified(self) -> str:
        etag = self.first["ETag"]
        answer = self.visitor().get(POST, If_None_Match=etag)
        require(answer.status == 304 and not answer.body, f"{answer}, {len(answer.body)} characters of body")
        require(answer["ETag"] == etag, f"ETag {answer['ETag']} instead of {etag}")
        other = self.visitor().get(POST, If_None_Match='"something-else"')
        require(other.status == 200 and other.body == self.first.body, f"with another ETag: {other}")
        return f"304 for If-None-Match: {etag[:10]}..., 200 for another one"

    def head(self) -> str:
        get, head = self.visitor().get(POST), self.visitor().head(POST)
        require(head.status == 200 and not head.body, f"{head}, {len(head.body)} characters of body")
        for name in ("ETag", "Content-Type", "Content-Length", "X-ISR"):
            require(bool(get[name]) and head[name] == get[name], f"{name}: {head[name]!r}, with GET {get[name]!r}")
        return f"200, Content-Length: {head['Content-Length']}, no body"

    def crowd(self) -> str:
        with ThreadPoolExecutor(12) as people:
            answers = list(people.map(lambda _: self.visitor().get("/stats"), range(12)))
        for answer in answers:
            require(answer.status == 200, answer)
        require(self.renders("/stats") == 1, f"{self.renders('/stats')} renders")
        stamps = {answer.stamp for answer in answers}
        require(len(stamps) == 1, f"{len(stamps)} different pages")
        slowest = max(answer.seconds for answer in answers)
        return f"12 visitors, 1 render of {self.slow} s, the last one waited {slowest:.2f} s"

    def stale(self) -> str:
        old, before = self.fresh("/stats"), self.renders("/stats")
        self.hold()
        stale = self.poll("/stats", lambda answer: answer.verdict == "STALE", "STALE")
        self.wait_for(lambda: (self.faults / "held").exists(), "a render in the background")
        # The held render cannot end yet, so an answer now cannot have waited for it.
        answers = [stale, *(self.visitor().get("/stats") for _ in range(8))]
        for answer in answers:
            require(answer.status == 200 and answer.verdict == "STALE", answer)
            require(answer.stamp == old.stamp, f"rendered {answer.stamp} instead of {old.stamp}")
        slowest = max(answer.seconds for answer in answers)
        self.let_go()
        self.newer("/stats", old)
        made = self.renders("/stats") - before
        require(made == 1, f"{made} renders in one window")
        return f"9 got the old page during the render, in at most {slowest * 1000:.0f} ms; then 1 new one"

    def error(self) -> str:
        old, before = self.fresh("/stats"), self.renders("/stats")
        (self.faults / "fail").touch()
        uncached = self.visitor().get("/tags/databases")
        require(uncached.status == 500, f"the backend is not down: {uncached}")
        answers: list[Answer] = []
        self.ask_until("/stats", answers, lambda: self.renders("/stats") > before, "an attempt to render")
        # The attempt has only begun. Visitors must not see its failure later either.
        until = time.monotonic() + 1.5
        self.ask_until("/stats", answers, lambda: time.monotonic() > until, "the end of the failed render")
        for answer in answers:
            require(answer.status == 200 and answer.stamp == old.stamp, f"{answer}, rendered {answer.stamp}")
        attempts = self.renders("/stats") - before
        (self.faults / "fail").unlink()
        self.newer("/stats", old)
        verdicts = " and ".join(dict.fromkeys(answer.verdict for answer in answers))
        return (
            f"{len(answers)} times 200 and the old page ({verdicts}), {attempts} failed;"
            f" the backend works again: a new page"
        )

    def login_page(self) -> str:
        answers = [self.visitor().get("/login") for _ in range(6)]
        for answer in answers:
            require(answer.status == 200 and "Set-Cookie" in answer.headers, answer)
            require(answer.verdict != "HIT", answer)
        tokens = {answer.csrf for answer in answers}
        require(len(tokens) == len(answers), f"{len(tokens)} tokens for {len(answers)} visitors")
        return f"6 visitors, 6 cookies, 6 tokens; Cache-Status: {answers[-1]['Cache-Status']}"

    def session(self) -> str:
        welcome = self.admin.log_in("admin", "admin")
        require(welcome.status == 303, f"login failed: {welcome}")
        # /about was never rendered: its first visitor is logged in.
        for page in ("/about", POST):
            own = self.admin.get(page)
            require(own.status == 200 and ADMIN in own.account, f"{page}: {own}, {own.account!r}")
            require(own.verdict != "HIT" and "stored" not in own["Cache-Status"], f"{page}: {own}")
        own = self.admin.get("/about")
        require(own.verdict == "BYPASS" and ADMIN in own.account, own)
        require("fwd=bypass" in own["Cache-Status"] and "cookie" in own["Cache-Status"].lower(), own)
        for page in ("/about", POST):
            theirs = self.visitor().get(page)
            require(
                theirs.status == 200 and theirs.account == "Log in",
                f"{page}: {theirs.account!r} to a stranger",
            )
            require("Set-Cookie" not in theirs.headers, theirs)
        theirs = self.visitor().get("/about")
        require(theirs.verdict == "HIT" and theirs.account == "Log in", theirs)
        return f"X-ISR: BYPASS, Cache-Status: {own['Cache-Status']}; a stranger: HIT without the name"

    def mixed(self) -> str:
        reader = self.visitor()
        require(reader.log_in("reader", "reader").status == 303, "login failed")
        kinds = {ADMIN: self.admin, READER: reader, "Log in": None}
        turns = list(kinds) * 40
        random.Random(7).shuffle(turns)
        hits = 0
        for name in turns:
            answer = (kinds[name] or self.visitor()).get("/about")
            present = {known for known in kinds if known in answer.account}
            require(answer.status == 200 and present == {name}, f"{name!r} was shown {answer.account!r}")
            if name == "Log in":
                require(answer.verdict in ("HIT", "STALE"), answer)
                hits += 1
            else:
                require(answer.verdict == "BYPASS", answer)
        return f"{len(turns)} requests: {hits} strangers from the cache, {len(turns) - hits} with their own page"

    def admin_page(self) -> str:
        form = {"title": "Written by the demo", "summary": "A test.", "tags": "caching", "body": "Hello."}
        token = ""
        for _ in range(2):
            outside = self.visitor().get("/admin")
            require(outside.status == 302 and outside["Location"] == "/login?next=/admin", outside)
            inside = self.admin.get("/admin")
            require(inside.status == 200 and "A new post" in inside.body, inside)
            require(inside.verdict == "BYPASS", inside)
            token = inside.csrf
        require(self.visitor().post("/admin/posts", **form).status == 403, "a stranger could publish")
        require(self.admin.post("/admin/posts", **form).status == 400, "published without a token")
        made = self.admin.post("/admin/posts", csrf=token, **form)
        require(made.status == 303, made)
        seen = self.visitor().get(made["Location"])
        require(seen.status == 200 and "Hello." in seen.body, seen)
        return f"BYPASS inside, 302 outside; published {made['Location']}: {seen.verdict} for a stranger"

    def comment(self) -> str:
        post = "/posts/the-last-good-page"
        writer = self.visitor()
        require(writer.get(post).status == 200, "no such post")
        sent = writer.post(post + "/comments", name="A visitor", body="Written just now.")
        cookies = sent.headers.get("Set-Cookie", "")
        require(sent.status == 303 and cookies.startswith("wsgi_isr_wrote="), sent)  # and no session
        own = writer.get(sent["Location"].partition("#")[0])
        require(own.status == 200 and "Written just now." in own.body, own)
        seen = self.at_once(post, "Written just now.")
        return f"303 to {sent['Location']}, {own.verdict}; {seen}"

    def come_back(self) -> str:
        post = "/posts/measure-the-slow-one"
        reader = self.visitor()
        first = reader.look(post)
        require(first[0] == 200, f"{post}: {first[0]}")
        for _ in range(3):
            again = reader.look(post)
            require(again == (304, first[1]), f"{again[0] or 'no request'} for a page that has not changed")
        sent = self.visitor().post(post + "/comments", name="A visitor", body="Written meanwhile.")
        require(sent.status == 303, sent)
        time.sleep(COHERENCE)
        status, shown = reader.look(post)
        require(status == 200 and "Written meanwhile." in shown, f"{status or 'no request'}, an old page")
        require(reader.look(post) == (304, shown), "the new page is not kept")
        return "200, 3 times 304; after a comment 200 with it, then 304"

    def publish(self) -> str:
        title = f"Published by a job {time.time():.0f}"
        lists = ["/", "/tags/caching"]
        for path in lists:
            self.fresh(path)  # fresh for ten seconds and more
        command = [sys.executable, "-m", "examples.blog_flask.publish", title, "--tags", "caching"]
        job = subprocess.run(
            command,
            env=self.server.environment,
            cwd=self.server.root,
            input="Hello.",
            capture_output=True,
            text=True,
            timeout=60,
        )
        require(job.returncode == 0, job.stdout + job.stderr)
        seen = [self.at_once(path, title) for path in lists]
        return f"{job.stdout.strip()} / and /tags/caching: {seen[0]}"

    def editor(self) -> str:
        titles = [f"Saved while the store is away, nr {number}" for number in (1, 2)]
        for path in ("/", "/tags/caching"):
            self.fresh(path)
        journal = Path(self.server.environment["WSGI_ISR_JOURNAL"])
        with self.store_away() as away:
            token = self.admin.get("/admin").csrf
            for title in titles:
                form = {"title": title, "summary": "A test.", "tags": "caching", "body": "Hello."}
                saved = self.admin.post("/admin/posts", csrf=token, **form)
                require(saved.status == 303, saved)
            require(not away or journal.read_text() != "", f"nothing is kept in {journal}")
        back = time.monotonic()
        self.wait_for(lambda: not journal.exists() or journal.stat().st_size == 0, f"an empty journal at {journal}")
        took = time.monotonic() - back
        require(took <= 5, f"delivered after {took:.1f} s")
        seen = [self.at_once(path, titles[-1]) for path in ("/", "/tags/caching")]
        delivery = f"delivered {took:.1f} s after the store was back" if away else "the store was never away"
        return f"303 twice; {delivery}; {seen[0]}"

    @contextmanager
    def store_away(self) -> Iterator[bool]:
        """Lock the store against writes in the block; yield ``False`` where that is impossible."""
        store = self.server.environment["WSGI_ISR_STORE"]
        if not store.startswith("sqlite:///"):
            yield False
            return
        path = store.removeprefix("sqlite:///").partition("?")[0]
        with closing(sqlite3.connect(self.server.root / path, timeout=PATIENCE, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # a writer's lock, for longer than other writers wait for it
            try:
                yield True
            finally:
                connection.execute("ROLLBACK")

    def wrong(self) -> str:
        def invalidate(*arguments: str) -> str:
            command = [
                sys.executable,
                "-c",
                "from wsgi_isr.commands.main import main; main()",
                "invalidate",
                *arguments,
            ]
            job = subprocess.run(
                command, env=self.server.environment, cwd=self.server.root, capture_output=True, text=True, timeout=60
            )
            require(job.returncode == 0, job.stdout + job.stderr)
            return job.stderr.strip()

        require(invalidate("--tag", "posts") == "", "a warning for a tag that the pages carry")
        wrong = {"namespace": "bolg", "tag": "psots", "route": "/post/<slug>"}
        warnings = [
            invalidate("--tag", "posts", "--namespace", wrong["namespace"]),
            invalidate("--tag", wrong["tag"]),
            invalidate("--route", wrong["route"]),
        ]
        for name, words in zip(wrong.values(), warnings, strict=True):
            require(words.startswith("warning: ") and name in words, f"{name}: {words!r}")
        return f"another namespace, tag, route: {warnings[2]}"

    def kill(self) -> str:
        old, before = self.fresh("/stats"), self.renders("/stats")
        self.hold()
        answers: list[Answer] = []
        self.ask_until("/stats", answers, (self.faults / "held").exists, "a render in the background")
        victim = int((self.faults / "held").read_text())
        require(victim not in (os.getpid(), self.server.process.pid), f"process {victim} is no worker")
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        self.wait_for(lambda: not _alive(victim), f"the end of process {victim}")
        self.let_go()
        new = self.newer("/stats", old, answers)
        took = time.monotonic() - killed
        for answer in answers:
            require(answer.status == 200, answer)
        require(new.rendered_by != victim, f"rendered by {victim}, which is dead")
        # The sum of a lease renewed just before the kill, the render itself, and 1.5 s for a busy machine.
        limit = self.lease + self.slow + 1.5
        require(took <= limit, f"taken over after {took:.1f} s; the lease is {self.lease} s")
        made = self.renders("/stats") - before
        require(made == 2, f"{made} renders instead of the killed one and its successor")
        return (
            f"killed {victim}; {len(answers)} times 200;"
            f" new page by {new.rendered_by} after {took:.1f} s (lease {self.lease} s)"
        )

    def deploy(self) -> str:
        old = self.fresh("/about")
        self.edit("About this blog", "About this blog, edited")
        self.server.process.send_signal(signal.SIGHUP)
        # Until its workers have ended, the previous release serves its own page.
        answers: list[Answer] = []
        self.ask_until("/about", answers, lambda: answers[-1].verdict != "HIT", "an answer by the new release")
        for answer in answers:
            require(answer.status == 200 and answer.stamp == old.stamp, f"{answer}, rendered {answer.stamp}")
        require(answers[-1].verdict == "STALE", f"the first visitor of the new release: {answers[-1]}")
        new = self.newer("/about", old)
        require("About this blog, edited" in new.body, f"an old page: {new}, rendered {new.stamp}")
        return f"a template edited, SIGHUP: {answers[-1].verdict} in {_ms(answers[-1])}, then the new page"

    def develop(self) -> str:
        listener = listen(0)
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "flask", "--app", "examples.blog_flask", "run", "--debug", "--port", str(port)]
        with listener, (self.faults / "flask").open("wb") as log:
            listener.close()
            process = subprocess.Popen(
                command,
                env=self.server.environment,
                cwd=self.server.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # with its reloader, which is a process of its own
            )
        try:
            self.wait_for(lambda: _answers(port), "the development server", lambda: f"; exit code {process.poll()}")
            for words in ("About this blog, edited", "Edited once more"):
                answer = Browser(port).get("/about")
                require(words in answer.body and answer.verdict == "BYPASS", f"{answer}, rendered {answer.stamp}")
                require('detail="development"' in answer["Cache-Status"], answer)
                self.edit("About this blog, edited", "Edited once more")
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE)
        return f"flask run --debug: each edit at once; Cache-Status: {answer['Cache-Status']}"

    def stop(self) -> str:
        started = time.monotonic()
        code = self.server.stop()
        require(code == 0, f"gunicorn's exit code is {code}")
        return f"exit code 0 after {time.monotonic() - started:.1f} s"

    # Helpers of the steps

    def renders(self, path: str) -> int:
        """Return the number of requests for a page that have reached the application."""
        try:
            lines = (self.faults / "renders").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return sum(line.split()[1:] == ["GET", path] for line in lines)

    def edit(self, old: str, new: str) -> None:
        """Replace words in the template of ``/about``."""
        template = self.server.root / "examples" / "blog_flask" / "templates" / "about.html"
        template.write_text(template.read_text("utf-8").replace(old, new), "utf-8")

    def hold(self) -> None:
        """Hold each render of ``/stats`` from now on."""
        (self.faults / "held").unlink(missing_ok=True)
        (self.faults / "hold").touch()

    def let_go(self) -> None:
        """End :meth:`hold`."""
        (self.faults / "hold").unlink()

    def poll(self, path: str, wanted: Callable[[Answer], bool], what: str) -> Answer:
        """Send requests of new visitors; return the first wanted answer."""
        last: Answer | None = None

        def found() -> bool:
            nonlocal last
            last = self.visitor().get(path)
            return wanted(last)

        self.wait_for(found, f"{what} for {path}", lambda: f"; the last answer was {last}")
        assert last is not None
        return last

    def at_once(self, path: str, words: str) -> str:
        """Check that every answer shows the words after ``COHERENCE`` seconds; return the observation."""
        time.sleep(COHERENCE)
        answers = [self.visitor().get(path) for _ in range(6)]
        for answer in answers:
            require(answer.status == 200 and words in answer.body, f"an old page: {answer}, rendered {answer.stamp}")
        return f"{len(answers)} strangers see it ({', '.join(dict.fromkeys(answer.verdict for answer in answers))})"

    def ask_until(self, path: str, seen: list[Answer], holds: Callable[[], bool], what: str) -> None:
        """Send requests of new visitors and collect the answers until ``holds``."""

        def asked() -> bool:
            seen.append(self.visitor().get(path))
            return holds()

        self.wait_for(asked, what)

    def fresh(self, path: str) -> Answer:
        """Return a fresh page that no process is rendering, and of which no process has an older copy.

        A process that finds the lease taken looks at the store again after a tenth of a second.
        """
        made = self.poll(path, lambda answer: answer.verdict == "HIT", "a HIT")
        time.sleep(COHERENCE)
        return self.poll(path, lambda answer: answer.verdict == "HIT" and answer.stamp >= made.stamp, "a HIT")

    def newer(self, path: str, old: Answer, seen: list[Answer] | None = None) -> Answer:
        """Return the next version. Until then all visitors must get 200 and the old version."""

        def is_newer(answer: Answer) -> bool:
            if seen is not None:
                seen.append(answer)
            require(answer.status == 200, answer)
            require(answer.stamp >= old.stamp, f"rendered {answer.stamp}, older than {old.stamp}")
            return answer.stamp > old.stamp

        return self.poll(path, is_newer, f"a page newer than {old.stamp}")

    def wait_for(self, holds: Callable[[], bool], what: str, seen: Callable[[], str] = str) -> None:
        """Poll until ``holds``; fail the step when that takes longer than :data:`PATIENCE`."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                raise StepFailed(f"waited {PATIENCE:.0f} s in vain for {what}{seen()}")
            time.sleep(0.05)


def _ms(answer: Answer) -> str:
    return f"{answer.seconds * 1000:.0f} ms"


def _age(answer: Answer) -> int:
    return int(answer["Age"]) if answer["Age"].isdigit() else -1


def _answers(port: int) -> bool:
    try:
        return Browser(port).get("/static/icon.svg").status == 200
    except OSError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
