"""``wsgi-isr serve``: the server that it runs, and one line for each error before that."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from wsgi_isr import ISR
from wsgi_isr.commands.main import main
from wsgi_isr.middleware.loading import app_to_serve

APP = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
"""
WRAPPED = """
from wsgi_isr import ISR

class Outer:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        return self.app(environ, start_response)

outer = Outer(ISR(lambda environ, start_response: [], store="memory://"))
"""


class Became(Exception):
    """Raised in place of ``exec``, which would replace the process."""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Yield the command, in a folder with an app ``plain:app``."""
    for name in [name for name in os.environ if name.startswith(("WSGI_ISR_", "GUNICORN_", "GRANIAN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text(APP)
    (tmp_path / "inside.py").write_text(WRAPPED)

    def become(path: str, command: list[str]) -> None:
        assert path == command[0] == sys.executable
        raise Became(command[1:])

    monkeypatch.setattr("os.execv", become)
    yield lambda *arguments: CliRunner().invoke(main, ["serve", *arguments])
    for name in ("plain", "inside", "broken"):
        sys.modules.pop(name, None)


def command_of(result: Result) -> list[str]:
    assert isinstance(result.exception, Became), (result.exception, result.output)
    command: list[str] = result.exception.args[0]
    return command


def refusal_of(result: Result) -> str:
    assert result.exit_code == 2, result.exception
    assert result.output.count("\n") == 1, result.output
    return result.output


SCRIPT = Path(sys.executable).with_name("gunicorn")
GUNICORN = [str(SCRIPT)] if SCRIPT.exists() else ["-m", "gunicorn"]
HEAD = [*GUNICORN, "--config", "python:wsgi_isr.gunicorn", "--name", "plain:app"]
TAIL = "wsgi_isr.middleware.loading:app_to_serve('plain:app')"


def test_it_becomes_gunicorn_with_the_hooks_and_the_options_as_they_are(serve: Callable[..., Result]) -> None:
    result = serve("plain:app", "--workers", "4", "-k", "gthread")
    assert command_of(result) == [*HEAD, "--workers", "4", "-k", "gthread", TAIL]


def test_the_look_at_the_app_makes_no_file(serve: Callable[..., Result], tmp_path: Path) -> None:
    # This process may be root's, and gunicorn's workers another user's.
    command_of(serve("plain:app"))
    assert not (tmp_path / ".wsgi_isr").exists()


def test_options_may_come_before_the_app(serve: Callable[..., Result]) -> None:
    assert command_of(serve("-w", "4", "plain:app")) == [*HEAD, "-w", "4", TAIL]


def test_a_name_of_ones_own_is_kept_even_where_it_is_that_of_the_app(serve: Callable[..., Result]) -> None:
    command = command_of(serve("plain:app", "--name", "plain:app"))
    assert command == [*HEAD, TAIL]


def test_an_app_is_looked_for_where_gunicorn_would(serve: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "plain.py").rename(tmp_path / "other" / "plain.py")
    assert "does not import" in refusal_of(serve("plain:app"))
    assert command_of(serve("plain:app", "--chdir", "other"))[-3:] == ["--chdir", "other", TAIL]
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere:app"], "nowhere:app: does not import: No module named 'nowhere'"),
        (["plain:other"], "plain has no 'other'"),
        (["plain"], "is not module:attribute"),
        (["broken:app"], "broken:app: does not import: KeyError: 'DATABASE'"),
        (["plain:app", "--wrokers", "4"], "unrecognized arguments: --wrokers"),
        (["--workers", "4"], "needs one app"),
        (
            ["plain:app", "-c", "mine.py"],
            "gunicorn -c mine.py \"wsgi_isr.middleware.loading:app_to_serve('plain:app')\"",
        ),
        (["plain:app", "--config=mine.py"], "from wsgi_isr.gunicorn import *"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], words: str, serve: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import os\nos.environ['DATABASE']\n")
    assert words in refusal_of(serve(*arguments))


def test_a_configuration_that_would_be_passed_over_is_named(serve: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").touch()
    assert "gunicorn.conf.py would not be read" in refusal_of(serve("plain:app"))


def test_so_is_one_in_the_environment(serve: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--config mine.py")
    assert "mine.py would not be read" in refusal_of(serve("plain:app"))


def test_the_hooks_may_be_named_all_the_same(serve: Callable[..., Result]) -> None:
    assert command_of(serve("plain:app", "-c", "python:wsgi_isr.gunicorn"))[-1] == TAIL


def test_without_gunicorn_it_says_what_to_install(
    serve: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgi_isr.commands.serve.find_spec", lambda name: None)
    assert "pip install 'wsgi_isr[gunicorn]'" in refusal_of(serve("plain:app"))


def test_a_misspelt_variable_is_found_before_the_server_starts(
    serve: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSGI_ISR_REVALIDAET", "60")
    assert "did you mean WSGI_ISR_REVALIDATE" in refusal_of(serve("plain:app"))


def test_without_an_app_it_shows_how_to_call_it(serve: Callable[..., Result]) -> None:
    bare, asked = serve(), serve("--help")
    assert (bare.exit_code, asked.exit_code) == (2, 0)
    assert "MODULE:APP [SERVER OPTIONS]" in bare.output
    assert "MODULE:APP [SERVER OPTIONS]" in asked.output


def test_an_app_without_an_isr_is_wrapped_and_another_is_served_as_it_is(
    serve: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(app_to_serve("plain:app"), ISR)
    import inside  # type: ignore[import-not-found]

    assert app_to_serve("inside:outer") is inside.outer


# granian -----------------------------------------------------------------------------------------------

GRANIAN = ["-m", "wsgi_isr.servers.granian"]


@pytest.mark.parametrize("before", [True, False])
def test_it_becomes_granian_with_the_options_as_they_are(before: bool, serve: Callable[..., Result]) -> None:
    options = ["--workers", "4", "plain:app", "--port", "8001"]
    named = ["--server", "granian", *options] if before else [*options, "--server=granian"]
    assert command_of(serve(*named)) == [*GRANIAN, *options]


def test_granian_s_app_may_be_in_another_folder_and_made_by_a_factory(
    serve: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "broken.py").write_text(f"{APP}\ndef create():\n    return app\n")
    options = ["broken:create", "--factory", "--working-dir", "other"]
    assert "No module named 'broken'" in refusal_of(serve("--server", "granian", "broken:create", "--factory"))
    assert command_of(serve("--server", "granian", *options)) == [*GRANIAN, *options]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere:app"], "nowhere:app: does not import: No module named 'nowhere'"),
        (["plain:other"], "plain has no 'other'"),
        (["plain"], "is not module:attribute"),
        (["broken:app"], "broken:app: does not import: KeyError: 'DATABASE'"),
        (["plain:app", "--factory"], "the factory raised TypeError"),
        (["plain:app", "--wrokers", "4"], "--wrokers"),
        (["plain:app", "--workers", "none"], "Invalid value for '--workers'"),
        (["--workers", "4"], "Missing argument 'APP'"),
        (["plain:app", "inside:outer"], "Got unexpected extra argument"),
        (
            ["plain:app", "--interface", "asgi"],
            "--interface asgi is not WSGI (write --interface wsgi",
        ),
    ],
)
def test_an_error_under_granian_is_one_line(
    arguments: list[str], words: str, serve: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import os\nos.environ['DATABASE']\n")
    assert words in refusal_of(serve("--server", "granian", *arguments))


def test_an_app_that_may_need_files_of_variables_is_not_imported_before_granian_reads_them(
    serve: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import os\nos.environ['DATABASE']\n")
    (tmp_path / "variables").write_text("DATABASE=here\n")
    options = ["broken:app", "--env-files", "variables"]
    assert command_of(serve("--server", "granian", *options)) == [*GRANIAN, *options]


def test_granian_s_variables_are_read(serve: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRANIAN_INTERFACE", "rsgi")
    assert "--interface rsgi is not WSGI" in refusal_of(serve("--server", "granian", "plain:app"))


def test_without_granian_it_says_what_to_install(serve: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_isr.commands.serve.find_spec", lambda name: None)
    assert "pip install 'wsgi_isr[granian]'" in refusal_of(serve("--server", "granian", "plain:app"))


def test_a_server_that_is_not_known_is_refused_with_the_names_of_the_known_ones(serve: Callable[..., Result]) -> None:
    refused = serve("--server", "uwsgi", "plain:app")
    assert refused.exit_code == 2
    assert "'uwsgi' is not one of 'gunicorn', 'granian'" in refused.output
