"""The commands ``wsgi-isr off`` and ``on``: their output, their exit codes and their errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from wsgi_isr.cache.app_records import AppRecord, Apps, Registry
from wsgi_isr.cache.switch import PASS, Record
from wsgi_isr.cache.switchboard import Turned
from wsgi_isr.commands.main import main
from wsgi_isr.commands.switch import _lines
from wsgi_isr.stores import open_store

APP = """
from wsgi_isr import ISR
def bare(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"hello"]
app = ISR(bare, {"/": 10, "/<slug>": 60})
"""
NOWHERE = "memcached://127.0.0.1:1"


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def app_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a folder with the app the current one."""
    (tmp_path / "switched_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WSGI_ISR_STORE", f"sqlite:///{tmp_path}/store.db")
    # Where another test has configured Django, the folder would be that of its site.
    for module in ("wsgi_isr.middleware.process", "wsgi_isr.config.wrapping"):
        monkeypatch.setattr(f"{module}.state_folder", lambda *app: str(tmp_path / ".wsgi_isr"))
    yield
    sys.modules.pop("switched_app", None)


def run(*arguments: str) -> Said:
    """Run one command as in a new process."""
    sys.modules.pop("switched_app", None)
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return Said(result.exit_code, result.stdout, result.stderr)


def test_off_without_an_end_says_how_to_end_it() -> None:
    said = run("off", "--app", "switched_app:app")
    assert said.code == 0
    assert said.out.splitlines()[:2] == ["the cache is off", "it has no end: write wsgi-isr on"]
    assert "store.db, namespace 'default': acknowledged by 1 of 1 node" in said.out


def test_a_command_that_had_no_effect_says_so() -> None:
    assert run("on", "--app", "switched_app:app").out.startswith("nothing done: the cache is on (sqlite:///")
    run("off", "--app", "switched_app:app")
    assert run("on", "--app", "switched_app:app").out.splitlines()[:1] == ["the cache is on"]
    assert run("on").out.startswith("nothing done")


def test_a_second_off_names_the_first() -> None:
    run("off", "--for", "10m", "--rule", "/<slug>", "--app", "switched_app:app")
    said = run("off", "--serve-stale", "--for", "90s", "--json", "--app", "switched_app:app")
    told = json.loads(said.out)
    assert (told["ok"], told["changed"], told["switch"]["mode"]) == (True, True, "serve-stale")
    assert told["before"]["rules"] == ["/<slug>"]
    assert told["switch"]["until"] == pytest.approx(told["switch"]["since"] + 90)
    lines = run("on", "--app", "switched_app:app").out.splitlines()
    assert lines[0] == "the cache is on"
    assert lines[1].startswith("before: serving stale pages, until ")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--rule", "/nope", "--app", "switched_app:app"], "one of: *, /, /<slug>"),
        (["--for", "soon"], "--for: 'soon' is not a duration (write 90s, 10m, 2h or 1d)"),
        (["--for", "0"], "out of range"),
        (["--store", "null://", "--app", "switched_app:app"], "the app has its own"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], error: str) -> None:
    said = run("off", *arguments)
    assert said.code == 2
    assert error in said.err
    assert said.err.count("\n") == 1


def test_without_a_store_the_error_says_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSGI_ISR_STORE")
    assert "write --app myapp:app or --store URL" in run("off").err


def test_a_store_that_no_app_has_used_is_a_warning() -> None:
    assert "no app has used" in run("off").err


def test_a_store_that_keeps_nothing_has_nothing_to_switch() -> None:
    said = run("off", "--store", "null://")
    assert (said.code, said.out.startswith("nothing done: the store keeps nothing")) == (0, True)


def test_without_any_node_the_command_writes_the_file_and_exits_with_1(tmp_path: Path) -> None:
    said = run("off", "--store", NOWHERE)
    assert said.code == 1
    assert f"in the file {tmp_path}/.wsgi_isr/off: the processes on this machine" in said.err
    assert json.loads((tmp_path / ".wsgi_isr" / "off").read_text())["mode"] == "pass"


def test_a_store_in_the_memory_of_processes_is_switched_by_the_file(tmp_path: Path) -> None:
    said = run("off", "--store", "memory://")
    assert said.code == 0
    assert f"in the file {tmp_path}/.wsgi_isr/off" in said.out
    assert "acknowledged" not in said.out


@pytest.mark.parametrize("command", ["off", "on"])
def test_without_the_key_of_a_signed_switch_the_command_is_refused(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("WSGI_ISR_SIGNING_KEY", "k" * 16)
    assert run("off").code == 0
    monkeypatch.delenv("WSGI_ISR_SIGNING_KEY")
    said = run(command)
    assert (said.code, said.out) == (2, "")
    assert "signing_key" in said.err
    assert "WSGI_ISR_SIGNING_KEY" in said.err
    monkeypatch.setenv("WSGI_ISR_SIGNING_KEY", "k" * 16)
    assert run("on").out.startswith("the cache is on")


def test_without_the_key_of_an_app_that_signs_a_first_off_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    registry = Registry(store, "default", "k" * 16)
    registry.write(AppRecord("shop", ("/",), True, store.nodes, (), 1.0, 1.0), Apps((), ()))
    store.close()
    said = run("off")
    assert (said.code, "signing_key" in said.err) == (2, True)
    monkeypatch.setenv("WSGI_ISR_SIGNING_KEY", "k" * 16)
    assert run("off").code == 0


def test_a_rule_that_is_not_utf_8_is_one_line_and_exit_code_2() -> None:
    said = run("off", "--rule", "/\udcff")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "UTF-8" in said.err


def test_a_terminal_gets_no_control_characters_of_a_record() -> None:
    forged = Turned(
        Record(1, PASS, rules=("/\x1b[31m",)),
        Record(1, PASS, rules=("/\x1b]0;x\x07",), actor="ann\x1b[2J\nforged"),
        True,
        "sqlite:///a",
        "default",
        file="/a\x1b/off",
    )
    lines = list(_lines(forged))
    assert all(line.isprintable() for line in lines)
    assert "ann\\x1b[2J\\nforged" in lines[1]
