"""The option table of the whole site, and the sources of its values.

The constructor precedes the environment, then a TOML file, then the default. An unknown name is an error in each.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigError
from . import options as o
from .rules import PROFILES, RULE_OPTIONS, Rule, RuleSet

#: A lower-case host, with or without a port (RFC 3986, 3.2.2; underscores as container networks have them).
HOST = re.compile(
    r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])"
    r"(?::(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?\Z"
)
ENV_PREFIX = "WSGI_ISR_"
#: Options that have a meaning for ``None``: never.
_NONE_IS_A_VALUE = frozenset({"release", "adopt_release"})
#: Variables with our prefix that are no options.
_ENV_OTHERS = frozenset({"APP", "CONFIG"})


def _check_url(name: str, value: Any) -> str:
    scheme, _, host = value.partition("://") if isinstance(value, str) else ("", "", "")
    if scheme not in ("http", "https") or not HOST.match(host.lower()):
        raise ConfigError(name, f"{value!r} is not scheme and host", "write it like https://example.com, no path")
    return f"{scheme}://{host}"


def _check_hosts(name: str, value: Any) -> tuple[str, ...]:
    """Return hosts as they stand in keys: in lower case, without the default port of a scheme."""
    hosts = tuple(host.lower() for host in o.NAMES.check(name, value))
    for host in hosts:
        if not HOST.match(host.removeprefix("*.")):
            raise ConfigError(
                name, f"{host!r} is not a host", "write example.com, example.com:8000 or *.example.com, no scheme"
            )
    return tuple(re.sub(r":(80|443)\Z", "", host) for host in hosts)


def _check_profiles(name: str, value: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(value, Mapping):
        raise ConfigError(name, f"{value!r} is not a table", 'write {"news": (30, 600)}: revalidate and expire')
    own: dict[str, tuple[float, float]] = {}
    for profile, pair in value.items():
        where = f"{name}[{profile!r}]"
        if isinstance(pair, str) or not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(where, f"{pair!r} is not a pair", "write (revalidate, expire) in seconds")
        revalidate, expire = (o.PERIOD.check(where, item) for item in pair)
        if expire < revalidate:
            raise ConfigError(where, f"expire {expire:g} is below revalidate {revalidate:g}", "swap them")
        own[str(profile)] = (revalidate, expire)
    return own


def _check_signing_key(name: str, value: Any) -> str:
    remedy = 'write 16 characters or more, like those of python -c "import secrets; print(secrets.token_urlsafe())"'
    # Without the value: errors are logged.
    if not isinstance(value, str):
        raise ConfigError(name, f"is {type(value).__name__}, not text", remedy)
    if len(value) < 16:
        raise ConfigError(name, f"has {len(value)} characters, so that it can be guessed", remedy)
    return value


def _check_journal(name: str, value: Any) -> str | bool:
    if value is False or value == "none":
        return False
    if not isinstance(value, str) or not value:
        raise ConfigError(name, f"{value!r} is not a file", 'name a file, or write False (as text: "none")')
    return value


def _parse_journal(_name: str, text: str) -> str | bool:
    return False if text.lower() in ("none", "false", "no", "off", "0") else text


def _check_name(name: str, value: Any) -> str | None:
    """Return a name, ``"auto"``, or ``None`` for never. An empty name is valid."""
    if value == "none":
        return None
    if not isinstance(value, str):
        raise ConfigError(name, f"{value!r} is not text", 'give a name, "auto", or None for never')
    return value


URL = o.Kind("scheme and host", _check_url, lambda _name, text: text)
HOSTS = o.Kind("list of hosts", _check_hosts, o.NAMES.parse)
JOURNAL = o.Kind("file, or False", _check_journal, _parse_journal)
NAME_OR_NEVER = o.Kind('"auto", a name or "none"', _check_name, lambda _name, text: text)
SIGNING_KEY = o.Kind("text of 16 characters or more", _check_signing_key, lambda _name, text: text)


@dataclass(frozen=True)
class Settings:
    """The options of the whole site, besides those that it shares with its rules."""

    store: Any = o.option(
        "sqlite:///.wsgi_isr/store.db",
        o.any_value("URL", lambda _name, text: text),
        "where pages are kept: a URL (see Stores), or an open store; a relative path in it counts from the current "
        "directory, and that of the default from the folder of the app",
        "sqlite:///.wsgi_isr/store.db",
    )
    namespace: str = o.option("default", o.TEXT, "keeps the pages of several sites in one store apart", "default")
    release: str | None = o.option(
        "auto",
        NAME_OR_NEVER,
        "pages and data belong to one release of the app; tags to all: a name; `auto`, the platform's name for what it "
        "has deployed or else a digest of the app's source; or `none`, so that a deploy does not show by itself",
        "auto",
    )
    adopt_release: str | None = o.option(
        "auto",
        NAME_OR_NEVER,
        "the release before this one, whose pages are served as stale while this one renders its own: a name; `auto`, "
        "the latest other one that has stored pages; or `none`",
        "auto",
    )
    development: str = o.option(
        "auto",
        o.choice("auto", "cache", "bypass"),
        "whether pages are cached where the app is being developed: `auto`, not under a development server, a reloader "
        "or a framework's debug mode; `cache`, always; `bypass`, never",
        "auto",
    )
    coherence: float = o.option(
        0.1,
        o.SECONDS,
        "how long a process may serve its copies without asking for invalidations; 0 asks each time",
        "0.1",
    )
    invalidate_on_write: bool = o.option(
        True, o.FLAG, "a successful POST, PUT, PATCH or DELETE invalidates the page at its URL (RFC 9111, 4.4)", "true"
    )
    journal: str | bool | None = o.option(
        None,
        JOURNAL,
        "a file that keeps the invalidations that a node misses, until a process of the app delivers them",
        ".wsgi_isr/journal for stores on other machines",
    )
    local_cache_bytes: int = o.option(
        64 * 1024 * 1024, o.SIZE, "memory for copies of pages in each process, in bytes", "64 MiB"
    )
    canonical_url: str | None = o.option(
        None, URL, "scheme and host that every page is rendered for, whatever Host a request names", "the request's"
    )
    hosts: tuple[str, ...] = o.option(
        (),
        HOSTS,
        "the hosts that there are pages for, with their ports unless these are the default ones (`*.example.com`: all "
        "below it); requests for any other host are passed to the app uncached",
        "all",
    )
    ignore_cookies: tuple[str, ...] = o.option(
        (),
        o.NAMES,
        "more cookies that no page looks at (`*` allowed), besides those of analytics and consent banners",
        "none",
    )
    anonymous: Callable[[Mapping[str, Any]], bool] | None = o.option(
        None,
        o.CALLABLE,
        "called with the environ of a visitor who sends cookies: true where the visitor is anonymous all the same "
        "(see Sessions)",
        "none",
    )
    uncacheable_ttl: float = o.option(
        60.0, o.PERIOD, "how long a page is remembered as not to be stored, before it is tried again", "60"
    )
    background: str = o.option(
        "auto",
        o.choice("auto", "threads"),
        "where stale pages are rendered: in renderer processes under gunicorn's hooks and granian (in threads "
        "elsewhere), or always in threads of the process that serves",
        "auto",
    )
    renderers: int = o.option(1, o.COUNT, "renderer processes of each instance", "1")
    max_renders: int = o.option(
        1000, o.COUNT, "renders after which a renderer process is replaced by a new one", "1000"
    )
    background_threads: int = o.option(
        4, o.COUNT, "threads of each process that render stale pages in the background", "4"
    )
    background_queue: int = o.option(256, o.COUNT, "background renders that may wait for a thread", "256")
    drain_timeout: float = o.option(
        10.0, o.SECONDS, "how long a stopping process waits for its background renders", "10"
    )
    secret: str | None = o.option(None, o.TEXT, "signs the cookie of draft mode; without it there is none", "none")
    signing_key: str | None = o.option(
        None,
        SIGNING_KEY,
        "signs what is stored: an entry that another program has written is missing (see Stores)",
        "none",
    )
    debug: bool = o.option(False, o.FLAG, "one line in the log for each decision of the cache", "false")
    profiles: Mapping[str, tuple[float, float]] = o.option(
        None, o.Kind("dict", _check_profiles), "own profiles: name to revalidate and expire in seconds", "none"
    )

    def __post_init__(self) -> None:
        o.check_all(self)


SITE_OPTIONS = o.options_of(Settings)
OPTIONS: dict[str, o.Option] = {**o.options_of(Rule), **SITE_OPTIONS}
"""Every name that the constructor, the environment and the top of a TOML file know."""


@dataclass(frozen=True)
class Config:
    """The whole configuration, checked and compiled."""

    settings: Settings
    rules: RuleSet
    #: Whether the configuration names a store; the default is valid only in the app's own directory.
    names_store: bool = True
    #: The directory for the files that the package keeps for the app, the default store among them.
    folder: str = ".wsgi_isr"

    @classmethod
    def load(
        cls, rules: Any = None, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> Config:
        """Return the configuration from the constructor's arguments, the environment and the file that it names.

        :raises ConfigError: a value is wrong; names the option, variable or file, and the remedy.
        """
        environ = os.environ if environ is None else environ
        options = dict(options or {})
        for name in options:
            if name not in OPTIONS:
                raise o.unknown(name, OPTIONS)
        in_file, file_rules = (
            _from_file(environ[ENV_PREFIX + "CONFIG"]) if environ.get(ENV_PREFIX + "CONFIG") else ({}, {})
        )
        given = {**in_file, **_from_environment(environ)}
        # None means "not given", except where it is a value.
        given |= {name: value for name, value in options.items() if value is not None or name in _NONE_IS_A_VALUE}
        own_rules = _as_pairs(rules) if rules is not None else list(file_rules.items())
        settings = Settings(**{name: value for name, value in given.items() if name in SITE_OPTIONS})
        site = Rule(**{name: value for name, value in given.items() if name in RULE_OPTIONS})
        compiled = RuleSet(own_rules, site, {**PROFILES, **(settings.profiles or {})})
        return cls(settings, compiled, names_store="store" in given)


def _as_pairs(rules: Any) -> list[tuple[str, Any]]:
    if isinstance(rules, Mapping):
        return list(rules.items())
    try:
        return [(pattern, value) for pattern, value in rules]
    except (TypeError, ValueError):
        raise ConfigError("rules", f"{rules!r} is not a mapping", 'write {"/blog/<slug>": 60}') from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for variable, text in environ.items():
        name = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or name.upper() in _ENV_OTHERS:
            continue
        opt = OPTIONS.get(name)
        if opt is None:
            raise o.unknown(variable, (ENV_PREFIX + known.upper() for known in OPTIONS), "unknown variable")
        if opt.kind.parse is None:
            raise ConfigError(variable, "this option cannot be written as text", "give it to ISR(...)")
        given[name] = opt.kind.parse(variable, text)
    return given


def _from_file(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if sys.version_info >= (3, 11):
        import tomllib  # imported only where there is a file
    else:
        import tomli as tomllib

    where = f"{ENV_PREFIX}CONFIG={path}"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(where, f"cannot be read: {error.strerror}", "name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(where, f"is not TOML: {error}", "mend the file") from error
    rules = table.pop("rules", {})
    if not isinstance(rules, dict):
        raise ConfigError(f"{where}: rules", "is not a table", 'write [rules."/blog/<slug>"]')
    for name in table:
        if name not in OPTIONS:
            raise o.unknown(name, OPTIONS, where=f"{where}: ")
    return table, rules


def option_table() -> str:
    """Return the option table as Markdown, for ``docs/reference/options.md``. A test compares the two."""
    rows = ["| option | meaning | value | default |", "| --- | --- | --- | --- |"]
    for cls in (Rule, Settings):
        for f in fields(cls):
            opt: o.Option = f.metadata["option"]
            scope = "" if cls is Settings else " ¹"
            rows.append(f"| `{f.name}`{scope} | {opt.doc} | {opt.kind.words} | {opt.shown_default} |")
    return "\n".join(rows) + "\n"
