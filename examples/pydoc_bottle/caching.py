"""What the cache is told: how long pages are kept, what makes two requests one page, and what changes
with a package. All of it is here."""

from __future__ import annotations

from collections.abc import Mapping

from wsgi_isr import Rule

from . import catalogue


def module_tags(params: Mapping[str, str]) -> list[str]:
    """``json.decoder`` changes with the package ``json``."""
    return ["pydoc", f"package:{catalogue.package_of(params['name'])}"]


def module_params() -> list[dict[str, str]]:
    """The parameters of every page of a module, for rendering them all before anybody asks."""
    return [{"name": module.name} for module in catalogue.modules()]


def package_params() -> list[dict[str, str]]:
    """The same for packages."""
    return [{"name": package.name} for package in catalogue.packages()]


RULES = {
    "/": Rule(revalidate="hours", tags=["pydoc", "index"], paths=["/"]),
    "/module/<name>": Rule(revalidate=False, tags=module_tags, paths=module_params),
    "/package/<name>": Rule(revalidate=False, tags=["pydoc", "package:{name}"], paths=package_params),
    "/search": Rule(revalidate=60, query=["q"], tags=["pydoc"]),
    "/about": Rule(revalidate=10, tags=["pydoc"]),
}


def pages_of(package: str) -> list[str]:
    """The tags of what shows something of a package: its own pages, and the index that counts its modules.
    (Searches find it within a minute by themselves.)"""
    return [f"package:{package}", "index"]
