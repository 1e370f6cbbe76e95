"""``pilotfish-sim run`` and ``sweep`` as a command: what is printed, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from pilotfish_sim.cli import main
from pilotfish_sim.presets import PRESETS
from pilotfish_sim.progress import ProgressBar

BENCH_KEYS = {
    "arm", "rtt_ms", "concurrency", "jitter_ms", "answers", "tokens_per_s", "answer_tokens_per_s_quartiles", "ttft_ms",
    "tpot_ms", "ratio_to_cloud", "tokens", "steps_per_token", "mean_acceptance_length", "useful_draft_fraction",
    "sent_draft_tokens", "bytes_up_per_token", "bytes_down_per_token", "cached_prompt_fraction", "reconnects",
    "identical", "differing_answers", "reasons", "arms_chosen",
}  # fmt: skip
FAST = ["--set", "workload.answers=2", "--set", "workload.output_tokens=32"]


def test_a_run_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *FAST, "--set", "arm=cloud"]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split()[:2] == ["arm", "workload.answers"]
    assert "Simulated." in table
    assert main(["run", *FAST, "--set", "arm=cloud", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row.keys() >= BENCH_KEYS
    assert row["set"] == {"workload.answers": 2, "workload.output_tokens": 32, "arm": "cloud"}
    assert row["scenario"]["target"]["step_ms"] == [[1, 30.0]]
    assert row["simulated"] is True


def test_a_sweep_has_a_row_for_each_combination(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", *FAST, "--set", "link.rtt_ms=0,50", "--set", "arm=cloud,device-lockstep", "--processes", "1"]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["rtt_ms"], row["arm"]) for row in rows] == [
        (0, "cloud"), (0, "device-lockstep"), (50, "cloud"), (50, "device-lockstep"),
    ]  # fmt: skip
    assert all(row.keys() >= BENCH_KEYS and row["identical"] for row in rows)
    assert rows[0]["ratio_to_cloud"] == rows[2]["ratio_to_cloud"] == 1.0
    assert rows[1]["ratio_to_cloud"] > 1.2 > 1.0 > rows[3]["ratio_to_cloud"]
    assert main([*command, "--csv"]) == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["tokens_per_s"]) for row in read] == [row["tokens_per_s"] for row in rows]
    assert read[3]["set.link.rtt_ms"] == "50"


@pytest.mark.slow
def test_a_sweep_over_processes_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", *FAST, "--set", "link.rtt_ms=0,10,20", "--json"]
    outputs = []
    for processes in ("1", "2"):
        assert main([*command, "--processes", processes]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_a_scenario_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "phone.yaml"
    file.write_text("link: lte\ndevice: phone\nworkload: {answers: 1, output_tokens: 16}\n", encoding="utf-8")
    assert main(["run", str(file), "--set", "link.rtt_ms=25", "--show"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["link"]["rtt_ms"], shown["link"]["wake_ms"], shown["device"]["draft_ms"]) == (25, 260, 25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "link.rtt_ms=-1"], "link.rtt_ms is -1; expected a number of milliseconds"),
        (["run", "--set", "link.rtt_ms=1,2"], "expected one value; pilotfish-sim sweep takes several"),
        (["run", "/nowhere.yaml"], "the scenario file is '/nowhere.yaml'; expected a YAML file"),
        (["sweep", "--set", "arm=cloud,fast"], "arm is 'fast'; expected one of"),
        (["sweep", "--json", "--csv"], "expected either --json or --csv"),
        (["sweep", "--processes", "0"], "--processes is 0; expected a number from 1"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pilotfish-sim: ")
    assert err.count("\n") == 1
    assert message in err


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-presets"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for names in PRESETS.values() for name in names)


class Terminal(io.StringIO):
    """A stream that claims to be one."""

    def isatty(self) -> bool:
        return True


def test_a_bar_is_shown_to_people_only() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with ProgressBar(4, "runs", stream=stream) as bar:
            bar.show(2)
    assert "[####################....................] 2 of 4 runs" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert pipe.getvalue() == ""
