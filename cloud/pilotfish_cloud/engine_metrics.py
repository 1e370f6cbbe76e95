"""The engine's counters as Prometheus metrics: made anew from a snapshot at each scrape, so stepping pays nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pilotfish_cloud.engine.interface import Engine, EngineStats
from pilotfish_cloud.gateway import Gateway

PREFIX: Final = "pilotfish_"


class EngineCollector(Collector):
    """Collects ``Engine.stats()``; what the gateway knows comes with it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterable[Metric]:
        """All families, one snapshot."""
        stats = self._gateway.engine.stats()
        yield self._about(self._gateway.engine)
        yield _gauge("draining", "1 while new generations are refused", float(self._gateway.draining))
        yield from _steps(stats)
        yield from _drafts(stats)
        yield from _memory(stats)

    def _about(self, engine: Engine) -> Metric:
        info = engine.info
        family = InfoMetricFamily(f"{PREFIX}engine", "What is served")
        family.add_metric(
            (),
            {
                "model": self._gateway.served_model_name,
                "fingerprint": info.fingerprint,
                "dtype": info.dtype,
                "deterministic": str(info.deterministic).lower(),
            },
        )
        return family


def _steps(stats: EngineStats) -> Iterable[Metric]:
    buckets = [("+Inf" if bound == math.inf else str(bound), float(count)) for bound, count in stats.step_buckets]
    times = HistogramMetricFamily(f"{PREFIX}step_duration_seconds", "Time of a step of the engine")
    times.add_metric((), buckets, stats.step_seconds)
    yield times
    yield _counter("steps", "Steps of the engine: forward passes of the target over a batch", stats.steps)
    rows = {"prefill": stats.prefill_rows, "decode": stats.decode_rows, "draft": stats.draft_rows}
    yield _counter("rows", "Rows that steps have computed", rows, "kind")
    yield _counter("committed_tokens", "Tokens that the target has decided", stats.committed_tokens)
    yield _counter("holds", "Times that a generation was held for a draft", stats.holds)
    yield _counter("preemptions", "Times that a generation gave its memory back", stats.preemptions)
    yield _counter("engine_failures", "Generations that the engine ended with an error", stats.failures)
    states = {"running": stats.running, "waiting": stats.waiting}
    yield _gauge("sequences", "Generations in the engine", states, "state")


def _drafts(stats: EngineStats) -> Iterable[Metric]:
    verify = stats.verify
    yield _counter("verify_steps", "Decode steps of single generations", verify.steps)
    yield _counter("drafted_steps", "Those that verified draft tokens of a device", verify.drafted_steps)
    drafted = {"device": verify.draft_tokens, "cloud": verify.own_draft_tokens}
    accepted = {"device": verify.accepted_tokens, "cloud": verify.own_accepted_tokens}
    yield _counter("draft_tokens", "Draft tokens verified", drafted, "source")
    yield _counter("accepted_tokens", "Draft tokens that were the target's", accepted, "source")
    drafted_at = {str(place): count for place, count in enumerate(verify.drafted_at, start=1)}
    accepted_at = {str(place): count for place, count in enumerate(verify.accepted_at, start=1)}
    yield _counter("position_draft_tokens", "Devices' draft tokens verified, by place", drafted_at, "position")
    yield _counter("position_accepted_tokens", "Those that were the target's", accepted_at, "position")
    yield _counter("stale_runs", "Draft runs that came too late, or of a refuted branch", verify.stale_runs)


def _memory(stats: EngineStats) -> Iterable[Metric]:
    free = stats.blocks_total - stats.blocks_held - stats.blocks_kept
    blocks = {"held": stats.blocks_held, "kept": stats.blocks_kept, "free": free}
    yield _gauge("kv_blocks", "Blocks of KV memory", blocks, "state")
    yield _counter("prefix_cache_hit_tokens", "Prompt tokens that the prefix cache had", stats.cache_hit_tokens)
    misses = dict.fromkeys(("unknown", "evicted", "mismatch", "tail"), 0) | stats.cache_miss_tokens
    yield _counter("prefix_cache_miss_tokens", "Prompt tokens that had to be computed", misses, "reason")


def _counter(name: str, help_text: str, value: float | dict[str, int], label: str = "") -> Metric:
    family = CounterMetricFamily(PREFIX + name, help_text, labels=[label] * bool(label))
    for key, count in value.items() if isinstance(value, dict) else [("", value)]:
        family.add_metric([key] * bool(label), float(count))
    return family


def _gauge(name: str, help_text: str, value: float | dict[str, int], label: str = "") -> Metric:
    family = GaugeMetricFamily(PREFIX + name, help_text, labels=[label] * bool(label))
    for key, count in value.items() if isinstance(value, dict) else [("", value)]:
        family.add_metric([key] * bool(label), float(count))
    return family
