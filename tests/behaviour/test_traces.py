"""Traces: attributes on the span of a request, and a root span for each background render."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr.errors import ConfigError
from wsgi_isr.observe.opentelemetry import RENDER, trace_requests


class Exporter(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Traced:
    """A site whose requests have a span, and the spans that have ended."""

    def __init__(self, site: Site) -> None:
        self._exporter = Exporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._tracer = provider.get_tracer("test")
        self.site = site
        site.isr.subscribe(trace_requests(provider))

    def visit(self, path: str) -> ReadableSpan:
        with self._tracer.start_as_current_span("request") as span:
            self.site.visit(path)
        assert isinstance(span, ReadableSpan)
        return span

    def renders(self) -> list[ReadableSpan]:
        self.site.jobs.wait()
        return [span for span in self._exporter.spans if span.name == RENDER]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("wsgi_isr."): value for name, value in (span.attributes or {}).items()}


def test_the_span_of_a_request_has_rule_result_and_reason(make_site: MakeSite) -> None:
    traced = Traced(make_site(revalidate=60))
    assert attributes(traced.visit("/a")) == {"rule": "*", "result": "MISS"}
    for _ in range(3):
        assert attributes(traced.visit("/a")) == {"rule": "*", "result": "HIT"}
    assert attributes(traced.visit("/a?x=1")) == {"result": "BYPASS", "reason": "query"}


def test_a_background_render_is_a_root_that_is_linked_to_its_request(make_site: MakeSite, clock: Clock) -> None:
    traced = Traced(make_site(revalidate=60))
    traced.visit("/a")
    clock.advance(61)
    request = traced.visit("/a")
    (render,) = traced.renders()
    assert render.parent is None
    assert render.context.trace_id != request.context.trace_id
    assert [link.context.span_id for link in render.links] == [request.context.span_id]
    assert attributes(render) == {"rule": "*", "trigger": "time", "outcome": "stored"}


def test_a_failed_background_render_is_an_error(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    traced = Traced(make_site(revalidate=60))
    traced.visit("/a")
    origin.on("/a", answer(b"no", status="500 Oh No"))
    clock.advance(61)
    traced.visit("/a")
    (render,) = traced.renders()
    assert attributes(render)["outcome"] == "failed"
    assert render.status.status_code is trace.StatusCode.ERROR
    assert render.status.description == "status-500"


def test_a_render_without_a_traced_request_has_no_link(make_site: MakeSite, clock: Clock) -> None:
    traced = Traced(make_site(revalidate=60))
    traced.site.visit("/a")
    clock.advance(61)
    traced.site.visit("/a")
    (render,) = traced.renders()
    assert not render.links


def test_without_the_extra_an_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"wsgi_isr\[opentelemetry\]"):
        trace_requests()


def test_without_a_subscription_the_package_does_not_import_it() -> None:
    import subprocess

    code = (
        "import sys, wsgi_isr; wsgi_isr.ISR; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus_client'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
