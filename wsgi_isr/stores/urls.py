"""Parse store URLs: ``scheme://host/path?option=value``, in the same way for every store.

The syntax is that of RFC 3986; percent-encoding is decoded. Each error is a :class:`~wsgi_isr.errors.ConfigError` for
the option ``store`` that says what to write. No error repeats the whole URL, which may hold a password.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from ..errors import ConfigError


class StoreURL(NamedTuple):
    """The parts of a store URL, decoded; ``host`` is all text between ``//`` and the path."""

    scheme: str
    host: str
    path: str
    options: dict[str, str]

    def whole(self, name: str, default: int) -> int:
        """Return an option that is a whole number."""
        text = self.options.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal()):
            raise self.bad(name, "is not a whole number", f"write {name}={default}, say")
        return int(text)

    def seconds(self, name: str, default: float) -> float:
        """Return an option that is a time in seconds, above 0."""
        text = self.options.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise self.bad(name, "is not a time in seconds above 0", f"write {name}={default:g}, say")
        return value

    def bad(self, name: str, problem: str, remedy: str) -> ConfigError:
        return ConfigError("store", f"{name}={self.options[name]!r} in the URL {problem}", remedy)


def scheme_of(url: str) -> str:
    """Return the scheme in lower case (RFC 3986, 3.1).

    :raises ConfigError: ``url`` has no scheme.
    """
    if not isinstance(url, str):
        raise ConfigError("store", f"a URL in a str is needed, not {type(url).__name__}", "such as 'memory://'")
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        raise ConfigError(
            "store",
            "not a store URL: no scheme",
            "write scheme://..., such as sqlite:///cache/pages.db or memory://",
        )
    return scheme.lower()


def parse_store_url(url: str, options: Sequence[str] = ()) -> StoreURL:
    """Return the parts of ``url``.

    :param options: all query options that this store knows.
    :raises ConfigError: an option is unknown, or ``url`` is not a URL.
    """
    scheme = scheme_of(url)
    rest = url.partition("://")[2]
    if "#" in rest:
        raise ConfigError("store", f"a '#' in the {scheme} URL means nothing", "write %23 for one in a name")
    place, _, query = rest.partition("?")
    host, slash, path = place.partition("/")
    try:
        host, path = unquote(host, errors="strict"), unquote(slash + path, errors="strict")
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:
        raise ConfigError("store", f"the {scheme} URL is malformed: {error}", "?option=value&...") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in options:
            raise ConfigError("store", f"{scheme}:// has no option {name!r}", suggest(name, options))
        if name in given:
            raise ConfigError("store", f"{name} is twice in the {scheme} URL", "write it once")
        given[name] = value
    return StoreURL(scheme, host, path, given)


def suggest(wrong: str, known: Sequence[str]) -> str:
    """Return a remedy for a misspelt name: the closest name, and all names."""
    import difflib  # needed only for errors

    close = difflib.get_close_matches(wrong, known, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return meant + ("there is: " + ", ".join(known) if known else "it takes none")
