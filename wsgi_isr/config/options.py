"""Define the kinds of option values, and how each kind is checked and parsed from text.

Each field of :class:`~wsgi_isr.config.rules.Rule` and :class:`~wsgi_isr.config.settings.Settings` has an
:class:`Option`. Arguments, environment variables, TOML files and ``docs/reference/options.md`` use this definition.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from ..errors import ConfigError

_SIZES = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gib": 1 << 30}

#: The maximum of a time, in seconds: a hundred years. A greater value overflows in functions that wait.
MAX_SECONDS = 3.2e9


class Kind(NamedTuple):
    """A kind of value.

    :param name: the name that the reference shows.
    :param check: takes the option and a value; returns the value in its final form, or raises ``ConfigError``.
    :param parse: takes the option and a text; returns the value. ``None`` if text cannot express the value.
    """

    name: str
    check: Callable[[str, Any], Any]
    parse: Callable[[str, str], Any] | None = None


class Option(NamedTuple):
    """The row of an option in the table of the reference, without the option's name."""

    kind: Kind
    doc: str
    shown_default: str = ""


def option(default: Any, kind: Kind, doc: str, shown_default: str = "", is_secret: bool = False) -> Any:
    """Return a dataclass field that carries its :class:`Option`.

    :param is_secret: the ``repr`` of the dataclass leaves the value out.
    """
    return field(default=default, repr=not is_secret, metadata={"option": Option(kind, doc, shown_default)})


def options_of(cls: type) -> dict[str, Option]:
    """Return the option table of a dataclass whose fields :func:`option` made."""
    return {f.name: f.metadata["option"] for f in fields(cls)}


def check_all(instance: Any, where: str = "") -> None:
    """Replace each field of a frozen dataclass by its checked value.

    :param where: a prefix of the option's name in errors.
    :raises ConfigError: a value is invalid.
    """
    for name, opt in options_of(type(instance)).items():
        value = getattr(instance, name)
        if value is not None:
            object.__setattr__(instance, name, opt.kind.check(where + name, value))


def unknown(name: str, known: Iterable[str], what: str = "unknown option", where: str = "") -> ConfigError:
    """Return the error for an unknown name. The remedy suggests the nearest known names.

    :param what: the problem.
    :param where: a prefix of the name.
    """
    from difflib import get_close_matches  # needed only for errors

    known = sorted(known)
    near = get_close_matches(name, known, n=2)
    return ConfigError(
        where + name, what, f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    )


def parse_path(path: Any, option: str) -> str:
    """Return a path as tags use it, percent-decoded.

    :param path: may be percent-encoded or not.
    :raises ConfigError: ``path`` is not the path of a URL.
    """
    if not isinstance(path, str) or not path.startswith("/"):
        raise ConfigError(option, f"{path!r} is not a path", "write /blog/a, without scheme and host")
    if "?" in path or "#" in path:
        raise ConfigError(option, f"{path!r} has a query or a fragment", "write the path alone")
    try:
        return unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(option, f"{path!r} is not UTF-8 once decoded", "encode it as UTF-8") from None


def _number(name: str, value: Any, minimum: float, remedy: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(name, f"{value!r} is not a number", remedy)
    if not math.isfinite(value) or value < minimum or value > MAX_SECONDS:
        raise ConfigError(name, f"{value!r} is out of range", remedy)
    return value


def _parse_number(name: str, text: str) -> float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ConfigError(name, f"{text!r} is not a number", "write seconds, such as 60 or 0.5") from None


def _check_lifetime(name: str, value: Any) -> Any:
    if value == "forever":
        return False
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):  # other text is a profile's name
            raise ConfigError(name, f"{value!r} is text, not a number", f"write {number:g}, without the quotes")
    if value is False or (isinstance(value, str) and value):
        return value
    return _number(name, value, 0, 'write seconds (0 or more), "forever", "auto" or the name of a profile')


def _parse_lifetime(name: str, text: str) -> Any:
    if text.lower() in ("false", "no", "off"):
        return False
    return text if text and text[0].isalpha() else _parse_number(name, text)


def _parse_size(name: str, text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _SIZES:
        raise ConfigError(name, f"{text!r} is not a size", "write bytes, such as 8388608 or 8MiB")
    return int(match[1]) * _SIZES[match[2]]


def _check_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(name, f"{value!r} is not a whole number above 0", "write a whole number, such as 4")
    return value


def _parse_int(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise ConfigError(name, f"{text!r} is not a whole number", "write a whole number, such as 4")
    return int(text)


def _check_names(name: str, value: Any) -> tuple[str, ...]:
    # A lone string is a common mistake: iterating "page" would declare p, a, g and e.
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(name, f"{value!r} is not a list of names", f"write [{value!r}]")
    names = tuple(value)
    for item in names:
        if not isinstance(item, str) or not item or not item.isprintable():
            raise ConfigError(name, f"{item!r} is not a name", "write printable text")
    return tuple(dict.fromkeys(names))


def _split(_name: str, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(name, f"{value!r} is empty, or not text", "write text")
    return value


def _check_callable(name: str, value: Any) -> Any:
    if not callable(value):
        raise ConfigError(name, f"{value!r} is not callable", "write a function")
    return value


def _check_statuses(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ConfigError(name, f"{value!r} is not a list of statuses", "write numbers, such as [200, 404]")
    statuses = tuple(value)
    for status in statuses:
        if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 499:
            raise ConfigError(name, f"{status!r} cannot be stored", "write numbers from 200 to 499")
        # 206 and 304 answer a range or a condition, which the canonical request never has (RFC 9111, 3). 429 is a
        # failure that concerns one client.
        if status in (206, 304, 429):
            raise ConfigError(name, f"{status} cannot be stored", f"leave {status} out")
    return tuple(sorted(set(statuses)))


def _parse_statuses(name: str, text: str) -> tuple[int, ...]:
    return tuple(_parse_int(name, part) for part in _split(name, text))


def _check_headers(name: str, value: Any) -> dict[str, Callable[[str], str] | None]:
    """Return a dict of header names, each with the function that narrows its value, or with ``None``."""
    if isinstance(value, Mapping):
        table = dict(value)
        for header, narrow in table.items():
            if narrow is not None:
                _check_callable(f"{name}[{header!r}]", narrow)
    else:
        table = dict.fromkeys(_check_names(name, value))
    for header in table:
        # RFC 9110, 5.6.2. "*" is a token too, but in Vary it means "never the same".
        if not isinstance(header, str) or not re.fullmatch(r"[A-Za-z0-9!#$%&'+.^_`|~-]+", header):
            raise ConfigError(name, f"{header!r} is not the name of a header", "write a name such as Accept-Language")
    return table


def _check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(name, f"{value!r} is neither True nor False", "write True or False")
    return value


def _check_tags(name: str, value: Any) -> Any:
    """Return the tags. A tag may contain a comma, so text is not split at commas."""
    if callable(value):
        return value
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(name, f"{value!r} is not a list of tags", f"write [{value!r}]")
    tags = tuple(value)
    for tag in tags:
        if not isinstance(tag, str) or not tag:
            raise ConfigError(name, f"{tag!r} is not a tag", "write text that is not empty")
    return tags


def _check_paths(name: str, value: Any) -> Any:
    """Return paths, or dicts of parameters, which the rule set checks against the pattern."""
    if callable(value):
        return value
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(name, f"{value!r} is not a list of paths", 'write ["/blog/a"] or [{"slug": "a"}]')
    paths = tuple(value)
    for path in paths:
        if not isinstance(path, (str, Mapping)):
            raise ConfigError(name, f"{path!r} is not a path", 'write "/blog/a" or {"slug": "a"}')
    return paths


def _check_fallback(name: str, value: Any) -> Any:
    remedy = 'write "blocking", the path of a file, bytes, or a function from environ to bytes'
    if value in ("blocking", b"") or callable(value) or isinstance(value, (bytes, Shell)):
        if value == b"":
            raise ConfigError(name, "the shell is empty", remedy)
        return value
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(name, f"{value!r} is not a shell", remedy)
    try:
        with open(value, "rb") as file:
            body = file.read()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise ConfigError(name, f"{os.fspath(value)}: {problem}", remedy) from error
    from mimetypes import guess_type  # needed only here: it reads tables of the system

    return Shell(body, guess_type(os.fspath(value))[0] or "text/html")


class Shell(NamedTuple):
    """A shell that was read from a file. The client gets the shell while the page is rendered."""

    body: bytes
    content_type: str


def _parse_bool(name: str, text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ConfigError(name, f"{text!r} is neither true nor false", "write 1 or 0")


def choice(*allowed: str) -> Kind:
    """Return the kind of a value that is one of ``allowed``."""

    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise ConfigError(name, f"{value!r} is unknown", f"write {' or '.join(allowed)}")
        return str(value)

    return Kind(" or ".join(f'"{word}"' for word in allowed), check, lambda _name, text: text)


def any_value(name: str, parse: Callable[[str, str], Any] | None = None) -> Kind:
    """Return the kind of a value that another module checks."""
    return Kind(name, lambda _name, value: value, parse)


LIFETIME = Kind('seconds, "forever", "auto" or a profile', _check_lifetime, _parse_lifetime)
SECONDS = Kind("seconds", lambda n, v: _number(n, v, 0, "write seconds, 0 or more"), _parse_number)
PERIOD = Kind("seconds, above 0", lambda n, v: _number(n, v, 0.001, "write seconds, above 0"), _parse_number)
SIZE = Kind("bytes", _check_int, _parse_size)
COUNT = Kind("number", _check_int, _parse_int)
NAMES = Kind("list of names", _check_names, _split)
HEADERS = Kind("list of headers, or dict", _check_headers, _split)
PATHS = Kind("list of paths or of dicts of parameters, or callable", _check_paths, _split)
FALLBACK = Kind('"blocking", file, bytes or callable', _check_fallback, lambda _name, text: text)
TAGS = Kind("list of tags, or callable", _check_tags, _split)
STATUSES = Kind("list of statuses", _check_statuses, _parse_statuses)
TEXT_OR_NONE = Kind("text", lambda n, v: v if v == "" else _check_text(n, v), lambda _name, text: text)
TEXT = Kind("text", _check_text, lambda _name, text: text)
FLAG = Kind("true or false", _check_bool, _parse_bool)
CALLABLE = Kind("callable", _check_callable)
