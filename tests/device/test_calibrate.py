"""Rounding to 4 bits with real inputs: better where it counts, and nothing of the checkpoint changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pilotfish.export import export_model
from pilotfish.export.calibrate import LENGTH, SEQUENCES, calibration_ids, round_layers
from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.quantise import dequantise, pack, quantise
from pilotfish_core.errors import ModelLoadError
from pilotfish_core.tokenizer import Tokenizer
from tests.device import models as tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Qwen3", tmp_path_factory.mktemp("calibrate"), initializer_range=0.1)


def error(checkpoint: Checkpoint, matrices: dict[str, np.ndarray], ids: list[int]) -> float:
    """Relative RMS of logits with these matrices in place of the checkpoint's own."""
    expected = checkpoint.logits(ids)
    parameters = dict(checkpoint.model.named_parameters())
    kept = {name: parameters[f"{name}.weight"].detach().clone() for name in matrices}
    with torch.no_grad():
        for name, matrix in matrices.items():
            parameters[f"{name}.weight"].copy_(torch.from_numpy(matrix))
        found = checkpoint.logits(ids)
        for name, matrix in kept.items():
            parameters[f"{name}.weight"].copy_(matrix)
    return float(np.sqrt(np.square(found - expected).sum() / np.square(expected).sum()))


@pytest.mark.parametrize("memory", [2**30, 1])
def test_it_is_better_than_the_nearest(source: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On text that it was not calibrated with; all matrices at once, and one after the other."""
    monkeypatch.setattr("pilotfish.export.calibrate._MEMORY", memory)
    checkpoint, tokenizer = Checkpoint(source), Tokenizer.load(source)
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    shares: list[float] = []
    packed = round_layers(checkpoint, calibration_ids(tokenizer, None)[:8], shares.append)
    assert len(packed) == len(shares) == 2 * 7
    assert shares[-1] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.model.state_dict().items())
    own = {name: checkpoint.weight(f"{name}.weight") for name in packed}
    calibrated = {name: dequantise(*packed[name], 4, own[name].shape[1]) for name in packed}
    nearest = {name: dequantise(*quantise(own[name], 4), 4, own[name].shape[1]) for name in packed}
    ids = tokenizer.encode(Path(__file__).read_text(encoding="utf-8"), add_special_tokens=False)[:90]
    assert error(checkpoint, calibrated, ids) < 0.9 * error(checkpoint, nearest, ids)


def test_sequences(source: Path) -> None:
    tokenizer = Tokenizer.load(source)
    found = calibration_ids(tokenizer, None)
    assert len(found) == SEQUENCES
    assert {len(ids) for ids in found} == {LENGTH}
    assert calibration_ids(tokenizer, "abc") == [[258]]
    assert calibration_ids(tokenizer, "") == []


def test_without_any_text_it_is_the_nearest(source: Path) -> None:
    checkpoint = Checkpoint(source)
    for name, (packed, scales) in round_layers(checkpoint, [], lambda done: None).items():
        weight = checkpoint.weight(f"{name}.weight")
        expected = quantise(weight, 4)
        np.testing.assert_allclose(scales, expected[1], rtol=1e-5)
        columns = weight.shape[1]
        np.testing.assert_allclose(
            dequantise(packed, scales, 4, columns), dequantise(*expected, 4, columns), atol=2e-3 * np.abs(weight).max()
        )


@pytest.mark.parametrize(("bits", "columns"), [(4, 64), (4, 50), (8, 33)])
def test_pack_is_what_quantise_packs(bits: int, columns: int) -> None:
    weight = np.random.default_rng(1).normal(size=(3, columns)).astype(np.float32)
    packed, scales = quantise(weight, bits)
    spread = np.repeat(scales, 32, axis=1)[:, :columns]
    np.testing.assert_array_equal(pack(np.rint(dequantise(packed, scales, bits, columns) / spread), bits), packed)


def test_inputs_that_are_no_numbers(source: Path) -> None:
    checkpoint = Checkpoint(source)
    with torch.no_grad():
        checkpoint.model.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(ModelLoadError, match="no usable numbers"):
        round_layers(checkpoint, [[1, 2, 3]], lambda done: None)


@pytest.mark.parametrize("quant", ["int4", "fp32"])
def test_weights_that_are_no_numbers(quant: str, source: Path, tmp_path: Path) -> None:
    import safetensors.torch

    folder = tmp_path / "source"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"source are damaged: model\.layers\.0\.mlp\.up_proj\.weight"):
        export_model(folder, tmp_path / "out", quant=quant)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
