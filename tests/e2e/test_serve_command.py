"""``pilotfish serve`` as a user runs it: a process of its own, public clients that know nothing of us, signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.http_doors import with_template
from tests.e2e.test_commands import completed, one_line, pilotfish, read_some, started

pytestmark = pytest.mark.slow
ASK: dict[str, Any] = {"model": "target", "prompt": "def quicksort(items):\n", "max_tokens": 24, "temperature": 0}
QUESTION = "Sort a list."


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A verifier in its process; its ready line."""
    model = with_template(tmp_path_factory.mktemp("model"))
    arguments = (model, "--served-model-name", "target", "--port", 0, "--http-port", 0, "--deterministic", "--json")
    with started("pilotfish_cloud", "serve", *arguments) as process:
        yield json.loads(read_some(process.stdout, b"\n"))


@contextlib.contextmanager
def serve(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with started("pilotfish", "serve", "--listen", "127.0.0.1:0", "--json", "--draft", "ngram", *arguments) as process:
        ready = json.loads(read_some(process.stdout, b"\n"))
        assert ready["event"] == "ready"
        assert ready["model"] == "target"
        yield process, ready["address"]


@pytest.fixture(scope="module")
def address(verifier: dict[str, str]) -> Iterator[str]:
    with serve("--verifier", verifier["address"]) as (_, address):
        yield address


def client_of(address: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, max_retries=0, timeout=120, **{"api_key": "unused"} | options)


def test_the_plain_openai_client(verifier: dict[str, str], address: str) -> None:
    with client_of(address) as client, client_of(f"{verifier['http']}/v1") as direct:
        alone = direct.completions.create(**ASK).choices[0].text
        assert client.completions.create(**ASK).choices[0].text == alone
        assert "".join(chunk.choices[0].text for chunk in client.completions.create(**ASK, stream=True)) == alone


@pytest.mark.parametrize("stream", [True, False])
def test_another_public_client(verifier: dict[str, str], address: str, stream: bool, tmp_path: Path) -> None:
    """`llm`, https://llm.datasette.io, told of an OpenAI-compatible server the way its manual says."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: hybrid\n  model_name: target\n  api_base: {address}\n  can_stream: true\n"
    )
    command = [
        sys.executable,
        "-m",
        "llm",
        "prompt",
        "-m",
        "hybrid",
        "--key",
        "unused",
        "-n",
        "--system",
        "Write Python.",
    ]
    command += ["-o", "temperature", "0", "-o", "max_tokens", "24", *([] if stream else ["--no-stream"]), QUESTION]
    done = subprocess.run(
        command,
        env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with client_of(f"{verifier['http']}/v1") as direct:
        alone = direct.chat.completions.create(
            model="target",
            messages=[{"role": "system", "content": "Write Python."}, {"role": "user", "content": QUESTION}],
            max_tokens=24,
            temperature=0,
        )
    assert done.stdout == f"{alone.choices[0].message.content}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains(verifier: dict[str, str], number: signal.Signals) -> None:
    with serve("--verifier", verifier["address"]) as (process, address), client_of(address) as client:
        stream = client.completions.create(**ASK | {"max_tokens": 600}, stream=True, extra_body={"ignore_eos": True})
        next(stream)
        process.send_signal(number)
        assert "finishing what runs" in read_some(process.stderr, b"\n")
        *_, last = stream
        assert last.choices[0].finish_reason == "length"
        assert process.wait(timeout=60) == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_a_second_signal_ends_it(verifier: dict[str, str]) -> None:
    with serve("--verifier", verifier["address"]) as (process, address), client_of(address) as client:
        stream = client.completions.create(**ASK | {"max_tokens": 1900}, stream=True, extra_body={"ignore_eos": True})
        next(stream)
        process.send_signal(signal.SIGINT)
        assert "finishing what runs" in read_some(process.stderr, b"\n")
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert process.wait(timeout=60) == 0


def test_the_verifier_comes_from_the_environment_and_nothing_secret_is_logged(
    verifier: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTFISH_VERIFIER", verifier["address"])
    monkeypatch.setenv("PILOTFISH_SERVE_KEY", "pf-serve-secret")
    monkeypatch.setenv("PILOTFISH_API_KEY", "pf-upstream-secret")
    with serve("--verbose") as (process, address):
        with client_of(address, api_key="pf-serve-secret") as client:
            assert client.completions.create(**ASK).usage is not None
        assert httpx.get(f"{address}/models").status_code == 401
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "secret" not in out + errors


def test_beyond_this_machine_a_key_is_needed() -> None:
    done = pilotfish("serve", "--verifier", "127.0.0.1:1", "--listen", "0.0.0.0:0")
    one_line(done, "--listen 0.0.0.0:0 is open to other machines", "--serve-key")


@pytest.mark.parametrize("listen", ["8080", "127.0.0.1", "127.0.0.1:99999", "::1:80", ":80", "a b:\x07"])
def test_an_address_that_is_none(listen: str) -> None:
    one_line(pilotfish("serve", "--verifier", "127.0.0.1:1", "--listen", listen), "--listen is ", "HOST:PORT")


def test_mistakes(verifier: dict[str, str], address: str) -> None:
    taken = address.removeprefix("http://").removesuffix("/v1")
    one_line(pilotfish("serve", "--verifier", verifier["address"], "--listen", taken), "cannot listen on", "--listen")
    one_line(pilotfish("serve"), "--verifier ADDR", "PILOTFISH_VERIFIER")
    one_line(pilotfish("serve", "--verifier", "127.0.0.1:1", "--listen", "127.0.0.1:0"), "verifier")
    one_line(pilotfish("serve", "--verifier", verifier["address"], "--serve-key", "a b"), "--serve-key")
    for module in ("fastapi", "uvicorn"):
        code = f"import sys; sys.modules[{module!r}] = None; from pilotfish.cli import main; sys.exit(main())"
        done = completed([sys.executable, "-c", code, "serve", "--verifier", "127.0.0.1:1"])
        one_line(done, f"'{module}'", "pip install 'pilotfish[serve]'")
