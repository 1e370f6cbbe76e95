"""The demo as a program would run it: two verifiers, one killed, every answer the cloud's own."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_loses_a_verifier_and_changes_nothing(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    command = [sys.executable, "-m", "pilotfish", "demo", "--json", "--max-tokens", "24", "--svg", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["identical"] is True
    assert figures["prompts"] == 3
    assert figures["failovers"] == 1
    assert figures["sha256"]["cloud"] == figures["sha256"]["others"]
    assert figures["cloud"]["tokens_per_s"] > 0
    hybrid = figures["hybrid"]
    assert hybrid["tokens_per_s"] > 0
    assert 0 < hybrid["steps_per_token"] <= 1
    assert hybrid["mean_acceptance_length"] >= 1
    assert 0 < hybrid["bytes_up_per_token"] < 100
    assert 0 < hybrid["bytes_down_per_token"] < 20
    assert xml.etree.ElementTree.parse(picture).getroot().tag.endswith("svg")
