"""What the command prints and writes, where the figures were made up."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotfish import cli
from pilotfish.bench import command
from pilotfish.bench.plan import Cell
from pilotfish.bench.progress import Progress
from pilotfish.bench.runner import Answer, Measured
from pilotfish.bench.settings import Settings
from pilotfish.bench.stage import Stage
from pilotfish.bench.sweep import Target
from pilotfish_core.modes import Arm
from pilotfish_core.trace import TraceWriter
from tests.device.test_bench_report import metrics

RIGHT, WRONG = (1, 2, 3), (1, 9, 3)


@pytest.fixture
def wrong() -> set[Arm]:
    """Arms that answer wrongly."""
    return set()


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch, wrong: set[Arm]) -> None:
    @contextlib.contextmanager
    def staged(settings: Settings, say: Callable[[str], None]) -> Iterator[Stage]:
        yield Stage("h:1", {}, None, None)

    async def sweep(
        settings: Settings,
        stage: Stage,
        progress: Progress,
        done: Callable[[Cell, Measured], None],
        trace: TraceWriter | None,
    ) -> Target:
        measured = Measured()
        for cell in settings.cells:
            for prompt in range(len(settings.prompts)):
                for index, arm in enumerate(settings.arms):
                    tokens = WRONG if arm in wrong and cell.rtt_ms else RIGHT
                    speed = metrics(tokens_per_s=10.0 + index)
                    measured.answers.append(Answer(arm, cell, prompt, 0, tokens, speed))
            done(cell, measured)
        return Target("m", "pf-a", "bfloat16", True)

    monkeypatch.setattr(command, "staged", staged)
    monkeypatch.setattr(command, "sweep", sweep)


def run(*arguments: object) -> int:
    fixed = ["--server", "h:1", "--arms", "cloud,device-async,auto", "--rtt", "0,20", "--prompts", "6"]
    return cli.main(["bench", *fixed, *map(str, arguments)])


def test_tables_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[1] == "RTT 0 ms, 1 stream"
    assert [line.split()[0] for line in lines[2:6]] == ["arm", "cloud", "device-async", "auto"]
    assert lines[7] == "RTT 20 ms, 1 stream"
    assert lines[-2:] == [
        f"RTT {rtt} ms, 1 stream: best device-async (11.0 tokens/s); with device drafting device-async (11.0); "
        "auto 109% of the best; identical: yes"
        for rtt in (0, 20)
    ]


def test_json_on_standard_output_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert "RTT 20 ms, 1 stream: best device-async" in captured.err
    assert len(document["rows"]) == 6
    assert [cell["auto_to_best"] for cell in document["cells"]] == [1.0909, 1.0909]
    assert (document["identical"], document["pinned"]) == (True, None)
    assert document["target"] == {"model": "m", "fingerprint": "pf-a", "dtype": "bfloat16", "deterministic": True}
    assert document["options"]["rtt"] == "0,20"
    assert document["command"].startswith("pilotfish ")
    assert len(document["prompts"]) == 6
    assert document["machine"]["python"]


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, picture = tmp_path / "f.json", tmp_path / "p.png"
    assert run("--json", figures, "--plot", picture) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"figures: {figures}", f"picture: {picture}"]
    assert json.loads(figures.read_text())["identical"] is True
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["f.json", "p.png"]


def test_another_text_is_a_failure(wrong: set[Arm], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong.add(Arm.AUTO)
    assert run("--json", tmp_path / "f.json") == 1
    out = capsys.readouterr().out
    assert "DIFFERENT: 6 of 36 answers are not those of cloud\n" in out
    assert "  auto at RTT 20 ms, 1 stream: 6 of 6, first in prompt 1 at token 2\n" in out
    document: dict[str, Any] = json.loads((tmp_path / "f.json").read_text())
    assert document["identical"] is False
    assert [row["identical"] for row in document["rows"]] == [True] * 5 + [False]
