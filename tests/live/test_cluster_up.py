"""``python -m cluster``: a cluster is started, inspected, broken and ended, and none of its processes is left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.load.request import fetch
from cluster.parts import processes
from cluster.supervisor.state import State
from tests.live.support.command import ROOT, SMALL, Command, left
from tests.live.support.waiting import until


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, State]]:
    """Run a cluster for tests that leave it unchanged."""
    command = Command(tmp_path_factory.mktemp("running"))
    with command.running("--network") as state:
        yield command, state


def port_of(state: State) -> int:
    return int(state.url.rpartition(":")[2])


def test_every_step_of_the_check_holds(tmp_path: Path) -> None:
    run = Command(tmp_path).run("check")
    assert run.returncode == 0, run.stdout + run.stderr
    steps = re.findall(r"^ok +([A-Z]+)", run.stdout, re.MULTILINE)
    assert steps == ["UP", "HITS", "DEAD", "HANGS", "NODE", "EDITS", "DOWN", "GONE"]
    assert {f"X-Instance: instance-{number}" for number in (1, 2, 3)} <= set(re.findall(r"X-Instance: \S+", run.stdout))


def test_a_check_that_is_ended_leaves_no_cluster_behind(tmp_path: Path) -> None:
    with Command(tmp_path, TMPDIR=str(tmp_path)).begun("check") as check:
        until(lambda: "memcached" in {process.name for process in processes.descendants(check.pid)}, "its cluster")
        everything = processes.descendants(check.pid)
        os.kill(check.pid, signal.SIGTERM)
        said, _ = check.communicate(timeout=60)
    assert said == "stopped before its end; nothing is left\n"
    assert left(everything) == []
    assert list(tmp_path.glob("cluster-check-*")) == []


@pytest.mark.parametrize("asked_by", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_shows_what_runs_and_ends_when_asked(asked_by: signal.Signals, tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.in_the_foreground() as up:
        state, everything = command.directory.read(), command.everything()
        assert fetch(port_of(state), "/about").status == 200
        # As the terminal does it for Ctrl-C: to all in the foreground.
        os.killpg(up.pid, asked_by)
        said, _ = up.communicate(timeout=30)
        assert up.returncode == 0, said
    for part in state.parts:
        assert re.search(rf"^{part.name} +{part.role} +{part.address} +{part.pid} +running$", said, re.MULTILINE)
    assert f"{state.url}/" in said
    assert left(everything) == []
    assert command.run("status").returncode == 1


@pytest.mark.parametrize("killed", ["the supervisor", "who keeps it", "both"])
def test_nothing_is_left_after_a_kill_9_even_of_what_hangs(killed: str, tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.running():
        command.done("pause", "instance-1")
        command.done("pause", "node-1")
        everything = command.everything()
        keeper, supervisor = everything[:2]
        for process in {"the supervisor": [supervisor], "who keeps it": [keeper]}.get(killed, [keeper, supervisor]):
            os.kill(process.pid, signal.SIGKILL)
        until(lambda: not left(everything), "the end of everything")
        assert command.run("status").returncode == 1
        if killed == "both":  # the next cluster can start at once
            command.done("up", "--detach", *SMALL)


def test_a_part_is_killed_and_restarted_at_its_address(running: tuple[Command, State]) -> None:
    command, before = running
    for name in ("node-1", "instance-1", "balancer"):
        command.done("kill", name)
        assert command.directory.read().part(name).state == "dead"
        command.done("restart", name)
        part = command.directory.read().part(name)
        assert (part.state, part.address) == ("running", before.part(name).address)
        assert part.pid != before.part(name).pid
    assert fetch(port_of(before), "/about").status == 200


def test_what_is_dead_cannot_be_killed_again_and_status_exits_with_1(running: tuple[Command, State]) -> None:
    command, _ = running
    command.done("kill", "node-2")
    again = command.run("kill", "node-2")
    assert (again.returncode, again.stderr) == (1, "node-2 does not run: restart it\n")
    again = command.run("flush", "node-2")
    assert (again.returncode, again.stderr) == (1, "node-2 does not run: restart it\n")
    assert command.run("status").returncode == 1
    command.done("restart", "node-2")


def test_a_part_hangs_until_it_is_resumed(running: tuple[Command, State]) -> None:
    command, _ = running
    command.done("pause", "instance-2")
    assert command.directory.read().part("instance-2").state == "paused"
    command.done("pause", "node-1")
    hung = command.run("flush", "node-1")
    assert (hung.returncode, hung.stderr) == (1, "node-1 hangs: resume it\n")
    command.done("resume", "node-1")
    command.done("resume", "instance-2")
    assert command.directory.read().part("instance-2").state == "running"


def test_status_tells_machines_what_it_tells_people(running: tuple[Command, State]) -> None:
    command, state = running
    read = json.loads(command.done("status", "--json"))
    assert read["url"] == state.url
    assert read["store"] == f"memcached://{state.part('network-1').address},{state.part('network-2').address}"
    named = ["node-1", "node-2", "network-1", "network-2", "instance-1", "instance-2", "balancer"]
    assert [(part["name"], part["state"]) for part in read["parts"]] == [(name, "running") for name in named]


def test_an_answer_names_the_instance_that_gave_it(running: tuple[Command, State]) -> None:
    _, state = running
    named: dict[str, str] = {}

    def both_have_answered() -> bool:
        answer = fetch(port_of(state), "/about")
        assert answer.status == 200
        named[answer["X-Instance"]] = answer["X-Upstream"]
        return len(named) == 2

    # After an error, perhaps of the previous test, the balancer avoids an instance for two seconds.
    until(both_have_answered, "an answer of each instance")
    assert named == {name: state.part(name).address for name in ("instance-1", "instance-2")}


def test_orders_of_several_terminals_come_one_after_the_other(running: tuple[Command, State]) -> None:
    command, state = running
    orders = [("flush", "node-1"), ("pause", "node-2"), ("restart", "instance-1"), ("reload",), ("kill", "instance-2")]
    with ThreadPoolExecutor(len(orders)) as terminals:
        runs = list(terminals.map(lambda order: command.run(*order), orders))
    assert [run.returncode for run in runs] == [0] * len(orders), [run.stderr for run in runs]
    now = command.directory.read()
    states = {part.name: part.state for part in now.parts if part.state != "running"}
    assert states == {"node-2": "paused", "instance-2": "dead"}
    assert now.part("instance-1").pid != state.part("instance-1").pid
    command.done("resume", "node-2")
    command.done("restart", "instance-2")


def test_a_node_can_be_cut_off_and_its_pages_are_served_all_the_same(running: tuple[Command, State]) -> None:
    command, state = running
    assert command.done("cut", "node-1") == "node-1 is cut off\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(state.part("network-1").address.rpartition(":")[2])))
    assert fetch(port_of(state), "/about").status == 200
    command.done("heal", "node-1")
    command.done("slow", "node-1", "0.01")
    command.done("heal", "node-1")


def test_a_rolling_restart_is_no_visitors_problem(running: tuple[Command, State]) -> None:
    command, state = running
    with ThreadPoolExecutor(1) as terminal:
        roll = terminal.submit(command.done, "roll", "2024-06-01")
        answers = []
        while not roll.done():
            answers.append(fetch(port_of(state), "/about"))
    assert roll.result() == "every instance is of release 2024-06-01\n"
    assert {answer.status for answer in answers} == {200}


def test_logs_are_those_of_all_parts_or_of_one(running: tuple[Command, State]) -> None:
    command, _ = running
    every = command.done("logs", "-n", "1000")
    assert re.search(r"^instance-1  .*Listening at: ", every, re.MULTILINE)
    assert "instance-2  " in every
    one = command.done("logs", "instance-2")
    assert "Booting worker" in one
    assert "instance-1" not in one


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ("kill", "instance-9"),
            2,
            "there is no part 'instance-9': node-1, node-2, network-1, network-2, instance-1, ",
        ),
        (("flush", "instance-1"), 2, "'instance-1' is no node: node-1, node-2"),
        (("logs", "nobody"), 2, "there is no part 'nobody': "),
        (("resume", "balancer", "now"), 2, "Usage: "),
        (("up", "--port", "0"), 1, "a cluster runs in .* already: "),
        (("up", "--port", "0", "--detach"), 1, "a cluster runs in .* already: "),
        (("up", "--nodes", "0"), 2, "Usage: "),
        (("up", "--read-timeout", "nan"), 2, "Usage: "),
        (("load", "--plot", "plot.jpeg"), 2, "Usage: "),
        (("load", "--path", "nothing"), 2, "Usage: "),
        (("load", "--seconds", "nan"), 2, "Usage: "),
        (("slow", "node-1", "nan"), 2, "Usage: "),
    ],
)
def test_an_error_says_what_to_do(
    arguments: tuple[str, ...], code: int, said: str, running: tuple[Command, State]
) -> None:
    run = running[0].run(*arguments)
    assert run.returncode == code, run.stderr
    assert re.match(said, run.stderr), run.stderr
    if not said.startswith("Usage"):
        assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("status",), ("down",), ("kill", "node-1"), ("load",), ("logs",)])
def test_where_no_cluster_runs_it_says_how_to_start_one(arguments: tuple[str, ...], tmp_path: Path) -> None:
    run = Command(tmp_path).run(*arguments)
    assert run.returncode == 1
    assert re.fullmatch(r"no cluster (has run|runs) in \S+: python -m cluster up\n", run.stderr), run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--app", "nowhere:app"), "the app nowhere:app cannot be imported from .*: .*No module named 'nowhere'\n"),
        (("--app", "examples.blog_flask:nothing"), "the app examples.blog_flask:nothing cannot be imported from .*\n"),
        (("--app", "os:sep"), "the app os:sep cannot be imported from .*callable.*\n"),
    ],
)
@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["in the foreground", "detached"])
def test_what_cannot_start_says_why_in_one_line(
    arguments: tuple[str, ...], said: str, detach: tuple[str, ...], tmp_path: Path
) -> None:
    run = Command(tmp_path).run("up", *SMALL, *arguments, *detach)
    assert run.returncode == 1
    assert re.fullmatch(said, run.stderr), run.stderr


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = Command(tmp_path).run("up", *SMALL, "--port", port)
    assert run.returncode == 1
    assert run.stderr == f"port {port} cannot be used (Address already in use): choose another one with --port\n"


def test_an_app_without_a_cache_is_served_and_that_is_said(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.in_the_foreground("--app", "tests.live.support.origin:origin") as up:
        command.done("down")
        said, _ = up.communicate(timeout=30)
    assert (
        "is not wrapped in ISR, so nothing is cached: "
        "--app \"wsgi_isr:wrap('tests.live.support.origin:origin', revalidate=60)\"" in said
    )


def test_a_part_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.in_the_foreground() as up:
        os.kill(command.directory.read().part("node-2").pid, signal.SIGKILL)
        until(lambda: command.directory.read().part("node-2").state == "dead", "a dead node")
        until(lambda: any(event["what"] == "ended" for event in command.directory.noted()), "a note of that")
        command.done("down")
        said, _ = up.communicate(timeout=30)
    assert "node-2 has ended (SIGKILL): python -m cluster restart node-2" in said


def test_a_supervisor_that_hangs_is_ended_by_down(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.running():
        everything = command.everything()
        os.kill(everything[1].pid, signal.SIGSTOP)
        command.done("down")
        assert left(everything) == []


def test_a_cluster_that_was_stopped_in_its_terminal_is_ended_by_down(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.in_the_foreground() as up:
        everything = command.everything()
        os.killpg(up.pid, signal.SIGSTOP)  # as Ctrl-Z does, to the keeper and the supervisor
        command.done("down")
        assert left(everything) == []


def test_ctrl_c_ends_what_is_started_in_the_background(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.begun("up", "--detach", *SMALL) as up:
        until(command.directory.is_owned, "a cluster that starts")
        os.killpg(up.pid, signal.SIGINT)
        said, _ = up.communicate(timeout=60)
    assert (up.returncode, said) == (1, "stopped; nothing is left\n")
    assert not command.directory.is_owned()


def test_ctrl_c_before_anything_is_there_is_no_traceback() -> None:
    interrupted = "import os, signal, sys; from cluster.supervisor import keeper\n"
    interrupted += "sys.exit(keeper.keep(lambda: os.kill(os.getpid(), signal.SIGINT)))"
    run = subprocess.run([sys.executable, "-c", interrupted], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, "stopped before its end; nothing is left\n")


def test_a_cluster_goes_on_where_nobody_reads_what_it_says(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.begun("up", *SMALL) as up:
        assert up.stdout is not None
        up.stdout.close()  # before its first output
        until(command.directory.is_ready, "a cluster that is ready")
        assert command.done("kill", "node-2") == "node-2 is dead\n"
        os.kill(command.directory.read().part("node-1").pid, signal.SIGKILL)
        until(lambda: any(event["what"] == "ended" for event in command.directory.noted()), "a note of that")
        assert command.done("restart", "node-1").startswith("node-1 runs")
        command.done("down")
        assert up.wait(30) == 0


def test_whoever_follows_logs_sees_those_of_the_next_cluster_too(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.running(), command.begun("logs", "--follow") as follow:
        assert follow.stdout is not None
        command.done("down")
        command.done("up", "--detach", *SMALL, "--instances", "3")
        for line in follow.stdout:
            if line.startswith("instance-3  ") and "Booting worker" in line:
                break
        else:
            raise AssertionError("it has ended")
        os.killpg(follow.pid, signal.SIGINT)


@pytest.mark.parametrize("arguments", [("status",), ("up",), ("up", "--detach"), ("chaos",), ("load",)])
def test_a_directory_that_cannot_be_is_said_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = Command(tmp_path / "file").run(*arguments)
    assert run.returncode == 1
    assert re.fullmatch(r".*Not a directory.*\n", run.stderr), run.stderr


def test_a_plot_of_a_simulation_that_cannot_be_written_is_said_in_one_line_after_its_figures(tmp_path: Path) -> None:
    run = Command(tmp_path).run("simulate", "--duration", "1", "--svg", str(tmp_path / "nowhere" / "plot.svg"))
    assert run.returncode == 1
    assert "renders per window" in run.stdout
    assert re.fullmatch(r".*nowhere/plot.svg.*: No such file or directory\n", run.stderr), run.stderr
