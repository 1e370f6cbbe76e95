"""Tiny random checkpoints with a byte-level tokenizer, built once per run and kind."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

VOCABULARY = 260  # 256 bytes, an end token, "ab", "abc"; the embedding has a padded row more
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.4,  # far from flat logits
}


def build(kind: str, folder: Path, *, shard: str | None = None, **changes: Any) -> Path:
    """Write a random checkpoint of ``kind`` ("Llama", "Qwen2", ...) and its tokenizer; in shards of size ``shard``."""
    torch.manual_seed(0)
    name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>", "ab", "abc"]
    inner = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("a", "b"), ("ab", "c")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<end>"])
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return folder
