"""What a model folder cannot do is refused by name when it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pilotfish_cloud.engine.loading import load_model, usable_device
from pilotfish_cloud.engine.model_config import FAMILIES
from pilotfish_core.errors import InvalidParameter, LocalError, ModelLoadError
from tests.device import models as tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("loading")
    return {
        "plain": tiny.build("Llama", base / "plain"),
        "shards": tiny.build("Llama", base / "shards", shard="60KB"),
        "tied": tiny.build("Qwen2", base / "tied", tie_word_embeddings=True),
        "gemma2": tiny.build("Gemma2", base / "gemma2"),
    }


def changed(folder: Path, out: Path, **changes: object) -> Path:
    shutil.copytree(folder, out)
    file = out / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported are gemma, gemma2, gemma3_text, llama, mistral"),
        ({"model_type": None}, "architecture None is not supported"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' is an encoder and a decoder"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral' is a mixture of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 64}, "'qwen3_moe' is a mixture of experts"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 8}}, "'gemma3' sees or hears"),
        ({"model_type": "llama", "vision_config": {"hidden_size": 8}}, "llama with a tower"),
        ({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "never run"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification writes no text"),
        ({"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "rotary embeddings of type 'mrope'"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key heads"),
        ({"num_key_value_heads": -1}, "num_key_value_heads"),
        ({"head_dim": 32}, "do not fit"),
        ({"tie_word_embeddings": "perhaps"}, r"config\.json"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused(
    made: dict[str, Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_model(changed(made["plain"], tmp_path / "model", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": True}, "bidirectional"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": None}, "sliding_window is not set"),
    ],
)
def test_attention_of_another_kind_is_refused(
    made: dict[str, Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_model(changed(made["gemma2"], tmp_path / "model", **changes))


def test_code_that_comes_with_a_folder_is_never_run(made: dict[str, Path], tmp_path: Path) -> None:
    """Phi-3 folders bring a copy of their classes along; ours are transformers' own."""
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder = changed(made["plain"], tmp_path / "model", auto_map=names)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    model = load_model(folder, dtype="float32").model
    assert type(model) is FAMILIES["llama"].model
    assert not (tmp_path / "ran").exists()


def test_a_missing_shard_is_named(made: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(made["shards"], tmp_path / "model")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelLoadError, match=shard.name):
        load_model(folder)


def test_a_shard_without_its_weights_is_noticed(made: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(made["shards"], tmp_path / "model")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    save_file({"other": torch.zeros(1)}, shard, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="lacks weights"):
        load_model(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {}}, "names no weight files"),
        ({"weight_map": ["a"]}, "names no weight files"),
        ({}, "names no weight files"),
        ({"weight_map": {"lm_head.weight": "../model.safetensors"}}, "expected files beside it"),
        ({"weight_map": {"lm_head.weight": 7}}, "7 is missing"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(
    made: dict[str, Path], tmp_path: Path, index: dict[str, object], message: str
) -> None:
    folder = shutil.copytree(made["shards"], tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=message):
        load_model(folder)


def test_weights_that_the_configuration_does_not_speak_of_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    """A bias that is left out, or a layer too many, would change the text without a word."""
    folder = shutil.copytree(made["plain"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(weights | old, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder, dtype="float32").shape.num_layers == 2  # what old files have too much is computed today
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    save_file(weights | bias, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"does not speak of: model\.layers\.0\.self_attn\.q_proj\.bias"):
        load_model(folder)


def test_tied_embeddings_may_be_stored_twice(made: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(made["tied"], tmp_path / "model")
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model: Any = load_model(folder, dtype="float32").model
    torch.testing.assert_close(model.lm_head.weight, weights["lm_head.weight"], rtol=0, atol=0)


def test_special_tokens_beyond_the_embedding_are_no_tokens_of_the_model(tmp_path: Path) -> None:
    """Gemma 3's text models do not embed the token of images that their tokenizer knows; ordinary ones they must."""
    folder = tiny.build("Llama", tmp_path / "model", vocab_size=259)
    hash_before = load_model(folder).tokenizer.hash
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append({"id": 259, "content": "<image>", "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    loaded = load_model(folder)
    assert loaded.tokenizer.vocab_size == 259
    assert loaded.tokenizer.hash != hash_before
    tokenizer["added_tokens"][-1] |= {"special": False}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json has 260 ids, but .* embeds 259"):
        load_model(folder)


@pytest.mark.parametrize("name", ["tpu", "xpu", "cuda:x", "mps", ""])
def test_an_unknown_device_is_refused(made: dict[str, Path], name: str) -> None:
    with pytest.raises(InvalidParameter, match="cpu or cuda"):
        load_model(made["plain"], device=name)


def test_a_device_that_cannot_compute_in_a_dtype_is_named() -> None:
    with pytest.raises(LocalError, match="device cpu cannot compute in float8_e4m3fn"):
        usable_device("cpu", torch.float8_e4m3fn)


def test_a_missing_gpu_is_named(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LocalError, match=r"device cuda was asked for, but PyTorch .* finds no CUDA GPU"):
        load_model(made["plain"], device="cuda")
