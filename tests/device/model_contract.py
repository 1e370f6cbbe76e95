"""What drafters with a model promise whose forwards depend on how tokens are grouped, as roundings do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilotfish.drafters.model import ModelDrafter
from pilotfish_core.drafter import Drafter
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory, coupled_token
from tests.core.drafter_contract import ModelDrafterContract

IDS = 259  # of the tiny models' tokenizer


def sampled(row: Any, tokens: Sequence[int], prompt: int, params: SamplingParams, vocab_size: int) -> int:
    history = TokenHistory(tokens[:prompt], tokens[prompt:])
    return coupled_token(row, params, len(tokens), history=history, vocab_size=vocab_size)


class OwnLogitsContract(ModelDrafterContract):
    """Against the drafter's own logits, computed in the same chunks as in drafting."""

    exact_chunks = False

    def expected(self, drafter: Drafter, tokens: Sequence[int], params: SamplingParams) -> int:
        assert isinstance(drafter, ModelDrafter)
        context = drafter.open(params, len(self.prompt))
        context.extend(tokens[: len(self.prompt)])
        for token in tokens[len(self.prompt) :]:
            context.logits()
            context.extend([token])
        return sampled(context.logits(), tokens, len(self.prompt), params, IDS)
