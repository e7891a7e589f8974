"""Record renders in instances, read these records, and assign renders to windows."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from wsgi_isr.events import Event, Invalidated, Rendered
from wsgi_isr.pages.request_key import PageKey

from ..supervisor.state import INVALIDATIONS, append

#: Seconds by which a page may seem to become stale too early, as the times are measured from outside.
NOISE = 0.05


class Render(NamedTuple):
    """One call of the app for a page.

    :param ended: the start of the page's age, by ``time.monotonic``.
    :param seconds: the duration of the render.
    :param stored: whether the store took the page.
    :param text: the text of the key.
    :param lifetime: seconds for which the page is fresh.
    """

    ended: float
    seconds: float
    key: str
    instance: str
    pid: int
    stored: bool
    text: str = ""
    lifetime: float = 0.0

    @property
    def began(self) -> float:
        """Return the start of the render."""
        return self.ended - self.seconds


class Recorder:
    """A subscriber that records every render of a page in one file, and every invalidation in another.

    :param shift: seconds by which the clocks of this process are wrong.
    """

    def __init__(self, path: str, instance: str, shift: float = 0.0) -> None:
        self._path = Path(path)
        self._instance = instance
        self._shift = shift

    def __call__(self, event: Event) -> None:
        if isinstance(event, Rendered) and ":p:" in event.key:
            # The page's age starts before the page is stored. Storing can take a tenth of a second on a busy machine.
            ended, seconds = time.monotonic() - self._shift - event.storing, event.seconds - event.storing
            lifetime = math.inf if event.revalidate is None else event.revalidate
            render = Render(ended, seconds, event.key, self._instance, os.getpid(), event.stored, event.text, lifetime)
            append(self._path, json.dumps(render))
        elif isinstance(event, Invalidated):
            line = json.dumps([time.monotonic() - self._shift, event.mode, event.tags])
            append(self._path.with_name(INVALIDATIONS), line)


def read(path: Path) -> list[Render]:
    """Return every render so far, in the order of their starts."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return sorted((Render(*json.loads(line)) for line in lines), key=lambda render: render.began)


@dataclass(frozen=True)
class Crowded:
    """A window with more than one render: its page, its start and end, and the number of renders."""

    page: str
    began: float
    ended: float
    renders: int


@dataclass(frozen=True)
class Windows:
    """The number of renders, and the number of windows. ``largest``: the maximum of renders in one window."""

    renders: int
    windows: int
    largest: int

    @property
    def per_window(self) -> float:
        """Return the renders per window; 1 is ideal."""
        return self.renders / self.windows if self.windows else 0.0


def windows(renders: Iterable[Render], lifetimes: Mapping[str, float], since: float = -math.inf) -> Windows:
    """Count windows and renders.

    A window of a page begins when the page becomes stale, or is missing. The window ends when the new page becomes
    stale. One render in a window renews the page, and each further render is superfluous. From outside, the cause of a
    render is not visible. So a render after an invalidation, or after the loss of a node, counts as superfluous too.

    :param renders: in the order of their starts.
    :param lifetimes: seconds by key; pages without one are left out.
    :param since: only windows that began later.
    """
    sizes = [len(window) for window in _all_windows(renders, lifetimes, since)]
    return Windows(sum(sizes), len(sizes), max(sizes, default=0))


def crowded(renders: Iterable[Render], lifetimes: Mapping[str, float], since: float = -math.inf) -> list[Crowded]:
    """Return the windows with more than one render."""
    return [
        Crowded(_path(window[0]), window[0].began, max(render.ended for render in window), len(window))
        for window in _all_windows(renders, lifetimes, since)
        if len(window) > 1
    ]


def _path(render: Render) -> str:
    return PageKey.parse(render.text).path if render.text else render.key


def _all_windows(renders: Iterable[Render], lifetimes: Mapping[str, float], since: float) -> list[list[Render]]:
    """Return the renders of each window of each page."""
    by_key: dict[str, list[Render]] = {}
    for render in renders:
        if render.key in lifetimes:
            by_key.setdefault(render.key, []).append(render)
    return [window for key, of_page in by_key.items() for window in _windows_of_page(of_page, lifetimes[key], since)]


def _windows_of_page(renders: Sequence[Render], lifetime: float, since: float) -> list[list[Render]]:
    """Return the renders of each window of one page that began at ``since`` or later."""
    found: list[list[Render]] = []
    counted: list[bool] = []
    stale, renewed = -math.inf, True
    for render in renders:
        # An unstored render has renewed nothing: the next render belongs to the same window.
        if render.began >= stale - NOISE and renewed:
            found.append([])
            counted.append(render.began >= since)
            renewed = False
        found[-1].append(render)
        if render.stored:
            stale, renewed = render.ended + lifetime, True
    return [window for window, is_counted in zip(found, counted, strict=True) if is_counted]


def lifetimes(renders: Iterable[Render], host: str, fresh: Mapping[str, bool]) -> dict[str, float]:
    """Return the lifetime of each page in seconds, by its key in the store, for all releases and namespaces.

    :param fresh: for each path, whether its page was ever served as new. The lifetime of any other page is 0, so each
        render of such a page is a window.
    """
    # Keys hold bytes as latin-1.
    wanted = {unquote(path.partition("?")[0], "latin-1"): was_fresh for path, was_fresh in fresh.items()}
    found = {}
    for key, render in {render.key: render for render in renders if render.text}.items():
        page = PageKey.parse(render.text)
        if page.host == host and (was_fresh := wanted.get(page.script + page.path)) is not None:
            found[key] = render.lifetime if was_fresh else 0.0
    return found
