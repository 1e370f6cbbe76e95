"""The commands as a user runs them: real processes, one clear line for each mistake, and what they promise."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import pytest

from tests.e2e.conftest import ROOT, TARGET

pytestmark = pytest.mark.slow

DRAFT: Final = ROOT / "reference" / "draft"
PROMPT: Final = "import os\n\n\nclass Reader:\n    def __init__(self, path):\n"
SAMPLING: Final = ("--temperature", "0.8", "--seed", "5", "--max-tokens", "96", "--ignore-eos")
PATIENCE_S: Final = 200.0  # of a machine that is busy with something else


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def pilotfish(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return completed([sys.executable, "-m", "pilotfish", *map(str, arguments)], **options)


def cloud(*arguments: object) -> subprocess.CompletedProcess[str]:
    return completed([sys.executable, "-m", "pilotfish_cloud", *map(str, arguments)])


def completed(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_S, **options
    )


def one_line(done: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    """The whole of stderr is one line of ours that has all ``parts``; nothing is on stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout.strip() == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(("pilotfish: ", "pilotfish-cloud: "))
    for part in parts:
        assert part in lines[0]


def read_some(stream: IO[str] | None, until: bytes = b"") -> str:
    """What comes next, at least one byte, up to ``until`` where given."""
    assert stream is not None
    deadline, data = time.monotonic() + PATIENCE_S, b""
    while not data or (until and not data.endswith(until)):
        ready, _, _ = select.select([stream], [], [], max(deadline - time.monotonic(), 0))
        assert ready, "nothing came in time"
        part = os.read(stream.fileno(), 4096)
        assert part, f"the process ended after {data!r}"
        data += part
    return data.decode()


@contextlib.contextmanager
def started(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process in the background, ended at the end whatever happens."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=-1
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        for stream in (process.stdout, process.stderr):
            if stream is not None and not stream.closed:
                stream.close()
        process.wait()


@contextlib.contextmanager
def serving(*more: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A verifier of the reference target, and its address."""
    arguments = ("serve", TARGET, "--port", 0, "--http-port", 0, "--deterministic", "--json", *more)
    with started("pilotfish_cloud", *arguments) as process:
        ready = json.loads(read_some(process.stdout, b"\n"))
        assert ready["event"] == "ready"
        yield process, ready["address"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as (_, address):
        yield address


@pytest.fixture(scope="module")
def whole(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """An uninterrupted answer (``SAMPLING``), as JSON and saved."""
    saved = tmp_path_factory.mktemp("whole") / "generation.json"
    done = pilotfish(
        "generate", "--server", server, "--prompt", PROMPT, *SAMPLING, "--draft", "ngram", "--save", saved, "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer, saved


# -- mistakes of the device's user ---------------------------------------------------------------------------------


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer.json of another vocabulary."""
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 2}, []))
    inner.decoder = tokenizers.decoders.ByteLevel()
    file = folder / "tokenizer.json"
    file.write_text(inner.to_str(), encoding="utf-8")
    return file


def test_another_tokenizer(server: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    done = pilotfish("generate", "--server", server, "--prompt", "abc", "--tokenizer", tokenizer)
    one_line(done, "tokenizer", "differs from that of 'target'")


@pytest.mark.parametrize("tokenizer", [[], ["--tokenizer", str(TARGET)]])
def test_a_model_that_is_not_served(server: str, tokenizer: list[str]) -> None:
    done = pilotfish("generate", "--server", server, "--prompt", "x", "--model", "nobody", *tokenizer)
    one_line(done, "'nobody'", "serves 'target'")


def test_a_resume_beyond_a_finished_text(server: str, whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    document = json.loads(whole[1].read_text(encoding="utf-8"))
    body = document["generation"]
    body["finish"] = None
    body["output"].append(5)
    document["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(document), encoding="utf-8")
    one_line(pilotfish("generate", "--server", server, "--resume", forged), "97 tokens", "ends after 96")


def test_a_resume_of_a_finished_generation(server: str, whole: tuple[dict[str, Any], Path]) -> None:
    one_line(pilotfish("generate", "--server", server, "--resume", whole[1]), "has finished (length)")


def test_a_damaged_generation(server: str, whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text(whole[1].read_text(encoding="utf-8").replace('"output": [', '"output": [1, '), encoding="utf-8")
    one_line(pilotfish("generate", "--server", server, "--resume", damaged), str(damaged), "checksum")


def test_a_prompt_longer_than_the_context(server: str, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("import os\n" * 2500, encoding="utf-8")
    done = pilotfish("generate", "--server", server, "--prompt-file", prompt, "--max-tokens", 8)
    one_line(done, "2048", "tokens")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--prompt", "x", "--temperature", "-1"], ["temperature is -1.0", "expected"]),
        (["--prompt", "x", "--logit-bias", "{"], ["--logit-bias"]),
        (["--prompt", "x", "--logit-bias", "[1]"], ["--logit-bias is '[1]'", "expected"]),
        (["--prompt", "x", "--window", "0"], ["window is 0", "[1, 1024]"]),
        (["--prompt", "x", "--save", "no/such/folder/g.json"], ["--save no/such/folder/g.json"]),
        (["--prompt", ""], ["prompt"]),
        ([], ["--prompt TEXT"]),
        (["--prompt-file", "no-such-file"], ["--prompt-file no-such-file"]),
        (["--resume", "no-such-file"], ["no-such-file"]),
        (["--prompt", "x", "--tokenizer", "no-such-folder"], ["no-such-folder"]),
        (["--prompt", "x", "--draft", "no-such-folder"], ["no-such-folder", "'ngram'"]),
        (["--prompt", "x", "--draft", str(DRAFT)], [str(DRAFT), "pilotfish export"]),
    ],
)
def test_a_wrong_argument(server: str, arguments: list[str], parts: list[str]) -> None:
    one_line(pilotfish("generate", "--server", server, *arguments), *parts)


def test_a_prompt_file_that_is_not_text(server: str, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.bin"
    prompt.write_bytes(b"\xff\xfe\x00\x01")
    done = pilotfish("generate", "--server", server, "--prompt-file", prompt)
    one_line(done, f"--prompt-file {prompt}", "utf-8")


def test_a_damaged_draft_model(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    done = pilotfish("export", DRAFT, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("export: ") for line in done.stderr.splitlines()), done.stderr
    model = folder / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 0xFF
    model.write_bytes(data)
    one_line(pilotfish("generate", "--server", server, "--prompt", "x", "--draft", folder), str(model))
    model.unlink()
    one_line(pilotfish("generate", "--server", server, "--prompt", "x", "--draft", folder), str(model))
    one_line(pilotfish("export", DRAFT, "--out", folder), str(folder), "exists")


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, but nobody listens
        address = f"127.0.0.1:{free.getsockname()[1]}"
        for tokenizer in ([], ["--tokenizer", TARGET]):
            done = pilotfish("generate", "--server", address, "--prompt", "x", "--max-tokens", 4, *tokenizer)
            one_line(done, address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:x", ","])
def test_a_bad_address(address: str) -> None:
    one_line(pilotfish("generate", "--server", address, "--prompt", "x"), "server is", "expected")


def test_usage() -> None:
    done = pilotfish("generate", "--server", "127.0.0.1:1", "--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr.splitlines()[-1]
    assert done.stderr.startswith("usage: ")
    done = cloud("serve", TARGET, "--no-such-flag")
    assert (done.returncode, done.stderr[:7]) == (2, "usage: ")
    for arguments in (["--model", "X"], ["--model=X"], ["X"]):
        one_line(pilotfish("serve", *arguments), "did you mean: pilotfish-cloud serve X", code=2)


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_export_without_its_extra(module: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from pilotfish.cli import main; sys.exit(main())"
    done = completed([sys.executable, "-c", code, "export", str(DRAFT), "--out", str(tmp_path / "out")])
    assert done.returncode == 1
    *progress, last = done.stderr.splitlines()
    assert all(line.startswith("export: ") for line in progress), done.stderr
    assert last.startswith("pilotfish: ")
    assert f"'{module}" in last
    assert "pip install 'pilotfish[export]'" in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_export_that_is_stopped_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with started("pilotfish", "export", DRAFT, "--out", tmp_path / "draft") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("export: loading")
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert all(line.startswith("export: ") for line in errors.splitlines()), errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--work-dir", "--svg"])
def test_a_demo_that_could_not_write(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bad = {"--work-dir": [tmp_path / "file", "/proc/x"], "--svg": [tmp_path, "/dev/null", "/proc/x", "no/such/x.svg"]}
    for path in bad[option]:
        work = [] if option == "--work-dir" else ["--work-dir", tmp_path / "work"]
        one_line(pilotfish("demo", option, path, *work), f"{option} {path}")


# -- mistakes of the operator --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--engine-process", "--no-engine-process"])
def test_serve_without_its_extra(flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    (tmp_path / "torch.py").write_text(missing, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = cloud("serve", TARGET, "--port", "0", "--http-port", "0", flag)
    one_line(done, "'torch'", "pip install 'pilotfish[cloud]'")


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_a_port_in_use(flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"--port": 0, "--http-port": 0} | {flag: port}
        done = cloud("serve", TARGET, *(part for pair in ports.items() for part in pair))
    one_line(done, f"127.0.0.1:{port} ({flag})")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["no-such-folder"], ["no-such-folder"]),
        ([TARGET, "--host", "0.0.0.0"], ["--host 0.0.0.0", "--insecure"]),
        ([TARGET, "--port", "70000"], ["--port is 70000", "[0, 65535]"]),
        ([TARGET, "--threads", "0"], ["--threads is 0"]),
        ([TARGET, "--max-model-len", "0"], ["--max-model-len is 0", "at least 2"]),
    ],
)
def test_a_wrong_argument_of_serve(arguments: list[object], parts: list[str]) -> None:
    one_line(cloud("serve", *arguments), *parts)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TARGET, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    one_line(cloud("serve", folder), str(folder / "model.safetensors"), "missing")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    one_line(cloud("serve", folder), str(folder / "model.safetensors"), "damaged")
    (folder / "config.json").unlink()
    one_line(cloud("serve", folder), str(folder / "config.json"), "missing")


# -- what works ----------------------------------------------------------------------------------------------------


def test_the_json_of_an_answer(whole: tuple[dict[str, Any], Path]) -> None:
    answer, _ = whole
    assert answer["text"]
    assert len(answer["token_ids"]) == 96
    assert answer["finish_reason"] == "length"
    assert answer["metrics"]["mean_acceptance_length"] >= 1
    assert answer["metrics"]["seed"] == 5


def test_an_interrupted_answer_goes_on_where_it_was(
    server: str, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    saved = tmp_path / "generation.json"
    arguments = ("generate", "--server", server, "--prompt", PROMPT, *SAMPLING, "--draft", "none", "--save", saved)
    with started("pilotfish", *arguments) as process:
        shown = read_some(process.stdout)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "[abort;" in errors
    assert whole[0]["text"].startswith((shown + rest).removesuffix("\n"))
    done = pilotfish("generate", "--server", server, "--resume", saved, "--draft", "ngram", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == whole[0]["token_ids"]
    assert json.loads(done.stdout)["text"] == whole[0]["text"]


def test_a_reader_that_goes_away(server: str) -> None:
    with started("pilotfish", "generate", "--server", server, "--prompt", PROMPT, *SAMPLING) as process:
        read_some(process.stdout)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=PATIENCE_S) == 1
    assert errors == ""


def test_a_verifier_drains_after_sigterm(whole: tuple[dict[str, Any], Path]) -> None:
    with (
        serving() as (verifier, address),
        started("pilotfish", "generate", "--server", address, "--prompt", PROMPT, *SAMPLING) as process,
    ):
        shown = read_some(process.stdout)
        verifier.terminate()
        rest, errors = process.communicate(timeout=PATIENCE_S)
        out, said = verifier.communicate(timeout=PATIENCE_S)
        assert (process.returncode, shown + rest) == (0, whole[0]["text"] + "\n"), errors
        assert (verifier.returncode, out, said) == (0, "", "")


def test_a_killed_verifier_changes_nothing(server: str, whole: tuple[dict[str, Any], Path]) -> None:
    with (
        serving() as (verifier, address),
        started("pilotfish", "generate", "--server", f"{address},{server}", "--prompt", PROMPT, *SAMPLING) as process,
    ):
        shown = read_some(process.stdout)
        verifier.kill()
        rest, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert shown + rest == whole[0]["text"] + "\n"
    assert len(errors.splitlines()) == 1
