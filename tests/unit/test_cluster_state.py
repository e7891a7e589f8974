"""The directory of a cluster, its lock and its state; parts, ports and the configuration of the balancer."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.chaos import faults
from cluster.chaos.history import Circumstances, Read, check
from cluster.errors import CannotStart, ClusterError, Down, NoSuchPart
from cluster.parts import part, ports, processes
from cluster.parts.memcached import Node
from cluster.parts.nginx import Balancer
from cluster.supervisor import control, topology
from cluster.supervisor.state import Directory, PartState, State
from cluster.supervisor.supervise import Cluster
from wsgi_isr import ISR
from wsgi_isr.middleware.loading import find_isr

PART = PartState("node-1", "memcached", "127.0.0.1:1", "log", 7, 8)
STATE = State(1, 2, "app", "http://127.0.0.1:3", "memcached://127.0.0.1:1", True, (PART,), (4, 5))


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "cluster")


def test_a_state_is_read_as_it_was_written(directory: Directory) -> None:
    assert State.parse(STATE.written()) == STATE
    with directory.owned():
        directory.write(STATE)
        assert Directory(directory.path).read() == STATE


def test_a_directory_belongs_to_one_cluster_at_a_time(directory: Directory) -> None:
    with directory.owned():
        with pytest.raises(CannotStart, match=r"a cluster runs in .* already"), Directory(directory.path).owned():
            pass
        assert directory.is_owned()
    assert not directory.is_owned()
    with Directory(directory.path).owned():
        assert directory.is_owned()


def test_what_somebody_else_keeps_in_a_directory_is_not_removed(directory: Directory) -> None:
    logs = directory.path / "logs"
    logs.mkdir(parents=True)
    (logs / "mine.log").write_text("dear to me")
    with pytest.raises(CannotStart, match=r"logs .* is not of a cluster: .* --directory"), directory.owned():
        pass
    assert (logs / "mine.log").read_text() == "dear to me"
    assert [path.name for path in directory.path.iterdir()] == ["logs"]


def test_what_an_earlier_cluster_has_left_is_removed(directory: Directory) -> None:
    with directory.owned():
        (directory.logs / "node-1.log").write_text("of before")
    with directory.owned():
        assert not list(directory.logs.iterdir())


def test_a_cluster_goes_on_where_what_is_done_to_it_cannot_be_written_down(directory: Directory) -> None:
    said: list[str] = []
    directory.events = Path("/dev/full")
    Cluster(topology.Topology(), directory, said.append).note("kill", "node-1")
    assert said == ["kill node-1 is not noted: No space left on device"]


def test_the_owner_of_a_directory_is_gone_however_it_ended(directory: Directory) -> None:
    def own(told: object) -> None:
        with directory.owned():
            directory.write(STATE)
            told.set()  # type: ignore[attr-defined]
            signal.pause()

    fork = multiprocessing.get_context("fork")
    told = fork.Event()
    owner = fork.Process(target=own, args=(told,))
    owner.start()
    try:
        assert told.wait(20)
        assert directory.read() == STATE
    finally:
        owner.kill()
        owner.join()
    with pytest.raises(Down, match="no cluster runs"):
        directory.read()
    with directory.owned(), pytest.raises(Down, match="just starting"):
        directory.read()  # files of the cluster before are gone


def test_who_looks_does_not_keep_anybody_from_starting(directory: Directory) -> None:
    for _ in range(50):
        with directory.owned():
            assert directory.is_owned()
        assert not directory.is_owned()


def test_a_directory_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match=r"cannot be used .* --directory"), Directory(tmp_path / "file" / "x").owned():
        pass


def test_a_process_is_its_number_and_its_start() -> None:
    me = processes.look_at(os.getpid())
    assert me is not None
    mine = PartState("me", "test", "", "", me.pid, me.started)
    assert mine.state == "running"
    assert PartState("other", "test", "", "", me.pid, me.started + 1).state == "dead"
    assert PartState("none", "test", "", "").state == "dead"
    assert processes.same(me.pid, me.started) is not None
    assert processes.same(me.pid, me.started - 1) is None


def test_an_unknown_part_is_an_error_that_names_all() -> None:
    with pytest.raises(NoSuchPart, match="there is no part 'node-9': node-1"):
        STATE.part("node-9")


# Orders


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    deep = tmp_path / ("deep" * 30)  # longer than the path of a socket may be
    deep.mkdir()
    with control.listen(deep / "control") as listener:
        yield deep / "control", listener


def carried_out(order: control.Order) -> str:
    if order["do"] == "fail":
        raise NoSuchPart("there is no such part")
    return f"done: {order['do']}"


def test_an_order_is_answered(supervisor: tuple[Path, socket.socket]) -> None:
    path, listener = supervisor
    with in_a_terminal(path, {"do": "kill"}) as answer:
        control.answer(listener, carried_out)
    assert answer == ["done: kill"]


def test_an_error_of_an_order_is_raised_where_it_was_given(supervisor: tuple[Path, socket.socket]) -> None:
    path, listener = supervisor
    with in_a_terminal(path, {"do": "fail"}) as answer:
        control.answer(listener, carried_out)
    (error,) = answer
    assert isinstance(error, NoSuchPart)


@pytest.mark.parametrize("order", [[], "kill", {"what": "kill"}, 7])
def test_an_order_that_makes_no_sense_ends_nothing(order: object, supervisor: tuple[Path, socket.socket]) -> None:
    path, listener = supervisor
    with in_a_terminal(path, order) as answer:  # type: ignore[arg-type]
        control.answer(listener, carried_out)
    (error,) = answer
    assert isinstance(error, ClusterError)
    assert str(error).startswith("it failed: ")


def test_nobody_who_listens_is_a_cluster_that_is_down(tmp_path: Path) -> None:
    with pytest.raises(Down):
        control.send(tmp_path / "control", {"do": "kill"})


def test_whoever_connects_and_says_nothing_holds_nobody_up(
    supervisor: tuple[Path, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, listener = supervisor
    monkeypatch.setattr(control, "IMPATIENCE", 0.05)
    with control._reachable(path) as name, socket.socket(socket.AF_UNIX) as silent:
        silent.connect(name)
        control.answer(listener, carried_out)
    with control._reachable(path) as name, socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(name)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        control.answer(listener, carried_out)


class in_a_terminal:
    """Give an order in another thread, and return the list that gets its result."""

    def __init__(self, path: Path, order: control.Order) -> None:
        import threading

        self._answer: list[object] = []
        self._thread = threading.Thread(target=self._send, args=(path, order))

    def _send(self, path: Path, order: control.Order) -> None:
        try:
            self._answer.append(control.send(path, order))
        except ClusterError as error:
            self._answer.append(error)

    def __enter__(self) -> list[object]:
        self._thread.start()
        return self._answer

    def __exit__(self, *_: object) -> None:
        self._thread.join()


# Parts and ports


def test_a_port_that_is_held_is_refused_and_nobody_elses_and_can_be_listened_to() -> None:
    with ports.hold() as place:
        port = place.getsockname()[1]
        assert not ports.answers(port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((ports.HOST, port))
        with ports.listener(port):
            assert ports.answers(port)
        assert not ports.answers(port)


def test_a_port_where_somebody_listens_cannot_be_held() -> None:
    with ports.hold() as place, ports.listener(place.getsockname()[1]), pytest.raises(CannotStart, match="--port"):
        ports.hold(place.getsockname()[1])


def test_a_port_that_somebody_has_taken_meanwhile_cannot_be_listened_to() -> None:
    with ports.hold() as place, ports.listener(place.getsockname()[1]), pytest.raises(CannotStart, match="in use"):
        ports.listener(place.getsockname()[1])


def test_a_program_that_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(part, "SBIN", ())
    with pytest.raises(CannotStart, match="memcached is not installed: apt-get install memcached"):
        Node("node-1").start()


def test_a_part_that_does_not_run_says_so() -> None:
    node = Node("node-1")
    assert node.state == "dead"
    assert node.group() == []
    node.kill()
    for action in (node.pause, node.resume):
        with pytest.raises(ClusterError, match="node-1 does not run"):
            action()
    node.close()


def test_a_part_that_ends_at_once_is_an_error_with_its_reason() -> None:
    node = Node("node-1", arguments=["--no-such-option"])
    with pytest.raises(CannotStart, match=r"node-1 ended with exit code \d+: "):
        node.start()
    assert node.state == "dead"
    node.close()


def test_the_balancer_knows_each_instance_twice_and_names_it(tmp_path: Path) -> None:
    instances = {"instance-1": "127.0.0.1:8001", "instance-2": "127.0.0.1:8002"}
    balancer = Balancer("balancer", tmp_path / "logs" / "balancer.log", tmp_path, instances, 0)
    written = balancer.configuration()
    balancer.close()
    for name, address in instances.items():
        assert len(re.findall(rf"server {address} .*;", written)) == 2
        assert rf"~{re.escape(address)}$ {name};" in written
    assert f"listen {balancer.address};" in written
    assert "proxy_next_upstream error timeout;" in written
    assert ("user " in written) == (os.geteuid() == 0)
    assert written.count("{") == written.count("}")


def test_everything_that_can_be_ordered_says_what_it_does() -> None:
    assert all(fault.__doc__ for fault in faults.FAULTS.values())
    with pytest.raises(ClusterError, match="does not know 'explode'"):
        faults.carry_out(None, {"do": "explode"})  # type: ignore[arg-type]


# Other parts of a cluster


def test_the_default_app_is_the_example() -> None:
    assert topology.Topology().app == "examples.blog_flask:app"


def test_an_isr_is_found_around_and_inside_an_app() -> None:
    def bare(_environ: object, _start_response: object) -> list[bytes]:
        return []

    class Framework:
        wsgi_app: object = None

    isr = ISR(bare, revalidate=60, store="memory://")
    framework = Framework()
    framework.wsgi_app = isr
    assert find_isr(isr) is isr
    assert find_isr(framework) is isr
    assert find_isr(bare) is None

    class Middleware:
        def __init__(self, wrapped: object) -> None:
            self.wrapped = wrapped

        def __call__(self, _environ: object, _start_response: object) -> list[bytes]:
            return []

    assert find_isr(Middleware(Middleware(isr))) is isr


DARK = Circumstances(coherence=0.0, dark=[(20.0, 21.0)])


@pytest.mark.parametrize("start", [19.9, 20.5, 21.0])
def test_a_balancer_may_say_that_nobody_is_there_while_nobody_is(start: float) -> None:
    assert check([Read(start, start + 0.2, 502, "", "/a")], [], DARK) == []


@pytest.mark.parametrize("read", [Read(19.0, 19.1, 502, "", "/a"), Read(20.5, 20.6, 500, "MISS", "/a")])
def test_nothing_else_excuses_a_5xx(read: Read) -> None:
    assert [violation.promise for violation in check([read], [], DARK)] == ["no 5xx"]
