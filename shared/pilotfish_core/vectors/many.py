"""Many vectors of noise and sampling, made when they are needed: too many to keep. As those in ``sampling.json``."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from pilotfish_core.noise import derive_seed, gumbel_at, words_at
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory, coupled_candidates, filtered_logits

NOISE_CASES: Final = 9_000
SAMPLING_CASES: Final = 3_000
SIZES: Final = (5, 24, 24, 24, 300, 300, 1500, 4096)
_SEEDS: Final = (0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1)
_POSITIONS: Final = (0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**32, 2**40 + 3)


def noise_vectors(count: int = NOISE_CASES) -> list[dict[str, Any]]:
    """Words and variates of four tokens each, and a derived seed."""
    random = np.random.default_rng(1)
    cases = []
    for index in range(count):
        seed = int(random.integers(0, 2**64, dtype=np.uint64)) if index % 8 else _SEEDS[index // 8 % len(_SEEDS)]
        position = int(random.integers(0, 2**20)) if index % 5 else _POSITIONS[index // 5 % len(_POSITIONS)]
        ids = np.sort(random.integers(0, 200_000, 4))
        choice = int(random.integers(0, 9))
        cases.append(
            {
                "seed": str(seed),
                "position": position,
                "ids": ids.tolist(),
                "words": words_at(seed, position, ids).tolist(),
                "gumbel": gumbel_at(seed, position, ids).tolist(),
                "index": choice,
                "derived": str(derive_seed(seed, choice)),
            }
        )
    return cases


def sampling_vectors(count: int = SAMPLING_CASES) -> list[dict[str, Any]]:
    """Rows of logits with what the filters keep and which candidates win.

    Logits are whole multiples of 1/256 in ``ticks`` (null: masked), so that no case hangs on the text of a number;
    ``kept`` is left out for large rows, whose number of kept tokens says as much.
    """
    return [_case(np.random.default_rng([7, index]), index) for index in range(count)]


def _case(random: np.random.Generator, index: int) -> dict[str, Any]:
    size = SIZES[index % len(SIZES)]
    ticks = np.round(random.standard_normal(size) * random.choice([64, 640, 1600]))
    if index % 3 == 1:
        ticks = np.round(ticks / 512) * 512  # many equal ones
    logits = (ticks / 256).astype(np.float32)
    masked = random.random(size) < (0.1 if index % 4 == 2 else 0.0)
    masked[0] = False
    logits[masked] = -np.inf
    values = _values(random)
    params = SamplingParams(seed=int(random.integers(0, 2**63)), **values)
    position = int(random.integers(0, 100_000))
    prompt, output = random.integers(0, size, 6).tolist(), random.integers(0, size, 5).tolist()
    vocab_size = size - int(random.integers(0, 3))
    banned = [1, 3] if index % 5 == 3 else []
    context: dict[str, Any] = {"history": TokenHistory(prompt, output), "banned": banned, "vocab_size": vocab_size}
    kept = np.flatnonzero(filtered_logits(logits, params, **context) > -np.inf)
    return {
        "params": values,
        "seed": str(params.seed),
        "position": position,
        "ticks": [None if value == -math.inf else int(value * 256) for value in logits.tolist()],
        "vocab_size": vocab_size,
        "prompt": prompt,
        "output": output,
        "banned": banned,
        "kept_count": int(kept.size),
        "kept": kept.tolist() if kept.size <= 64 else None,
        "candidates": coupled_candidates(logits, params, position, 4, **context),
    }


def _values(random: np.random.Generator) -> dict[str, Any]:
    """Each parameter now and then."""
    choices: dict[str, tuple[float, tuple[Any, ...]]] = {
        "temperature": (0.8, (0.0, 0.2, 0.7, 0.8, 1.0, 1.5, 3.0)),
        "top_k": (0.3, (1, 2, 5, 40, 1000)),
        "top_p": (0.4, (0.05, 0.5, 0.7, 0.9, 0.95, 0.999)),
        "min_p": (0.2, (0.02, 0.1, 0.5)),
        "repetition_penalty": (0.2, (0.8, 1.1, 1.3)),
        "presence_penalty": (0.2, (-0.5, 0.4, 1.5)),
        "frequency_penalty": (0.2, (-0.8, 0.3, 1.0)),
        "logit_bias": (0.2, (((2, 4.0),), ((0, -100.0), (2, 1.25), (2, 0.5)))),
    }
    return {
        name: options[int(random.integers(0, len(options)))]
        for name, (share, options) in choices.items()
        if random.random() < share
    }
