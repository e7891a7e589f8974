"""The call sites of cached sessions: each has one cached function, with the same name in every process."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import requests
from requests.cookies import cookiejar_from_dict

from ..cache.context import cache_life
from .http_response import StoredResponse, apply_status


class Configured(Protocol):
    """A session with a configuration."""

    def configuration(self) -> tuple[str, dict[str, Any]]:
        """Return the digest and the state of the session (:meth:`.CachedSession.configuration`)."""


class CallSite:
    """A call site of :class:`.CachedSession`.

    It remembers the configurations of its sessions by digest. A fetch is regenerated with its original configuration,
    even if the session has changed, and never with the credentials of another session. The number of configurations
    is bounded, because a session may have a new one in each request.
    """

    def __init__(self, name: str, max_configurations: int = 1024) -> None:
        self.name = name
        self._max_configurations = max_configurations
        self._lock = threading.Lock()
        self._sessions: weakref.WeakSet[Configured] = weakref.WeakSet()
        self._configurations: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def add(self, session: Configured) -> None:
        """Add a session that this call site has made."""
        with self._lock:
            self._sessions.add(session)

    def remember(self, configuration: str, state: dict[str, Any]) -> None:
        """Remember the state of a session by its digest."""
        with self._lock:
            self._configurations[configuration] = state
            self._configurations.move_to_end(configuration)
            if len(self._configurations) > self._max_configurations:
                self._configurations.popitem(last=False)

    def fetch(
        self,
        configuration: str,
        url: str,
        headers: Mapping[str, Any],
        options: Mapping[str, Any],
        revalidate: Any,
        expire: float | None,
        tags: tuple[str, ...],
    ) -> StoredResponse:
        """Send the real request and return its response. All arguments are plain data, and make the key.

        :raises LookupError: no session of this process has this configuration.
        """
        cache_life(revalidate, expire)
        response = StoredResponse.of(self._session(configuration).request("GET", url, headers=headers, **options))
        apply_status(response.status)
        return response

    def _session(self, configuration: str) -> requests.Session:
        """Return a session with this configuration and a cookie jar of its own."""
        state = self._configurations.get(configuration)
        if state is None:
            # Another process has sent this request, and this process has not yet.
            with self._lock:
                sessions = list(self._sessions)
            known = (session.configuration() for session in sessions)
            state = next((state for digest, state in known if digest == configuration), None)
            if state is None:
                raise LookupError(f"{self.name}: no session of this process has these headers and credentials")
            self.remember(configuration, state)
        session = requests.Session.__new__(requests.Session)  # its __init__ would make adapters
        session.__setstate__({**state, "cookies": cookiejar_from_dict({})})
        return session


# Weak, because apps may create names at run time. The bounded registry of functions keeps each call site in use alive.
_call_sites: weakref.WeakValueDictionary[str, CallSite] = weakref.WeakValueDictionary()
_calls: dict[tuple[str, str], list[int]] = {}
_calls_lock = threading.Lock()


def call_site(name: str) -> CallSite:
    """Return the call site of this name."""
    return _call_sites.setdefault(name, CallSite(name))


def name_of_call_site(depth: int) -> str:
    """Return the name of a call site: its module and function, and its number if there are several.

    A line number would change with each edit.

    :param depth: the frames between the call site and the caller of this function.
    """
    frame = sys._getframe(depth + 1)
    code = frame.f_code
    scope = str(frame.f_globals.get("__name__", "?")), str(getattr(code, "co_qualname", code.co_name))
    with _calls_lock:
        calls = _calls.setdefault(scope, [])
        if frame.f_lasti not in calls:
            calls.append(frame.f_lasti)
        number = calls.index(frame.f_lasti)
    function = "" if scope[1] == "<module>" else f".{scope[1]}"
    return f"{scope[0]}{function}:CachedSession" + (f":{number + 1}" if number else "")
