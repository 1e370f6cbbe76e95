"""Checkpoints that are damaged or make no sense: one line that names the file, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pilotfish.export import export_model
from pilotfish.export.checkpoint import Checkpoint
from pilotfish_core.errors import ModelLoadError
from tests.device import models as tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Llama", tmp_path_factory.mktemp("damaged"), tie_word_embeddings=True)


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "source"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": -1}, r"config\.json has hidden_size -1"),
        ({"hidden_size": "x"}, r"config\.json has hidden_size 'x'"),
        ({"num_hidden_layers": None}, r"config\.json has num_hidden_layers None"),
        ({"num_hidden_layers": 0}, r"config\.json has num_hidden_layers 0"),
        ({"num_hidden_layers": -1}, r"config\.json has num_hidden_layers -1"),
        ({"num_attention_heads": 0}, r"config\.json has num_attention_heads 0"),
        ({"num_key_value_heads": 0}, r"config\.json has num_key_value_heads 0"),
        ({"vocab_size": 10**9}, r"config\.json has vocab_size 1000000000"),
        ({"architectures": 5}, r"config\.json has architectures 5"),
        ({"rms_norm_eps": "x"}, r"config\.json: .*rms_norm_eps"),
        ({"head_dim": 15}, r"config\.json: .*head_dim"),
        ({"hidden_act": "nope"}, r"config\.json: .*nope"),
        ({"vocab_size": 300}, r"model\.safetensors has model\.embed_tokens\.weight as \[260, 64\]"),
        ({"num_hidden_layers": 3}, r"lack model\.layers\.2\."),
    ],
)
def test_configurations_that_are_wrong(
    folder: Path, capfd: pytest.CaptureFixture[str], config: dict[str, Any], message: str
) -> None:
    """The libraries say nothing of their own."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(ModelLoadError, match=message) as error:
        export_model(folder, folder.parent / "out", text="x")
    assert str(error.value).isprintable()
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 600
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert [file.name for file in folder.parent.iterdir()] == ["source"]


@pytest.mark.parametrize("size", [0, 7, 50, -100])
def test_weights_that_are_cut(folder: Path, size: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is damaged"):
        export_model(folder, folder.parent / "out", text="x")


@pytest.mark.parametrize("text", ["[]", "5", "{", "[" * 100_000])
def test_a_configuration_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json is not"):
        Checkpoint(folder)


def test_names_as_long_as_names_can_be(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="name too long"):
        export_model(checkpoint, tmp_path / ("n" * 300), text="x")
    for _ in range(2):
        export_model(checkpoint, tmp_path / ("n" * 255), quant="int4", text="x", overwrite=True)
    assert [len(file.name) for file in tmp_path.iterdir()] == [255]
