"""``wsgi_isr.gunicorn`` as a configuration of gunicorn, and its worker class, which is imported late."""

from __future__ import annotations

import subprocess
import sys

import gunicorn
import pytest
from gunicorn.workers.gthread import ThreadWorker

import wsgi_isr.gunicorn as hooks

ALONE = """
import sys

class Missing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("gunicorn", "gunicorn_h1c"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import wsgi_isr.gunicorn
print(wsgi_isr.gunicorn.worker_class)
"""


def test_the_hooks_import_without_gunicorn() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "wsgi_isr.gunicorn.Worker\n"


def test_the_worker_extends_gunicorns_own() -> None:
    assert issubclass(hooks.Worker, ThreadWorker)
    assert hooks.Worker is not ThreadWorker


def test_an_older_gunicorn_gets_its_own_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gunicorn, "version_info", (26, 0, 0))
    with caplog.at_level("INFO", "wsgi_isr"):
        assert hooks.Worker is ThreadWorker
    assert "gunicorn is older than 27" in caplog.text


def test_another_name_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Wroker'"):
        _ = hooks.Wroker


def test_a_configuration_of_ones_own_keeps_its_class() -> None:
    own: dict[str, object] = {"worker_class": "gevent"}
    exec("from wsgi_isr.gunicorn import *", own)
    assert own["worker_class"] == "gevent"
    assert "when_ready" in own


def test_a_later_gunicorn_without_a_part_gets_its_own_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wsgi_isr.servers.gunicorn_worker", None)
    with caplog.at_level("WARNING", "wsgi_isr"):
        assert hooks.Worker is ThreadWorker
    assert "gunicorn's threads answer every request" in caplog.text
