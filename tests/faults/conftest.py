"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.memcached import Memcached


@pytest.fixture
def nodes() -> Iterator[tuple[Memcached, Memcached]]:
    """Run two memcached nodes."""
    first = Memcached()
    try:
        second = Memcached()
        try:
            yield first, second
        finally:
            second.kill()
    finally:
        first.kill()
