"""The parts of a cluster, as the user chose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

DEFAULT_APP = "examples.blog_flask:app"


def uncached(app: str) -> str:
    """Return the advice for an app that is not wrapped in ``ISR``."""
    # A factory with arguments, or a call expression, must be wrapped in the code that makes the app. The advice then
    # names a placeholder.
    wrappable = app if "(" not in app.removesuffix("()") else "myapp:app"
    return (
        f"{app} is not wrapped in ISR, so nothing is cached: "
        f"--app \"wsgi_isr:wrap('{wrappable}', revalidate=60)\" wraps it"
    )


@dataclass(frozen=True)
class Topology:
    """The parts of a cluster, as the user chose them.

    :param app: ``module:attribute``, imported from the working directory.
    :param port: the port of the balancer; 0 chooses a free port.
    :param network: put a proxy in front of each node. Faults can cut the proxy and slow it down.
    :param megabytes: memory of each node for items.
    :param node_arguments: more arguments of memcached.
    :param store_options: the query of the store's URL.
    :param env: environment variables of the instances.
    :param read_timeout: seconds for which the balancer waits for an instance before it asks another instance.
    """

    nodes: int = 3
    instances: int = 3
    workers: int = 2
    app: str = DEFAULT_APP
    port: int = 0
    network: bool = False
    megabytes: int = 64
    node_arguments: Sequence[str] = ()
    store_options: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    preload: bool = False
    read_timeout: float = 12.0
