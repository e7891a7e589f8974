"""The suite that every store passes, for authors of stores.

Write this in a test module of the store, and run it with pytest::

    class TestMyStore(StoreSuite):
        shared = persistent = True

        @pytest.fixture(autouse=True)
        def _place(self, tmp_path):
            self.now = 1e9
            self.url = f"my://{tmp_path}"

        def make_store(self):
            return MyStore(self.url, clock=lambda: self.now)

        def advance(self, seconds):
            self.now += seconds

Each test covers one situation. Each test has random keys, so the suite can test a store that cannot be emptied. For a
store without a clock parameter, leave out ``advance``: the suite then sleeps.
"""

from __future__ import annotations

from .concurrency import in_processes, in_threads
from .many_handles import ManyHandlesTests
from .single_handle import SingleHandleTests
from .store_tests import needs

__all__ = ["StoreSuite", "in_processes", "in_threads", "needs"]


class StoreSuite(SingleHandleTests, ManyHandlesTests):
    """All tests of a store. Subclass this class, and override the attributes and methods that describe the store."""

    def __init_subclass__(cls) -> None:
        """Remove tests that do not apply: skipped tests would appear in every run."""
        super().__init_subclass__()
        for name in dir(StoreSuite):
            flags = getattr(getattr(StoreSuite, name), "needs", ("stores",))
            if name.startswith("test_") and not all(getattr(cls, flag) for flag in flags):
                setattr(cls, name, None)
