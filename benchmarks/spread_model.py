"""The reference pair with its ids spread over the vocabulary of a large model: it computes the same, on other ids."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

LARGE_VOCABULARY: Final = 151_936
STRIDE: Final = 37
FIRST: Final = 23


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
    embedding = weights["model.embed_tokens.weight"]
    spread = _filler_row(source).to(embedding.dtype).repeat(vocabulary, 1)
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


def _filler_row(source: Path) -> Any:
    """A row whose logit is far below all others: minus 100 times the direction in which the model's last hidden
    states are most nearly constant (ridge regression to 1 over some of the standard library's text; they reach 0.4).
    """
    import torch
    import transformers

    from pilotfish_core.tokenizer import Tokenizer

    transformers.utils.logging.disable_progress_bar()
    tokens = Tokenizer.load(source).encode(Path(argparse.__file__).read_text(encoding="utf-8"))[:6000]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        parts = [model.model(torch.tensor([tokens[at : at + 600]])).last_hidden_state[0] for at in range(0, 6000, 600)]
    hidden = torch.cat(parts)
    gram = hidden.T @ hidden + torch.eye(hidden.shape[1])
    return torch.linalg.solve(gram, hidden.T @ torch.ones(len(hidden))) * -100
