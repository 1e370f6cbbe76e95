"""The vectors for other languages: enough of them, always the same, and what a device lives through is among them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pilotfish_core.vectors.__main__ import main
from pilotfish_core.vectors.frames import frame_vectors
from pilotfish_core.vectors.many import NOISE_CASES, SAMPLING_CASES, noise_vectors, sampling_vectors
from pilotfish_core.vectors.scripts import SCRIPTS, script_vectors


@pytest.fixture(scope="module")
def scripts() -> list[dict[str, Any]]:
    return script_vectors(240)


def test_there_are_enough() -> None:
    assert NOISE_CASES + SAMPLING_CASES >= 10_000
    assert SCRIPTS >= 200


def test_they_are_always_the_same() -> None:
    assert noise_vectors(50) == noise_vectors(50)
    assert sampling_vectors(50) == sampling_vectors(50)
    assert json.dumps(frame_vectors(5)) == json.dumps(frame_vectors(5))
    assert json.dumps(script_vectors(10)) == json.dumps(script_vectors(10))


def test_scripts_have_every_event_action_and_state(scripts: list[dict[str, Any]]) -> None:
    events = [event for script in scripts for event in script["events"]]
    names = Counter(event[0] for event in events)
    assert set(names) == {
        "start", "opened", "take", "look_ahead", "proved", "draft_task", "drafted", "drafter_failed", "advised",
        "hinted", "heard", "lost", "answered", "kept", "expired", "cancel",
    }  # fmt: skip
    actions = Counter(action["kind"] for event in events if event[0] != "draft_task" for action in event[3])
    assert set(actions) == {
        "connect", "send-draft", "send-acknowledge", "send-ping", "send-mode", "send-hint", "deliver",
        "show-unverified", "ask-whether", "keep", "end",
    }  # fmt: skip
    states = Counter(event[4][0] for event in events)
    assert set(states) == {
        "connecting", "repeating", "asking", "streaming", "waiting", "finished", "failed", "cancelled",
    }  # fmt: skip
    assert states["finished"] > len(scripts) / 2


def test_scripts_have_what_the_policy_decides(scripts: list[dict[str, Any]]) -> None:
    choices = {(event[5][0], event[5][1]) for script in scripts for event in script["events"]}
    assert {arm for arm, _ in choices} == {"cloud", "co-located", "device-lockstep", "device-async"}
    assert {reason for _, reason in choices} >= {
        "fixed", "ramp", "useful", "useless", "slow", "cloud-drafts", "load", "battery", "bytes", "no-drafter",
    }  # fmt: skip


def test_the_command_writes_files(tmp_path: Path) -> None:
    main([str(tmp_path / "vectors"), "reference/target"])
    assert {file.name for file in (tmp_path / "vectors").iterdir()} == {
        "noise.json", "sampling.json", "frames.json", "scripts.json", "texts.json",
    }  # fmt: skip
    assert len(json.loads((tmp_path / "vectors" / "texts.json").read_text())["encode"]) >= 200
