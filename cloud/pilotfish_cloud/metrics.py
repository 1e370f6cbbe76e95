"""What an operator's Prometheus reads: generations by door and outcome, their times and lengths, and the engine.

Every name is in docs/metrics.md. Ratios and rates are left to the reader.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from pilotfish_cloud.engine.interface import CommitEvent, EngineEvent, OpenedEvent
from pilotfish_cloud.engine_metrics import EngineCollector
from pilotfish_cloud.gateway import Gateway
from pilotfish_cloud.observer import StreamObserver
from pilotfish_cloud.principal import Principal
from pilotfish_cloud.shared_state.collector import StateCollector
from pilotfish_cloud.shared_state.link import StateLink
from pilotfish_cloud.stream import Stream
from pilotfish_core.errors import PilotfishError

_QUICK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds
_SLOW: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_LENGTHS: Final = tuple(float(2**power) for power in range(0, 18, 1))  # tokens
ABORTED: Final = "abort"  # the reason of those whose caller went away


class ServerMetrics:
    """All metrics of one server, in a registry of its own.

    ``tenant_labels``: the tenant's name on counters, which makes as many series as there are tenants, and shows their
    names to whoever can read them.
    """

    def __init__(self, gateway: Gateway, *, tenant_labels: bool = False, link: StateLink | None = None) -> None:
        self.registry: CollectorRegistry = _Registry()
        self.registry.register(EngineCollector(gateway))
        if link is not None:
            self.registry.register(StateCollector(link))
        ProcessCollector(registry=self.registry)
        self.generations = GenerationMetrics(self.registry, tenant_labels=tenant_labels)
        gateway.observer = self.generations
        self._http = Counter("pilotfish_http_requests", "HTTP responses", ("route", "status"), registry=self.registry)

    def count_http(self, route: str, status: int) -> None:
        """A response began."""
        self._http.labels(route, str(status)).inc()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The text that Prometheus reads, in the format that it accepts, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _Registry(CollectorRegistry):
    """Without the time at which each series began, which would double their number."""

    def collect(self) -> Iterator[Metric]:
        """What is registered here, now."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


@dataclasses.dataclass(slots=True)
class _Progress:
    """One generation, as far as it has come. Times in time.monotonic() seconds."""

    opened_at: float
    first_at: float | None = None
    last_at: float = 0.0
    tokens: int = 0
    first_tokens: int = 0  # of the first commit
    failed: str | None = None  # the kind of error
    finished: str | None = None  # the reason


@dataclasses.dataclass(slots=True)
class Totals:
    """Generations of all doors since the start."""

    opened: int = 0
    finished: int = 0
    aborted: int = 0  # the caller went away
    failed: int = 0
    refused: int = 0


class GenerationMetrics(StreamObserver):
    """Counts the streams of all doors. Lives on the event loop; read from any thread."""

    def __init__(self, registry: CollectorRegistry, *, tenant_labels: bool) -> None:
        self._tenant_labels = tenant_labels
        self._progress: dict[str, _Progress] = {}
        self.totals = Totals()
        by = ("door", "tenant") if tenant_labels else ("door",)

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"pilotfish_{name}", help_text, (*by, *labels), registry=registry)

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"pilotfish_{name}", help_text, ("door",), registry=registry, buckets=buckets)

        self._opened = counter("generations_opened", "Generations that the engine was asked for")
        self._refused = counter("generations_refused", "Generations that were not let in", "kind")
        self._finished = counter("generations_finished", "Generations that ended without an error", "reason")
        self._failed = counter("generations_failed", "Generations that ended with an error", "kind")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens, and output that was resumed from")
        self._output_tokens = counter("output_tokens", "Tokens that were committed")
        self._cached_tokens = counter("cached_tokens", "Prompt tokens that the prefix cache had")
        self._in_progress = Gauge(
            "pilotfish_generations_in_progress", "Generations between opening and end", ("door",), registry=registry
        )
        self._queued = histogram("queue_seconds", "From the opening to the engine's first step for it", _SLOW)
        self._first = histogram("time_to_first_token_seconds", "From the opening to the first commit", _SLOW)
        self._interval = histogram("commit_interval_seconds", "Between two commits of a generation", _QUICK)
        self._per_token = histogram(
            "time_per_output_token_seconds", "Of a generation, for a token after its first commit", _QUICK
        )
        self._duration = histogram("generation_duration_seconds", "From the opening to the end", _SLOW)
        self._prompt_length = histogram("prompt_length_tokens", "Length of prompts", _LENGTHS)
        self._output_length = histogram("output_length_tokens", "Length of the output of ended generations", _LENGTHS)

    def refused(self, door: str, principal: Principal, error: Exception) -> None:
        """A generation was not let in."""
        self.totals.refused += 1
        self._refused.labels(*self._by(door, principal), _kind(error)).inc()

    def opened(self, stream: Stream) -> None:
        """The engine was asked for a generation."""
        by, length = self._of(stream), len(stream.opening.prompt)
        self._progress[stream.key] = _Progress(time.monotonic())
        self.totals.opened += 1
        self._opened.labels(*by).inc()
        self._prompt_tokens.labels(*by).inc(length + len(stream.opening.output))
        self._in_progress.labels(stream.door).inc()
        self._prompt_length.labels(stream.door).observe(length)

    def event(self, stream: Stream, event: EngineEvent) -> None:
        """The engine answered."""
        progress = self._progress.get(stream.key)
        if progress is None:
            return
        match event:
            case OpenedEvent(_, cached_tokens):
                self._queued.labels(stream.door).observe(time.monotonic() - progress.opened_at)
                self._cached_tokens.labels(*self._of(stream)).inc(cached_tokens)
            case CommitEvent(_, commit):
                if commit.tokens:
                    self._committed(stream, progress, len(commit.tokens))
                if commit.finish is not None:
                    progress.finished = commit.finish.reason.value

    def failed(self, stream: Stream, error: Exception) -> None:
        """It ends with an error."""
        progress = self._progress.get(stream.key)
        if progress is not None:
            progress.failed = _kind(error)

    def closed(self, stream: Stream) -> None:
        """The door is done with it."""
        progress = self._progress.pop(stream.key, None)
        if progress is None:
            return
        by = self._of(stream)
        ended_at = progress.last_at if progress.finished and progress.tokens else time.monotonic()
        if progress.finished is not None:
            self.totals.finished += 1
            self._finished.labels(*by, progress.finished).inc()
        elif progress.failed is not None:
            self.totals.failed += 1
            self._failed.labels(*by, progress.failed).inc()
        else:
            self.totals.aborted += 1
            self._finished.labels(*by, ABORTED).inc()
        self._in_progress.labels(stream.door).dec()
        self._duration.labels(stream.door).observe(ended_at - progress.opened_at)
        self._output_length.labels(stream.door).observe(progress.tokens)
        later = progress.tokens - progress.first_tokens
        if progress.first_at is not None and later:
            self._per_token.labels(stream.door).observe((progress.last_at - progress.first_at) / later)

    def _committed(self, stream: Stream, progress: _Progress, count: int) -> None:
        now = time.monotonic()
        if progress.first_at is None:
            progress.first_at, progress.first_tokens = now, count
            self._first.labels(stream.door).observe(now - progress.opened_at)
        else:
            self._interval.labels(stream.door).observe(now - progress.last_at)
        progress.last_at = now
        progress.tokens += count
        self._output_tokens.labels(*self._of(stream)).inc(count)

    def _of(self, stream: Stream) -> tuple[str, ...]:
        return self._by(stream.door, stream.principal)

    def _by(self, door: str, principal: Principal) -> tuple[str, ...]:
        return (door, principal.tenant) if self._tenant_labels else (door,)


def _kind(error: Exception) -> str:
    return error.kind if isinstance(error, PilotfishError) else PilotfishError.kind
