"""The store that stores nothing: ``null://``. It turns caching off."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError, ValueTooLarge
from .base import Many, Store, Token, Versioned
from .urls import parse_store_url


class NullStore(Store):
    """Store nothing: every key is always missing.

    ``add`` returns ``True``, so every process gets the lease, and no render waits.
    """

    keeps = False
    scheme = "null"
    location = "null://"

    @classmethod
    def from_url(cls, url: str) -> NullStore:
        """Return the store for ``null://``.

        :raises ConfigError: the URL has other parts.
        """
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
        """Raise as other stores do. A page that is too large must not become visible only with another store."""
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)
