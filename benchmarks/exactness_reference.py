"""The target alone against an independent reading: plain transformers, and the sampling specification as written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.exactness_runs import Answer, Prompt
from pilotfish_core.noise import gumbel_row
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import filtered_logits

NEAR: Final = 1e-3  # in scaled logit + G: two tokens this close may change places with the order of a sum
EDGE: Final = 1e-4  # of probability mass: a token this close to the end of the nucleus may be in or out
SHOWN: Final = 5


@dataclasses.dataclass(slots=True, kw_only=True)
class ReferenceCounts:
    """``near_ties`` counts positions whose winner leads by less than NEAR, mismatch or not; a mismatch is explained
    by as small a difference, or by a nucleus whose end lies within EDGE (``edge_mismatches``), or not at all.
    """

    positions: int = 0
    near_ties: int = 0
    mismatches: int = 0
    near_tie_mismatches: int = 0
    edge_mismatches: int = 0
    unexplained: int = 0
    smallest_lead: float = float("inf")
    shown: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Reference:
    """The target in float32, as transformers computes it: one forward over a whole prompt + output."""

    def __init__(self, target: Path, vocab_size: int) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, attn_implementation="eager")
        self._model.eval()
        self._vocab_size = vocab_size

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[positions, vocabulary]; row i chooses the token at position i + 1."""
        logits: NDArray[np.float32] = self._model(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()
        return logits[:, : self._vocab_size]

    def check(self, prompt: Prompt, answer: Answer, params: SamplingParams, counts: ReferenceCounts) -> None:
        """Compare every token of an answer with what the specification chooses after the tokens before it."""
        whole = (*prompt.tokens, *answer)
        logits = self.logits(whole)
        params = dataclasses.replace(params, seed=prompt.seed)
        for position in range(len(prompt.tokens), len(whole)):
            row, token = logits[position - 1], whole[position]
            scores = _scores(row, params, position)
            winner = int(scores.argmax())
            lead = float(scores[winner] - np.partition(scores, -2)[-2])
            counts.positions += 1
            counts.near_ties += lead < NEAR
            counts.smallest_lead = min(counts.smallest_lead, lead)
            if token == winner:
                continue
            counts.mismatches += 1
            behind = float(scores[winner] - scores[token])  # infinite for one that was filtered out
            if behind < NEAR:
                counts.near_tie_mismatches += 1
            elif token in _edge_winners(row, params, position):
                counts.edge_mismatches += 1
            else:
                counts.unexplained += 1
            if len(counts.shown) < SHOWN:
                counts.shown.append(
                    {
                        "prompt": prompt.index,
                        "position": position,
                        "token": token,
                        "reference": winner,
                        "behind": min(behind, 1e9),
                    }
                )


def _scores(row: NDArray[np.float32], params: SamplingParams, position: int) -> NDArray[np.float64]:
    """What the specification takes the arg-max of; at temperature 0 the logits themselves."""
    if params.is_greedy:
        return row.astype(np.float64)
    return filtered_logits(row, params) + gumbel_row(params.seed, position, row.size)


def _edge_winners(row: NDArray[np.float32], params: SamplingParams, position: int) -> set[int]:
    """Winners with a slightly smaller and a slightly larger nucleus."""
    if params.is_greedy or params.top_p == 1.0:
        return set()
    near = (dataclasses.replace(params, top_p=min(params.top_p + shift, 1.0)) for shift in (-EDGE, EDGE))
    return {int(_scores(row, other, position).argmax()) for other in near}
