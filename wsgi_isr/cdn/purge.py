"""Purge tags at a CDN over HTTP: one client for all CDNs, and one small description of each API.

**One request at a time.** APIs limit the requests of an account (Cloudflare's free plan: 5 a minute, after a burst of
25). Calls that arrive while a request is on its way wait, and go out together as the next one, in batches as large as
the API takes.

**Failures.** A request that fails for the moment (no connection, 5xx, 429) is repeated within :data:`DEADLINE` seconds.
Each batch has as many. After that the call raises, and the caller's journal keeps the tags. Until the pause that the
API asks for has passed (``Retry-After``), or one that doubles with each failure, further calls raise at once: an edge
that is down costs each invalidation nothing. A refused token is not repeated within the call.

**Secrets.** The token goes to the URL of the API alone: redirects are not followed, and no message has it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..config.cdn import Cdn
from ..errors import StoreUnavailable
from .apis import APIS
from .base import API, Request

if TYPE_CHECKING:
    import requests

#: Seconds for all attempts of a batch together; for a connection, and for an answer.
DEADLINE, CONNECT, ANSWER = 5.0, 1.0, 2.0
#: Seconds before the second attempt; each further pause doubles.
PAUSE = 0.2
#: Seconds for which calls fail at once after a failure: the first pause, and the longest one.
AGAIN = (1.0, 60.0)
#: Seconds for which a call waits for the purges of other calls.
BUSY = 10.0
#: The longest ``Retry-After`` that counts, in seconds.
_LONGEST = 600.0
#: The most bytes of an answer that are read.
_READ = 64 * 1024


class Refused(Exception):
    """The API has refused a purge.

    :param is_final: a repetition changes nothing: the token is wrong, say.
    :param pause: seconds that the API asks to wait; 0 where it says nothing.
    """

    def __init__(self, problem: str, is_final: bool = False, pause: float = 0.0) -> None:
        self.is_final = is_final
        self.pause = pause
        super().__init__(problem)


class _Call:
    """The tags of one caller, and their outcome."""

    def __init__(self, tokens: Sequence[str], is_soft: bool) -> None:
        self.tokens = tokens
        self.is_soft = is_soft
        self.is_done = False
        self.error: StoreUnavailable | None = None


class HttpEdge:
    """A server that takes purges (:class:`wsgi_isr.cache.edges.Edge`).

    :param place: the name in the journal.
    :param url: the URL before the path of each request.
    :param monotonic: monotonic seconds.
    :param pause: waits that many seconds.
    """

    def __init__(
        self,
        api: API,
        place: str,
        url: str,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.place = place
        self.batch = api.batch
        self._api = api
        self._url = url
        self._monotonic = monotonic
        self._pause = pause
        self._waiting: deque[_Call] = deque()
        self._sending = threading.Lock()
        self._session: tuple[int, requests.Session] | None = None
        self._failures = 0
        #: The monotonic time in seconds before which calls fail at once.
        self._retry_at = float("-inf")
        self._last_problem = ""

    @property
    def is_due(self) -> bool:
        """Return whether a call would be sent, and not fail at once."""
        return self._monotonic() >= self._retry_at

    def purge(self, tokens: Sequence[str], is_soft: bool) -> None:
        """Purge tags, and return once the CDN has acknowledged.

        :raises StoreUnavailable: the CDN has not; repeating is safe.
        """
        call = _Call(tokens, is_soft)
        self._waiting.append(call)
        if not self._sending.acquire(timeout=BUSY):
            call.is_done = True  # its tags need not be sent
            raise StoreUnavailable(self.place, f"other purges have been on their way for {BUSY:g} s")
        try:
            # Another thread may have sent the call while this one waited.
            if not call.is_done:
                self._send_waiting()
        finally:
            self._sending.release()
        if call.error is not None:
            raise call.error

    def close(self) -> None:
        """Close the connection. A later call opens a new one."""
        session, self._session = self._session, None
        if session is not None and session[0] == os.getpid():
            session[1].close()

    def _send_waiting(self) -> None:
        """Send all waiting calls, and note their outcome."""
        calls = [self._waiting.popleft() for _ in range(len(self._waiting))]
        calls = [call for call in calls if not call.is_done]
        try:
            for is_soft in (False, True):
                alike = [call for call in calls if call.is_soft is is_soft]
                error = self._send(dict.fromkeys(token for call in alike for token in call.tokens), is_soft)
                for call in alike:
                    call.error, call.is_done = error, True
        finally:
            # An exception that ends this thread (gevent.Timeout, SystemExit) must not pass for a success elsewhere.
            for call in calls:
                if not call.is_done:
                    call.error, call.is_done = StoreUnavailable(self.place, "the purge was interrupted"), True

    def _send(self, tokens: Iterable[str], is_soft: bool) -> StoreUnavailable | None:
        """Send tags in batches; return the error, where there is one."""
        try:
            for batch in _batches(list(tokens), self._api.batch):
                if not self.is_due:
                    wait = math.ceil(self._retry_at - self._monotonic())
                    return StoreUnavailable(self.place, f"{self._last_problem}; not asked again for {wait} s")
                self._attempt(self._api.request(batch, is_soft), self._monotonic() + DEADLINE)
                self._failures = 0
        except Exception as error:  # of requests, of TLS, or of an answer in another form
            self._back_off(error)
            return StoreUnavailable(self.place, error)
        return None

    def _attempt(self, request: Request, deadline: float) -> None:
        """Send a request until it succeeds.

        :raises Exception: the last failure, once it is final or the deadline has come.
        """
        pause = PAUSE
        while True:
            try:
                self._exchange(request, max(0.1, deadline - self._monotonic()))
                return
            except Refused as refused:
                wait = max(pause, refused.pause)
                if refused.is_final or self._monotonic() + wait >= deadline:
                    raise
            except OSError:  # requests.RequestException is one
                wait = pause
                if self._monotonic() + wait >= deadline:
                    raise
            self._pause(wait)
            pause *= 2

    def _exchange(self, request: Request, left: float) -> None:
        """Send a request once.

        :param left: seconds until the deadline.
        :raises Refused: the answer is no success.
        :raises OSError: there was no answer, or none that ended in time.
        """
        deadline = self._monotonic() + left
        with self._opened().request(
            request.method,
            self._url + request.path,
            headers=request.headers,
            json=request.body,
            timeout=(min(CONNECT, left), min(ANSWER, left)),
            allow_redirects=False,
            stream=True,
            auth=_as_it_is,
        ) as response:
            body = self._read(response, deadline)
            problem = self._api.problem(response.status_code, body)
            if problem:
                status = response.status_code
                is_final = status < 500 and status not in (408, 425, 429)
                raise Refused(problem, is_final, _pause_of(response.headers))

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        """Return the beginning of an answer.

        :raises TimeoutError: it has not ended by the deadline.
        """
        body = bytearray()
        # Byte by byte from the buffer: a longer read waits until that many have come, each within ``ANSWER`` seconds.
        while len(body) < _READ and (byte := response.raw.read(1, decode_content=True)):
            body += byte
            if self._monotonic() > deadline:
                raise TimeoutError("the answer does not end")
        return bytes(body)

    def _opened(self) -> requests.Session:
        """Return the connection of this process. A child must not use that of its parent."""
        if self._session is None or self._session[0] != os.getpid():
            import requests  # with the first purge: most processes never purge

            session = requests.Session()
            # A proxy of the environment would see a token for http, which is for this machine alone.
            session.trust_env = self._url.startswith("https:")
            self._session = os.getpid(), session
        return self._session[1]

    def _back_off(self, error: Exception) -> None:
        asked = error.pause if isinstance(error, Refused) else 0.0
        pause = min(AGAIN[0] * 2**self._failures, AGAIN[1])
        self._failures = min(self._failures + 1, 10)
        self._last_problem = str(error) or type(error).__name__
        self._retry_at = self._monotonic() + max(asked, pause)


def edges_of(cdn: Cdn, monotonic: Callable[[], float], pause: Callable[[float], None]) -> Iterator[HttpEdge]:
    """Yield the servers of a CDN that take purges."""
    for url in cdn.urls:
        server = urlsplit(url)
        name = f"{cdn.kind}/{cdn.zone or (server.netloc + server.path).rstrip('/')}"
        base = url if cdn.kind == "generic" else url.rstrip("/")
        yield HttpEdge(APIS[cdn.kind](cdn.zone, cdn.token), f"cdn://{name}", base, monotonic, pause)


def _batches(tokens: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def _as_it_is(request: Any) -> Any:
    """Return the request. Without a function in its place, ``requests`` would send a password from ``.netrc``."""
    return request


def _pause_of(headers: Any) -> float:
    """Return the seconds that an answer asks to wait (RFC 9110, 10.2.3), or until Fastly's limit is lifted."""
    value = headers.get("Retry-After", "")
    until = headers.get("Fastly-RateLimit-Reset", "") if not value else ""
    try:
        if until:
            seconds = float(until) - time.time()
        elif value.isascii() and value.isdigit():
            seconds = float(value)
        else:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST) if math.isfinite(seconds) else 0.0
