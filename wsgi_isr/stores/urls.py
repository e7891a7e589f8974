"""Parse the URLs of all stores: ``scheme://host/path?option=value``.

The syntax is that of RFC 3986, with percent-encoding decoded. Each error is a :class:`~wsgi_isr.errors.ConfigError` for
the option ``store``. No error repeats the URL as a whole, because it may contain a password.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from ..errors import ConfigError


class StoreURL(NamedTuple):
    """The decoded parts of a store URL. ``host`` is all text between ``//`` and the path, ports included."""

    scheme: str
    host: str
    path: str
    options: dict[str, str]

    def integer(self, name: str, default: int) -> int:
        """Return the whole number that an option has.

        :raises ConfigError: its value is no whole number.
        """
        text = self.options.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal()):
            raise self.error(name, "is not a whole number", f"write a whole number, such as {name}={default}")
        return int(text)

    def seconds(self, name: str, default: float) -> float:
        """Return the time that an option has, in seconds.

        :raises ConfigError: its value is no number above 0.
        """
        text = self.options.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise self.error(name, "is not a number above 0", f"write seconds, such as {name}={default:g}")
        return value

    def error(self, name: str, problem: str, remedy: str) -> ConfigError:
        """Return the error for the value of an option."""
        return ConfigError("store", f"{name}={self.options[name]!r} in the URL {problem}", remedy)


def scheme_of(url: str) -> str:
    """Return the scheme in lower case (RFC 3986, 3.1).

    :raises ConfigError: ``url`` has no scheme.
    """
    if not isinstance(url, str):
        raise ConfigError("store", f"{type(url).__name__} is not the type of a URL", "write text, such as 'memory://'")
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        raise ConfigError(
            "store",
            "the URL has no scheme",
            "write a URL such as sqlite:///cache/pages.db or memory://",
        )
    return scheme.lower()


def parse_store_url(url: str, options: Sequence[str] = ()) -> StoreURL:
    """Return the parts of ``url``.

    :param options: the names of the options that this store takes.
    :raises ConfigError: an option is unknown or repeated, or the URL is malformed.
    """
    scheme = scheme_of(url)
    rest = url.partition("://")[2]
    if "#" in rest:
        raise ConfigError("store", f"'#' has no meaning in the {scheme} URL", "write %23 for a '#' in a name")
    before, _, query = rest.partition("?")
    host, slash, path = before.partition("/")
    try:
        host, path = unquote(host, errors="strict"), unquote(slash + path, errors="strict")
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:
        raise ConfigError(
            "store", f"the {scheme} URL is malformed: {error}", "write ?option=value&option=value"
        ) from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in options:
            raise ConfigError("store", f"{scheme}:// has no option {name!r}", suggest(name, options))
        if name in given:
            raise ConfigError("store", f"{name} is twice in the {scheme} URL", f"write {name} once")
        given[name] = value
    return StoreURL(scheme, host, path, given)


def suggest(unknown: str, known: Sequence[str]) -> str:
    """Return the remedy for an unknown name: the nearest name, and all known names."""
    import difflib  # needed only for errors

    close = difflib.get_close_matches(unknown, known, n=1)
    if not known:
        return "leave it out"
    return (f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(known)}"
