"""Renders: instances write them down, and here they are read, and counted by the windows that they belong to."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wsgi_isr.events import Event, Rendered
from wsgi_isr.keys import Keyspace, PageKey

from .state import append

#: Seconds by which a page may seem to be stale too early, seen from outside.
NOISE = 0.05


class Render(NamedTuple):
    """One call of the app for a page. ``ended`` is when it was made, and its age began, by ``time.monotonic``;
    ``stored``: the store took it."""

    ended: float
    seconds: float
    key: str
    instance: str
    pid: int
    stored: bool

    @property
    def began(self) -> float:
        """When."""
        return self.ended - self.seconds


class Recorder:
    """A subscriber that writes down every render of a page.

    :param shift: seconds by which the clocks of this process are wrong.
    """

    def __init__(self, path: str, instance: str, shift: float = 0.0) -> None:
        self._path = Path(path)
        self._instance = instance
        self._shift = shift

    def __call__(self, event: Event) -> None:
        if isinstance(event, Rendered) and ":p:" in event.key:
            # On a busy machine what came after that, up to now, can be a tenth of a second.
            ended, seconds = time.monotonic() - self._shift - event.storing, event.seconds - event.storing
            render = Render(ended, seconds, event.key, self._instance, os.getpid(), event.stored)
            append(self._path, json.dumps(render))


def read(path: Path) -> list[Render]:
    """Every render so far, in the order in which they began."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return sorted((Render(*json.loads(line)) for line in lines), key=lambda render: render.began)


@dataclass(frozen=True)
class Windows:
    """Renders and the windows that they belong to. ``most`` is the largest number in one window."""

    renders: int
    windows: int
    most: int

    @property
    def per_window(self) -> float:
        """1 is what it should be."""
        return self.renders / self.windows if self.windows else 0.0


def windows(renders: Iterable[Render], lifetimes: Mapping[str, float], since: float = -math.inf) -> Windows:
    """Count them.

    A window of a page begins when it gets stale, or was never there, and with it the render that renews it; whatever
    else is rendered until the new page gets stale itself is one too many in that window. So is a page that has to be
    made again because it was invalidated, or lost together with a node: from outside these cannot be told apart.

    :param renders: in the order in which they began. :param lifetimes: seconds by key; pages without are left out.
    :param since: only windows that began after it.
    """
    by_key: dict[str, list[Render]] = {}
    for render in renders:
        if render.key in lifetimes:
            by_key.setdefault(render.key, []).append(render)
    sizes = [size for key, some in by_key.items() for size in _sizes(some, lifetimes[key], since)]
    return Windows(sum(sizes), len(sizes), max(sizes, default=0))


def _sizes(renders: Sequence[Render], lifetime: float, since: float) -> list[int]:
    sizes: list[int] = []
    counted: list[bool] = []
    stale, made = -math.inf, True
    for render in renders:
        # What was not stored has renewed nothing: the next one is for the same window.
        if render.began >= stale - NOISE and made:
            sizes.append(0)
            counted.append(render.began >= since)
            made = False
        sizes[-1] += 1
        if render.stored:
            stale, made = render.ended + lifetime, True
    return [size for size, wanted in zip(sizes, counted, strict=True) if wanted]


def keys(host: str, lifetimes: Mapping[str, float], namespace: str = "default", release: str = "") -> dict[str, float]:
    """The lifetimes of pages by their keys in the store instead of by their paths."""
    space = Keyspace(namespace, release)
    return {space.page(PageKey("http", host, "", path).text): float(seconds) for path, seconds in lifetimes.items()}
