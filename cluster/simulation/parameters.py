"""Parameters of a simulation."""

from __future__ import annotations

from dataclasses import dataclass, fields

from wsgi_isr.cache.tag_versions import Mode

#: Requests that are simulated one by one, by default: about ten seconds of work.
BUDGET = 500_000

#: Seconds that a lock outlives its owner (``wsgi_isr.config.rules.Policy.lease``, for the default ``render_timeout``).
LEASE = 5.0


class BadParameter(ValueError):
    """An impossible value; the message names the parameter."""


@dataclass(frozen=True)
class Parameters:
    """A cluster and its visitors. Times are in seconds, rates per second and for the whole cluster.

    :param zipf: the exponent of popularity; 0 makes all pages equally popular.
    :param revalidate: ``None`` for until invalidated.
    :param render: how long a render takes.
    :param failing: the share of renders that fail.
    :param invalidations: calls of ``invalidate``, of one tag each.
    :param fan_out: pages with one tag.
    :param local_cache_bytes: of L1, in each process.
    :param page_bytes: of one page.
    :param cold: start with an empty store; otherwise every page is stored, at an age as if the load had
        always been there.
    :param follow: processes that are followed request by request; ``None`` for as many as fit into
        :data:`BUDGET` requests.
    """

    instances: int = 4
    workers: int = 2
    nodes: int = 3
    pages: int = 10_000
    zipf: float = 1.0
    rate: float = 1000.0
    revalidate: float | None = 60.0
    expire: float | None = None
    coherence: float = 0.1
    render: float = 0.2
    failing: float = 0.0
    invalidations: float = 0.0
    fan_out: int = 100
    mode: Mode = Mode.EXPIRE
    local_cache_bytes: int = 64 * 1024 * 1024
    page_bytes: int = 20_000
    wait: float = 10.0
    cold: bool = False
    duration: float = 60.0
    seed: int = 1
    follow: int | None = None

    def __post_init__(self) -> None:
        above_zero = ("instances", "workers", "nodes", "pages", "rate", "fan_out", "duration", "page_bytes")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and field.name != "seed":
                if value < 0 or value != value or value == float("inf"):
                    raise BadParameter(f"{field.name}={value}: it cannot be negative or endless")
                if value == 0 and field.name in above_zero:
                    raise BadParameter(f"{field.name}=0: there has to be something")
        if self.follow == 0:
            raise BadParameter("follow=0: at least one process has to be followed")
        if self.revalidate == 0:
            raise BadParameter("revalidate=0: such pages are never cached, and there is nothing to simulate")
        if self.expire is not None and self.expire < (self.revalidate or 0):
            raise BadParameter(f"expire={self.expire:g} is below revalidate={self.revalidate:g}")
        if self.failing > 1:
            raise BadParameter(f"failing={self.failing:g}: it is a share, 1 at the most")

    @property
    def processes(self) -> int:
        """Return the number of workers of all instances."""
        return self.instances * self.workers

    @property
    def tags(self) -> int:
        """Return how many tags can be invalidated; each page has one of them."""
        return max(1, self.pages // self.fan_out)

    @property
    def followed(self) -> int:
        """Return how many processes are followed request by request."""
        if self.follow is not None:
            return min(self.follow, self.processes)
        fits = int(self.processes * BUDGET / (self.rate * self.duration))
        return min(self.processes, max(1, fits))
