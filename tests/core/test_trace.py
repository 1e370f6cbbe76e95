"""Traces: what is written is read back, and what is wrong with a record is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.drafts import Commit, Origin
from pilotfish_core.trace import (
    VERSION,
    ClientRecord,
    CommitRecord,
    GenerationRecord,
    RoundTripRecord,
    StepRecord,
    TraceFault,
    TraceWriter,
    read_end,
    read_header,
    read_record,
)

NUMBER = st.integers(0, 2**40)


def written() -> tuple[TraceWriter, list[dict[str, Any]]]:
    """A writer, and what it has written so far."""
    lines: list[dict[str, Any]] = []
    return TraceWriter(lambda line: lines.append(json.loads(line)), side="device", now=5.0, key=b"k"), lines


@given(
    st.builds(
        StepRecord,
        at_us=NUMBER,
        took_us=NUMBER,
        whole_us=NUMBER,
        rows=NUMBER,
        padded=NUMBER,
        sequences=NUMBER,
        context=NUMBER,
        drafts=NUMBER,
        committed=NUMBER,
    )
)
def test_a_record_is_read_as_it_was_written(record: StepRecord) -> None:
    writer, lines = written()
    writer.add(record)
    writer.end()
    assert read_header(lines[0]) == ("device", 5_000_000)
    assert read_record(lines[1]) == record
    read_end(lines[2], 1)


def test_a_generation_tells_when_but_not_what() -> None:
    writer, lines = written()
    client = writer.client("device-async", rtt_ms=20.0, concurrency=2, warmup=1)
    generation = client.generation([11, 12, 13])
    generation.opening(60)
    generation.pinged(5.1, 7)
    generation.heard(5.125, 8)  # of another
    generation.heard(5.125, 7)
    generation.flushed(5.2, start=3, tokens=2, size=9)
    commit = Commit(position=3, tokens=(21, 22, 23), accepted=1, origin=Origin.CLOUD)
    generation.committed(5.25, commit, length=3, tail=[21, 99], size=12)
    generation.committed(5.26, commit, length=6, tail=[], size=12)  # known already
    generation.ended(
        began=5.0, first=5.25, last=5.25, cached_tokens=0, tokens=3, bytes_up=80, bytes_down=12, sent=2, accepted=1,
        reconnects=0, arm="device-async", reason="ramp",
    )  # fmt: skip
    records = [read_record(line) for line in lines[1:]]
    assert records[0] == ClientRecord(client=0, arm="device-async", rtt_ms=20.0, concurrency=2, warmup=1)
    assert records[1] == RoundTripRecord(generation=0, at_us=125_000, took_us=25_000)
    assert records[3] == CommitRecord(
        generation=0, at_us=250_000, position=0, tokens=3, agreed=1, refuted=True, bytes=12
    )
    end = records[-1]
    assert isinstance(end, GenerationRecord)
    assert (end.first_us, end.open_bytes, end.prompt_tokens) == (250_000, 60, 3)
    assert end.prompt == writer.prompt([11, 12, 13]) != writer.prompt([11, 12])
    other = TraceWriter(lambda line: None, side="device", now=0.0, key=b"another")
    assert other.prompt([11, 12, 13]) != end.prompt


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"r": "step", "at_us": -1}, "at_us"),
        ({"r": "step", "at_us": 1.5}, "at_us"),
        ({"r": "step", "at_us": True}, "at_us"),
        ({"r": "step", "at_us": 1}, "took_us"),
        ({"r": "client", "client": 0, "arm": 3}, "arm"),
        ({"r": "client", "client": 0, "arm": "cloud", "rtt_ms": float("nan")}, "rtt_ms"),
        ({"r": "stop"}, "r"),
        ({}, "r"),
    ],
)
def test_a_wrong_record_is_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(TraceFault) as caught:
        read_record(values)
    assert caught.value.key == key
    assert "expected" in str(caught.value)


def test_another_version_and_a_missing_end_are_named() -> None:
    header = {"r": "trace", "version": VERSION + 1, "side": "cloud", "clock_us": 0}
    with pytest.raises(TraceFault, match="version is 2; expected 1"):
        read_header(header)
    with pytest.raises(TraceFault, match="side"):
        read_header(header | {"version": VERSION, "side": "moon"})
    with pytest.raises(TraceFault, match="records is 3; expected 4"):
        read_end({"r": "end", "records": 3}, 4)
