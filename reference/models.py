"""Shapes of the pair and how their folders are written and read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reference.tokenizer import END_TOKEN_ID, MAX_LENGTH, VOCAB_SIZE

SHAPES: dict[str, dict[str, int]] = {
    "target": {
        "hidden_size": 320,
        "intermediate_size": 896,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 64,
    },
    "draft": {
        "hidden_size": 160,
        "intermediate_size": 416,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
}
"""Every width is a multiple of 32: the draft is quantised in blocks of 32."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class ModelFolderError(Exception):
    """A model folder lacks a file or holds something unexpected."""


def build(name: str, seed: int) -> LlamaForCausalLM:
    """A freshly initialised fp32 model of shape `name` ("target" or "draft")."""
    if name not in SHAPES:
        raise ModelFolderError(f"unknown shape {name!r}; known: {', '.join(sorted(SHAPES))}")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=END_TOKEN_ID,
        pad_token_id=END_TOKEN_ID,
        attention_bias=False,
        mlp_bias=False,
        use_cache=True,
        **SHAPES[name],
    )
    model = LlamaForCausalLM(config)
    layers = config.num_hidden_layers
    for key, weight in model.named_parameters():
        if weight.ndim == 2:
            scale = weight.shape[1] ** -0.5 if "embed" not in key else 0.02
            if key.endswith(("o_proj.weight", "down_proj.weight")):
                scale /= (2 * layers) ** 0.5
            torch.nn.init.normal_(weight, std=scale)
    return model


def parameter_count(model: LlamaForCausalLM) -> int:
    """Parameters, tied ones counted once."""
    return sum(weight.numel() for weight in model.parameters())


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Read a model folder with its weights converted to `dtype`."""
    if not (folder / "config.json").is_file():
        raise ModelFolderError(f"{folder} has no config.json")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if not isinstance(model, LlamaForCausalLM):
        raise ModelFolderError(f"{folder} is not a Llama model")
    return model


def save(model: LlamaForCausalLM, tokenizer_folder: Path, out: Path, dtype: torch.dtype) -> None:
    """Write `model` rounded to `dtype`, with the tokenizer, as a Hugging Face folder.

    The folder appears (or is exchanged) by rename, so a reader never sees half of it; `model`
    itself keeps its weights.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    state = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in model.state_dict().items()
        if key != "lm_head.weight"
    }
    copy = LlamaForCausalLM(model.config).to(dtype)
    copy.load_state_dict(state, strict=False)
    copy.tie_weights()
    copy.config.dtype = dtype
    copy.save_pretrained(staging)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, staging / name)
    generation = {"do_sample": True, "temperature": 0.8, "eos_token_id": 0, "pad_token_id": 0}
    text = json.dumps(generation, indent=2) + "\n"
    (staging / "generation_config.json").write_text(text, encoding="utf-8")
    staging.chmod(0o755)
    (staging / "model.safetensors").chmod(0o644)
    replace_folder(staging, out)


def replace_folder(staging: Path, out: Path) -> None:
    """Rename `staging` to `out`, removing what was there before."""
    if out.exists():
        old = out.with_name(f".{out.name}-old-{os.getpid()}")
        out.rename(old)
        staging.rename(out)
        shutil.rmtree(old)
    else:
        staging.rename(out)
