"""A model is named by a folder or by a Hugging Face id. Each test has a cache of its own, in a process of its own:
the hub's library reads its environment once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pilotfish_cloud.engine.loading import load_model
from pilotfish_cloud.engine.model_source import resolve_model
from pilotfish_core.errors import ModelLoadError
from tests.device import models as tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import sys
from pilotfish_cloud.engine.model_source import resolve_model
from pilotfish_core.errors import ModelLoadError
try:
    print(resolve_model(sys.argv[1]))
except ModelLoadError as error:
    print(f"refused: {error}")
"""


def resolved(name: str, home: Path, **environment: str) -> str:
    """What a process with this cache answers."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        env={**inherited, "HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return process.stdout.strip()


def filled_cache(home: Path, *, without: str | None = None) -> Path:
    """A cache as the hub's library lays it out, with one model in it; returns the snapshot's folder."""
    repository = home / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / COMMIT
    tiny.build("Llama", snapshot)
    if without is not None:
        (snapshot / without).unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_folder_in_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["nowhere", "./owner/name", "/owner/name", "a/b/c", "owner/", "", "../x", "own er/x"])
def test_what_is_neither_folder_nor_id_is_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="neither a folder nor a Hugging Face id"):
        resolve_model(name)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelLoadError, match="neither a folder"):
        resolve_model(str(tmp_path / "model.gguf"))


def test_offline_a_filled_cache_is_enough(tmp_path: Path) -> None:
    snapshot = filled_cache(tmp_path)
    found = Path(resolved("someone/tiny", tmp_path, HF_HUB_OFFLINE="1"))
    assert found.samefile(snapshot)
    assert load_model(found, dtype="float32").shape.num_layers == 2


def test_offline_an_empty_cache_is_explained_in_one_line(tmp_path: Path) -> None:
    answer = resolved("someone/tiny", tmp_path, HF_HUB_OFFLINE="1")
    assert answer.startswith("refused: someone/tiny is no folder here, is not in Hugging Face's cache")
    assert "\n" not in answer


def test_a_cache_without_a_configuration_is_explained(tmp_path: Path) -> None:
    filled_cache(tmp_path, without="config.json")
    assert "has no config.json" in resolved("someone/tiny", tmp_path, HF_HUB_OFFLINE="1")


def test_a_hub_that_does_not_answer_is_explained_in_one_line(tmp_path: Path, closed_port: str) -> None:
    answer = resolved("someone/tiny", tmp_path, HF_ENDPOINT=closed_port)
    assert answer.startswith("refused: someone/tiny")
    assert "\n" not in answer


def test_a_hub_that_does_not_answer_does_no_harm_to_a_filled_cache(tmp_path: Path, closed_port: str) -> None:
    snapshot = filled_cache(tmp_path)
    assert Path(resolved("someone/tiny", tmp_path, HF_ENDPOINT=closed_port)).samefile(snapshot)


def test_a_folder_wins_over_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(filled_cache(tmp_path / "cache"), tmp_path / "someone" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("someone/tiny") == Path("someone/tiny")
