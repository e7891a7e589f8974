"""``python -m examples.blog_flask.demo``: run the blog and print experiments; ``--check`` does them all."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from http.client import HTTPException
from pathlib import Path
from types import FrameType

from wsgi_isr.config.source import PLATFORM_VARIABLES

from .server import ROOT, Server, ServerDied, listen
from .story import StepFailed, Story

# Seconds, for the page /stats: the time of a render, its freshness lifetime, and the time after which a lease ends.
SECONDS = {"BLOG_SLOW": "0.5", "BLOG_REVALIDATE": "5", "BLOG_TIMEOUT": "3"}
QUICK = {**SECONDS, "BLOG_REVALIDATE": "2"}  # for --check

TRY = """\
The blog runs at {url}/ with two workers; Ctrl-C stops it.
The footer of each page has the time of its render. Paste this into another terminal:

     U={url}
     look() {{ curl -si $U$1 | grep -iE '^(HTTP|x-isr|cache-status|age|etag)|rendered-at'; }}

1. The first visitor waits for the slow page. Later visitors do not wait.
     look /stats                  X-ISR: MISS (or STALE: pages survive a restart)
     look /stats                  X-ISR: HIT, the same time of rendering, an Age

2. A client that has the page gets 304 and no body.
     E=$(curl -sI $U/about | awk 'tolower($1) == "etag:" {{print $2}}' | tr -d '\\r')
     curl -si $U/about -H "If-None-Match: $E" | head -1
                                  HTTP/1.1 304 Not Modified

3. Wait for {BLOG_REVALIDATE} seconds. The first answer is the old page, the second is new.
     look /stats; sleep 1         X-ISR: STALE
     look /stats                  X-ISR: HIT, rendered just now

4. Log in at {url}/login as admin, password admin. Each page shows your name and is
   rendered for you alone (X-ISR: BYPASS). "look /about" still gets the page without a name.

5. Break the backend. Look at the slow page, and at a page that was never rendered. Repair it.
     touch {fail}
     look /stats                  200, the last good page
     look /nowhere                500
     rm {fail}

6. Kill the worker that renders. Wait for {BLOG_REVALIDATE} seconds first, so that the page is stale.
     touch {hold}; look /stats; sleep 1
     kill -9 $(cat {held}); rm {hold}
     for i in 1 2 3 4 5 6; do look /stats; sleep 1; done
                                  200 each time; STALE at first, and new after some {BLOG_TIMEOUT} seconds

Below is a line for each request: URL, status, X-ISR and duration.
"""


class Stopped(Exception):
    """A signal asked this process to end."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    :returns: 0 done; 1 a step failed or the server could not be started.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.blog_flask.demo", description=__doc__)
    parser.add_argument("--check", action="store_true", help="play the story over HTTP and check every step")
    parser.add_argument("--port", type=int, help="default 8000; with --check a free one, as for 0")
    options = parser.parse_args(arguments)
    port = options.port if options.port is not None else 0 if options.check else 8000
    if not 0 <= port <= 65535:
        parser.error(f"--port {port}: a port is a number from 0 to 65535")
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        listener = listen(port)
    except OSError as error:
        print(f"Port {port} cannot be used ({error.strerror}): choose another one with --port.", file=sys.stderr)
        return 1
    try:
        return _check(listener) if options.check else _serve(listener)
    except Stopped:
        print("\nStopped.", flush=True)
        return 1 if options.check else 0
    finally:
        listener.close()


def _serve(listener: socket.socket) -> int:
    database = Path(os.environ.get("BLOG_DB", ROOT / ".blog" / "blog.sqlite3")).absolute()
    faults = database.parent / "faults"
    faults.mkdir(parents=True, exist_ok=True)
    for name in ("fail", "hold", "held", "renders"):  # files of an earlier run
        (faults / name).unlink(missing_ok=True)
    options = {name: os.environ.get(name, default) for name, default in SECONDS.items()}
    files = {name: shlex.quote(os.path.relpath(faults / name)) for name in ("fail", "hold", "held")}
    try:
        with Server(listener, {**options, "BLOG_DB": str(database), "BLOG_FAULTS": str(faults)}) as server:
            print(TRY.format(url=server.url, **options, **files), flush=True)
            code = server.process.wait()
    except ServerDied as error:
        print(f"{error}: its output is above.", file=sys.stderr)
        return 1
    print(f"gunicorn ended by itself, with exit code {code}: its output is above.", file=sys.stderr)
    return 1


def _check(listener: socket.socket) -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="blog-demo-") as name:
        directory = Path(name)
        faults = directory / "faults"
        faults.mkdir()
        site = _copy(directory / "site")
        store = os.environ.get("WSGI_ISR_STORE", f"sqlite:///{directory / 'pages.sqlite3'}")
        options = {
            "BLOG_DB": str(directory / "blog.sqlite3"),
            "BLOG_FAULTS": str(faults),
            "WSGI_ISR_STORE": store,
            "WSGI_ISR_JOURNAL": str(directory / "journal"),
            **dict.fromkeys(PLATFORM_VARIABLES, ""),  # a deploy in the story uses the copy, on every platform
        }
        server = Server(listener, {**QUICK, **options}, log=directory / "log", root=site)
        try:
            with server:
                print(f"The blog runs at {server.url} with two workers; the store is {store}", flush=True)
                story = Story(server, faults, float(QUICK["BLOG_TIMEOUT"]), float(QUICK["BLOG_SLOW"]))
                holds = _play(story)
        except ServerDied as error:
            print(f"FAIL  START    {error}", flush=True)
            holds = False
        if not holds:
            print("Later steps rely on it and did not run.", flush=True)
            print(f"\nThe end of the server's log:\n{server.tail()}", file=sys.stderr)
            return 1
    print(f"All steps hold, after {time.monotonic() - started:.0f} s.")
    return 0


def _copy(folder: Path) -> Path:
    """Copy the blog: the story edits it."""
    for name in ("examples/__init__.py", "examples/blog_flask"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def _play(story: Story) -> bool:
    """Run each step in turn until one fails: later steps rely on it."""
    for name, sentence, action in story.steps():
        try:
            seen, holds = action(), True
        except StepFailed as failure:
            seen, holds = str(failure), False
        except (OSError, HTTPException) as failure:
            seen, holds = f"no answer: {failure!r}", False
        print(f"{'ok  ' if holds else 'FAIL'}  {name:<8} {sentence}\n               {seen}", flush=True)
        if not holds:
            return False
    return True


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # A second signal must not interrupt the stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
