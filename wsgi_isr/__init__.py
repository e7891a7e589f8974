"""Incremental static regeneration for any WSGI app.

>>> from wsgi_isr import ISR
>>> application = ISR(lambda environ, start_response: [], revalidate=60, store="memory://")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .cache.context import cache_life, cache_tag, no_store
from .cache.invalidation import Receipt
from .config.rules import Rule
from .data.cached import cached
from .errors import (
    ConfigError,
    InvalidationError,
    ISRError,
    PersonalDataError,
    RefreshError,
    StoreError,
    StoreUnavailable,
)
from .middleware.isr import ISR
from .middleware.loading import wrap
from .middleware.process import invalidate, refresh, replay
from .pages.draft import disable_draft, enable_draft, is_draft

if TYPE_CHECKING:
    from .data.http_session import CachedSession as CachedSession

# CachedSession is left out, so that "import *" needs no extra.
__all__ = [
    "ISR",
    "ConfigError",
    "ISRError",
    "InvalidationError",
    "PersonalDataError",
    "Receipt",
    "RefreshError",
    "Rule",
    "StoreError",
    "StoreUnavailable",
    "cache_life",
    "cache_tag",
    "cached",
    "disable_draft",
    "enable_draft",
    "invalidate",
    "is_draft",
    "no_store",
    "refresh",
    "replay",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name == "CachedSession":
        # requests is optional, few apps fetch, and it takes longer to import than this package.
        try:
            from .data.http_session import CachedSession
        except ModuleNotFoundError as error:
            if error.name != "requests":
                raise
            raise ConfigError(name, "requests is not installed", "pip install wsgi_isr[requests]") from error
        return CachedSession
    # Reading package metadata takes longer than importing this package, and few programs ask for the version.
    if name == "__version__":
        from importlib.metadata import version

        return version("wsgi_isr")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
