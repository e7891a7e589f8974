"""The name of an app: the same in every process and release, and different from that of another app."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import bottle
import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr import ISR, wrap
from wsgi_isr.config.identity import name_of


def plain(environ: Any, start_response: Any) -> list[bytes]:
    return []


def made() -> Any:
    def inner(environ: Any, start_response: Any) -> list[bytes]:
        return []

    return inner


class Site:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    def method(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


def flask(name: str) -> Any:
    return Flask(name).wsgi_app


@pytest.mark.parametrize(
    ("app", "name"),
    [
        (plain, f"{__name__}:plain"),
        (validator(plain), f"{__name__}:plain"),
        (ProxyFix(validator(plain)), f"{__name__}:plain"),
        (made(), f"{__name__}:made.<locals>.inner in here"),
        (Site(), f"{__name__}:Site in here"),
        (Site().method, f"{__name__}:Site in here"),
        (bottle.Bottle(), "bottle:Bottle in here"),
        (flask("shop"), "flask:shop"),
        (ProxyFix(flask("shop")), "flask:shop"),
        (DispatcherMiddleware(flask("shop"), {"/api": flask("api")}), "flask:shop"),
    ],
)
def test_an_app_is_called_by_what_it_is_and_by_where_it_is_wrapped(app: Any, name: str) -> None:
    assert name_of(app, "here") == name


class Nasty:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


def test_an_app_whose_attributes_raise_has_a_name() -> None:
    assert name_of(Nasty(), "here") == f"{__name__}:Nasty in here"


def test_the_module_that_wraps_an_app_is_the_one_outside_of_this_package() -> None:
    assert ISR(Site(), store="null://").app_name == f"{__name__}:Site in {__name__}"
    assert wrap(f"{__name__}:plain", store="null://").app_name == f"{__name__}:plain"


def test_no_option_changes_the_name() -> None:
    options: list[dict[str, Any]] = [{}, {"release": "2"}, {"revalidate": 60}, {"hosts": ["example.com"]}]
    assert len({ISR(plain, store="null://", **each).app_name for each in options}) == 1


APP = """
from wsgi_isr import ISR
class App:
    def __call__(self, environ, start_response): ...
application = ISR(App(), store="null://")
if __name__ == "__main__":
    print(application.app_name)
"""


def test_a_script_is_called_as_the_module_that_others_import(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    ways = (["shop.py"], ["-m", "shop"], ["-c", "import shop; print(shop.application.app_name)"])
    runs = [
        subprocess.run([sys.executable, *way], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        for way in ways
    ]
    assert {run.stdout for run in runs} == {"shop:App in shop\n"}
