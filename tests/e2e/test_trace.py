"""``--trace`` of both real commands, and what ``pilotfish-sim`` makes of the two files."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pilotfish_sim.cli import main
from pilotfish_sim.trace_file import read_traces
from tests.e2e.test_commands import PROMPT, SAMPLING, pilotfish, serving

pytestmark = pytest.mark.slow


def test_a_real_run_is_traced_and_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cloud, device, out = (tmp_path / name for name in ("run.cloud.jsonl", "run.jsonl", "mine.yaml"))
    with serving("--trace", cloud) as (process, address):
        arguments = ("--server", address, "--prompt", PROMPT, *SAMPLING, "--draft", "ngram", "--arm", "device-async")
        done = pilotfish("generate", *arguments, "--trace", device, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        answer = json.loads(done.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert answer["text"][:20] not in device.read_text() + cloud.read_text()
    traces = read_traces([device, cloud])
    (generation,) = traces.clients[0].generations
    assert generation.record.tokens == len(answer["token_ids"]) == sum(step.committed for _, step in traces.steps)
    assert all(step.padded >= step.rows > 0 for _, step in traces.steps)
    assert main(["calibrate", str(device), str(cloud), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["run", str(out), "--set", "arm=cloud", "--set", "workload.answers=2", "--json"]) == 0
    simulated = json.loads(capsys.readouterr().out)
    assert simulated["identical"] is True
    assert simulated["tokens_per_s"] > 0
