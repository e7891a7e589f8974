"""Tags of served entries are read often enough that the store does not evict them as unused."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import pytest

from wsgi_isr.cache.entry import TagSnapshot
from wsgi_isr.cache.tag_versions import ABSENT, TagVersions
from wsgi_isr.stores.base import Many
from wsgi_isr.stores.memory import MemoryStore


class Counting(MemoryStore):
    """A store that counts the reads of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def get_many(self, keys: Sequence[str]) -> Many:
        self.reads.update(keys)
        return super().get_many(keys)


class Served:
    """A process that serves entries with ``tags`` every half second of a fake clock."""

    def __init__(self, tags: int, tag_version: bytes = b"stamp") -> None:
        self.now = 0.0
        self.store = Counting()
        self.tag_versions = TagVersions(
            self.store, lambda tag: tag, lambda node: f"epoch:{node}", coherence=0, monotonic=lambda: self.now
        )
        self._proof = TagSnapshot(tuple((str(number), tag_version) for number in range(tags)))

    def reads_in(self, seconds: float) -> set[int]:
        """Return how often each tag was read meanwhile."""
        self.store.reads.clear()
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.tag_versions.keep_alive(self._proof)
            for _ in range(64):
                self.tag_versions.ask()
        return {count for key, count in self.store.reads.items() if not key.startswith("epoch:")}


@pytest.mark.parametrize(
    ("tags", "seconds"), [(1, 5), (400, 5), (1000, 5), (2000, 10), (4000, 20), (8000, 20)], ids=lambda value: str(value)
)
def test_the_fewer_tags_are_in_use_the_more_often_they_are_read(tags: int, seconds: int) -> None:
    served = Served(tags)
    served.reads_in(seconds)  # from the first time that they are seen
    assert served.reads_in(3 * seconds) == {3}
    assert served.tag_versions.read_again == seconds


def test_a_tag_that_does_not_exist_is_not_read() -> None:
    for tag_version in (ABSENT, b""):
        served = Served(1000, tag_version)
        assert served.reads_in(60) == set()
        assert served.tag_versions.read_again == 5


def test_a_node_slower_than_coherence_is_asked_once_for_all_threads_that_wait() -> None:
    """Each thread arrived before the read began, so its epochs are new enough for all of them."""
    now, begun, go = [0.0], threading.Event(), threading.Event()
    arrived = threading.Semaphore(0)

    class Slow(Counting):
        def get_many(self, keys: Sequence[str]) -> Many:
            begun.set()
            assert go.wait(10)
            now[0] += 1.0
            return super().get_many(keys)

    def monotonic() -> float:
        arrived.release()
        return now[0]

    store = Slow()
    store.set("epoch:local", b"nonce")
    tags = TagVersions(store, str, lambda node: f"epoch:{node}", coherence=0.1, monotonic=monotonic)
    threads = [threading.Thread(target=tags.epochs) for _ in range(8)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    for _ in range(2 + 1 + 7):  # the first thread looks three times before it reads, the others once
        assert arrived.acquire(timeout=10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert store.reads["epoch:local"] <= 2
