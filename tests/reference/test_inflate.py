"""Inflating keeps the function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reference.inflate import InflateError, inflate
from reference.models import ModelFolderError


def tiny_folder(folder: Path, *, tied: bool = True, bias: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        rms_norm_eps=1e-3,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return model


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    ids = torch.randint(0, 96, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids).logits
    return result


@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize(("hidden", "layers", "intermediate"), [(240, 4, None), (108, 2, 300)])
def test_same_function(
    tmp_path: Path, tied: bool, bias: bool, hidden: int, layers: int, intermediate: int | None
) -> None:
    small = tiny_folder(tmp_path / "small", tied=tied, bias=bias)
    out = inflate(tmp_path / "small", tmp_path / "big", hidden, layers, intermediate)
    big = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert big.config.hidden_size == hidden
    assert big.config.num_hidden_layers == layers
    assert big.config.head_dim == 16
    torch.testing.assert_close(logits(big), logits(small), atol=1e-4, rtol=0.0)


def test_dtype_and_replacement(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "small")
    (tmp_path / "small" / "tokenizer.json").write_text("{}", encoding="utf-8")
    for layers in (2, 3):
        out = inflate(tmp_path / "small", tmp_path / "big", 192, layers, dtype=torch.bfloat16)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 3
    assert config["dtype"] == "bfloat16"
    assert (out / "tokenizer.json").is_file()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["big", "small"]


@pytest.mark.parametrize(("hidden", "layers"), [(48, 2), (96, 1)])
def test_refuses_to_shrink(tmp_path: Path, hidden: int, layers: int) -> None:
    tiny_folder(tmp_path / "small")
    with pytest.raises(InflateError, match="only grow"):
        inflate(tmp_path / "small", tmp_path / "big", hidden, layers)


def test_refuses_sizes_that_hold_no_heads(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "small")
    with pytest.raises(InflateError, match="number of heads"):
        inflate(tmp_path / "small", tmp_path / "big", 128, 2)


def test_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        inflate(tmp_path, tmp_path / "big", 128, 2)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(InflateError, match="gpt2"):
        inflate(tmp_path, tmp_path / "big", 128, 2)
