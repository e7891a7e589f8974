"""The instructions for the cache: how long pages are kept, which requests share a page, and which pages change
with a package."""

from __future__ import annotations

from collections.abc import Mapping

from wsgi_isr import Rule

from . import catalogue


def module_tags(params: Mapping[str, str]) -> list[str]:
    """Return the tags of a module's page: ``json.decoder`` changes with the package ``json``."""
    return ["pydoc", f"package:{catalogue.package_of(params['name'])}"]


def module_params() -> list[dict[str, str]]:
    """Return the parameters of every page of a module, for rendering all of them before the first request."""
    return [{"name": module.name} for module in catalogue.modules()]


def package_params() -> list[dict[str, str]]:
    """Return the parameters of every page of a package."""
    return [{"name": package.name} for package in catalogue.packages()]


RULES = {
    "/": Rule(revalidate="hours", tags=["pydoc", "index"], paths=["/"]),
    "/module/<name>": Rule(revalidate=False, tags=module_tags, paths=module_params),
    "/package/<name>": Rule(revalidate=False, tags=["pydoc", "package:{name}"], paths=package_params),
    "/search": Rule(revalidate=60, query=["q"], tags=["pydoc"]),
    "/about": Rule(revalidate=10, tags=["pydoc"]),
}


def pages_of(package: str) -> list[str]:
    """Return the tags of all pages that show parts of a package: its own pages, and the index that counts its modules.
    (Search results expire within a minute by themselves.)"""
    return [f"package:{package}", "index"]
