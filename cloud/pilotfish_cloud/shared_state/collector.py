"""How this replica gets on with the shared state, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pilotfish_cloud.shared_state.link import StateLink


class StateCollector(Collector):
    """Reads a link at each scrape."""

    def __init__(self, link: StateLink) -> None:
        self._link = link

    def collect(self) -> Iterable[Metric]:
        """All families."""
        link = self._link
        yield GaugeMetricFamily(
            "pilotfish_shared_state_in_touch", "0 while this replica goes on alone", value=float(link.in_touch)
        )
        yield GaugeMetricFamily("pilotfish_replicas", "Replicas last seen in the shared state", value=len(link.lines))
        yield CounterMetricFamily("pilotfish_shared_state_reports", "Reports that were answered", value=link.reports)
        yield CounterMetricFamily(
            "pilotfish_shared_state_repaired", "Values in it that made no sense, of all replicas", value=link.repaired
        )
        failures = CounterMetricFamily("pilotfish_shared_state_failures", "Calls that failed", labels=["operation"])
        for operation in ("take", "report"):
            failures.add_metric([operation], link.failures[operation])
        yield failures
