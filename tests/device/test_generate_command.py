"""``pilotfish generate`` with a scripted verifier: what it prints, saves and refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pilotfish import cli, generate_command
from pilotfish.client import Client
from pilotfish.generation import Generation
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import FileFormatError
from pilotfish_core.messages import Opened
from tests.device.verifiers import LENGTH, TOKENIZER, Script, ScriptedStream, ScriptedTransport, generation, ids, opened


async def answers(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    yield opened()
    yield Commit(position=len(stream.opening.prompt) + len(stream.opening.output), tokens=ids("xyz"), finish=LENGTH)


async def goes_on(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    yield opened()
    yield Commit(position=len(stream.opening.prompt), tokens=ids("xyz"))


async def fails(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    async for message in goes_on(stream):
        yield message
    raise FileFormatError("broken")  # which is not tried again


def client_of(*scripts: Script) -> Any:
    def client(server: str, **options: Any) -> Client:
        made = Client(server, **options | {"draft": None, "tokenizer": TOKENIZER})
        made._client._transport = ScriptedTransport(*scripts)
        return made

    return client


@pytest.fixture(autouse=True)
def verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_command, "Client", client_of(answers))


def run(*arguments: object) -> int:
    return cli.main(["generate", "--server", "scripted:1", *map(str, arguments)])


# In a process of its own: standard output and signals are real.
ALONE = """
import sys
from pilotfish import generate_command
from tests.device import test_generate_command as here
generate_command.Client = here.client_of(getattr(here, sys.argv[1]))
sys.exit(here.run("--prompt", "ab", *sys.argv[2:]))
"""


def alone(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", ALONE, script, *map(str, arguments)]


def test_an_answer_is_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "g.json"
    assert run("--prompt", "ab", "--seed", 5, "--stop", "S", "--stop", "T", "--stop-token-id", 7, "--save", file) == 0
    captured = capsys.readouterr()
    assert captured.out == "xyz\n"
    assert captured.err.startswith("[length; 3 tokens, ")
    saved = Generation.load(file)
    assert (saved.params.seed, saved.params.stop, saved.params.stop_token_ids) == (5, ("S", "T"), (7,))
    assert (saved.params.max_tokens, saved.params.ignore_eos) == (256, False)
    assert run("--prompt", "ab", "--json", "--logprobs", 0) == 0
    assert json.loads(capsys.readouterr().out)["logprobs"] == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-tokens", "256"], "--max-tokens"),  # though that is what it is by default
        (["--temperature", "1", "--seed", "4"], "--temperature, --seed"),
        (["--stop", "x"], "--stop"),
        (["--ignore-eos"], "--ignore-eos"),
        (["--logprobs", "2"], "--logprobs"),
        (["--model", "m"], "--model"),
    ],
)
def test_a_resume_refuses_what_it_cannot_change(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "g.json"
    generation().save(file)
    assert run("--resume", file, *options) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"pilotfish: --resume goes on with the generation as it was begun, {named} cannot be given with it\n"
    )
    assert run("--resume", file, "--window", 4, "--save", file) == 0
    assert Generation.load(file).output == list(ids("xyz"))


@pytest.mark.parametrize("path", ["", "/dev/null", "/sys/x", "n" * 300])
def test_a_place_that_cannot_be_written_is_refused_before_the_answer(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--prompt", "ab", "--save", path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pilotfish: --save {path}: ")
    assert captured.err.count("\n") == 1


def test_what_could_not_be_saved_is_shown_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pilotfish.generation.replace_file", full)
    assert run("--prompt", "ab", "--json", "--save", tmp_path / "g.json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["text"] == "xyz"
    assert captured.err == f"pilotfish: {tmp_path}/g.json cannot be written: No space left on device\n"


def test_an_answer_that_fails_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_command, "Client", client_of(fails))
    assert run("--prompt", "ab", "--save", tmp_path / "g.json") == 1
    assert capsys.readouterr().err == "pilotfish: broken\n"
    assert Generation.load(tmp_path / "g.json").output == list(ids("xyz"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_answer_that_is_stopped_is_saved(number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "g.json"
    command = alone("goes_on", "--save", file)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == "xyz"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.startswith("[abort; 3 tokens")
    assert errors.count("\n") == 1
    assert Generation.load(file).output == list(ids("xyz"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["g.json"]


@pytest.mark.parametrize("timeout", ["nan", "0", "-1", "inf"])
def test_a_time_that_is_none(timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--prompt", "ab", f"--timeout={timeout}") == 1
    assert "expected a positive number of seconds" in capsys.readouterr().err


def test_a_server_that_is_no_text() -> None:
    command: list[str | bytes] = [sys.executable, "-m", "pilotfish", "generate", "--prompt", "x", "--server", b"\xff:1"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"pilotfish: server is '\\udcff:1'; expected")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_output_that_is_full(options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "g.json"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            alone("answers", "--save", file, *options), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "pilotfish: cannot write to standard output: No space left on device\n"
    assert Generation.load(file).prompt == ids("ab")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a file that never ends")
def test_a_prompt_that_never_ends_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--prompt-file", "/dev/zero") == 1
    assert "--prompt-file /dev/zero cannot be read: it is longer than" in capsys.readouterr().err


def test_closed_standard_streams_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert run("--prompt-file", "-") == 1
        assert "standard input is closed" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert run("--prompt", "a") == 1
    assert capsys.readouterr().err == "pilotfish: cannot write to standard output: it is closed\n"
