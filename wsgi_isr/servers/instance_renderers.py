"""The renderer processes of one server instance, as its main process starts, replaces and stops them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from ..cache import renderer_pool
from ..observe import aggregate
from ..renderers.child_process import fork, status_of, wait_for
from ..renderers.folders import remove_folder
from ..renderers.supervisor import Watcher

#: Seconds beyond the drain of renders (``drain_timeout``, which only the supervisor knows).
_STOPPING = 30.0
#: Seconds for removing two sockets.
_CLEANING = 5.0

_log = logging.getLogger("wsgi_isr")


class InstanceRenderers:
    """The renderer processes of one instance. The constructor starts them.

    :param load: imports the app, in the supervisor.
    :param become_child: runs first in each child; it closes listeners, and may change the user.
    :param is_worker: whether a process id belongs to a worker. A server that collects every child may have collected a
        watcher, and its id may belong to a worker now.
    :raises OSError: there is no place for the sockets, or no process.
    """

    def __init__(
        self,
        load: Callable[[], object],
        become_child: Callable[[], object],
        is_worker: Callable[[int], bool] = lambda pid: False,
    ) -> None:
        self._owner = os.getpid()
        self._load = load
        self._become_child = become_child
        self._is_worker = is_worker
        self._folder: str | None = None
        self._watchers: list[Watcher] = []
        self.begin()

    def begin(self) -> None:
        """Start renderers with the current code. Earlier renderers finish their jobs.

        :raises OSError: see the class.
        """
        new = Watcher(self._folder, self._load, self._become_child)
        for watcher in self._watchers:
            if not self._is_worker(watcher.pid):
                watcher.stop()
        self._watchers = [*filter(self._is_left, self._watchers), new]
        self._folder = renderer_pool.folder = aggregate.folder = new.folder

    def look_after(self) -> None:
        """Start new renderers if the watcher was killed.

        The main process is not told of that, so it looks before each start of a worker.

        :raises OSError: see the class.
        """
        watcher = self._watchers[-1]
        if not watcher.alive and not watcher.content:
            self.begin()

    def end(self) -> None:
        """Stop all renderers, and remove their sockets."""
        if os.getpid() != self._owner:
            return
        for watcher in self._watchers:
            watcher.stop()
        deadline = time.monotonic() + _STOPPING
        for watcher in self._watchers:
            watcher.wait(max(0.0, deadline - time.monotonic()))
        renderer_pool.folder = aggregate.folder = None
        try:
            wait_for(fork("isr-cleaner", self._clean), _CLEANING)
        except OSError as error:  # the system can start no process
            _log.debug("a folder of sockets stays: %s", error)

    def _is_left(self, watcher: Watcher) -> bool:
        """Return whether a watcher is alive, and collect one that has ended."""
        if watcher.alive:
            return True
        if not self._is_worker(watcher.pid):
            status_of(watcher.pid)
        return False

    def _clean(self) -> int:
        """Remove the folder as the user that owns it: that user may have put any file in its place."""
        self._become_child()
        remove_folder(str(self._folder))
        return 0
