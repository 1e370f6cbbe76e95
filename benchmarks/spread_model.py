"""The reference pair with its ids spread over the vocabulary of a large model: it computes the same, on other ids."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

LARGE_VOCABULARY: Final = 151_936
STRIDE: Final = 37
FIRST: Final = 23
BLOCK: Final = 32  # of quantised weights
CONSTANT: Final = 0.005  # an embedding's root mean square is about 0.1
GAIN: Final = 4000.0
FILLER: Final = 100.0


def spread_model(source: Path, out: Path, vocabulary: int = LARGE_VOCABULARY) -> None:
    """Write ``source`` with its ids spread over ``vocabulary``; it computes the same, on other ids."""
    import torch
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    small: int = config["vocab_size"]
    ids = [token * STRIDE + FIRST for token in range(small)]
    if ids[-1] >= vocabulary:
        raise ValueError(f"a vocabulary of {vocabulary} cannot hold ids up to {ids[-1]}")
    weights = load_file(source / "model.safetensors")
    if not config["tie_word_embeddings"]:
        raise ValueError(f"{source} does not tie its embeddings; expected one that does")
    filler = _widened(weights, config)
    embedding = weights["model.embed_tokens.weight"]
    spread = filler.repeat(vocabulary, 1)
    spread[torch.tensor(ids)] = embedding
    weights["model.embed_tokens.weight"] = spread
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config["vocab_size"] = vocabulary
    for values in (config, generation := json.loads((source / "generation_config.json").read_text())):
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            if values.get(name) is not None:
                values[name] = ids[values[name]]
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    names = {ids[token]: name for name, token in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] = {names.get(token, f"<filler {token}>"): token for token in range(vocabulary)}
    for token in tokenizer["added_tokens"]:
        token["id"] = ids[token["id"]]
    (out / "config.json").write_text(json.dumps(config))
    (out / "generation_config.json").write_text(json.dumps(generation))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    (out / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())


def _widened(weights: dict[str, Any], config: dict[str, Any]) -> Any:
    """Widen the residual stream, in place, and return a row whose logit is far below all others.

    Of the new dimensions the first is CONSTANT in every embedding, read by no layer (its weight in their
    norms is 0) and written by none; only the last norm lets it through, times GAIN. So it is positive in every last
    hidden state, adds the same to the logits of all real tokens, and makes the filler row's very low. The others are
    zero, and the norms' weights and epsilon make up for the width (exact but for CONSTANT's own share of the mean
    square, about a thousandth of a percent).
    """
    import torch

    old: int = config["hidden_size"]
    unit = math.lcm(config["num_attention_heads"], BLOCK)  # of which transformers and the exporter want multiples
    new = (old // unit + 1) * unit
    pad = new - old
    for name, tensor in weights.items():
        if name.endswith("norm.weight"):
            weights[name] = torch.cat([tensor.float() * (old / new) ** 0.5, torch.zeros(pad)])
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = torch.cat([tensor, tensor.new_zeros(pad, tensor.shape[1])])
        else:
            weights[name] = torch.cat([tensor, tensor.new_zeros(tensor.shape[0], pad)], dim=1)
    weights["model.embed_tokens.weight"][:, old] = CONSTANT
    weights["model.norm.weight"][old] = GAIN
    config["hidden_size"] = new
    config["rms_norm_eps"] *= old / new
    filler = torch.zeros(new, dtype=weights["model.embed_tokens.weight"].dtype)
    filler[old] = -FILLER
    return filler
