"""``null://``: stores nothing. Caching is off, everything else still works."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError, ValueTooLarge
from .base import Many, Store, Token, Versioned
from .urls import parse_store_url


class NullStore(Store):
    """Every key is always missing. ``add`` says ``True`` all the same: a lock that nobody keeps is
    granted to everybody, so each render goes ahead, as if there were no cache."""

    keeps = False
    scheme = "null"
    location = "null://"

    @classmethod
    def from_url(cls, url: str) -> NullStore:
        """``null://``, and nothing after it."""
        parts = parse_store_url(url)
        if parts.host or parts.path:
            raise ConfigError("store", "null:// takes neither host nor path", "write null://")
        return cls()

    def get(self, key: str) -> bytes | None:
        return None

    def get_many(self, keys: Sequence[str]) -> Many:
        return Many({}, {})

    def gets(self, key: str) -> Versioned | None:
        return None

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._refuse_large(key, value)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        return True

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        return False

    def delete(self, key: str) -> bool:
        return False

    def close(self) -> None:
        pass

    def _refuse_large(self, key: str, value: bytes) -> None:
        """As any store would: switching the cache off must not hide that a page is too large for it."""
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)
