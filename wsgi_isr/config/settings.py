"""The options of the site, and the sources of their values.

An argument precedes an environment variable, which precedes a TOML file, which precedes the default. An unknown name is
an error in each.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from . import options as o
from .cdn import CDN, PURGE_URLS, TOKEN, ZONE, Cdn, cdn_of
from .lifetime import PROFILES
from .rules import RULE_OPTIONS, Rule

if TYPE_CHECKING:
    from .rule_set import RuleSet

#: A lower-case host, with or without a port (RFC 3986, 3.2.2). Names in container networks may have underscores.
HOST = re.compile(
    r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])"
    r"(?::(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?\Z"
)
ENV_PREFIX = "WSGI_ISR_"
#: Options whose value may be ``None``. For all others, the argument ``None`` means that the option is not given.
_NONE_IS_A_VALUE = frozenset({"release", "adopt_release"})
#: Variables with the prefix that are no options.
_NOT_OPTIONS = frozenset({"APP", "CONFIG"})


def _check_url(name: str, value: Any) -> str:
    scheme, _, host = value.partition("://") if isinstance(value, str) else ("", "", "")
    if scheme not in ("http", "https") or not HOST.match(host.lower()):
        raise ConfigError(name, f"{value!r} is not scheme and host", "write https://example.com, without a path")
    return f"{scheme}://{host}"


def _check_hosts(name: str, value: Any) -> tuple[str, ...]:
    """Return hosts as they stand in keys: in lower case, without the default port of a scheme."""
    hosts = tuple(host.lower() for host in o.NAMES.check(name, value))
    for host in hosts:
        if not HOST.match(host.removeprefix("*.")):
            raise ConfigError(
                name,
                f"{host!r} is not a host",
                "write example.com, example.com:8000 or *.example.com, no scheme",
            )
    return tuple(re.sub(r":(80|443)\Z", "", host) for host in hosts)


def _check_profiles(name: str, value: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(value, Mapping):
        raise ConfigError(name, f"{value!r} is not a dict", 'write {"news": (30, 600)}, in seconds')
    own: dict[str, tuple[float, float]] = {}
    for profile, pair in value.items():
        where = f"{name}[{profile!r}]"
        if isinstance(pair, str) or not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(where, f"{pair!r} is not a pair", "write (revalidate, expire), in seconds")
        revalidate, expire = (o.PERIOD.check(where, item) for item in pair)
        if expire < revalidate:
            raise ConfigError(
                where, f"expire={expire:g} is below revalidate={revalidate:g}", f"write ({expire:g}, {revalidate:g})"
            )
        own[str(profile)] = (revalidate, expire)
    return own


def _check_signing_key(name: str, value: Any) -> str:
    remedy = 'write the output of python -c "import secrets; print(secrets.token_urlsafe())"'
    # No message contains the value: errors are logged.
    if not isinstance(value, str):
        raise ConfigError(name, f"a {type(value).__name__} is not text", remedy)
    if len(value) < 16:
        raise ConfigError(name, f"{len(value)} characters are too few: 16 is the minimum", remedy)
    return value


def _check_journal(name: str, value: Any) -> str | bool:
    if value is False or value == "none":
        return False
    if not isinstance(value, str) or not value:
        raise ConfigError(name, f"{value!r} is not a path", 'write the path of a file, or False (as text: "none")')
    return value


def _parse_journal(_name: str, text: str) -> str | bool:
    return False if text.lower() in ("none", "false", "no", "off", "0") else text


def _check_name(name: str, value: Any) -> str | None:
    """Return a name, ``"auto"``, or ``None`` for ``"none"``. An empty name is valid."""
    if value == "none":
        return None
    if not isinstance(value, str):
        raise ConfigError(name, f"{value!r} is not text", 'write a name, "auto" or "none"')
    return value


def _check_off(name: str, value: Any) -> str | None:
    """Return the mode of the switch; ``None`` for a cache that is on."""
    if value in ("stale", "serve-stale"):
        return "serve-stale"
    if value == "pass":
        return "pass"
    return "pass" if o.FLAG.check(name, value) else None


def _parse_off(name: str, text: str) -> Any:
    parse = o.FLAG.parse
    return text.lower() if text.lower() in ("pass", "stale", "serve-stale") or parse is None else parse(name, text)


OFF = o.Kind('true, false or "stale"', _check_off, _parse_off)
URL = o.Kind("scheme and host", _check_url, lambda _name, text: text)
HOSTS = o.Kind("list of hosts", _check_hosts, o.NAMES.parse)
JOURNAL = o.Kind("file, or False", _check_journal, _parse_journal)
NAME_OR_NEVER = o.Kind('"auto", a name or "none"', _check_name, lambda _name, text: text)
SIGNING_KEY = o.Kind("text of 16 characters or more", _check_signing_key, lambda _name, text: text)


@dataclass(frozen=True)
class Settings:
    """The options of the site, without those of :class:`~wsgi_isr.config.rules.Rule`."""

    store: Any = o.option(
        "sqlite:///.wsgi_isr/store.db",
        o.any_value("URL", lambda _name, text: text),
        "URL of the store of pages (see Stores), or an open store. A relative path counts from the current directory, "
        "the path of the default from the folder of the app.",
        "sqlite:///.wsgi_isr/store.db",
    )
    namespace: str = o.option(
        "default", o.TEXT, "Part of each key. Sites with different namespaces can share a store.", "default"
    )
    release: str | None = o.option(
        "auto",
        NAME_OR_NEVER,
        "Release of the app. Pages and data belong to one release, tags to all. `auto`: the platform's name of the "
        "deployment, or else a digest of the app's source. `none`: a deploy keeps all pages.",
        "auto",
    )
    adopt_release: str | None = o.option(
        "auto",
        NAME_OR_NEVER,
        "Earlier release, whose pages are served as stale until this release has rendered its own. `auto`: the latest "
        "other release with stored pages. `none`: no release.",
        "auto",
    )
    development: str = o.option(
        "auto",
        o.choice("auto", "cache", "bypass"),
        "Caching during development. `auto`: off under a development server, a reloader or a framework's debug mode. "
        "`cache`: always on. `bypass`: always off.",
        "auto",
    )
    coherence: float = o.option(
        0.1,
        o.SECONDS,
        "Maximum time that a process serves its copies without asking the store for invalidations, in seconds. `0`: "
        "the process asks at each request.",
        "0.1",
    )
    invalidate_on_write: bool = o.option(
        True, o.FLAG, "A successful POST, PUT, PATCH or DELETE invalidates the page at its URL (RFC 9111, 4.4).", "true"
    )
    journal: str | bool | None = o.option(
        None,
        JOURNAL,
        "File that keeps the invalidations that a node or a CDN missed. A process of the app delivers them later.",
        ".wsgi_isr/journal for stores on other machines, and behind a CDN",
    )
    local_cache_bytes: int = o.option(
        64 * 1024 * 1024, o.SIZE, "Maximum memory for copies of pages, in each process.", "64 MiB"
    )
    canonical_url: str | None = o.option(
        None,
        URL,
        "Scheme and host for which every page is rendered, in place of those of the request.",
        "the request's",
    )
    hosts: tuple[str, ...] = o.option(
        (),
        HOSTS,
        "Hosts with cached pages, each with its port unless that is the default. `*.example.com`: all hosts below it. "
        "For any other host, the app answers, uncached.",
        "all",
    )
    ignore_cookies: tuple[str, ...] = o.option(
        (),
        o.NAMES,
        "More cookies that no page depends on, besides those of analytics and consent banners. `*` stands for any "
        "text.",
        "none",
    )
    anonymous: Callable[[Mapping[str, Any]], bool] | None = o.option(
        None,
        o.CALLABLE,
        "Called with the environ of a request with cookies. A true result makes the visitor anonymous (see Sessions).",
        "none",
    )
    uncacheable_ttl: float = o.option(
        60.0, o.PERIOD, "Lifetime of a hit-for-miss, in seconds. Then the cache tries to store the page again.", "60"
    )
    background: str = o.option(
        "auto",
        o.choice("auto", "threads"),
        "Place of background renders. `auto`: renderer processes under gunicorn's hooks and granian, else threads. "
        "`threads`: threads of the process that serves.",
        "auto",
    )
    renderers: int = o.option(1, o.COUNT, "Number of renderer processes of each instance.", "1")
    max_renders: int = o.option(1000, o.COUNT, "Renders after which a new process replaces a renderer.", "1000")
    background_threads: int = o.option(4, o.COUNT, "Number of threads for background renders, in each process.", "4")
    background_queue: int = o.option(
        256, o.COUNT, "Maximum number of background renders that wait for a thread.", "256"
    )
    off: str | None = o.option(
        None,
        OFF,
        "Switch for this process, in place of `wsgi-isr off`. `true`: the app answers each request, uncached. `stale`: "
        "pages that are there are served whatever their age, and not rendered again.",
        "false",
    )
    drain_timeout: float = o.option(
        10.0, o.SECONDS, "Maximum time that a stopping process waits for its background renders, in seconds.", "10"
    )
    cdn: str | None = o.option(
        None,
        CDN,
        "CDN in front of the app ([Deploy behind a CDN](../how-to/cdn.md)). Pages carry a lifetime and tags for it, "
        "and invalidations purge it.",
        "none",
    )
    cdn_zone: str | None = o.option(
        None, ZONE, "Id of the zone (Cloudflare), service (Fastly) or pull zone (Bunny).", "none"
    )
    cdn_token: str | None = o.option(
        None, TOKEN, "API token that may purge. Its place is `WSGI_ISR_CDN_TOKEN`.", "none", is_secret=True
    )
    cdn_purge_url: tuple[str, ...] = o.option(
        (), PURGE_URLS, "URL of each Varnish, or of a `generic` CDN, that takes purges.", "that of the API"
    )
    secret: str | None = o.option(
        None,
        o.TEXT,
        "Key that signs the cookie of draft mode. Without it, there is no draft mode.",
        "none",
        is_secret=True,
    )
    signing_key: str | None = o.option(
        None,
        SIGNING_KEY,
        "Key that signs all stored entries. An entry of another program then counts as missing (see Stores).",
        "none",
        is_secret=True,
    )
    debug: bool = o.option(False, o.FLAG, "Log one line for each decision of the cache.", "false")
    profiles: Mapping[str, tuple[float, float]] = o.option(
        None,
        o.Kind("dict", _check_profiles),
        "More profiles. The dict maps a name to `revalidate` and `expire`, in seconds.",
        "none",
    )

    def __post_init__(self) -> None:
        o.check_all(self)
        cdn_of(self.cdn, self.cdn_zone, self.cdn_token, self.cdn_purge_url)

    @property
    def edge(self) -> Cdn | None:
        """Return the CDN; ``None`` without one."""
        return cdn_of(self.cdn, self.cdn_zone, self.cdn_token, self.cdn_purge_url)


SITE_OPTIONS = o.options_of(Settings)
OPTIONS: dict[str, o.Option] = {**o.options_of(Rule), **SITE_OPTIONS}
"""The options that the constructor, the environment and the top level of a TOML file take."""


@dataclass(frozen=True)
class Config:
    """The configuration of a site, checked and compiled."""

    settings: Settings
    rules: RuleSet
    #: Whether a source names the store. Otherwise, the default store is in :attr:`folder`.
    names_store: bool = True
    #: The directory of the package's files for the app, such as the default store.
    folder: str = ".wsgi_isr"

    @classmethod
    def load(
        cls, rules: Any = None, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> Config:
        """Return the configuration from arguments, environment variables and the TOML file that a variable names.

        :param rules: from pattern to rule; precedes the rules of the file.
        :param options: the arguments.
        :param environ: the environment variables; by default, those of the process.
        :raises ConfigError: an option is unknown, or its value is impossible.
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
        given |= {name: value for name, value in options.items() if value is not None or name in _NONE_IS_A_VALUE}
        own_rules = _as_pairs(rules) if rules is not None else list(file_rules.items())
        settings = Settings(**{name: value for name, value in given.items() if name in SITE_OPTIONS})
        defaults = Rule(**{name: value for name, value in given.items() if name in RULE_OPTIONS})
        # Imported with the first rules: werkzeug.routing takes a tenth of the import, and apps of Flask have it anyway.
        from .rule_set import RuleSet

        compiled = RuleSet(own_rules, defaults, {**PROFILES, **(settings.profiles or {})})
        return cls(settings, compiled, names_store="store" in given)


def _as_pairs(rules: Any) -> list[tuple[str, Any]]:
    if isinstance(rules, Mapping):
        return list(rules.items())
    try:
        return [(pattern, value) for pattern, value in rules]
    except (TypeError, ValueError):
        raise ConfigError("rules", f"{rules!r} is not a dict", 'write {"/blog/<slug>": 60}') from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for variable, text in environ.items():
        name = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or name.upper() in _NOT_OPTIONS:
            continue
        opt = OPTIONS.get(name)
        if opt is None:
            raise o.unknown(variable, (ENV_PREFIX + known.upper() for known in OPTIONS), "unknown variable")
        if opt.kind.parse is None:
            raise ConfigError(variable, f"{text!r} is text, which this option cannot be", f"write ISR(..., {name}=...)")
        given[name] = opt.kind.parse(variable, text)
    return given


def _from_file(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if sys.version_info >= (3, 11):
        import tomllib  # imported only if there is a file
    else:
        import tomli as tomllib

    where = f"{ENV_PREFIX}CONFIG={path}"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(where, f"cannot be read: {error.strerror}", "write the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(where, f"is not TOML: {error}", "correct the file") from error
    rules = table.pop("rules", {})
    if not isinstance(rules, dict):
        raise ConfigError(f"{where}: rules", f"{rules!r} is not a table", 'write [rules."/blog/<slug>"]')
    for name in table:
        if name not in OPTIONS:
            raise o.unknown(name, OPTIONS, where=f"{where}: ")
    return table, rules


def option_table() -> str:
    """Return the options as a table in Markdown, for ``docs/reference/options.md``. A test compares the two."""
    rows = ["| option | meaning | value | default |", "| --- | --- | --- | --- |"]
    for cls in (Rule, Settings):
        for f in fields(cls):
            opt: o.Option = f.metadata["option"]
            scope = "" if cls is Settings else " ¹"
            rows.append(f"| `{f.name}`{scope} | {opt.doc} | {opt.kind.name} | {opt.shown_default} |")
    return "\n".join(rows) + "\n"
