"""The lifetime of a page or of data."""

from __future__ import annotations

from typing import NamedTuple

#: The ``revalidate`` of pages whose own headers set their lifetime.
AUTO = "auto"

#: The profiles of Next.js: ``revalidate`` and ``expire``, in seconds.
PROFILES: dict[str, tuple[float, float]] = {
    "seconds": (1, 60),
    "minutes": (60, 3600),
    "hours": (3600, 86400),
    "days": (86400, 604800),
    "weeks": (604800, 2592000),
    "max": (2592000, 31536000),
}


class Lifetime(NamedTuple):
    """``revalidate`` and ``expire`` as ages in seconds; ``None`` for never."""

    revalidate: float | None
    expire: float | None

    def lowest(self, revalidate: float | None = None, expire: float | None = None) -> Lifetime:
        """Return the lower value of each; ``None`` is the longest. The lowest wins, as in Next.js."""
        return Lifetime(_lower(self.revalidate, revalidate), _lower(self.expire, expire))


def _lower(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)
