"""Parse the places in a URL of Redis: ``redis://[user:password@]host[:port],host.../database``, or a Unix socket."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

from ...errors import ConfigError
from ..nodes.addresses import addresses
from ..urls import StoreURL
from .connection import ASYNCHRONOUS, Place, Watched

PORT = 6379
SENTINEL_PORT = 26379

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class Places(NamedTuple):
    """The decoded front of a URL.

    :param nodes: from the name of each node to its place.
    :param user: ``None`` for the default user.
    :param password: ``None`` for none.
    :param database: the number of the database.
    """

    nodes: dict[str, Place]
    user: str | None
    password: str | None
    database: int


def places(url: str, parts: StoreURL) -> Places:
    """Return the front of ``url``, whose decoded parts are ``parts``.

    :raises ConfigError: it is malformed.
    """
    authority = re.split(r"[/?]", url.partition("://")[2], maxsplit=1)[0]
    login, at, hosts = authority.rpartition("@")
    if "@" in login:
        raise ConfigError(
            "store",
            "'@' is in the URL more than once",
            "write user:password@ once, before the first host; write %40 for a '@' in a password",
        )
    name, colon, password = login.partition(":")
    user = unquote(name) or None
    secret = unquote(password) if colon or user else None
    if at and secret is None:
        raise ConfigError("store", "user and password are missing before '@'", "write user:password@host")
    if "sentinel" in parts.options:
        return Places(_watched(parts, unquote(hosts)), user, secret, _database(parts, "path", parts.path[1:] or "0"))
    if not hosts:
        return Places(*_socket(parts), user, secret, _database(parts, "database", parts.options.get("database", "0")))
    if "database" in parts.options:
        raise parts.error("database", "is for Unix sockets", f"write {parts.scheme}://host:port/number")
    nodes: dict[str, Place] = {each.name: each for each in addresses(unquote(hosts), parts.scheme, PORT)}
    return Places(nodes, user, secret, _database(parts, "path", parts.path.strip("/") or "0"))


def _watched(parts: StoreURL, hosts: str) -> dict[str, Place]:
    name = parts.options["sentinel"]
    if not _NAME.match(name):
        raise parts.error("sentinel", "is not the name of a primary", "write the name in sentinel.conf")
    if parts.options.get("accept_loss") != "1":
        raise parts.error("sentinel", f"means Sentinel: {ASYNCHRONOUS}", "write accept_loss=1, or leave it out")
    return {name: Watched(name, addresses(hosts, parts.scheme, SENTINEL_PORT))}


def _socket(parts: StoreURL) -> tuple[dict[str, Place]]:
    if re.fullmatch(r"/?[0-9]*/?", parts.path):
        raise ConfigError(
            "store",
            f"the {parts.scheme} URL has no host",
            f"write {parts.scheme}://host:port, or {parts.scheme}:///path/of/a.sock",
        )
    # A name is part of a key, which takes no spaces.
    return ({quote(parts.path, safe="/:,@+=~"): parts.path},)


def _database(parts: StoreURL, place: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(
            "store",
            f"the {place} {text!r} in the {parts.scheme} URL is not the number of a database",
            f"write {parts.scheme}://host:port/0" if place == "path" else "write database=0",
        )
    return int(text)
