"""Calibration finds what the traces were made with, and predicts what it has not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotfish_core.errors import InvalidParameter
from pilotfish_sim.calibration import by_position, calibrate, matches
from pilotfish_sim.cli import main
from pilotfish_sim.holdout import hold_out, medians
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.trace_file import Traces, read_traces
from tests.sim.traced import traced

LINES = ["110111011101", "111111110111", "101101101101", "111011111110"]
WORLD: dict[str, Any] = {
    "device": {"draft_ms": 6, "prefill_ms": 0.5, "task_ms": 0.4, "overhead_ms": 0.3, "one_client": True},
    "target": {
        "step_ms": {1: 30, 2: 30.5, 4: 32, 8: 38, 16: 50, 32: 75}, "sequence_us": 200, "context_us": 500,
        "service_ms": 0.2, "open_ms": 3,
    },
    "acceptance": {"kind": "recorded", "lines": LINES},
    "workload": {"answers": 6, "warmup": 1, "prompt_tokens": 40, "output_tokens": 48},
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("traces")
    found = []
    cells = [("cloud", 0, 1), ("device-async", 40, 1), ("device-lockstep", 0, 1), ("device-async", 20, 4)]
    for number, (arm, rtt, streams) in enumerate(cells):
        values = WORLD | {"arm": arm, "link": {"rtt_ms": rtt}, "workload": WORLD["workload"] | {"devices": streams}}
        found += traced(values, folder, f"cell{number}", clock_s=1000 * number)
    return found


@pytest.fixture(scope="module")
def read(files: list[Path]) -> Traces:
    return read_traces(files)


def test_what_the_traces_were_made_with_is_found(read: Traces) -> None:
    alone = Traces(read.clients[:1], read.steps, read.openings)  # without drafts there are no pings
    assert calibrate(alone).sections["target"]["open_ms"] == pytest.approx(3 + 2 * 0.5, rel=0.05)
    found = calibrate(read)
    device, target, link = (found.sections[name] for name in ("device", "target", "link"))
    assert device["draft_ms"] + device["task_ms"] == pytest.approx(6.4, rel=0.02)
    assert device["prefill_ms"] == pytest.approx(0.5, rel=0.1)
    assert target["service_ms"] + device["overhead_ms"] == pytest.approx(0.5, rel=0.05)
    assert link["jitter_ms"] == pytest.approx(0.0, abs=0.2)
    curve = dict(Scenario.of({"target": dict(target)}).target.step_ms or ())
    assert curve[1] == pytest.approx(30, rel=0.03)
    assert curve[8] == pytest.approx(38, rel=0.04)
    assert found.residuals["step"] < 0.02
    assert found.residuals["draft_task"] < 0.02


def test_acceptance_is_recorded_by_output_position(read: Traces) -> None:
    (drafting,) = [client for client in read.clients if client.record.rtt_ms == 40]
    lines = matches(drafting.generations)
    assert len(lines) == 7
    whole = {line * 4 for line in LINES}
    for line in lines.values():
        assert any(all(known in ("?", true) for known, true in zip(line, one, strict=True)) for one in whole)
    rates = by_position(drafting.generations)
    assert 0.7 < rates[0] < 0.95
    for how in ("position", "rate"):
        values = calibrate(read, acceptance=how).sections["acceptance"]
        assert Scenario.of({"acceptance": dict(values)}).acceptance.kind == (
            "position" if how == "position" else "constant"
        )


def test_what_steps_are_padded_to_is_found(tmp_path: Path) -> None:
    target = WORLD["target"] | {"row_sizes": [4, 8, 16]}
    values = WORLD | {"target": target, "arm": "device-async", "link": {"rtt_ms": 20}}
    read = read_traces(traced(values, tmp_path))
    assert {step.padded for _, step in read.steps if step.rows <= 16} <= {4, 8, 16}
    found = Scenario.of({"target": dict(calibrate(read).sections["target"])}).target
    assert found.row_sizes in ((4, 8), (4, 8, 16))
    seconds = found.step_time()
    assert seconds(1, 0) == seconds(4, 0) < seconds(5, 0) == seconds(8, 0)
    assert seconds(8, 0) == pytest.approx(0.038, rel=0.05)


def test_the_rest_is_predicted(read: Traces) -> None:
    told: list[tuple[int, int]] = []
    cells = hold_out(read, 0.5, by="answers", acceptance="recorded", done=lambda *count: told.append(count))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [cell.answers for cell in cells] == [3, 3, 3, 12]
    assert all(abs(cells[0].errors[name]) < 0.06 for name in ("tokens_per_s", "tpot_ms", "ttft_ms"))  # no luck in it
    assert max(medians([cell.errors for cell in cells]).values()) < 0.3  # of texts that were not seen, three a cell
    assert all(cell.halves is not None for cell in cells)


def test_whole_cells_can_be_held_out(read: Traces) -> None:
    cells = hold_out(read, 0.5, by="cells", acceptance="rate")
    assert [(cell.arm, cell.rtt_ms) for cell in cells] == [("device-async", 40.0), ("device-async", 20.0)]
    assert all(cell.halves is None and cell.answers in (6, 24) for cell in cells)
    assert medians([cell.errors for cell in cells])["tpot_ms"] < 0.2


@pytest.mark.parametrize("kind", ["closed", "rounds"])
def test_streams_begin_again_as_they_did(kind: str, tmp_path: Path) -> None:
    workload = WORLD["workload"] | {"kind": kind, "devices": 8, "answers": 4}
    values = WORLD | {"arm": "device-lockstep", "link": {"rtt_ms": 20}, "workload": workload}
    (cell,) = hold_out(read_traces(traced(values, tmp_path)), 0.5, by="answers", acceptance="recorded")
    # All that ask at once wait for each other's prompts; those who come one by one hardly wait.
    assert cell.real["ttft_ms"] > 200 if kind == "rounds" else cell.real["ttft_ms"] < 150
    assert abs(cell.errors["ttft_ms"]) < 0.15


def test_too_little_is_refused(read: Traces) -> None:
    with pytest.raises(InvalidParameter, match="no answer of a device"):
        calibrate(Traces())
    with pytest.raises(InvalidParameter, match="0 steps of a verifier"):
        calibrate(Traces(clients=read.clients))
    with pytest.raises(InvalidParameter, match="--holdout"):
        hold_out(read, 0.01, by="answers", acceptance="rate")


def test_the_command_writes_a_scenario(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "calibration.yaml"
    names = [str(file) for file in files]
    assert main(["calibrate", *names, "--out", str(out), "--holdout", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "median of |err|" in said
    assert "tokens/s err" in said
    assert main(["run", str(out), "--set", "arm=device-async", "--set", "workload.answers=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True
    sets = ["--set", f"target={out}", "--set", f"device={out}", "--set", "target.max_num_seqs=8"]
    assert main(["run", *sets, "--set", "workload.answers=2", "--json"]) == 0
    scenario = json.loads(capsys.readouterr().out)["scenario"]
    assert scenario["target"]["max_num_seqs"] == 8
    assert scenario["device"]["draft_ms"] > 5
    assert main(["calibrate", *names, "--holdout", "0.5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["median_errors"]) == set(document["aims"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--holdout", "2"], "--holdout is '2'"),
        (["--holdout", "half"], "--holdout is 'half'"),
        (["--holdout-by", "moon"], "--holdout-by is 'moon'"),
        (["--acceptance", "guess"], "--acceptance is 'guess'"),
        (["--out", "/nowhere/at/all.yaml"], "--out"),
        (["--out", "calibration.txt"], "--out"),
    ],
)
def test_wrong_usage_is_one_line(
    files: list[Path], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(files[0]), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_file_without_the_section_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("seed: 1\n")
    assert main(["run", "--set", f"target={file}"]) == 1
    assert "target.preset" in capsys.readouterr().err
