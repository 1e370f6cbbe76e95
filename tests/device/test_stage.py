"""What the demo prepares: made once, and only its own is removed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pilotfish.demo import stage

CHILD = """
import pathlib, signal, sys, time
def end(*_):
    (folder / name).touch()
    sys.exit()
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGTERM, end)
(folder / f"{name}-runs").touch()
time.sleep(60)
"""
COMMAND = """
import contextlib, sys
from pathlib import Path
from pilotfish import cli
from pilotfish.demo import stage
from tests.device.test_stage import CHILD

def child(name):
    return [sys.executable, "-c", CHILD, sys.argv[1], name]

def run(_):
    with contextlib.ExitStack() as stack:
        for index in range(2):
            verifier = stage.VerifierProcess(Path("model"))
            verifier._command = child(f"verifier-{index}")
            stack.enter_context(verifier)
        stage._run(child("export"), Path.cwd())

class Parser:
    def parse_args(self, argv):
        class Arguments: pass
        Arguments.run = staticmethod(run)
        return Arguments

cli._parser = Parser
sys.exit(cli.main([]))
"""


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reference pair, and commands that only write the file by which a model is known to be whole."""

    def run(command: Sequence[str], folder: Path) -> None:
        inflating = "reference.inflate" in command
        out = Path(command[4] if inflating else command[command.index("--out") + 1])
        out.mkdir()
        (out / ("config.json" if inflating else "manifest.json")).touch()

    monkeypatch.setattr(stage, "_run", run)
    for part in ("target", "draft"):
        (tmp_path / "reference" / part).mkdir(parents=True)
        (tmp_path / "reference" / part / "config.json").write_text("1")
    return tmp_path / "reference"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_is_being_prepared_and_the_verifiers(number: signal.Signals, tmp_path: Path) -> None:
    """Properly: what they leave behind is theirs to remove."""
    names = ["export", "verifier-0", "verifier-1"]
    with subprocess.Popen([sys.executable, "-c", COMMAND, str(tmp_path)], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while any(not (tmp_path / f"{name}-runs").exists() for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, b"")
    assert all((tmp_path / name).exists() for name in names)


def test_what_an_earlier_demo_prepared_is_removed_and_nothing_else(reference: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    theirs = [work / "target-of-my-thesis", work / "draft-int8-best"]
    for folder in theirs:
        folder.mkdir(parents=True)
        (folder / "weights").touch()
    first = {stage.inflated_target(reference, work), stage.exported_draft(reference, work, "int8")}
    assert first == {stage.inflated_target(reference, work), stage.exported_draft(reference, work, "int8")}
    for part in ("target", "draft"):
        (reference / part / "config.json").write_text("2")
    second = {stage.inflated_target(reference, work), stage.exported_draft(reference, work, "int8")}
    assert not first & second
    assert set(work.iterdir()) == {*theirs, *second}
    assert all((folder / "weights").is_file() for folder in theirs)
