"""Faults for a running cluster, by name: for other terminals, and for :mod:`cluster.chaos`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import ClusterError, NotInstalled
from ..parts.gunicorn import Instance
from ..supervisor.control import Order
from ..supervisor.supervise import Cluster
from .workload.tethered import Tethered

#: Debian's path of the library that shifts a process's clock; paths of other systems are not searched.
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def kill(cluster: Cluster, part: str) -> str:
    """Send SIGKILL to all processes of a part. The part stays dead until it is restarted."""
    target = cluster.part(part)
    if target.state == "dead":
        raise ClusterError(f"{part} does not run: restart it")
    target.kill()
    return f"{part} is dead"


def kill_worker(cluster: Cluster, instance: str, number: int = 0) -> str:
    """Send SIGKILL to one worker of an instance, whose master starts another one."""
    target = cluster.instance(instance)
    return _kill_one(target, "worker", target.workers(), number)


def kill_renderer(cluster: Cluster, instance: str, number: int = 0) -> str:
    """Send SIGKILL to one renderer of an instance, in the middle of a render."""
    target = cluster.instance(instance)
    return _kill_one(target, "renderer", target.renderers(), number)


def _kill_one(instance: Instance, kind: str, pids: Sequence[int], number: int) -> str:
    if not pids:
        raise ClusterError(f"{instance.name} has no {kind} now")
    pid = pids[number % len(pids)]
    instance.kill_process(pid)
    return f"{kind} {pid} of {instance.name} is dead"


def pause(cluster: Cluster, part: str) -> str:
    """Send SIGSTOP: the kernel accepts connections; no process answers."""
    cluster.part(part).pause()
    return f"{part} hangs"


def resume(cluster: Cluster, part: str) -> str:
    """Send SIGCONT."""
    cluster.part(part).resume()
    return f"{part} goes on"


def restart(cluster: Cluster, part: str) -> str:
    """Stop a part gracefully, if it runs, and start it."""
    target = cluster.part(part)
    target.restart()
    for link, node in zip(cluster.links, cluster.nodes, strict=False):
        if link is target:
            cluster.note("heal", node.name)
    return f"{part} runs, pid {target.pid}"


def flush(cluster: Cluster, node: str) -> str:
    """Drop all items of a node."""
    cluster.node(node).flush()
    return f"{node} is empty"


def cut(cluster: Cluster, node: str) -> str:
    """Cut a node off: connections to it break, and are refused."""
    cluster.link(node).cut()
    return f"{node} is cut off"


def swallow(cluster: Cluster, node: str) -> str:
    """Cut a node off silently: the proxy accepts bytes for it and discards them."""
    cluster.link(node).swallow()
    return f"requests to {node} are lost"


def slow(cluster: Cluster, node: str, seconds: float = 0.1) -> str:
    """Delay each answer of a node by a random time of at most ``seconds``."""
    cluster.link(node).slow(seconds)
    return f"{node} answers up to {seconds:g} s late"


def heal(cluster: Cluster, node: str) -> str:
    """End ``cut``, ``swallow`` and ``slow``."""
    cluster.link(node).heal()
    return f"{node} can be reached"


def press(cluster: Cluster, rate: int = 10_000) -> str:
    """Fill every node with ``rate`` small keys per second, until ``relieve``: other keys are evicted."""
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
    """Let nginx read its configuration again."""
    cluster.balancer.reload()
    return "the balancer has reloaded"


def roll(cluster: Cluster, release: str) -> str:
    """Deploy a release: restart each instance in turn with it. Instances adopt the pages of the previous release."""
    for instance in cluster.instances:
        began = time.monotonic()
        set_release(instance, release)
        instance.restart()
        cluster.note("restart", instance.name, began=began)
    return f"every instance is of release {release}"


def set_release(instance: Instance, release: str) -> None:
    """Set an instance's release from its next start on. It adopts the pages of the previous release."""
    instance.env |= {"WSGI_ISR_RELEASE": release}


def shift_clock(cluster: Cluster, instance: str, seconds: float) -> str:
    """Restart an instance with a clock that is wrong by ``seconds``; 0 for the right time."""
    target = cluster.instance(instance)
    set_clock(target, seconds)
    target.restart()
    return f"the clock of {instance} is {seconds:+g} s off" if seconds else f"the clock of {instance} is right"


def set_clock(instance: Instance, seconds: float) -> None:
    """Shift an instance's clock by ``seconds``, from its next start on.

    :raises NotInstalled: libfaketime is not installed.
    """
    for name in ("LD_PRELOAD", "FAKETIME"):
        instance.env.pop(name, None)
    if seconds:
        if not FAKETIME.exists():
            raise NotInstalled("clocks cannot be shifted: apt-get install libfaketime")
        instance.env |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{seconds:+g}s"}


FAULTS: Mapping[str, Callable[..., str]] = {
    fault.__name__: fault
    for fault in (
        *(kill, kill_worker, kill_renderer, pause, resume, restart, flush, cut, swallow, slow, heal),
        *(press, relieve, reload, roll, shift_clock),
    )
}


def carry_out(cluster: Cluster, order: Order) -> str:
    """Carry out an order from another terminal, which names a fault and its arguments."""
    name, arguments = str(order.get("do")), order.get("with", {})
    if name not in FAULTS:
        raise ClusterError(f"the supervisor does not know {name!r}")
    return strike(cluster, name, **arguments)


def strike(cluster: Cluster, name: str, **arguments: object) -> str:
    """Inject a fault, note its time and its part, and return the result in words."""
    began = time.monotonic()
    result = FAULTS[name](cluster, **arguments)
    targets = {"reload": "balancer", "roll": "instances", "press": "nodes", "relieve": "nodes"}
    part = targets.get(name) or str(next(iter(arguments.values())))
    cluster.note(name, part, began=began, **({"release": arguments["release"]} if name == "roll" else {}))
    cluster.say(result)
    return result
