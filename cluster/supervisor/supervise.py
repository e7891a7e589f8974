"""The parts of a cluster, the order of their start and end, and the loop that carries out orders meanwhile."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..chaos.workload.tethered import Tethered
from ..errors import NoSuchPart
from ..parts import processes
from ..parts.gunicorn import Instance, SharedOptions
from ..parts.link import Link
from ..parts.memcached import Node
from ..parts.nginx import Balancer
from ..parts.part import Part, program
from . import control, keeper
from .state import Directory, PartState, State
from .topology import Topology, uncached

_PartT = TypeVar("_PartT", bound=Part)


class Cluster:
    """Run a cluster until the block ends: ``with Cluster(...) as cluster:``.

    Enter it in a thread that outlives the block: the parts die with their thread.

    :param say: called with each message, one line.
    :param prepare: creates the app's data, once the directory is owned and empty.
    """

    def __init__(
        self,
        topology: Topology,
        directory: Directory,
        say: Callable[[str], None] = lambda _line: None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.topology = topology
        self.directory = directory
        self.say = say
        self._prepare = prepare
        self.nodes: list[Node] = []
        self.links: list[Link] = []
        self.instances: list[Instance] = []
        #: The process that fills the nodes' memory.
        self.pressure: Tethered[bytes] | None = None
        self._parts: list[Part] = []
        self._ready = False
        #: Whether the app is wrapped in ISR.
        self.is_cached = True
        self._known_dead: set[str] = set()

    def __enter__(self) -> Cluster:
        self._owned = self.directory.owned()
        self._owned.__enter__()
        try:
            self._prepare()
            self._make()
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    # Start --------------------------------------------------------------------------------------------

    def _make(self) -> None:
        """Create every part with its port; none runs yet."""
        topology = self.topology

        def log(name: str) -> Path:
            return self.directory.logs / f"{name}.log"

        program("memcached")
        program("nginx")
        for number in range(1, topology.nodes + 1):
            node = self._add(
                Node(
                    f"node-{number}",
                    log(f"node-{number}"),
                    megabytes=topology.megabytes,
                    arguments=topology.node_arguments,
                )
            )
            self.nodes.append(node)
        if topology.network:
            for node in self.nodes:
                name = node.name.replace("node", "network")
                self.links.append(self._add(Link(name, log(name), node.port)))
        reached: Sequence[Part] = self.links or self.nodes
        query = f"?{topology.store_options}" if topology.store_options else ""
        self.store = f"memcached://{','.join(part.address for part in reached)}{query}"
        options = SharedOptions(
            topology.app,
            self.store,
            Path.cwd(),
            self.directory.renders,
            topology.workers,
            env={"WSGI_ISR_JOURNAL": str(self.directory.journal), **topology.env},
            preload=topology.preload,
        )
        for number in range(1, topology.instances + 1):
            name = f"instance-{number}"
            self.instances.append(self._add(Instance(name, log(name), options)))
        addresses = {instance.name: instance.address for instance in self.instances}
        self.balancer = self._add(
            Balancer(
                "balancer",
                log("balancer"),
                self.directory.path,
                addresses,
                topology.port,
                read_timeout=topology.read_timeout,
            )
        )
        self.is_cached = options.check()
        if not self.is_cached:
            self.say(uncached(topology.app))

    def _add(self, part: _PartT) -> _PartT:
        self._parts.append(part)
        return part

    def _start(self) -> None:
        """Start nodes, then instances, then the balancer; those of a kind together."""
        self.save()
        for several in (self.nodes, self.links, self.instances, [self.balancer]):
            for part in several:
                part.launch()
            for part in several:
                part.wait_until_ready()
            self.save()
        self._ready = True
        self.save()

    # Inspection --------------------------------------------------------------------------------------

    @property
    def parts(self) -> Sequence[Part]:
        """Return all parts, in the order of their start."""
        return self._parts

    @property
    def url(self) -> str:
        """Return the URL for visitors."""
        return self.balancer.url

    def part(self, name: str) -> Part:
        """Return the part of that name. :raises NoSuchPart: there is none."""
        for part in self._parts:
            if part.name == name:
                return part
        raise NoSuchPart(f"there is no part {name!r}: {', '.join(part.name for part in self._parts)}")

    def instance(self, name: str) -> Instance:
        """Return the instance of that name. :raises NoSuchPart: it is no instance."""
        return self._one_of(self.instances, name, "instance")

    def node(self, name: str) -> Node:
        """Return the node of that name. :raises NoSuchPart: it is no node."""
        return self._one_of(self.nodes, name, "node")

    def link(self, node: str) -> Link:
        """Return the proxy in front of a node. :raises NoSuchPart: there is no such node, or no proxy."""
        if not self.links:
            raise NoSuchPart("nothing is between instances and nodes here: python -m cluster up --network")
        return self.links[self.nodes.index(self.node(node))]

    def _one_of(self, several: Sequence[_PartT], name: str, what: str) -> _PartT:
        for part in several:
            if part.name == name:
                return part
        raise NoSuchPart(f"{name!r} is no {what}: {', '.join(part.name for part in several)}")

    def save(self) -> None:
        """Write the state for other terminals."""
        me = processes.look_at(os.getpid())
        assert me is not None
        states = []
        for part in self._parts:
            leader = part.leader
            pid, started = (leader.pid, leader.started) if leader else (0, 0)
            states.append(PartState(part.name, part.role, part.address, str(part.log), pid, started))
        kept_by = keeper.kept_by
        self.directory.write(
            State(
                me.pid,
                me.started,
                self.topology.app,
                self.url,
                self.store,
                self._ready,
                tuple(states),
                (kept_by.pid, kept_by.started) if kept_by else (0, 0),
                self.is_cached,
            )
        )

    def note(self, what: str, part: str = "", **more: object) -> None:
        """Note an event of a part, for plots and other terminals."""
        try:
            self.directory.note({"what": what, "part": part, **more})
            self.save()
        except OSError as error:  # the event happened all the same; a full disk does not end the cluster
            self.say(f"{what} {part} is not noted: {error.strerror}")

    def watch(self) -> None:
        """Report parts that have ended unasked since the last call."""
        for part in self._parts:
            code = part.exit_code()
            if code is None:
                self._known_dead.discard(part.name)
            elif part.name not in self._known_dead:
                self._known_dead.add(part.name)
                how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
                self.say(f"{part.name} has ended ({how}): python -m cluster restart {part.name}")
                self.note("ended", part.name)

    def relieve(self) -> None:
        """End the pressure upon the nodes; do nothing where there is none."""
        if self.pressure is not None:
            # The process may have ended by itself, together with a node that was killed.
            self.pressure.end()
            self.pressure = None

    # End ----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """End the balancer, then the instances together, then the nodes and links that they need."""
        try:
            self.relieve()
            balancers = [part for part in self._parts if isinstance(part, Balancer)]
            stages: list[Sequence[Part]] = [balancers, self.instances, self.links, self.nodes]
            for several in stages:
                for part in several:
                    part.ask_to_stop()
                for part in several:
                    part.wait_for_stop()
        finally:
            for part in self._parts:
                part.close()
            self._owned.__exit__(None, None, None)


def serve(cluster: Cluster, carry_out: Callable[[Cluster, control.Order], str]) -> None:
    """Carry out the orders of other terminals until an order or a signal asks to end."""
    with control.listen(cluster.directory.control) as listener:
        looked = 0.0
        while True:
            if select.select([listener], [], [], 0.2)[0]:
                control.answer(listener, lambda order: carry_out(cluster, order))
            if time.monotonic() - looked > 0.2:
                cluster.watch()
                looked = time.monotonic()
