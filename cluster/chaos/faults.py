"""What can be done to a running cluster, by name: for other terminals, and for :mod:`.chaos`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import ClusterError, NotHere
from ..parts.gunicorn import Instance
from ..supervisor.control import Order
from ..supervisor.supervise import Cluster
from .workload.tethered import Tethered

#: Where Debian has the library that shifts a process's clock; other systems' are not looked for.
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def kill(cluster: Cluster, part: str) -> str:
    """SIGKILL for all processes of a part. It stays dead until it is restarted."""
    target = cluster.part(part)
    if target.state == "dead":
        raise ClusterError(f"{part} does not run: restart it")
    target.kill()
    return f"{part} is dead"


def kill_worker(cluster: Cluster, instance: str, number: int = 0) -> str:
    """SIGKILL for one worker of an instance, whose master starts another one."""
    target = cluster.instance(instance)
    workers = target.workers()
    if not workers:
        raise ClusterError(f"{instance} has no worker now")
    worker = workers[number % len(workers)]
    target.kill_process(worker)
    return f"worker {worker} of {instance} is dead"


def kill_renderer(cluster: Cluster, instance: str, number: int = 0) -> str:
    """SIGKILL for one renderer of an instance, in the middle of what it renders."""
    target = cluster.instance(instance)
    renderers = target.renderers()
    if not renderers:
        raise ClusterError(f"{instance} has no renderer now")
    renderer = renderers[number % len(renderers)]
    target.kill_process(renderer)
    return f"renderer {renderer} of {instance} is dead"


def pause(cluster: Cluster, part: str) -> str:
    """SIGSTOP: connections are taken, and nobody answers."""
    cluster.part(part).pause()
    return f"{part} hangs"


def resume(cluster: Cluster, part: str) -> str:
    """SIGCONT."""
    cluster.part(part).resume()
    return f"{part} goes on"


def restart(cluster: Cluster, part: str) -> str:
    """Stop a part as it wants to be stopped, if it runs, and start it."""
    target = cluster.part(part)
    target.restart()
    for link, node in zip(cluster.links, cluster.nodes, strict=False):
        if link is target:
            cluster.note("heal", node.name)
    return f"{part} runs, pid {target.pid}"


def flush(cluster: Cluster, node: str) -> str:
    """A node forgets everything."""
    cluster.node(node).flush()
    return f"{node} is empty"


def cut(cluster: Cluster, node: str) -> str:
    """A node is cut off: connections to it break, and are refused."""
    cluster.link(node).cut()
    return f"{node} is cut off"


def swallow(cluster: Cluster, node: str) -> str:
    """A node is cut off, and nobody is told: what is sent to it goes nowhere."""
    cluster.link(node).swallow()
    return f"what is sent to {node} goes nowhere"


def slow(cluster: Cluster, node: str, seconds: float = 0.1) -> str:
    """Each answer of a node takes a random time more, of at most so many seconds."""
    cluster.link(node).slow(seconds)
    return f"{node} answers up to {seconds:g} s late"


def heal(cluster: Cluster, node: str) -> str:
    """End ``cut``, ``swallow`` and ``slow``."""
    cluster.link(node).heal()
    return f"{node} can be reached"


def press(cluster: Cluster, rate: int = 10_000) -> str:
    """Fill every node with so many small keys in a second, until ``relieve``: other keys are evicted."""
    if cluster.pressure is not None:
        raise ClusterError("the nodes are under pressure already")
    env = {"CLUSTER_NODES": ",".join(str(node.port) for node in cluster.nodes), "CLUSTER_RATE": str(rate)}
    pressure = Tethered("pressure", "cluster.chaos.workload.pressure", cluster.directory.logs, env, bytes)
    cluster.pressure = pressure.__enter__()
    return f"every node gets {rate} small keys in a second"


def relieve(cluster: Cluster) -> str:
    """End ``press``."""
    cluster.relieve()
    return "the nodes are under no pressure"


def reload(cluster: Cluster) -> str:
    """nginx reads its configuration again."""
    cluster.balancer.reload()
    return "the balancer has reloaded"


def roll(cluster: Cluster, release: str) -> str:
    """A rolling deploy: each instance in turn is restarted with that release of the app, and adopts the pages of the
    one before."""
    for instance in cluster.instances:
        began = time.monotonic()
        set_release(instance, release)
        instance.restart()
        cluster.note("restart", instance.name, began=began)
    return f"every instance is of release {release}"


def set_release(instance: Instance, release: str) -> None:
    """From its next start on, an instance is of that release. It adopts the pages of the one before, which is found in
    the store."""
    instance.env |= {"WSGI_ISR_RELEASE": release}


def shift_clock(cluster: Cluster, instance: str, seconds: float) -> str:
    """Restart an instance whose clock is wrong by so many seconds; by 0, whose is right again."""
    target = cluster.instance(instance)
    set_clock(target, seconds)
    target.restart()
    return f"the clock of {instance} is {seconds:+g} s off" if seconds else f"the clock of {instance} is right"


def set_clock(instance: Instance, seconds: float) -> None:
    """From its next start on, an instance's clock is wrong by so many seconds.

    :raises NotHere: the library that it takes is not there.
    """
    for name in ("LD_PRELOAD", "FAKETIME"):
        instance.env.pop(name, None)
    if seconds:
        if not FAKETIME.exists():
            raise NotHere("clocks cannot be shifted: apt-get install libfaketime")
        instance.env |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{seconds:+g}s"}


FAULTS: Mapping[str, Callable[..., str]] = {
    fault.__name__: fault
    for fault in (
        *(
            kill,
            kill_worker,
            kill_renderer,
            pause,
            resume,
            restart,
            flush,
            cut,
            swallow,
            slow,
            heal,
            press,
            relieve,
            reload,
            roll,
            shift_clock,
        ),
    )
}


def carry_out(cluster: Cluster, order: Order) -> str:
    """An order from another terminal: the name of a fault and its arguments."""
    name, arguments = str(order.get("do")), order.get("with", {})
    if name not in FAULTS:
        raise ClusterError(f"the supervisor does not know {name!r}")
    return strike(cluster, name, **arguments)


def strike(cluster: Cluster, name: str, **arguments: object) -> str:
    """Do it, and note when it was done, and to which part."""
    began = time.monotonic()
    said = FAULTS[name](cluster, **arguments)
    whole = {"reload": "balancer", "roll": "instances", "press": "nodes", "relieve": "nodes"}
    part = whole.get(name) or str(next(iter(arguments.values())))
    cluster.note(name, part, began=began, **({"release": arguments["release"]} if name == "roll" else {}))
    cluster.say(said)
    return said
