"""A way to hurt the blog on purpose, for the demo. Off unless ``BLOG_FAULTS`` names a directory.

=========  ===================================================================================
``fail``   while this file exists, every page raises
``hold``   while this file exists, a render of ``/stats`` waits ...
``held``   ... having written the id of the process that waits here
``renders``  grows by one line ``<pid> <method> <path>`` for each time the app is asked for a page
=========  ===================================================================================

Files, because they reach a render in whichever process it happens and can be made by hand.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from flask import Flask, request


class BackendDown(Exception):
    """What every page raises while the file ``fail`` exists."""


def install(app: Flask, directory: Path) -> None:
    """Let the files in ``directory`` decide over each render of ``app``."""

    @app.before_request
    def before_render() -> None:
        if request.endpoint == "static":
            return
        _append(directory / "renders", f"{os.getpid()} {request.method} {request.path}\n")
        if (directory / "fail").exists():
            raise BackendDown(f"{directory / 'fail'} exists")
        if request.path == "/stats" and (directory / "hold").exists():
            _hold(directory)


def _append(path: Path, line: str) -> None:
    # One write to a file opened for appending: lines of several processes never mix.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _hold(directory: Path) -> None:
    unfinished = directory / f"held.{os.getpid()}"
    unfinished.write_text(str(os.getpid()))
    os.replace(unfinished, directory / "held")  # whoever sees the file sees all of it
    while (directory / "hold").exists():
        time.sleep(0.02)
