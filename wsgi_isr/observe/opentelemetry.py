"""Traces for OpenTelemetry (the extra ``opentelemetry``): ``isr.subscribe(trace_requests())``.

The current span, which an instrumentation of the app or the server has started, gets attributes: the rule, the result
and the reason. A background render is a root span of its own, linked to the request that caused it: it may outlast the
request, and runs in another process. Without the subscription, tracing costs nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..events import DataServed, Event, Rendered, RenderEnded, RenderFailed, RenderStarted, Served

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

#: The names of attributes begin with it.
PREFIX = "wsgi_isr."
#: The name of a span of a background render.
RENDER = "wsgi_isr render"
_HEADER = "traceparent"


def trace_requests(provider: TracerProvider | None = None) -> Tracing:
    """Return a subscriber for :meth:`wsgi_isr.ISR.subscribe`.

    With it, each request is looked up, because prepared responses emit no event. A hit then takes some ten times as
    long.

    :param provider: makes the spans of renders; by default the global one.
    :raises ConfigError: opentelemetry-api is not installed.
    """
    return Tracing(provider)


class Tracing:
    """The subscriber of :func:`trace_requests`."""

    #: Each request emits an event, prepared or not (:meth:`wsgi_isr.events.Events.subscribe`).
    each_request = True

    def __init__(self, provider: TracerProvider | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            remedy = "pip install 'wsgi_isr[opentelemetry]'"
            raise ConfigError("opentelemetry", "opentelemetry-api is not installed", remedy) from error
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = trace.get_tracer("wsgi_isr", tracer_provider=provider)
        #: By thread and page.
        self._spans: dict[tuple[int, str], Span] = {}

    def __call__(self, event: Event) -> None:
        """Add an event to its span."""
        if isinstance(event, Served):
            self._describe({"rule": event.rule, "result": event.label, "reason": event.reason or event.cause})
        elif isinstance(event, DataServed):
            self._trace.get_current_span().add_event(
                f"{PREFIX}data", {f"{PREFIX}function": event.name, f"{PREFIX}result": event.label}
            )
        elif isinstance(event, RenderStarted) and event.is_background:
            self._start(event)
        elif isinstance(event, Rendered):
            self._finish(event.key, "stored" if event.stored else "not-stored")
        elif isinstance(event, RenderFailed):
            self._finish(event.key, "failed", event.reason)
        elif isinstance(event, RenderEnded) and (span := self._spans.pop(_here(event.key), None)) is not None:
            span.end()

    def trace_of_request(self) -> str:
        """Return the current span as text, for the link of a render in another thread or process."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get(_HEADER, "")

    def _describe(self, attributes: dict[str, Any]) -> None:
        span = self._trace.get_current_span()
        if span.is_recording():
            span.set_attributes({f"{PREFIX}{name}": value for name, value in attributes.items() if value})

    def _start(self, event: RenderStarted) -> None:
        from opentelemetry.context import Context

        cause = self._trace.get_current_span(
            self._propagator.extract({_HEADER: event.trace}, Context())
        ).get_span_context()
        self._spans[_here(event.key)] = self._tracer.start_span(
            RENDER,
            Context(),  # a root: the request may have ended
            links=[self._trace.Link(cause)] if cause.is_valid else [],
            attributes={f"{PREFIX}rule": event.rule, f"{PREFIX}trigger": event.trigger},
        )

    def _finish(self, key: str, outcome: str, reason: str = "") -> None:
        if (span := self._spans.get(_here(key))) is None:
            return
        span.set_attribute(f"{PREFIX}outcome", outcome)
        if reason:
            span.set_status(self._trace.StatusCode.ERROR, reason)


def _here(key: str) -> tuple[int, str]:
    return threading.get_ident(), key
