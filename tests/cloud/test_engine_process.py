"""The engine in a process of its own: the same as in a thread, and what happens when either side goes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.engine.engine import EmbeddedEngine
from pilotfish_cloud.engine.process import EngineProcess
from pilotfish_core.errors import EngineFailure, LocalError, ModelLoadError, Unavailable
from tests.cloud.engines import PATIENCE_S, Ear, drafting, request
from tests.device import models as tiny

PROMPT = [72, 101, 108, 108, 111]

pytestmark = pytest.mark.slow  # each starts an interpreter that imports torch


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    folder = tiny.build("Llama", tmp_path_factory.mktemp("llama") / "tiny")
    return ServerConfig(model=folder, served_model_name="tiny", deterministic=True, max_num_seqs=4)


@contextmanager
def running(config: ServerConfig) -> Iterator[tuple[EngineProcess, Ear, list[str]]]:
    engine, ear, deaths = EngineProcess.load(config), Ear(), list[str]()
    engine.start(ear, deaths.append)
    try:
        yield engine, ear, deaths
    finally:
        engine.close()


def test_it_is_the_same_engine(config: ServerConfig) -> None:
    thread = EmbeddedEngine.load(config)
    ear = Ear()
    thread.start(ear)
    thread.open(request("a", PROMPT, max_tokens=24, temperature=0.9, seed=3))
    ear.wait_end("a")
    thread.close()
    right = ear.tokens("a")
    with running(config) as (engine, ear, deaths):
        assert engine.info == thread.info
        assert engine.tokenizer.hash == thread.tokenizer.hash
        drafting(engine, ear, "a", len(PROMPT), right, 5)
        engine.open(request("a", PROMPT, max_tokens=24, temperature=0.9, seed=3))
        engine.open(request("b", PROMPT, max_tokens=24, temperature=0.9, seed=3))
        engine.open(request("bad", [], max_tokens=4))
        ear.wait_end("a", "b", "bad")
        engine.check_integrity()
    assert ear.tokens("a") == ear.tokens("b") == right
    assert len(ear.commits["a"]) < len(ear.commits["b"]) == 24
    assert "the prompt is empty" in str(ear.errors["bad"])
    assert deaths == []


def test_counters_come_over(config: ServerConfig) -> None:
    with running(config) as (engine, ear, _):
        engine.open(request("a", PROMPT, max_tokens=8))
        ear.wait_end("a")
        wait = threading.Event()
        for _ in range(int(PATIENCE_S / 0.05)):
            if engine.stats().steps == 8:
                break
            wait.wait(0.05)
        stats = engine.stats()
    assert stats.committed_tokens == 8
    assert stats.step_buckets[-1][1] == stats.steps == 8


def test_a_child_that_dies_fails_what_ran_and_says_so(config: ServerConfig) -> None:
    with running(config) as (engine, ear, deaths):
        engine.open(request("a", PROMPT, max_tokens=80))
        ear.wait(lambda: bool(ear.commits["a"]))
        os.kill(engine.pid, signal.SIGKILL)
        ear.wait_end("a")
        engine._reader.join(PATIENCE_S)
        engine.open(request("late", PROMPT, max_tokens=8))
        ear.wait_end("late")
        engine.close()
        engine.close()
    assert isinstance(ear.errors["a"], EngineFailure)
    assert ear.errors["a"].retryable
    assert isinstance(ear.errors["late"], Unavailable)
    assert deaths == ["the engine's process has ended (exit code -9)"]


def test_closing_hands_back_what_runs(config: ServerConfig) -> None:
    with running(config) as (engine, ear, deaths):
        engine.open(request("a", PROMPT, max_tokens=80))
        ear.wait(lambda: bool(ear.commits["a"]))
        engine.close()
        assert isinstance(ear.errors["a"], Unavailable) or ear.finish("a") is not None
    assert deaths == []


def test_what_cannot_be_loaded_is_said_by_the_parent(config: ServerConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        EngineProcess.load(ServerConfig(model=tmp_path, served_model_name="none"))


def test_a_child_that_dies_while_it_loads(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LocalError, match=r"the engine's process .*\(exit code 1\)"):
        EngineProcess.load(config)


def test_the_child_ends_with_its_parent(config: ServerConfig) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from pilotfish_cloud.config import ServerConfig\n"
        "from pilotfish_cloud.engine.process import EngineProcess\n"
        "engine = EngineProcess.load(ServerConfig(model=Path(sys.argv[1]), served_model_name='tiny'))\n"
        "engine.start(lambda events: None)\n"
        "print(engine.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(config.model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # Readable when the child has ended; needs no polling, and the child need not be ours.
        watched = os.pidfd_open(child)
        parent.kill()
        assert select.select([watched], [], [], PATIENCE_S)[0]
        os.close(watched)
