"""TLS to nodes: ``tls=1`` in a store URL, and its files."""

from __future__ import annotations

import ssl

from ...errors import ConfigError
from ..urls import StoreURL

#: ``tls=1`` turns TLS on. ``tls_ca`` is a file with authorities for the nodes' certificates, in place of the system's.
#: ``tls_cert`` and ``tls_key`` are the certificate and key of this client.
TLS_OPTIONS = ("tls", "tls_ca", "tls_cert", "tls_key")


def tls_context(parts: StoreURL) -> ssl.SSLContext | None:
    """Return a context that verifies certificates and names; ``None`` without ``tls=1``.

    :raises ConfigError: an option is wrong, or its file cannot be used.
    """
    given = {name: parts.options[name] for name in TLS_OPTIONS if name in parts.options}
    wanted = given.pop("tls", "0")
    if wanted not in ("0", "1"):
        raise parts.error("tls", "is neither 0 nor 1", "write tls=1, or leave it out")
    for name, file in given.items():
        if wanted == "0":
            raise parts.error(name, "has no effect without tls=1", "write tls=1 as well")
        if not file:
            raise parts.error(name, "is empty", "write the path of a PEM file")
    if wanted == "0":
        return None
    if "tls_key" in given and "tls_cert" not in given:
        raise parts.error("tls_key", "has no certificate", "write tls_cert=file as well")
    try:
        context = ssl.create_default_context(cafile=given.get("tls_ca"))
    except OSError as error:  # ssl.SSLError among them
        raise _bad_file(parts, "tls_ca", error) from None
    if "tls_cert" in given:
        try:
            # A key with a password raises, and does not ask on the terminal.
            context.load_cert_chain(given["tls_cert"], given.get("tls_key"), password="")
        except OSError as error:
            raise _bad_file(parts, "tls_cert", error) from None
    return context


def _bad_file(parts: StoreURL, name: str, error: OSError) -> ConfigError:
    return parts.error(name, f"cannot be used: {error}", "write the path of a PEM file that this user can read")
