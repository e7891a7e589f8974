"""The policy of a page: its rule, completed by the defaults of the site and of the package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from ..errors import ConfigError
from . import options as o
from .lifetime import AUTO, Lifetime
from .rules import RULE_DEFAULTS, RULE_OPTIONS, Rule

#: The name of the policy for paths that no pattern matches.
UNLISTED = "*"

Profiles = Mapping[str, tuple[float, float]]
Paths = tuple[str | Mapping[str, Any], ...] | Callable[[], Iterable[str | Mapping[str, Any]]]
TagTemplates = tuple[str, ...] | Callable[[Mapping[str, Any]], Iterable[str]]


def lease_for(render_timeout: float) -> float:
    """Return the ttl of a lease, in seconds, for renders of at most ``render_timeout`` seconds.

    A render in progress renews its lease. A short lease costs nothing, and soon frees the page of a killed worker.
    memcached counts whole seconds: a lease below 3 s could lapse between two renewals.
    """
    return max(3.0, min(5.0, render_timeout))


@dataclass(frozen=True)
class Policy:
    """The options of a page, all set. The meaning of each option is in :class:`~wsgi_isr.config.rules.Rule`."""

    #: The pattern of the rule, or :data:`UNLISTED`.
    name: str
    #: ``None``: the page's own headers set its lifetime. :attr:`expire` holds in any case.
    lifetime: Lifetime | None
    expire: float | None
    #: Whether no rule covers the page: the app alone answers.
    has_no_rule: bool
    #: Whether the rule says ``revalidate=0``: the app alone answers.
    is_never_cached: bool
    tags: TagTemplates
    query: frozenset[str]
    other_query: str
    vary: Mapping[str, Callable[[str], str] | None]
    cookies: tuple[str, ...]
    paths: Paths | None
    dynamic_params: bool
    fallback: Any
    statuses: frozenset[int]
    negative_ttl: float
    render_timeout: float
    lock_timeout: float
    max_body: int
    bypass: Callable[[Mapping[str, Any]], bool] | None

    @property
    def lease(self) -> float:
        """Return the ttl of the page's lease, in seconds. A killed worker blocks the page for at most this time."""
        return lease_for(self.render_timeout)

    @property
    def by_url_alone(self) -> bool:
        """Return whether the key depends on method and URL alone."""
        return not (self.vary or self.cookies or self.bypass)

    @property
    def lists_all(self) -> bool:
        """Return whether ``paths`` lists all pages."""
        return self.paths is not None and not self.dynamic_params

    @property
    def has_shell(self) -> bool:
        """Return whether a client gets a shell while a page is rendered."""
        return bool(self.fallback != "blocking")

    @property
    def declares(self) -> tuple[str, ...]:
        """Return the request headers in the key, as a ``Vary`` names them."""
        return (*self.vary, *(("Cookie",) if self.cookies else ()))

    @property
    def varies_on(self) -> frozenset[str]:
        """Return the lower-case names of the headers in ``vary``."""
        return frozenset(name.lower() for name in self.vary)


def policy_of(name: str, rule: Rule, defaults: Rule, profiles: Profiles, has_no_rule: bool = False) -> Policy:
    """Return the policy of a rule.

    :param name: the pattern, or :data:`UNLISTED`.
    :param defaults: the options of the site.
    :raises ConfigError: the options do not fit together.
    """
    where = f"rule {name!r}: "
    values = {option: _first_set(option, rule, defaults) for option in RULE_OPTIONS}
    # Paths belong to one pattern: a rule does not inherit those of the site.
    values["paths"] = defaults.paths if name == UNLISTED else rule.paths
    revalidate, values["expire"] = _ages(where, values.pop("revalidate"), values["expire"], rule, profiles)
    is_never_cached = revalidate == 0 and revalidate is not False
    lifetime = None
    if revalidate is not None:
        lifetime = Lifetime(None if revalidate is False else float(revalidate), values["expire"])
        if not is_never_cached:
            _check_expire(where, lifetime)
    if rule.dynamic_params is False and values["paths"] is None:
        raise no_paths(where)
    if not callable(values["tags"]):
        check_templates(where, values["tags"], set(re.findall(r"<(?:[^<>]*:)?([^<>]*)>", name)))
    values |= {
        "query": frozenset(item.encode().decode("latin-1") for item in values["query"]),
        "vary": dict(sorted(values["vary"].items())),
        "cookies": tuple(sorted(values["cookies"])),
        "statuses": frozenset(values["statuses"]),
    }
    return Policy(name=name, lifetime=lifetime, has_no_rule=has_no_rule, is_never_cached=is_never_cached, **values)


def _first_set(option: str, rule: Rule, defaults: Rule) -> Any:
    for source in (rule, defaults):
        if getattr(source, option) is not None:
            return getattr(source, option)
    return RULE_DEFAULTS.get(option)


def _ages(where: str, revalidate: Any, expire: float | None, rule: Rule, profiles: Profiles) -> tuple[Any, Any]:
    """Return ``revalidate`` and ``expire``, with the name of a profile resolved; ``None`` for ``"auto"``."""
    if revalidate == AUTO:
        return None, expire
    if not isinstance(revalidate, str):
        return revalidate, expire
    if revalidate not in profiles:
        raise o.unknown(revalidate, profiles, "unknown profile", where + "revalidate=")
    profile = profiles[revalidate]
    # The ``expire`` of the rule precedes that of the profile, which precedes that of the site.
    return profile[0], profile[1] if rule.expire is None else expire


def _check_expire(where: str, lifetime: Lifetime) -> None:
    revalidate, expire = lifetime
    if expire is None or (revalidate is not None and expire >= revalidate):
        return
    if revalidate is None:
        problem = f'{expire:g} is below revalidate="forever": no page would become stale before it expires'
        raise ConfigError(where + "expire", problem, "leave expire out, or write seconds as revalidate")
    problem = f"{expire:g} is below revalidate={revalidate:g}: no page would become stale before it expires"
    raise ConfigError(where + "expire", problem, f"write {revalidate:g} or more, or leave expire out")


def no_paths(where: str = "") -> ConfigError:
    """Return the error for ``dynamic_params=False`` without any path."""
    problem = "False, but no paths are listed: every page would be a 404"
    return ConfigError(where + "dynamic_params", problem, "write paths as well, or leave dynamic_params out")


def check_templates(where: str, tags: Iterable[str], params: set[str]) -> None:
    """Check the ``{param}`` of tags against the names of the parameters.

    :raises ConfigError: a tag names another parameter.
    """
    for tag in tags:
        try:
            names = {name for _, name, _, _ in Formatter().parse(tag) if name is not None}
        except ValueError as error:
            raise ConfigError(where + "tags", f"{tag!r}: {error}", "write {{ or }} for a literal brace") from None
        for name in names - params:
            problem = f"{tag!r} contains {{{name}}}, but there is no parameter of this name"
            known = ", ".join(f"{{{param}}}" for param in sorted(params))
            raise ConfigError(where + "tags", problem, f"write {known}" if known else "write the tag without {}")


def tags_of(policy: Policy, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tags that a policy gives to the page with these URL parameters.

    :raises ConfigError: the rule's callable returns no list of tags.
    """
    if callable(policy.tags):
        checked: tuple[str, ...] = o.TAGS.check(f"rule {policy.name!r}: tags", policy.tags(params))
        return checked
    return tuple(tag.format_map(params) for tag in policy.tags)
