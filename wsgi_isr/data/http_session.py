"""Cached fetches: a ``requests`` session whose GETs go through the data cache.

Each call site of :class:`CachedSession` has one cached function, which returns an :class:`Answer`. Its arguments
identify the request. So any process with the same code can regenerate the answer. The session's own headers and
credentials are in the key as a digest only. A process regenerates with its own copy of them.
"""

from __future__ import annotations

import copy
import hashlib
import re
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth, HTTPDigestAuth, HTTPProxyAuth
from requests.cookies import cookiejar_from_dict
from requests.sessions import merge_setting
from requests.structures import CaseInsensitiveDict

from ..cache.context import cache_life, cache_tag, fail, no_store
from ..cache.verdict import NEGATIVE_STATUSES, STORE_GRACE
from ..config import options as o
from ..config.rules import Rule
from ..errors import ConfigError
from ..events import DataServed
from . import codec
from .cached import Cached, here, inside, is_among_visitors
from .isolation import is_importing

#: Statuses that are kept; others are errors, or belong to one request.
KEPT_STATUSES = frozenset({200, 203, 204, 300, 301, 308, 404, 410})
#: Seconds for which a 404 or 410 is kept, at most.
NEGATIVE_TTL = 10.0
#: Bytes; larger bodies are returned and not kept.
MAX_BODY = 8 << 20

_SCHEMA = 1  # of Answer: increase it when its fields or their meaning change
_TIMEOUT = 30.0
_COOKIES = ("set-cookie", "set-cookie2")
#: Names of headers that may carry credentials. In a call, these may be the credentials of one visitor.
_PERSONAL = re.compile(r"auth|cookie|token|secret|session|passw|credential|signature|key$", re.IGNORECASE)


class CachedSession(requests.Session):
    """A ``requests`` session whose GETs go through the data cache, like Next.js's ``fetch``.

    >>> shop = CachedSession(revalidate=60, tags=["prices"])
    >>> shop.headers["Authorization"] = "Bearer ..."

    Make it once, in a module, like any other session.

    Each call takes three more arguments: ``revalidate`` (with ``expire``) replaces the session's, ``tags`` are added
    to the session's, and ``no_store=True`` fetches anew. A page that uses ``no_store`` is not stored.

    A kept answer is a :class:`requests.Response` like any other, except for ``raw``. The statuses 200, 203, 204, 300,
    301 and 308 are kept, and 404 and 410 for at most 10 s. The server's caching headers are ignored. An exception or
    another status is passed on and not kept. Then the kept answer stays, and so does the last good version of a page
    that uses it. Retries and adapters work. Hooks of the session run on real answers, not on kept ones.

    A GET through the cache neither sends the session's cookies nor collects any. Its key is the call's arguments as
    given (the order of parameters counts), and a digest of the session's own headers, credentials and settings. URLs
    are in the log and in the store as they are: secrets belong in the session's headers or ``auth``.

    These requests bypass the cache: other methods; a body, ``stream=True``, ``hooks=`` and ``proxies=`` of a call; and
    credentials of a call (``auth=``, ``cookies=``, ``cert=``, a user in the URL, headers like ``Authorization``),
    which may be one visitor's. A page that uses such a GET still takes over its tags and lifetime.

    :param revalidate: seconds, a profile, ``False`` for until invalidated, ``0`` for never kept: then a page that uses
        it is not stored either.
    :param expire: seconds past which an answer is no longer returned while a new one is made.
    :param tags: the tags of everything that the session fetches.
    :param version: change it when the meaning of the fetched data changes.
    :param timeout: the longest fetch, in seconds; 30 by default. It holds for calls without a ``timeout``, too.
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
        place = _place() if name is None else f"CachedSession:{o.TEXT.check(where + 'name', name)}"
        self._site = _sites.setdefault(place, _Site(place))
        # A session made while a request is answered may be the visitor's.
        self._is_personal = is_among_visitors()
        self._is_of_module = not self._is_personal and is_importing()
        self._fetch = _Fetch(self._site.fetch, rule, _given_tags, f"{version}.{_SCHEMA}", self._site.name)
        self._site.join(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The copy of requests would not know where its answers are kept.
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
        if revalidate is not None or expire is not None:
            lifetime = _checked_lifetime(where, self._lifetime[0] if revalidate is None else revalidate, expire)
        else:
            lifetime = self._lifetime
        every_tag = (*self._tags, *_checked_tags(where, tags)) if tags != () else self._tags
        prepared = requests.PreparedRequest()
        prepared.prepare_url(url, merge_setting(params or {}, self.params))
        full_url = prepared.url or ""
        given = dict(headers or {})
        how = {"allow_redirects": allow_redirects, "timeout": self._timeout if timeout is None else timeout}
        if verify is not None:
            how["verify"] = verify

        reason, configuration = "", ""
        if method != "GET":
            reason = "method"
        elif no_store:
            reason = "no-store"
        elif lifetime[0] == 0 and lifetime[0] is not False:
            reason = "revalidate-0"
        elif self.stream if stream is None else stream:
            reason = "stream"
        elif data or files or json is not None:
            reason = "body"
        elif auth is not None or cookies or cert or _names_user(full_url) or any(map(_is_personal, given.items())):
            reason = "authorization"
        elif hooks or proxies:
            reason = "hooks" if hooks else "proxies"
        elif not _is_data([given, how]):
            reason = "unencodable"
        elif not (configuration := self._remembered()):
            reason = "authorization"
        if reason:
            arguments = (params, data, headers, cookies, files, auth, how["timeout"], allow_redirects, proxies, hooks)
            with self._noted(reason, method, full_url, lifetime, every_tag) as note:
                return note(super().request(method, url, *arguments, stream, verify, cert, json))
        try:
            answer = self._fetch(configuration, full_url, given, how, *lifetime, every_tag)
        except Exception:
            # Even if the app handles the error. Otherwise, an incomplete page would be stored.
            fail("fetch-error")
            raise
        return answer.response()

    @contextmanager
    def _noted(
        self, reason: str, method: str, url: str, lifetime: tuple[Any, float | None], tags: tuple[str, ...]
    ) -> Iterator[Callable[[requests.Response], requests.Response]]:
        """Wrap an uncached request: apply its tags, lifetime and status to the current page, and emit ``DataServed``.

        Yield a function that takes the response, records its status and returns it.
        """
        home, status = here(), 0
        began = home.monotonic() if home is not None else 0.0

        def note(response: requests.Response) -> requests.Response:
            nonlocal status
            status = response.status_code
            return response

        if method == "GET":
            _say_of_page(reason, lifetime, tags)
        try:
            yield note
        finally:
            if method == "GET":
                _say_of_status(status)
            if home is not None:
                seconds, shown = home.monotonic() - began, f"{method} {_without_user(url)}"
                home.events.emit(DataServed(self._site.name, "SKIP", reason=reason, seconds=seconds, shown=shown))

    def _remembered(self) -> str:
        """Store the current configuration, and return its digest; an empty string if it cannot be identified."""
        configuration, state = self.configuration()
        if configuration:
            self._site.know(configuration, state)
        return configuration

    def configuration(self) -> tuple[str, dict[str, Any]]:
        """Return a digest of the session's part of every request, and a copy of that part.

        The digest is empty if the session signs its requests in a way that cannot be identified.
        """
        # requests' own list of a session's state. Adapters are shared, and so are their connections.
        state = self.__getstate__() | {
            "headers": CaseInsensitiveDict(self.headers or {}),
            "auth": copy.copy(self.auth),
            "proxies": dict(self.proxies or {}),
            "hooks": {event: list(hooks) for event, hooks in self.hooks.items()},
            "params": {},  # in the URL already
            "stream": False,
        }
        is_unknown = inside() is None and not self._is_of_module
        if (self._is_personal or is_unknown) and not self._is_plain():
            return "", state
        try:
            told = {
                "headers": {name.lower(): value for name, value in state["headers"].items()},
                "auth": _told_of(state["auth"]),
                "hooks": [getattr(hook, "__qualname__", "") for hooks in state["hooks"].values() for hook in hooks],
                **{name: state[name] for name in ("proxies", "verify", "cert", "trust_env", "max_redirects")},
            }
            return hashlib.blake2b(codec.encode(told, key=True), digest_size=16).hexdigest(), state
        except codec.Unencodable:
            return "", state

    def _is_plain(self) -> bool:
        """Return whether the session has no custom adapters and no hooks."""
        adapters = all(type(adapter) is HTTPAdapter for adapter in self.adapters.values())
        return adapters and not any(self.hooks.values())


# Answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A response as data.

    :param history: the redirects that led to it, without their bodies.
    """

    status: int
    reason: Any
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    encoding: str | None
    elapsed: timedelta
    history: tuple[Answer, ...] = ()

    @classmethod
    def of(cls, response: requests.Response, in_full: bool = True) -> Answer:
        """Return the part of a response that can be kept. Cookies are personal, and left out."""
        return cls(
            response.status_code,
            response.reason,
            response.url,
            tuple((name, text) for name, text in response.headers.items() if name.lower() not in _COOKIES),
            (response.content or b"") if in_full else b"",
            response.encoding,
            response.elapsed,
            tuple(cls.of(before, in_full=False) for before in response.history) if in_full else (),
        )

    def response(self) -> requests.Response:
        """Return a new response, for one caller."""
        request = requests.PreparedRequest()
        request.method, request.url, request.headers = "GET", self.url, CaseInsensitiveDict()
        response = requests.Response()
        # As requests itself restores a pickled response.
        response.__setstate__(
            {
                "_content": self.body,
                "status_code": self.status,
                "headers": CaseInsensitiveDict(self.headers),
                "url": self.url,
                "history": [before.response() for before in self.history],
                "encoding": self.encoding,
                "reason": self.reason,
                "cookies": cookiejar_from_dict({}),
                "elapsed": self.elapsed,
                "request": request,
            }
        )
        return response


class _Fetch(Cached[..., Answer]):
    """The cached function of fetches."""

    def _shown(self, _configuration: str, url: str, *_rest: Any) -> str:
        return f"GET {url}"

    def _unkept_because(self, answer: Answer) -> str:
        if answer.status not in KEPT_STATUSES:
            return f"status-{answer.status}"
        return "max-body" if len(answer.body) > MAX_BODY else ""

    def _kept_for(self, answer: Answer) -> float | None:
        # A stored 404 or 410 must expire. Otherwise, random URLs would fill the store.
        return NEGATIVE_TTL + STORE_GRACE if answer.status in NEGATIVE_STATUSES else None


def _given_tags(arguments: dict[str, Any]) -> Iterable[str]:
    given: Iterable[str] = arguments["tags"]
    return given


def _say_of_page(reason: str, lifetime: tuple[Any, float | None], tags: tuple[str, ...]) -> None:
    """Apply the tags and lifetime of an uncached fetch to the current page."""
    if reason in ("no-store", "revalidate-0"):
        no_store()
    else:
        cache_tag(*tags)
        cache_life(*lifetime)


def _say_of_status(status: int) -> None:
    """Apply the status of an answer to the page that uses it.

    :param status: 0 if there was no answer.
    """
    if status in NEGATIVE_STATUSES:
        cache_life(NEGATIVE_TTL, NEGATIVE_TTL)
    elif status in KEPT_STATUSES:
        return
    elif 0 < status < 400:
        no_store()
    else:
        # Not no_store(): that would replace an expired page and lose the last good one.
        fail(f"fetch-{status or 'error'}")


# Call sites ---------------------------------------------------------------------------------------------


class _Site:
    """A call site of :class:`CachedSession`, with the same name in every process that runs the code.

    It remembers the configurations of its sessions by digest. So a fetch is regenerated with its original
    configuration, even if the session has changed, and never with another session's credentials. The number is
    bounded, because a session may have a new configuration in each request.
    """

    def __init__(self, name: str, most: int = 1024) -> None:
        self.name = name
        self._most = most
        self._lock = threading.Lock()
        self._sessions: weakref.WeakSet[CachedSession] = weakref.WeakSet()
        self._known: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def join(self, session: CachedSession) -> None:
        """Add a session."""
        with self._lock:
            self._sessions.add(session)

    def know(self, configuration: str, state: dict[str, Any]) -> None:
        """Remember a session's configuration."""
        with self._lock:
            self._known[configuration] = state
            self._known.move_to_end(configuration)
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def fetch(
        self,
        configuration: str,
        url: str,
        headers: Mapping[str, Any],
        how: Mapping[str, Any],
        revalidate: Any,
        expire: float | None,
        tags: tuple[str, ...],
    ) -> Answer:
        """Send the real request and return its answer; all arguments are plain data.

        :raises LookupError: no session of this process has this configuration.
        """
        cache_life(revalidate, expire)
        answer = Answer.of(self._session(configuration).request("GET", url, headers=headers, **how))
        _say_of_status(answer.status)
        return answer

    def _session(self, configuration: str) -> requests.Session:
        """Return a session with this configuration and a cookie jar of its own."""
        state = self._known.get(configuration)
        if state is None:
            # Another process has sent this request, and this process has not yet.
            with self._lock:
                sessions = list(self._sessions)
            told = (session.configuration() for session in sessions)
            state = next((mine for digest, mine in told if digest == configuration), None)
            if state is None:
                raise LookupError(f"{self.name}: no session of this process has these headers and credentials")
            self.know(configuration, state)
        session = requests.Session.__new__(requests.Session)  # its __init__ would make adapters
        session.__setstate__({**state, "cookies": cookiejar_from_dict({})})
        return session


# Weak, because apps may create names at run time. The bounded registry of functions keeps each site in use alive.
_sites: weakref.WeakValueDictionary[str, _Site] = weakref.WeakValueDictionary()
_calls: dict[tuple[str, str], list[int]] = {}
_counting = threading.Lock()


def _place() -> str:
    """Return the name of the call site: its module and function, and its number if there are several.

    A line number would change with each edit.
    """
    frame = sys._getframe(2)
    code = frame.f_code
    scope = str(frame.f_globals.get("__name__", "?")), str(getattr(code, "co_qualname", code.co_name))
    with _counting:
        calls = _calls.setdefault(scope, [])
        if frame.f_lasti not in calls:
            calls.append(frame.f_lasti)
        number = calls.index(frame.f_lasti)
    function = "" if scope[1] == "<module>" else f".{scope[1]}"
    return f"{scope[0]}{function}:CachedSession" + (f":{number + 1}" if number else "")


# Arguments ----------------------------------------------------------------------------------------------


def _checked_lifetime(where: str, revalidate: Any, expire: Any) -> tuple[Any, float | None]:
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


def _names_user(url: str) -> bool:
    return "@" in url and "@" in urlsplit(url).netloc


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if _names_user(url) else url


def _is_personal(header: tuple[Any, Any]) -> bool:
    name, value = header
    text = name.decode("latin-1") if isinstance(name, bytes) else str(name)
    return value is not None and _PERSONAL.search(text) is not None


def _is_data(value: Any) -> bool:
    try:
        codec.encode(value)
    except codec.Unencodable:
        return False
    return True


def _told_of(auth: Any) -> Any:
    """Return the part of the key that identifies ``auth``.

    :raises Unencodable: its class is unknown, so it may use credentials of the current visitor.
    """
    if auth is None or isinstance(auth, tuple):
        return auth  # with None, a .netrc may apply, which belongs to the machine, like host addresses
    if type(auth) not in (HTTPBasicAuth, HTTPProxyAuth, HTTPDigestAuth):
        # A custom class may look up the current visitor when it signs.
        raise codec.Unencodable(f"{type(auth).__qualname__} may sign for the current visitor")
    return [type(auth).__qualname__, auth.username, auth.password]
