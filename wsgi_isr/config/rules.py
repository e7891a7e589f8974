"""The options of a rule: how the pages of one pattern are cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from . import options as o


@dataclass(frozen=True)
class Rule:
    """The options of the pages of one pattern. An option that is not set comes from the ``ISR`` with the rule.

    :raises ConfigError: an option is unknown, or its value is impossible.
    """

    revalidate: float | str | bool | None = o.option(
        None,
        o.LIFETIME,
        'Age at which a page becomes stale, in seconds. `0`: never cached. `"forever"` or `False`: fresh until '
        'invalidated. `"auto"`: as the page\'s own headers say. Or a profile, such as `"minutes"`.',
        "-",
    )
    expire: float | None = o.option(
        None,
        o.PERIOD,
        "Age at which a page expires, in seconds from the end of its render. From then on, clients wait for a new "
        "render.",
        "unlimited",
    )
    tags: Any = o.option(
        None,
        o.TAGS,
        "Tags of the page, for invalidation. In a list, `{param}` stands for a parameter of the URL. A callable takes "
        "the parameters as a dict.",
        "none",
    )
    query: tuple[str, ...] | None = o.option(
        None,
        o.NAMES,
        "Query parameters in the key. Their order does not matter. All values of a repeated parameter count.",
        "none",
    )
    other_query: str | None = o.option(
        None,
        o.choice("bypass", "ignore", "key"),
        "Treatment of all other query parameters. `bypass`: the app answers, uncached. `ignore`: they are dropped, as "
        "in Next.js. `key`: they are part of the key.",
        "bypass",
    )
    vary: Any = o.option(
        None,
        o.HEADERS,
        "Request headers in the key. A dict maps a header to a function that reduces its values to a few.",
        "none",
    )
    cookies: tuple[str, ...] | None = o.option(None, o.NAMES, "Cookies in the key.", "none")
    paths: Any = o.option(
        None,
        o.PATHS,
        "All known pages of the rule, for `wsgi-isr prerender`: paths, or dicts of the pattern's parameters. A "
        "callable returns them.",
        "none",
    )
    dynamic_params: bool | None = o.option(
        None,
        o.FLAG,
        "`False`: the cache answers 404 to each path that `paths` does not list, without a call of the app.",
        "true",
    )
    fallback: Any = o.option(
        None,
        o.FALLBACK,
        "Answer to a request for a page that is not rendered yet. `blocking`: the page, after its render. Otherwise a "
        "shell, at once; the page follows. Crawlers always get the page.",
        "blocking",
    )
    statuses: tuple[int, ...] | None = o.option(
        None, o.STATUSES, "Statuses that may be stored.", "200 203 301 308 404 410"
    )
    negative_ttl: float | None = o.option(None, o.SECONDS, "Maximum lifetime of a stored 404 or 410, in seconds.", "10")
    render_timeout: float | None = o.option(
        None,
        o.PERIOD,
        "Maximum time of a render, in seconds. A later result is not stored, and another worker may render the page.",
        "30",
    )
    lock_timeout: float | None = o.option(
        None, o.SECONDS, "Maximum time that a request waits for a render in another process, in seconds.", "10"
    )
    max_body: int | None = o.option(
        None, o.SIZE, "Maximum body of a stored page. A larger body is streamed to the client, and not stored.", "8 MiB"
    )
    bypass: Callable[[Mapping[str, Any]], bool] | None = o.option(
        None,
        o.CALLABLE,
        "Called with the environ of a request. If the result is true, the app answers, uncached.",
        "none",
    )

    if not TYPE_CHECKING:  # a dataclass would raise a TypeError, without the nearest names

        def __new__(cls, *_args: Any, **options: Any) -> Rule:
            known = o.options_of(cls)
            for name in options:
                if name not in known:
                    raise o.unknown(name, known, "unknown option of a Rule")
            return super().__new__(cls)

    def __post_init__(self) -> None:
        o.check_all(self)

    @classmethod
    def of(cls, value: Any) -> Rule:
        """Return the rule for ``value``: a rule, a bare ``revalidate``, or a mapping of options.

        :raises ConfigError: an option is unknown, or its value is impossible.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            return cls(revalidate=value)
        known = o.options_of(cls)
        for name in value:
            if name not in known:
                raise o.unknown(str(name), known)
        return cls(**value)


#: The names of the options. Each is an option of the site as well: the default of rules that do not set it.
RULE_OPTIONS = tuple(field.name for field in fields(Rule))

#: The values of options that neither the rule nor the site sets.
RULE_DEFAULTS: dict[str, Any] = {
    "tags": (),
    "query": (),
    "other_query": "bypass",
    "vary": {},
    "cookies": (),
    "dynamic_params": True,
    "fallback": "blocking",
    "statuses": (200, 203, 301, 308, 404, 410),
    "negative_ttl": 10.0,
    "render_timeout": 30.0,
    "lock_timeout": 10.0,
    "max_body": 8 * 1024 * 1024,
}
