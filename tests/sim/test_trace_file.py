"""Reading traces: those of simulated runs, which are written as real ones are, and damaged ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pilotfish_core.errors import FileFormatError, InvalidParameter
from pilotfish_sim.trace_file import read_traces
from tests.sim.traced import traced

SMALL = {"arm": "device-async", "link": {"rtt_ms": 20}, "workload": {"answers": 2, "output_tokens": 24}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return traced(SMALL, tmp_path_factory.mktemp("traces"))


def test_a_run_s_traces_hold_what_happened(files: list[Path]) -> None:
    traces = read_traces(files)
    (client,) = traces.clients
    assert (client.record.arm, client.record.rtt_ms, client.record.warmup) == ("device-async", 20.0, 1)
    assert len(client.generations) == 3
    assert len(client.counted) == 2
    for generation in client.counted:
        assert sum(commit.tokens for commit in generation.commits) == generation.record.tokens == 24
        assert sum(flush.tokens for flush in generation.flushes) == generation.record.sent
        assert all(trip.took_us >= 20_000 for trip in generation.round_trips)
    assert sum(step.committed for _, step in traces.steps) == 3 * 24
    assert len(traces.openings) == 3


def test_gzipped_is_the_same(files: list[Path], tmp_path: Path) -> None:
    packed = tmp_path / "device.jsonl.gz"
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    assert read_traces([packed]).clients == read_traces([files[0]]).clients


def damaged(files: list[Path], folder: Path, line: int, change: dict[str, Any] | str | None) -> Path:
    """The device's trace with line ``line`` (from 1) changed; None: cut off before it."""
    lines = files[0].read_text().splitlines()
    if change is None:
        lines = lines[: line - 1]
    elif isinstance(change, str):
        lines[line - 1] = change
    else:
        lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | change)
    out = folder / "damaged.jsonl"
    out.write_text("".join(f"{one}\n" for one in lines))
    return out


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        (6, None, "line 5: the trace ends early"),
        (1, {"version": 9}, "line 1: version is 9; expected 1"),
        (1, {"r": "step"}, "line 1: r is 'step'"),
        (4, {"at_us": "soon"}, "line 4: at_us is 'soon'; expected a whole number"),
        (4, "{", "line 4: the line is '{'; expected a JSON object"),
        (4, "[]", "line 4"),
        (4, '{"r":"end","records":9}', "line 4: records is 9; expected 2"),
        (4, '{"r":"end","records":2}', "line 5: r is 'more'"),
    ],
)
def test_damage_is_one_line(files: list[Path], tmp_path: Path, line: int, change: Any, said: str) -> None:
    file = damaged(files, tmp_path, line, change)
    with pytest.raises(FileFormatError) as caught:
        read_traces([file])
    assert str(caught.value).startswith(f"{file}, ")
    assert said in str(caught.value)


def test_a_half_written_line_ends_early(files: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl"
    cut.write_text(files[0].read_text()[:-30])
    with pytest.raises(FileFormatError, match="ends early"):
        read_traces([cut])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"nothing\.jsonl"):
        read_traces([tmp_path / "nothing.jsonl"])
