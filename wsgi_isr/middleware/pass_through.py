"""The app's own answer: the request goes through the cache to the app, and nothing is stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ..cache.context import RenderContext, within
from ..cache.task import Passed
from ..cache.timeline import acting_as
from ..cache.verdict import CacheDirectives
from ..data.active_engine import activate
from ..engine import Engine
from ..events import InternalError
from ..pages.draft import Visitor, answering
from ..pages.request_key import UNSAFE
from ..pages.resolver import Pages
from ..pages.respond import StreamingBody, app_headers, own_files
from ..pages.response_headers import is_for_caches

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

#: The form of an ``X-Request-ID``. A client may have sent any text.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")


class PassThrough:
    """The answer of an app to one request, with the headers of the cache.

    The body goes to the server unchanged, so ``close()``, ``wsgi.file_wrapper`` and streaming work as without the
    cache.

    :param engine: the place of cached data that the app uses, while it answers and while it produces a lazy body.
    :param passed: why the app answers.
    """

    def __init__(self, app: WSGIApplication, engine: Engine, pages: Pages, canonical_url: str, passed: Passed) -> None:
        self._app = app
        self._engine = engine
        self._sites = pages.sites
        self._canonical_url = canonical_url
        self._passed = passed

    def send(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Call the app with the client's own environ, and return its body."""
        enter = self._context_of(environ)
        files = own_files(environ)
        with enter():
            body = self._app(environ, self._start(environ, start_response))
        return body if isinstance(body, (list, tuple)) or body in files else StreamingBody(body, enter)

    def _context_of(self, environ: dict[str, Any]) -> Callable[[], Any]:
        """Return the context in which the app runs, as often as the server asks for a part of the body."""
        # Behind a proxy that ends TLS, only the canonical URL tells the scheme.
        scheme = (self._canonical_url or environ.get("wsgi.url_scheme", "")).partition(":")[0]
        visitor = Visitor(self._engine.drafts, self._passed.draft, secure=scheme == "https")
        site = self._sites.of(environ)
        render = None
        if self._passed.draft:
            render = RenderContext(CacheDirectives(), self._engine.profiles, stored=False, draft=True)
        elif self._passed.missed:
            # No page could be stored, so the app's answer is shown as a new page. Stale data must not go into it.
            render = RenderContext(CacheDirectives(), self._engine.profiles)

        actor = _actor_of(environ)

        @contextmanager
        def enter() -> Iterator[None]:
            around = within(render) if render is not None else nullcontext()
            with activate(self._engine), answering(visitor), self._sites.answering(site), acting_as(actor), around:
                yield

        return enter

    def _start(self, environ: dict[str, Any], start_response: StartResponse) -> StartResponse:
        """Return the ``start_response`` of the app: it adds the headers of the cache."""
        passed, is_unsafe = self._passed, environ["REQUEST_METHOD"] in UNSAFE
        own = app_headers(passed.reason, passed.missed)

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            more = [*own, *(self._after_write(environ) if is_unsafe and status[:1] in ("2", "3") else ())]
            if passed.draft:
                headers = [pair for pair in headers if not is_for_caches(pair[0])]
                headers.append(("Cache-Control", "private, no-store"))
            return start_response(status, [*headers, *more], *exc_info)

        return start

    def _after_write(self, environ: dict[str, Any]) -> list[tuple[str, str]]:
        """Invalidate the page at the URL of a write that has succeeded, before the client gets the response.

        :returns: the cookie that lets this client read its own write (RFC 9111, 4.4).
        """
        written = self._passed.written
        if written is not None:
            try:
                actor = f"{_actor_of(environ)}: {environ['REQUEST_METHOD']}"
                self._engine.invalidator.invalidate([written], actor=actor)
            except Exception as error:
                # The write has happened and must be answered. The journal, if there is one, keeps the undelivered tags.
                outcome = "the write is answered, and the cached page may be the one from before it"
                self._engine.events.emit(InternalError(f"invalidating {written!r} after a write", error, outcome))
        return self._engine.writes.cookie(environ)


def _actor_of(environ: dict[str, Any]) -> str:
    """Return the name of a request in timelines: its ``X-Request-ID``, or ``app`` without a plausible one."""
    given: str = environ.get("HTTP_X_REQUEST_ID", "")
    return f"request {given}" if _REQUEST_ID.fullmatch(given) else "app"
