from __future__ import annotations

import pytest

from wsgi_isr.errors import ConfigError
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.null import NullStore
from wsgi_isr.testing import StoreSuite


class TestSuite(StoreSuite):
    stores = False

    def make_store(self) -> Store:
        return NullStore()


def test_a_lock_is_granted_every_time():
    store = NullStore()
    assert [store.add("lock", b"me", ttl=30) for _ in range(3)] == [True, True, True]


def test_cas_is_refused_whatever_the_token():
    store = NullStore()
    store.set("key", b"value")
    assert [store.cas("key", b"new", token) for token in (None, 0, b"", object())] == [False] * 4


@pytest.mark.parametrize("url", ["null://host", "null:///path", "null://?max_bytes=5"])
def test_the_url_takes_nothing_more(url):
    with pytest.raises(ConfigError) as caught:
        NullStore.from_url(url)
    assert caught.value.option == "store"
