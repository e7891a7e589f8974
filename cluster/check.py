"""``python -m cluster check``: start a cluster as a user does, read pages through it, inject faults, and end it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from wsgi_isr.cache.journal import Journal
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.stores import open_store

from .errors import ClusterError
from .load.request import Answer, fetch
from .parts import processes
from .parts.part import importing
from .parts.ports import HOST
from .supervisor.state import Directory, PartState, State
from .supervisor.topology import DEFAULT_APP

#: Timeout in seconds for steps that normally take a tenth of it.
PATIENCE = 30.0
#: Seconds until the journal has delivered all missed invalidations to a node that is back.
DELIVERED = 5.0
#: Seconds for a newly started cluster to write its state, so that it can be ended.
GIVING_UP = 5.0


class StepFailed(Exception):
    """A step failed. The message has the unexpected observation."""


class Check:
    """The steps, in order; each relies on the steps before it.

    :param directory: an empty directory.
    :param app: the app to serve.
    """

    def __init__(self, directory: Path, app: str) -> None:
        self._directory = directory
        self._app = app
        self._processes: set[processes.Process] = set()
        self._port = 0
        #: Whether a cluster may be running.
        self._runs = False

    def steps(self) -> Iterator[tuple[str, str, Callable[[], str]]]:
        """Yield each step: its name, the expectation, and the function that checks it."""
        yield "UP", "nodes, instances and balancer run", self.up
        yield "HITS", "each instance answers from the cache that they share", self.hits
        yield "DEAD", "a killed instance is no visitor's problem", self.dead
        yield "HANGS", "nor is one that hangs", self.hangs
        yield "NODE", "nor is a killed node", self.node
        if self._app == DEFAULT_APP:
            yield "EDITS", "nor an editor's who saves: the node gets it when it is back", self.edits
        yield "DOWN", "it ends when told", self.down
        yield "GONE", "no process is left", self.gone

    def up(self) -> str:
        self._runs = True
        # A request to a paused instance takes that long.
        self._command("up", "--detach", "--port", "0", "--app", self._app, "--read-timeout", "2")
        state = self._state()
        self._port = int(state.url.rpartition(":")[2])
        keeper = processes.look_at(state.pid)
        if keeper is None:
            raise StepFailed(f"the supervisor {state.pid} is not there")
        self._processes = {keeper, *processes.descendants(state.pid)}
        return f"{len(state.parts)} parts, {len(self._processes)} processes, at {state.url}/"

    def hits(self) -> str:
        seen: dict[str, Answer] = {}
        instances = {part.name for part in self._state().parts if part.role == "gunicorn"}
        deadline = time.monotonic() + PATIENCE
        while not instances <= seen.keys():
            answer = self._visit()
            if answer["X-ISR"] == "HIT":
                seen.setdefault(answer["X-Instance"], answer)
            if time.monotonic() > deadline:
                raise StepFailed(f"no hit from {', '.join(sorted(instances - seen.keys()))}; last: {answer}")
        return "\n".join(
            f"X-Instance: {name}  X-Upstream: {seen[name]['X-Upstream']}  X-ISR: {seen[name]['X-ISR']}"
            for name in sorted(seen)
        )

    def dead(self) -> str:
        return self._break("kill", "instance-1", "restart")

    def hangs(self) -> str:
        return self._break("pause", "instance-2", "resume")

    def node(self) -> str:
        return self._break("kill", "node-1", "restart")

    def edits(self) -> str:
        state = self._state()
        store = open_store(state.store)
        address = store.node_of(Keyspace("default").tag("tag:posts"))
        store.close()
        node = next(part.name for part in state.parts if part.address == address)
        # Only the example app that is checked here needs this import.
        editor = import_module("examples.blog_flask.browser").Browser(self._port)
        editor.log_in("admin", "admin")
        token = editor.get("/admin").csrf
        self._command("kill", node)
        titles = [f"Saved without {node}, nr {number}" for number in range(10)]
        forms = [{"title": title, "summary": "A test.", "tags": "caching", "body": "Hello."} for title in titles]
        answers = [editor.post("/admin/posts", csrf=token, **form).status for form in forms]
        if answers != [303] * len(titles):
            raise StepFailed(f"{len(titles)} saves were answered with {answers}")
        journal = Journal(str(Directory(self._directory).journal))
        if journal.is_empty():
            raise StepFailed(f"the journal is empty: {journal.path}")
        self._command("restart", node)
        back = time.monotonic()
        while not journal.is_empty():
            if time.monotonic() > back + DELIVERED:
                raise StepFailed(f"not delivered {DELIVERED:g} s after {node} is back: {journal.path}")
            time.sleep(0.02)
        took = time.monotonic() - back
        for part in state.parts:
            if part.role == "gunicorn":
                page = fetch(int(part.address.rpartition(":")[2]), "/", host=f"{HOST}:{self._port}")
                if titles[-1].encode() not in page.body:
                    raise StepFailed(f"{part.name} shows an old page: {page['X-ISR']}")
        return f"10 saves without {node}: 303 each; delivered {took:.1f} s after its return; all instances show them"

    def _break(self, fault: str, part: str, remedy: str) -> str:
        self._command(fault, part)
        found = self._part(part).state
        if found != {"kill": "dead", "pause": "paused"}[fault]:
            raise StepFailed(f"{part} is {found}")
        answers = [self._visit() for _ in range(12)]
        self._command(remedy, part)
        if (found := self._part(part).state) != "running":
            raise StepFailed(f"{part} is {found} after {remedy}")
        verdicts = Counter(answer["X-ISR"] for answer in answers)
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        return f"{len(answers)} times 200 ({counts}) by {', '.join(sorted({a['X-Instance'] for a in answers}))}"

    def down(self) -> str:
        state = self._state()
        self._processes |= set(processes.descendants(state.pid))
        output = self._command("down")
        self._runs = False
        self._command("status", fails=True)
        return output

    def gone(self) -> str:
        deadline = time.monotonic() + 5
        while left := [p for p in self._processes if processes.same(p.pid, p.started)]:
            if time.monotonic() > deadline:
                raise StepFailed(f"left: {sorted(process.pid for process in left)}")
            time.sleep(0.02)
        return f"{len(self._processes)} processes have run, and have ended"

    # Helpers of the steps ------------------------------------------------------------------------------

    def _visit(self) -> Answer:
        answer = fetch(self._port, "/")
        if answer.status != 200:
            raise StepFailed(f"a visitor got {answer.status} {answer.error} by {answer['X-Instance']}")
        return answer

    def _command(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cluster", "--directory", str(self._directory), *arguments],
            # Keep the editor's changes out of the user's own blog.
            env={**importing(), "BLOG_DB": str(self._directory / "blog.sqlite3")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if bool(done.returncode) != fails:
            output = (done.stderr or done.stdout).strip()
            raise StepFailed(f"`{' '.join(arguments)}` ended with {done.returncode}: {output}")
        return done.stdout.strip()

    def _state(self) -> State:
        return Directory(self._directory).read()

    def _part(self, name: str) -> PartState:
        return self._state().part(name)

    def give_up(self) -> None:
        """End the cluster after any outcome; do nothing where none runs."""
        deadline = time.monotonic() + GIVING_UP
        # `down` needs the state file, so wait until the cluster has written it.
        while self._runs and time.monotonic() < deadline:
            done = subprocess.run(
                [sys.executable, "-m", "cluster", "--directory", str(self._directory), "down"],
                env=importing(),
                capture_output=True,
                check=False,
            )
            self._runs = done.returncode != 0


def check(app: str) -> int:
    """Run all steps, print them line by line, and return the exit code. No process is left, however the check ends."""
    with tempfile.TemporaryDirectory(prefix="cluster-check-") as name:
        checked = Check(Path(name), app)
        try:
            return play(checked)
        finally:
            checked.give_up()


def play(checked: Check) -> int:
    """Run the steps of :func:`check` and return the exit code."""
    began = time.monotonic()
    for step, sentence, action in checked.steps():
        try:
            seen, holds = action(), True
        except (StepFailed, ClusterError, subprocess.TimeoutExpired) as failure:
            seen, holds = str(failure), False
        indented = seen.replace("\n", "\n" + " " * 12)
        print(f"{'ok  ' if holds else 'FAIL'}  {step:<6}{sentence}\n{' ' * 12}{indented}", flush=True)
        if not holds:
            print("Later steps rely on it and did not run.")
            return 1
    print(f"All steps hold, after {time.monotonic() - began:.0f} s.")
    return 0
