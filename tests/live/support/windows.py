"""The check of "one render in each window", for a page with requests at all times."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .origin import Render
from .visitor import Answer

#: Seconds by which two busy cores may delay the first request that finds a page stale.
NOISE = 0.5


def check_one_render_in_each(
    renders: Sequence[Render], answers: Sequence[Answer], revalidate: float, noise: float = NOISE
) -> int:
    """Check that every render but the first belongs to a window of its own: the time from the moment at which a page
    is ``revalidate`` seconds old, which count from the end of its render, until it is replaced.

    :param noise: seconds after which a request must have found the page stale.
    :returns: how many windows there were, by the pages that were served stale.
    :raises AssertionError: a window with no render, with two, or with a late one.
    """
    windows = {answer.render for answer in answers if answer.verdict == "STALE"}
    assert len(renders) == 1 + len(windows), f"{len(renders)} renders for a cold start and {len(windows)} windows"
    for before, after in pairwise(renders):
        assert before.ended is not None, f"{before} never ended"
        stale = before.ended + revalidate
        assert stale - 0.05 < after.began < stale + noise, f"{after} is not in the window that begins at {stale}"
    return len(windows)
