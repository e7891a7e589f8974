"""Faults of the blog, for the demo. Off unless ``BLOG_FAULTS`` names a directory.

=========  ===================================================================================
``fail``   while this file exists, every page raises
``hold``   while this file exists, a render of ``/stats`` waits ...
``held``   ... and has written the id of its process here
``renders``  gets one line ``<pid> <method> <path>`` for each request that reaches the app
=========  ===================================================================================

Files reach a render in any process, and can be created by hand.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from flask import Flask, request


class BackendDown(Exception):
    """The error of every page while the file ``fail`` exists."""


def install(app: Flask, directory: Path) -> None:
    """Let the files in ``directory`` control each render of ``app``."""

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
    os.replace(unfinished, directory / "held")  # atomic: readers never see half of the file
    while (directory / "hold").exists():
        time.sleep(0.02)
