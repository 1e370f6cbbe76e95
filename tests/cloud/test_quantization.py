"""Quantised folders compute what their weights, made dense, compute; anything but weights is refused by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.loading import load_model
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_core.errors import MissingExtra, ModelLoadError
from tests.device import models as tiny

GROUP = 32
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}


def settings(weights: dict[str, Any], layout: str, **changes: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": layout,
        "config_groups": {"group_0": {**scheme, "format": layout}},
        "ignore": ["lm_head"],
        **changes,
    }


def with_settings(folder: Path, values: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": values}))
    return folder


def packed(values: torch.Tensor) -> torch.Tensor:
    """Eight 4-bit numbers (stored with 8 added) in each 32-bit word, the first in the lowest bits."""
    nibbles = (values.to(torch.int64) + 8).view(values.shape[0], -1, 8)
    words = sum((nibbles[..., place] << (4 * place) for place in range(8)), torch.zeros_like(nibbles[..., 0]))
    return words.to(torch.int64).where(words < 2**31, words - 2**32).to(torch.int32)


def quantise(source: Path, base: Path, bits: int) -> tuple[Path, Path]:
    """``source`` with quantised projections, and with what those weights stand for."""
    quantised, dense = shutil.copytree(source, base / "quantised"), shutil.copytree(source, base / "dense")
    weights = load_file(source / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            stored[name] = meant[name] = weight
            continue
        layer = name.removesuffix("weight")
        grouped = weight.float().view(weight.shape[0], -1, GROUP if bits == 4 else weight.shape[1])
        scale = grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        rounded = (grouped / scale).round()
        meant[name] = (rounded * scale).view(weight.shape)
        stored[f"{layer}weight_scale"] = scale[..., 0].contiguous()
        if bits == 4:
            stored[f"{layer}weight_packed"] = packed(rounded.view(weight.shape))
            stored[f"{layer}weight_shape"] = torch.tensor(weight.shape)
        else:
            stored[name] = rounded.view(weight.shape).to(torch.int8)
    save_file(stored, quantised / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, dense / "model.safetensors", metadata={"format": "pt"})
    with_settings(quantised, settings(INT4, "pack-quantized") if bits == 4 else settings(INT8, "int-quantized"))
    return quantised, dense


@torch.inference_mode()
def logits_of(folder: Path, dtype: str) -> torch.Tensor:
    runner = ModelRunner(load_model(folder, dtype=dtype), num_slots=1, num_blocks=1, block_size=4, max_len=64)
    tokens = [(11 * index + 5) % 256 for index in range(40)]
    computed: torch.Tensor = runner.lm_head(runner.hidden(tokens, [Segment(0, 0, 40, 0)]))
    return computed.float()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Llama", tmp_path_factory.mktemp("plain") / "tiny", intermediate_size=128)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_compute_what_they_stand_for(plain: Path, tmp_path: Path, bits: int, dtype: str) -> None:
    quantised, dense = quantise(plain, tmp_path, bits)
    small, large = ((folder / "model.safetensors").stat().st_size for folder in (quantised, dense))
    assert small < 0.9 * large
    expected, found = logits_of(dense, dtype), logits_of(quantised, dtype)
    assert (found - expected).abs().max() <= (1e-4 if dtype == "float32" else 0.05) * expected.abs().max()
    assert (logits_of(plain, dtype) - expected).abs().max() > 0.05  # else the test would prove nothing


def test_the_fingerprint_knows_what_made_the_weights_dense(plain: Path, tmp_path: Path) -> None:
    quantised, _ = quantise(plain, tmp_path, 8)
    assert str(load_model(quantised).config["dequantised_by"]).startswith("compressed-tensors ")
    assert "dequantised_by" not in load_model(plain).config


def test_a_missing_library_is_named(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantised, _ = quantise(plain, tmp_path, 8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'pilotfish\[quantized\]'"):
        load_model(quantised)


ROUNDED = {"num_bits": 8, "type": "int", "dynamic": True}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quant_method": "awq", "bits": 4}, "quantised by 'awq'"),
        ({"quant_method": "gptq"}, "quantised by 'gptq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by 'bitsandbytes'"),
        ({"bits": 4}, "quantised by None"),
        (settings(INT8, "nvfp4-pack-quantized"), "format 'nvfp4-pack-quantized' is not supported; supported are pack"),
        (settings(INT8, "int-quantized", config_groups={}), "0 groups of layers"),
        (settings(INT8, "int-quantized", config_groups={"a": {}, "b": {}}), "2 groups of layers"),
        (settings(INT8, "int-quantized", config_groups={"a": {"targets": ["Linear"]}}), "nothing about weights"),
        (
            settings(INT8, "int-quantized", config_groups={"a": {"weights": INT8, "input_activations": ROUNDED}}),
            "rounded activations",
        ),
        (settings(INT8, "int-quantized", kv_cache_scheme=ROUNDED), "kv_cache_scheme is not supported"),
        (settings(INT8, "int-quantized", sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
    ],
)
def test_what_cannot_be_made_dense_is_refused(plain: Path, tmp_path: Path, values: object, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_model(with_settings(shutil.copytree(plain, tmp_path / "model"), values))
