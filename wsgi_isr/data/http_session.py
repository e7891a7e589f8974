"""Cached fetches: a ``requests`` session whose GETs go through the data cache.

Each call site of :class:`CachedSession` has one cached function, which returns a :class:`.StoredResponse`. The
arguments of the function identify the request, so any process with the same code can regenerate the response. The key
holds the session's own headers and credentials as a digest only. A process regenerates with its own copy of them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth, HTTPDigestAuth, HTTPProxyAuth
from requests.sessions import merge_setting
from requests.structures import CaseInsensitiveDict

from ..cache.context import cache_life, cache_tag, fail, no_store
from ..config import options as o
from ..config.rules import Rule
from ..errors import ConfigError
from ..events import DataServed
from . import codec
from .active_engine import current_engine, may_be_in_request, request_engine
from .cached import Cached
from .call_site import call_site, name_of_call_site
from .http_bypass import FetchCall, bypass_reason, without_user
from .http_response import SCHEMA, StoredResponse, apply_status, store_ttl, unstorable_reason
from .isolation import is_importing

_TIMEOUT = 30.0
#: ``revalidate`` (seconds, a profile or False) and ``expire`` (seconds).
_Lifetime = tuple[Any, float | None]


class CachedSession(requests.Session):
    """A ``requests`` session whose GETs go through the data cache, like Next.js's ``fetch``.

    >>> shop = CachedSession(revalidate=60, tags=["prices"])
    >>> shop.headers["Authorization"] = "Bearer ..."

    Make it once, in a module, like any other session.

    Each call takes three more arguments: ``revalidate`` (with ``expire``) replaces the session's, ``tags`` are added
    to the session's, and ``no_store=True`` bypasses the cache. A page that uses ``no_store`` is not stored.

    A stored response is a :class:`requests.Response` like any other, except for ``raw``. The statuses 200, 203, 204,
    300, 301 and 308 are stored, and 404 and 410 for at most 10 s. The server's caching headers are ignored. An
    exception or another status is passed on and not stored. Then the stored response stays, and so does the last good
    version of a page that uses it. Retries and adapters work. Hooks of the session run on real responses, not on
    stored ones.

    A GET through the cache neither sends the session's cookies nor collects any. Its key holds the arguments of the
    call as given (the order of parameters counts), and a digest of the session's own headers, credentials and settings.
    The log and the store hold URLs as they are: secrets belong in the session's headers or ``auth``.

    These requests bypass the cache:

    - methods other than GET;
    - calls with a body, ``stream=True``, ``hooks=`` or ``proxies=``;
    - calls with credentials, which may be one visitor's: ``auth=``, ``cookies=``, ``cert=``, a user in the URL, headers
      like ``Authorization``.

    A page that uses a GET that bypasses the cache still takes over its tags and lifetime.

    :param revalidate: seconds, a profile, ``False`` for until invalidated, ``0`` for never stored: then a page that
        uses the response is not stored either.
    :param expire: seconds past which a response is no longer returned while a new one is fetched.
    :param tags: the tags of everything that the session fetches.
    :param version: change it when the meaning of the fetched data changes.
    :param timeout: seconds for the longest fetch; 30 by default. It holds for calls without a ``timeout``, too.
    :param lock_timeout: seconds to wait for another process's fetch.
    :param name: the session's name in logs and keys; by default the module and function of the call site.
    :raises ConfigError: a value is impossible.
    """

    def __init__(
        self,
        *,
        revalidate: float | str | bool = False,
        tags: Iterable[str] = (),
        expire: float | None = None,
        version: int = 1,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        where = "CachedSession: "
        self._lifetime = _checked_lifetime(where, revalidate, expire)
        self._tags = _checked_tags(where, tags)
        rule = Rule(
            revalidate=False,  # each fetch has its own
            render_timeout=None if timeout is None else o.PERIOD.check(where + "timeout", timeout),
            lock_timeout=None if lock_timeout is None else o.SECONDS.check(where + "lock_timeout", lock_timeout),
        )
        self._timeout = rule.render_timeout or _TIMEOUT
        if name is None:
            site_name = name_of_call_site(depth=1)
        else:
            site_name = f"CachedSession:{o.TEXT.check(where + 'name', name)}"
        self._call_site = call_site(site_name)
        # The credentials of a session made during a request may be those of one client.
        self._is_personal = may_be_in_request()
        self._is_of_module = not self._is_personal and is_importing()
        self._fetch = _Fetch(self._call_site.fetch, rule, _tags_of_call, f"{version}.{SCHEMA}", site_name)
        self._call_site.add(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy by requests would lack its call site.
        raise TypeError("a CachedSession is not copied or pickled; make another one")

    def get(self, url: Any, params: Any = None, **kwargs: Any) -> requests.Response:
        """Send a GET; see :class:`requests.Session`, and the class for the further arguments."""
        return self.request("GET", url, params=params, **kwargs)

    def request(
        self,
        method: Any,
        url: Any,
        params: Any = None,
        data: Any = None,
        headers: Any = None,
        cookies: Any = None,
        files: Any = None,
        auth: Any = None,
        timeout: Any = None,
        allow_redirects: bool = True,
        proxies: Any = None,
        hooks: Any = None,
        stream: Any = None,
        verify: Any = None,
        cert: Any = None,
        json: Any = None,
        *,
        revalidate: float | str | bool | None = None,
        expire: float | None = None,
        tags: Iterable[str] = (),
        no_store: bool = False,
    ) -> requests.Response:
        """Send a request; see :class:`requests.Session`, and the class for the further arguments.

        :raises ConfigError: one of these arguments is impossible. Exceptions of ``requests`` pass through.
        """
        method = method.upper()
        where = f"{method.lower()}: "
        lifetime = self._lifetime
        if revalidate is not None or expire is not None:
            lifetime = _checked_lifetime(where, lifetime[0] if revalidate is None else revalidate, expire)
        all_tags = self._tags if tags == () else (*self._tags, *_checked_tags(where, tags))
        full_url = self._full_url(url, params)
        call_headers = dict(headers or {})
        options = {"allow_redirects": allow_redirects, "timeout": self._timeout if timeout is None else timeout}
        if verify is not None:
            options["verify"] = verify
        call = FetchCall(
            method,
            full_url,
            call_headers,
            options,
            lifetime[0],
            no_store,
            streams=bool(self.stream if stream is None else stream),
            has_body=bool(data or files or json is not None),
            has_credentials=bool(auth is not None or cookies or cert),
            has_hooks=bool(hooks),
            has_proxies=bool(proxies),
        )
        reason, configuration = bypass_reason(call), ""
        if reason is None and not (configuration := self._remembered_configuration()):
            reason = "authorization"
        if reason is not None:
            arguments = (params, data, headers, cookies, files, auth, options["timeout"], allow_redirects)
            with self._bypassing(reason, call, lifetime, all_tags) as note:
                return note(super().request(method, url, *arguments, proxies, hooks, stream, verify, cert, json))
        try:
            stored = self._fetch(configuration, full_url, call_headers, options, *lifetime, all_tags)
        except Exception:
            # Even if the app handles the error. Otherwise, an incomplete page would be stored.
            fail("fetch-error")
            raise
        return stored.restore()

    def _full_url(self, url: Any, params: Any) -> str:
        """Return the URL with the parameters of the call and of the session."""
        prepared = requests.PreparedRequest()
        prepared.prepare_url(url, merge_setting(params or {}, self.params))
        return prepared.url or ""

    @contextmanager
    def _bypassing(
        self, reason: str, call: FetchCall, lifetime: _Lifetime, tags: tuple[str, ...]
    ) -> Iterator[Callable[[requests.Response], requests.Response]]:
        """Apply an uncached request to the current page, and emit ``DataServed`` after it.

        The page takes over the tags, the lifetime and the status of a GET. Yield a function that takes the response,
        notes its status and returns it.
        """
        engine, status = current_engine(), 0
        began = engine.monotonic() if engine is not None else 0.0

        def note(response: requests.Response) -> requests.Response:
            nonlocal status
            status = response.status_code
            return response

        if call.method == "GET":
            _apply_call(reason, lifetime, tags)
        try:
            yield note
        finally:
            if call.method == "GET":
                apply_status(status)
            if engine is not None:
                seconds, shown = engine.monotonic() - began, f"{call.method} {without_user(call.url)}"
                engine.events.emit(DataServed(self._fetch.name, "SKIP", reason=reason, seconds=seconds, shown=shown))

    # Configurations ----------------------------------------------------------------------------------------

    def _remembered_configuration(self) -> str:
        """Return the digest of the current configuration, and remember the configuration by it.

        The digest is empty if the session may sign its requests for one client.
        """
        configuration, state = self.configuration()
        if configuration:
            self._call_site.remember(configuration, state)
        return configuration

    def configuration(self) -> tuple[str, dict[str, Any]]:
        """Return a digest of the session's part of every request, and a copy of that part.

        The digest is empty if the session signs its requests in a way that has no identity.
        """
        # The list of a session's state is that of requests. Adapters are shared, and so are their connections.
        state = self.__getstate__() | {
            "headers": CaseInsensitiveDict(self.headers or {}),
            "auth": copy.copy(self.auth),
            "proxies": dict(self.proxies or {}),
            "hooks": {event: list(hooks) for event, hooks in self.hooks.items()},
            "params": {},  # in the URL already
            "stream": False,
        }
        is_unknown = request_engine() is None and not self._is_of_module
        if (self._is_personal or is_unknown) and not self._is_plain():
            return "", state
        try:
            identity = {
                "headers": {name.lower(): value for name, value in state["headers"].items()},
                "auth": _identity_of_auth(state["auth"]),
                "hooks": [getattr(hook, "__qualname__", "") for hooks in state["hooks"].values() for hook in hooks],
                **{name: state[name] for name in ("proxies", "verify", "cert", "trust_env", "max_redirects")},
            }
            return hashlib.blake2b(codec.encode(identity, key=True), digest_size=16).hexdigest(), state
        except codec.Unencodable:
            return "", state

    def _is_plain(self) -> bool:
        """Return whether the session has no custom adapters and no hooks."""
        adapters = all(type(adapter) is HTTPAdapter for adapter in self.adapters.values())
        return adapters and not any(self.hooks.values())


class _Fetch(Cached[..., StoredResponse]):
    """The cached function of a call site."""

    def _description(self, _configuration: str, url: str, *_rest: Any) -> str:
        return f"GET {url}"

    def _unstorable_reason(self, response: StoredResponse) -> str:
        return unstorable_reason(response)

    def _store_ttl(self, response: StoredResponse) -> float | None:
        return store_ttl(response)


def _tags_of_call(arguments: dict[str, Any]) -> Iterable[str]:
    """Return the tags among the arguments of :meth:`.CallSite.fetch`."""
    tags: Iterable[str] = arguments["tags"]
    return tags


def _apply_call(reason: str, lifetime: _Lifetime, tags: tuple[str, ...]) -> None:
    """Apply the tags and the lifetime of an uncached fetch to the current page."""
    if reason in ("no-store", "revalidate-0"):
        no_store()
    else:
        cache_tag(*tags)
        cache_life(*lifetime)


def _identity_of_auth(auth: Any) -> Any:
    """Return the part of the key that identifies ``auth``.

    :raises Unencodable: its class is unknown, so it may use credentials of the current client.
    """
    if auth is None or isinstance(auth, tuple):
        return auth  # with None, a .netrc may apply, which belongs to the machine, like host addresses
    if type(auth) not in (HTTPBasicAuth, HTTPProxyAuth, HTTPDigestAuth):
        # A custom class may look up the current client when it signs.
        raise codec.Unencodable(f"{type(auth).__qualname__} may sign for the current visitor")
    return [type(auth).__qualname__, auth.username, auth.password]


def _checked_lifetime(where: str, revalidate: Any, expire: Any) -> _Lifetime:
    o.LIFETIME.check(where + "revalidate", revalidate)
    if expire is not None:
        o.PERIOD.check(where + "expire", expire)
        if revalidate is False or (not isinstance(revalidate, str) and expire < revalidate):
            remedy = "make expire at least revalidate, or leave it out"
            raise ConfigError(where + "expire", f"{expire:g} is below revalidate={revalidate!r}", remedy)
    return revalidate, expire


def _checked_tags(where: str, tags: Any) -> tuple[str, ...]:
    checked = o.TAGS.check(where + "tags", tags)
    if callable(checked):
        raise ConfigError(where + "tags", f"{tags!r} is not a list of tags", "give tags= with the call instead")
    return tuple(checked)
