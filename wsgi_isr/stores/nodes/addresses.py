"""Parse the addresses of nodes in a store URL: ``host[:port],host...``."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from ...errors import ConfigError

# RFC 1123, 2.1, and underscores, which names in compose files and Kubernetes contain.
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?\Z")


class Address(NamedTuple):
    """The address of a node; ``host`` without brackets."""

    host: str
    port: int

    @property
    def name(self) -> str:
        """Return the name of the node, ``host:port``. It decides which keys the node holds."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses(text: str, scheme: str, port: int) -> tuple[Address, ...]:
    """Return the addresses in ``text``, separated by commas; IPv6 in brackets (RFC 3986, 3.2.2).

    :param scheme: the scheme of the URL, for messages.
    :param port: of an address that names none.
    :raises ConfigError: there is no address, or an address is malformed or repeated.
    """
    result: list[Address] = []
    for written in text.split(","):
        address = _address(written.strip(), scheme, port)
        if address in result:
            raise ConfigError("store", f"the node {address.name} is in the URL twice", "write each node once")
        result.append(address)
    return tuple(result)


def _address(written: str, scheme: str, port: int) -> Address:
    if not written:
        raise ConfigError("store", f"a node is missing in the {scheme} URL", f"write {scheme}://host:port,host:port")
    if "@" in written:  # never in a message: it may be a password
        problem = f"an address in the {scheme} URL takes neither user name nor password"
        raise ConfigError("store", problem, "protect the nodes by TLS, or by the network")
    if written.startswith("["):
        host, bracket, rest = written[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigError("store", f"{written!r} is not an address", f"write [::1]:{port}")
        return Address(_ipv6(host), _port(rest[1:], written, port) if rest else port)
    host, colon, given = written.partition(":")
    if ":" in given:
        raise ConfigError(
            "store", f"{written!r} is not an address", f"write an IPv6 address in brackets, such as [::1]:{port}"
        )
    return Address(_host(host.lower(), written), _port(given, written, port) if colon else port)


def _ipv6(host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise ConfigError("store", f"[{host}] is not an IPv6 address", "write one such as [::1]") from None


def _host(host: str, written: str) -> str:
    try:
        # No host name consists of digits and dots alone.
        return str(ipaddress.IPv4Address(host)) if re.fullmatch(r"[0-9.]+", host) else _HOST.match(host)[0]  # type: ignore[index]
    except (ValueError, TypeError):
        raise ConfigError("store", f"{written!r} is not an address", "write host or host:port") from None


def _port(given: str, written: str, port: int) -> int:
    if not (given.isascii() and given.isdecimal() and 0 < int(given) < 65536):
        raise ConfigError("store", f"{written!r} has no port from 1 to 65535", f"write a port, such as host:{port}")
    return int(given)
