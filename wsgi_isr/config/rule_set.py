"""The rules of a site, compiled to find the policy of a path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, RequestRedirect
from werkzeug.routing import Rule as Route

from ..errors import ConfigError
from . import options as o
from .lifetime import PROFILES
from .patterns import spelling
from .policy import UNLISTED, Policy, Profiles, no_paths, policy_of
from .rules import Rule

#: werkzeug's names of its string converter.
_CONVERTERS = {None: "string", "default": "string"}


class Listed(NamedTuple):
    """A listed page: its decoded path below the app's mount point, and its query as written."""

    path: str
    query: str = ""


class RuleSet:
    """All rules of a site; the most specific pattern wins.

    :param rules: a mapping from pattern to :class:`Rule`, number, or mapping of options; or pairs.
    :param defaults: the options of the site. Its ``revalidate`` is the rule of all paths that no pattern matches.
    :param profiles: from name to ``revalidate`` and ``expire``, in seconds.
    :raises ConfigError: a pattern is invalid, two patterns match the same paths, or a value is impossible.
    """

    def __init__(
        self,
        rules: Mapping[str, Any] | Iterable[tuple[str, Any]],
        defaults: Rule,
        profiles: Profiles = PROFILES,
    ) -> None:
        pairs = list(rules.items()) if isinstance(rules, Mapping) else list(rules)
        self.policies: dict[str, Policy] = {}
        self.profiles = profiles
        shapes: dict[str, str] = {}
        routes = []
        for pattern, value in pairs:
            where = f"rule {pattern!r}"
            _check_pattern(pattern, where)
            if (shape := _shape(pattern)) in shapes:
                raise ConfigError(where, f"matches the same paths as {shapes[shape]!r}", "remove one of the two")
            shapes[shape] = pattern
            routes.append(_route(pattern, where))
            self.policies[pattern] = policy_of(pattern, _rule_of(value, where), defaults, profiles)
        has_paths = bool(defaults.paths) or any(policy.paths for policy in self.policies.values())
        if defaults.dynamic_params is False and not has_paths:
            raise no_paths()
        # If some pages have rules, the app alone serves all others, unless `revalidate` is given for them.
        has_no_rule = bool(pairs) and defaults.revalidate is None
        self.policies[UNLISTED] = policy_of(UNLISTED, Rule(), defaults, profiles, has_no_rule)
        # The app redirects: an additional slash makes another path, as in WSGI.
        self._adapter = Map(routes, merge_slashes=False, redirect_defaults=False).bind("host", "/")
        for policy in self.policies.values():
            if not callable(policy.paths):
                self.listed(policy)

    def match(self, path: str) -> tuple[Policy, Mapping[str, Any]]:
        """Return the policy and the URL's parameters for a decoded path below the app's mount point."""
        try:
            pattern, params = self._adapter.match(path, method="GET")
        except (HTTPException, RequestRedirect):
            return self.policies[UNLISTED], {}
        return self.policies[pattern], params

    def listed(self, policy: Policy) -> tuple[Listed, ...]:
        """Return the pages that a rule lists. A callable is called each time.

        :raises ConfigError: an item is no path of the rule. Exceptions of the callable pass through.
        """
        where = f"rule {policy.name!r}: paths"
        items = policy.paths() if callable(policy.paths) else policy.paths or ()
        return tuple(dict.fromkeys(self._listed(policy, where, item) for item in o.PATHS.check(where, items)))

    def _listed(self, policy: Policy, where: str, item: str | Mapping[str, Any]) -> Listed:
        if isinstance(item, Mapping):
            if policy.name == UNLISTED:
                problem = f"{item!r} is a dict, but the paths of the site have no pattern"
                raise ConfigError(where, problem, 'write a path, such as "/blog/a"')
            try:
                # A parameter that the pattern lacks would become a part of the query.
                path, _, query = self._adapter.build(policy.name, dict(item)).partition("?")
            except Exception as error:  # a BuildError, or an exception of a converter
                problem = f"{item!r} does not fill the pattern"
                raise ConfigError(where, problem, "write a dict with each parameter of the pattern") from error
        else:
            path, _, query = item.partition("?")
        path = o.parse_path(path, where)
        if (owner := self.match(path)[0]) is not policy:
            raise ConfigError(where, f"{item!r} is a path of the rule {owner.name!r}", "write it in that rule's paths")
        return Listed(path, query)


def _check_pattern(pattern: Any, where: str) -> None:
    if not isinstance(pattern, str):
        raise ConfigError(where, "the pattern is not text", "write a path, such as '/blog/<slug>'")
    if (in_werkzeug := spelling(pattern)) != pattern:
        problem = "this is not werkzeug's syntax, so the rule would match no page"
        raise ConfigError(where, problem, f"write {in_werkzeug!r}")
    if not pattern.startswith("/"):
        raise ConfigError(where, "the pattern does not begin with a slash", "write a path, such as '/blog/<slug>'")


def _shape(pattern: str) -> str:
    """Return the pattern without the names of its parameters: equal for two patterns that match the same paths."""
    return re.sub(r"<(?:([^:<>]*):)?[^<>]*>", lambda m: f"<{_CONVERTERS.get(m[1], m[1])}>", pattern)


def _route(pattern: str, where: str) -> Route:
    try:
        # A match compiles the pattern. Compiled among others, the error would not name the pattern.
        Map([Route(pattern, endpoint=pattern)], merge_slashes=False).bind("host").test("/x")
        return Route(pattern, endpoint=pattern)
    except Exception as error:  # werkzeug raises a SyntaxError, an OverflowError ...
        problem = f"werkzeug cannot compile the pattern: {str(error) or type(error).__name__}"
        remedy = "write it as in werkzeug's URL rules, such as '/blog/<slug>' or '/item/<int:id>'"
        raise ConfigError(where, problem, remedy) from error


def _rule_of(value: Any, where: str) -> Rule:
    try:
        return Rule.of(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.option}", error.problem, error.remedy) from None
