"""What a report shows of a run beside its row: how long each answer took, and one answer's life."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from pilotfish_core.trace import CommitRecord, DraftRecord, FlushRecord, GenerationRecord, TraceWriter, read_record
from pilotfish_sim.run import Run, Traces, simulate
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.workload import WorkloadKind

WARM_UPS = 2  # answers before the one that is shown, from which its policy has learned


@dataclasses.dataclass(frozen=True, slots=True)
class Detail:
    """Of the measured answers, milliseconds."""

    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Timeline:
    """One answer. Times in milliseconds since the question, heights are output positions.

    ``drafted``: how far the device had drafted (falls at a rollback); ``committed``; ``sent``: runs that left;
    ``rollbacks``: where a commit refuted a draft.
    """

    drafted: tuple[tuple[float, float], ...]
    committed: tuple[tuple[float, float], ...]
    sent: tuple[tuple[float, float], ...]
    rollbacks: tuple[tuple[float, float], ...]


def detail_of(run: Run) -> Detail:
    """Of a run."""
    return Detail(
        tuple(round(answer.ttft_s * 1e3, 3) for answer in run.measured),
        tuple(round(answer.tpot_s * 1e3, 3) for answer in run.measured),
    )


def timeline_of(scenario: Scenario) -> Timeline:
    """One answer of a device that is alone in the scenario's world, and has asked before."""
    workload = dataclasses.replace(
        scenario.workload,
        kind=WorkloadKind.CLOSED,
        devices=1,
        answers=1,
        warmup=WARM_UPS,
        duration_s=None,
        rate_per_s=None,
        warmup_s=0.0,
        file="",
    )
    lines: list[str] = []
    writer = TraceWriter(lines.append, side="device", now=0.0, key=b"timeline")
    simulate(dataclasses.replace(scenario, workload=workload), traces=Traces(device=writer))
    return _timeline([read_record(json.loads(line)) for line in lines[1:]], WARM_UPS)


def _timeline(records: Sequence[object], number: int) -> Timeline:
    events: list[tuple[int, int, object]] = []
    began = 0
    for place, record in enumerate(records):
        if isinstance(record, GenerationRecord) and record.generation == number:
            began = record.at_us
        elif isinstance(record, DraftRecord | FlushRecord | CommitRecord) and record.generation == number:
            events.append((record.at_us, place, record))
    head = committed = 0
    drafted, commits = [(0.0, 0.0)], [(0.0, 0.0)]
    sent: list[tuple[float, float]] = []
    rollbacks: list[tuple[float, float]] = []
    for at_us, _, record in sorted(events, key=lambda event: event[:2]):
        at = (at_us - began) / 1e3
        match record:
            case DraftRecord(tokens=tokens):
                head += tokens
            case FlushRecord(start=start, tokens=tokens):
                sent.append((at, float(start + tokens)))
            case CommitRecord(position=position, tokens=tokens, refuted=refuted):
                if refuted:
                    rollbacks.append((at, float(head)))
                committed = position + tokens
                head = committed if refuted else max(head, committed)
                commits.append((at, float(committed)))
        drafted.append((at, float(head)))
    return Timeline(tuple(drafted), tuple(commits), tuple(sent), tuple(rollbacks))
