"""TLS for memcached: ``tls=1`` in a store URL, and the files that go with it."""

from __future__ import annotations

import ssl

from ...errors import ConfigError
from ..urls import StoreURL

#: ``tls=1``. ``tls_ca``: a file of the authorities that may sign the nodes' certificates, instead of the system's.
#: ``tls_cert`` and ``tls_key``: the certificate and key for nodes that ask for a client's certificate.
TLS_OPTIONS = ("tls", "tls_ca", "tls_cert", "tls_key")


def tls_context(parts: StoreURL) -> ssl.SSLContext | None:
    """Return the context for connections, or ``None`` without ``tls=1``. Certificates and names are verified.

    :raises ConfigError: a file is missing or wrong.
    """
    given = {name: parts.options[name] for name in TLS_OPTIONS if name in parts.options}
    wanted = given.pop("tls", "0")
    if wanted not in ("0", "1"):
        raise parts.bad("tls", "is neither 0 nor 1", "write tls=1")
    for name, file in given.items():
        if wanted == "0":
            raise parts.bad(name, "means nothing without TLS", "add tls=1")
        if not file:
            raise parts.bad(name, "is empty", "name a PEM file")
    if wanted == "0":
        return None
    if "tls_key" in given and "tls_cert" not in given:
        raise parts.bad("tls_key", "lacks its certificate", "add tls_cert=file")
    try:
        context = ssl.create_default_context(cafile=given.get("tls_ca"))
    except OSError as error:  # ssl.SSLError among them
        raise _bad_file(parts, "tls_ca", error) from None
    if "tls_cert" in given:
        try:
            # A key that needs a password is an error, not a question on the terminal.
            context.load_cert_chain(given["tls_cert"], given.get("tls_key"), password="")
        except OSError as error:
            raise _bad_file(parts, "tls_cert", error) from None
    return context


def _bad_file(parts: StoreURL, name: str, error: OSError) -> ConfigError:
    return parts.bad(name, f"cannot be used: {error}", "name a readable PEM file")
