"""The call of the app for the cache: from a task to the result of the app's answer.

The capture follows PEP 3333 as a server does: ``write()``, a late ``start_response``, ``exc_info``, generators,
``close()`` exactly once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote_to_bytes, urljoin, urlsplit

from ..cache.context import rendering
from ..cache.entry import Content, HitForMiss
from ..cache.keyspace import tag_name
from ..cache.task import Product, Task
from ..cache.verdict import CacheDirectives, Failure, Personal, Storable
from ..config.policy import Policy
from ..events import InternalError, UndeclaredVary
from .admission import admit, refuse, varies
from .compression import encoded
from .request_key import PageKey, canonical
from .undeclared_vary import WATCHED, depends_on_client, watched

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..config.rule_set import RuleSet

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


#: The limits of an answer for one client: bytes, and seconds that the body may take.
MOST_PERSONAL, PERSONAL_TIME = 65536, 0.1

# PEP 3333, "Unicode Issues". Line breaks would begin another header.
_LATIN_LINE = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\xff]*")


_OF_THE_URL = ("wsgi.url_scheme", "HTTP_HOST", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")


class _Enough(BaseException):
    """Leave an app that writes more than may be stored. It is no Exception, because the app might swallow one."""


class Misbehaved(Exception):
    """The app broke PEP 3333, so there is no usable answer; the message says how."""


def produce_page(
    app: WSGIApplication,
    rules: RuleSet,
    report: Callable[[InternalError], None],
    notice: Callable[[UndeclaredVary], None] | None = None,
    clock: Callable[[], float] = time.time,
) -> Callable[[Task, Mapping[str, Any] | None], Product]:
    """Return the ``produce`` of pages: it calls the app with the canonical request of a task's key.

    The returned function takes the task and the environ of the client who waits, if there is one.

    :param report: gets the error of a body that could not be closed.
    :param notice: gets the request headers that the app read and did not declare.
    :param clock: Unix time in seconds.
    """

    def produce(task: Task, client: Mapping[str, Any] | None) -> Product:
        policy = rules.policies[task.rule]
        deadline = time.monotonic() + task.limits.timeout
        key = PageKey.parse(task.text)
        with watched(canonical(key)) as (environ, looks), rendering(rules.profiles) as asked:
            product = run(app, environ, policy, asked, deadline, report, clock)
        if notice is not None and (unsaid := _unsaid(looks, product)):
            notice(UndeclaredVary(task.page, task.rule, unsaid, task.text))
        if isinstance(product, Personal):
            may_serve = client is not None and _suits(product.content, looks, canonical(key), client)
            return product if may_serve else HitForMiss(product.reason)
        return product

    return produce


def _unsaid(looks: set[str], product: Product) -> tuple[str, ...]:
    """Return the request headers that the app read for a shared page without naming them in ``Vary``."""
    if not isinstance(product, Storable) or not isinstance(product.content, Content):
        return ()
    headers = {header for name, header in WATCHED.items() if name in looks}
    return tuple(sorted(headers - varies(product.content.headers)))


def run(
    app: WSGIApplication,
    environ: dict[str, Any],
    policy: Policy,
    asked: CacheDirectives,
    deadline: float,
    report: Callable[[InternalError], None],
    clock: Callable[[], float] = time.time,
) -> Product:
    """Call ``app`` and return the result of its answer.

    An answer that may not be stored is dropped as soon as that is known. The app then answers the client's own
    request, and an endless answer would never be complete. A short answer that sets a cookie is kept for the client,
    since a link may work only once. An error of ``close()`` is reported and changes nothing: a server has sent the
    answer by then.

    :param deadline: monotonic seconds.
    :raises Misbehaved: the app broke PEP 3333. Exceptions of the app pass through.
    """
    here = _url(environ)  # the app may change the environ
    head: tuple[str, list[tuple[str, str]]] | None = None
    chunks: list[bytes] = []
    size = 0
    most, personal = policy.max_body, ""

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        nonlocal head, size
        if head is not None and exc_info is None:
            raise Misbehaved("start_response was called twice without exc_info")
        # Nothing has been sent, so a second call may replace the first (PEP 3333, "Error Handling") and its part of
        # the body.
        head = _checked(status, headers)
        chunks.clear()
        size = 0
        return take

    def take(chunk: bytes) -> None:
        nonlocal size
        if not isinstance(chunk, bytes):
            raise Misbehaved(f"the app yielded {type(chunk).__name__}, not bytes")
        size += len(chunk)
        if size > most or time.monotonic() > deadline:
            raise _Enough
        chunks.append(chunk)

    body: Iterable[bytes] = ()
    judged = None  # judge each head once, not for each of thousands of chunks
    try:
        body = app(environ, start_response)
        for chunk in body:
            if head is None:
                raise Misbehaved("the app yielded before it called start_response")
            if head is not judged:
                reason = refuse(int(head[0][:3]), head[1], policy)
                if reason and not _is_short(head[1]):
                    return HitForMiss(reason)
                if reason:
                    personal, most = reason, min(most, MOST_PERSONAL)
                    deadline = min(deadline, time.monotonic() + PERSONAL_TIME)
                judged = head
            take(chunk)
    except _Enough:
        if personal:
            return HitForMiss(personal)
        return HitForMiss("max-body") if size > policy.max_body else Failure("timeout")
    finally:
        try:
            if hasattr(body, "close"):
                body.close()
        except Exception as error:  # it must not replace an exception of the body itself
            report(
                InternalError(f"rule {policy.name!r}: close() of the body", error, "the outcome of the render stands")
            )
    if head is None:
        raise Misbehaved("the app never called start_response")
    if _leads_back(head, here):
        return HitForMiss("self-redirect")
    if reason := refuse(int(head[0][:3]), head[1], policy):
        whole = Content(head[0], tuple(head[1]), b"".join(chunks), "")
        return Personal(reason, whole) if reason == "set-cookie" else HitForMiss(reason)
    product = admit(*head, b"".join(chunks), policy, asked, now=clock())
    if not isinstance(product, Storable):
        return product
    content = encoded(product.content, head[1]) if isinstance(product.content, Content) else product.content
    return product._replace(content=content, tags=tuple(map(tag_name, product.tags)))


def _suits(content: Content, looks: set[str], asked: Mapping[str, Any], client: Mapping[str, Any]) -> bool:
    """Return whether an answer to the canonical request ``asked`` also fits this client's request (RFC 9110, 12.5.5).

    It fits if both URLs are the same, and the app has read nothing that the client sent. Not all reads can be watched
    (:mod:`.undeclared_vary`): werkzeug's request object reads the client's address for every request. The app's use of
    that attribute is not seen.
    """
    same = all(client.get(name) == asked[name] for name in _OF_THE_URL)
    named = (f"HTTP_{name.upper().replace('-', '_')}" for name in varies(content.headers))
    return (
        same
        and not depends_on_client(looks, client)
        and all(name == "HTTP_ACCEPT_ENCODING" or name not in client for name in named)
    )


def _is_short(headers: list[tuple[str, str]]) -> bool:
    """Return whether an answer sets a cookie, declares its length, and is no event stream."""
    names = {name.lower() for name, _ in headers}
    kind = next((value for name, value in headers if name.lower() == "content-type"), "")
    return {"set-cookie", "content-length"} <= names and not kind.lower().startswith("text/event-stream")


def _leads_back(head: tuple[str, list[tuple[str, str]]], here: str) -> bool:
    """Return whether the answer redirects to the page itself, at another scheme or host.

    An app that sends all clients to https answers so. Its render cannot know that a proxy in front ended TLS. A stored
    redirect would be a loop for all clients.
    """
    target = next((value for name, value in head[1] if name.lower() == "location"), "")
    if head[0][:1] != "3" or not target:
        return False
    try:
        there = urlsplit(urljoin(here, target))
    except ValueError:
        return False  # no URL, so it cannot lead back
    return _where(there) == _where(urlsplit(here))


def _where(url: SplitResult) -> tuple[bytes, bytes]:
    """Return path and query, without percent-encoding. A URL without a path has the path ``/`` (RFC 9110, 4.2.3)."""
    path, query = (unquote_to_bytes(part.encode("latin-1", "replace")) for part in (url.path, url.query))
    return path or b"/", query.replace(b"+", b" ")


def _url(environ: dict[str, Any]) -> str:
    path, query = quote((environ["SCRIPT_NAME"] + environ["PATH_INFO"]).encode("latin-1")), environ["QUERY_STRING"]
    return f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}{path}{'?' if query else ''}{query}"


def _checked(status: str, headers: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """Return the head if it can be stored and sent again (PEP 3333, "The start_response() Callable").

    :raises Misbehaved: it cannot.
    """
    if not isinstance(status, str) or len(status) < 3 or not status[:3].isdigit() or not status[:3].isascii():
        raise Misbehaved(f"{status!r} is not a status")
    for name, value in headers:
        if not isinstance(name, str) or not isinstance(value, str) or not _LATIN_LINE.fullmatch(name + value):
            raise Misbehaved(f"{name!r} is not a header: its name and value are text of one line, in latin-1")
    return status, list(headers)
