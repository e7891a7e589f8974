"""Parse the nodes of a cluster in a store URL: ``host[:port],host...``."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from ...errors import ConfigError

PORT = 11211
# RFC 1123, 2.1, and the underscore that compose files and Kubernetes put into names.
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?\Z")


class Address(NamedTuple):
    """The address that a node listens on; ``host`` without brackets."""

    host: str
    port: int

    @property
    def name(self) -> str:
        """Return the node's name, by which keys are spread: ``host:port``, equal for equal addresses."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses(text: str) -> tuple[Address, ...]:
    """Return the addresses in ``text``, separated by commas; IPv6 in brackets (RFC 3986, 3.2.2).

    :raises ConfigError: there is none, one is malformed, or one is there twice.
    """
    found: list[Address] = []
    for written in text.split(","):
        address = _address(written.strip())
        if address in found:
            raise ConfigError("store", f"the node {address.name} is there twice", "write each node once")
        found.append(address)
    return tuple(found)


def _address(written: str) -> Address:
    if not written:
        raise ConfigError("store", "the memcached URL lacks a node", "write memcached://host:port,host:port")
    if "@" in written:
        problem = "user names and passwords are not supported for memcached"
        raise ConfigError("store", problem, "protect the nodes by TLS (tls=1&tls_cert=...) or by the network")
    if written.startswith("["):
        host, bracket, rest = written[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigError("store", f"{written!r} is no address", "write [::1]:11211")
        return Address(_ipv6(host), _port(rest[1:], written) if rest else PORT)
    host, colon, port = written.partition(":")
    if ":" in port:
        raise ConfigError("store", f"{written!r} is no address", "write IPv6 in brackets, such as [::1]:11211")
    return Address(_host(host.lower(), written), _port(port, written) if colon else PORT)


def _ipv6(host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise ConfigError("store", f"[{host}] is no IPv6 address", "such as [::1]") from None


def _host(host: str, written: str) -> str:
    try:
        # Digits and dots are an address or a typing error; no name looks like that.
        return str(ipaddress.IPv4Address(host)) if re.fullmatch(r"[0-9.]+", host) else _HOST.match(host)[0]  # type: ignore[index]
    except (ValueError, TypeError):
        raise ConfigError("store", f"{written!r} is no address", "write host or host:port") from None


def _port(port: str, written: str) -> int:
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError("store", f"{written!r} has no port from 1 to 65535", "write host:11211")
    return int(port)
