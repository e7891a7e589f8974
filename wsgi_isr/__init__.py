"""Incremental static regeneration for any WSGI app.

>>> from wsgi_isr import ISR
>>> application = ISR(lambda environ, start_response: [], revalidate=60, store="memory://")
"""

from __future__ import annotations

from typing import Any

from .errors import ConfigError, ISRError, StoreError, StoreUnavailable
from .middleware import ISR, wrap
from .rules import Rule

__all__ = ["ISR", "ConfigError", "ISRError", "Rule", "StoreError", "StoreUnavailable", "wrap"]


def __getattr__(name: str) -> Any:
    # Reading package metadata takes longer than importing this package, and few ask for the version.
    if name == "__version__":
        from importlib.metadata import version

        return version("wsgi_isr")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
