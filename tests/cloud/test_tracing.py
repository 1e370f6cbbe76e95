"""Traces as a real collector gets them."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

from pilotfish_cloud.engine.interface import CommitEvent, OpenedEvent
from pilotfish_cloud.tracing import Tracing, check_tracing
from pilotfish_core.drafts import Commit, Finish, FinishReason
from pilotfish_core.errors import InvalidParameter, MissingExtra, Unavailable

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(pb_grpc.TraceServiceServicer):  # type: ignore[misc]  # it has no types
    """Keeps what is exported."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:
        with self.lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans |= {span.name: span for span in scope.spans}
        return pb.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    kept = Collector()
    pb_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def values(span: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in span.attributes}


def test_the_stages_of_a_generation(collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    tracing = Tracing(endpoint, service="target")
    trace = tracing.begin({"pilotfish.tenant": "acme"}, {"traceparent": PARENT, "other": "x"})
    trace.take(OpenedEvent("1", 16))
    trace.take(CommitEvent("1", Commit(4, (7,)), 0.0))
    trace.take(CommitEvent("1", Commit(5, (8, 9, 10), accepted=2, finish=Finish(FinishReason.LENGTH)), 0.0))
    trace.end()
    trace.end()
    tracing.close()
    assert set(kept.spans) == {"generation", "queue", "prefill", "decode"}
    whole = kept.spans["generation"]
    assert whole.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert values(whole) == {
        "pilotfish.tenant": "acme",
        "pilotfish.cached_tokens": 16,
        "pilotfish.committed_tokens": 4,
        "pilotfish.accepted_draft_tokens": 2,
        "pilotfish.commits": 2,
        "pilotfish.finish_reason": "length",
    }
    stages = [kept.spans[name] for name in ("queue", "prefill", "decode")]
    assert {stage.parent_span_id for stage in stages} == {whole.span_id}
    for earlier, later in itertools.pairwise(stages):
        assert earlier.end_time_unix_nano == later.start_time_unix_nano
    assert stages[-1].end_time_unix_nano == whole.end_time_unix_nano


def test_a_generation_that_failed(collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    tracing = Tracing(endpoint, service="target")
    tracing.begin({}, {}).end(Unavailable("gone"))
    tracing.close()
    assert set(kept.spans) == {"generation", "queue"}
    assert kept.spans["generation"].status.message == "unavailable"


def test_a_collector_that_is_away_costs_spans_only() -> None:
    tracing = Tracing("http://127.0.0.1:1", service="target")
    tracing.begin({}, {}).end()
    tracing.close()


@pytest.mark.parametrize("endpoint", ["host:4317", "ftp://host:1", "http://", ""])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(InvalidParameter, match="--otlp-endpoint"):
        check_tracing(endpoint)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    with pytest.raises(MissingExtra, match=r"pilotfish\[otel\]"):
        check_tracing("http://127.0.0.1:4317")
