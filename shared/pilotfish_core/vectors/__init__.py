"""Test vectors of the shared noise and the sampler, for every language that implements them (``sampling.json``).

``python -m pilotfish_core.vectors`` writes the file anew; a test compares it with what the code gives.
Philox words are exact, Gumbel variates hold to 1e-12 relative, sampling cases give the token and the candidates.
64-bit numbers are decimal strings, -inf logits are null: JSON has neither.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from pilotfish_core.noise import derive_seed, gumbel_row, philox_block, words_row
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory, coupled_candidates, filtered_logits, token_logprobs

PATH: Final = Path(__file__).with_name("sampling.json")
_KNOWN_BLOCKS: Final = (
    # The three known answers that Random123 publishes for philox4x32-10, then ours.
    ((0, 0, 0, 0), (0, 0)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)),
    ((37_983, 4_294_967_295, 1, 0), (7, 0)),
    ((1, 0, 0, 1), (42, 0)),
)
_SEEDS: Final = (0, 7, 2**32 + 5, 2**64 - 1)
_PARAMS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 2.5},
    {"top_k": 3},
    {"top_p": 0.6},
    {"top_p": 0.01},
    {"min_p": 0.2},
    {"temperature": 0.8, "top_k": 8, "top_p": 0.9, "min_p": 0.02},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.8},
    {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.5},
    {"logit_bias": ((3, 5.0), (4, -100.0), (3, 0.5))},
    {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.2, "presence_penalty": 0.4, "logit_bias": ((1, 2.0),)},
)


def build() -> dict[str, Any]:
    """All vectors, as JSON values."""
    return {
        "about": "Pilotfish: see shared/pilotfish_core/noise.py and sampling.py. Written by pilotfish_core.vectors.",
        "philox": [
            {"counter": list(counter), "key": list(key), "words": list(philox_block(counter, key))}
            for counter, key in _KNOWN_BLOCKS
        ],
        "noise": [
            {
                "seed": str(seed),
                "position": str(position),
                "words": words_row(seed, position, 10).tolist(),
                "gumbel": gumbel_row(seed, position, 10).tolist(),
            }
            for seed in _SEEDS
            for position in (0, 1, 131_071, 2**33 + 1)
        ],
        "gumbel_of_words": [
            {"word": word, "gumbel": -math.log(-math.log((word + 0.5) / 2**32))}
            for word in (0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
        ],
        "derived_seeds": [
            {"seed": str(seed), "index": index, "derived": str(derive_seed(seed, index))}
            for seed in _SEEDS
            for index in (0, 1, 2, 9)
        ],
        "sampling": [_case(kind, index) for kind in range(3) for index in range(len(_PARAMS))],
    }


def dumps(vectors: dict[str, Any]) -> str:
    """The file's text: one case a line."""
    parts = []
    for name, value in vectors.items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in value)
            parts.append(f'"{name}": [\n{lines}\n]')
        else:
            parts.append(f'"{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _case(kind: int, index: int) -> dict[str, Any]:
    """One sampling case: random logits, logits with many ties, or logits with masked entries and a ban."""
    random = np.random.default_rng([kind, index])
    size = 24
    # Multiples of 1/256: the same number in binary and in the file.
    logits = (np.round(random.standard_normal(size) * 640) / 256).astype(np.float32)
    if kind == 1:
        logits = np.round(logits)
    if kind == 2:
        logits[[2, 11]] = -np.inf
    values = _PARAMS[index]
    params = SamplingParams(seed=int(random.integers(0, 2**63)), **values)
    position = int(random.integers(0, 5000))
    prompt, output = random.integers(0, size, 6).tolist(), random.integers(0, size, 5).tolist()
    banned = [0, 5] if kind == 2 else []
    vocab_size = size - 2
    arguments: dict[str, Any] = {"history": TokenHistory(prompt, output), "banned": banned, "vocab_size": vocab_size}
    candidates = coupled_candidates(logits, params, position, 4, **arguments)
    filtered = filtered_logits(logits, params, **arguments)
    chosen, best = token_logprobs(logits, candidates[:1], 3, vocab_size=vocab_size)
    return {
        "params": values,
        "seed": str(params.seed),
        "position": position,
        "logits": [value if value > -math.inf else None for value in logits.tolist()],
        "vocab_size": vocab_size,
        "prompt": prompt,
        "output": output,
        "banned": banned,
        "kept": np.flatnonzero(filtered > -np.inf).tolist(),
        "token": candidates[0],
        "candidates": candidates,
        "logprob": chosen[0],
        "top_logprobs": best,
    }
