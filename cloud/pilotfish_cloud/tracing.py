"""OpenTelemetry traces of generations: spans queue, prefill and decode under one of the whole. Needs the extra otel.

The parent is the caller's, where it sent a W3C ``traceparent``. Nothing of a prompt or an answer is in a span.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pilotfish_cloud.engine.interface import CommitEvent, EngineEvent, OpenedEvent
from pilotfish_core.errors import InvalidParameter, MissingExtra

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def check_tracing(endpoint: str) -> None:
    """Raises InvalidParameter for an endpoint that is none, MissingExtra without the extra."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidParameter.of("--otlp-endpoint", endpoint, "http://host:4317 or https://host:4317")
    for module in _MODULES:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # of a parent package
            found = False
        if not found:
            raise MissingExtra.of(module, "otel", "--otlp-endpoint")


class Tracing:
    """Sends spans to a collector, from a thread of its own; a collector that is away costs spans, nothing else."""

    def __init__(self, endpoint: str, *, service: str) -> None:
        """Raises InvalidParameter, MissingExtra."""
        check_tracing(endpoint)
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # A provider of our own, not the process's: an application that embeds a verifier keeps its tracing.
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "pilotfish-cloud", "pilotfish.model": service}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=urlsplit(endpoint).scheme == "http", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pilotfish_cloud")

    def begin(self, attributes: Mapping[str, Any], metadata: Mapping[str, str]) -> GenerationTrace:
        """A generation was opened; ``metadata`` of its call may name a parent."""
        return GenerationTrace(self._tracer, attributes, metadata)

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        self._provider.force_flush(5000)
        self._provider.shutdown()


class GenerationTrace:
    """The spans of one generation: fed with its events, ended once."""

    def __init__(self, tracer: Tracer, attributes: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        context = TraceContextTextMapPropagator().extract(metadata)
        self._whole = tracer.start_span("generation", context, attributes=dict(attributes))
        self._context = set_span_in_context(self._whole)
        self._stage: Span | None = tracer.start_span("queue", self._context)
        self._name = "queue"
        self._tokens = self._accepted = self._commits = 0

    def take(self, event: EngineEvent) -> None:
        """An event of the engine."""
        match event:
            case OpenedEvent(_, cached_tokens):
                self._whole.set_attribute("pilotfish.cached_tokens", cached_tokens)
                self._next("prefill")
            case CommitEvent(_, commit):
                if self._name != "decode":
                    self._next("decode")
                self._tokens += len(commit.tokens)
                self._accepted += commit.accepted
                self._commits += 1
                if commit.finish is not None:
                    self._whole.set_attribute("pilotfish.finish_reason", commit.finish.reason.value)

    def end(self, error: BaseException | None = None) -> None:
        """It is over; ``error``: without a finish."""
        from opentelemetry.trace import Status, StatusCode

        now = time.time_ns()
        if self._stage is None:
            return
        self._stage.end(now)
        self._stage = None
        figures = {"committed_tokens": self._tokens, "accepted_draft_tokens": self._accepted, "commits": self._commits}
        self._whole.set_attributes({f"pilotfish.{name}": value for name, value in figures.items()})
        if error is not None:
            self._whole.set_status(Status(StatusCode.ERROR, getattr(error, "kind", type(error).__name__)))
        self._whole.end(now)

    def _next(self, name: str) -> None:
        now = time.time_ns()
        if self._stage is not None:
            self._stage.end(now)
        self._stage = self._tracer.start_span(name, self._context, start_time=now)
        self._name = name
