"""Rotary embeddings whose frequencies depend on the length of the text, made independent of it.

``longrope`` (Phi-3, Phi-4-mini) has two sets of frequencies, one for texts within the length of pretraining and one for
longer ones; ``dynamic`` stretches them with every token beyond that length. transformers chooses by the longest
position of a call. In a batch that would let one generation change the text of another, and keys that were stored
before the change would no longer fit. So the choice is made once, by the longest text that the engine admits (its
max_model_len): long frequencies if that exceeds the length of pretraining, short ones otherwise, for every text.
vLLM does the same. ``--max-model-len`` at or below original_max_position_embeddings gives the short ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LENGTH_DEPENDENT: Final = frozenset({"dynamic", "longrope"})
_PINNED: Final = "default"  # the type under which transformers leaves the frequencies alone


def rope_types(config: PreTrainedConfig) -> list[str]:
    """The types in use, of all kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    per_kind = [values for values in parameters.values() if isinstance(values, dict)] or [parameters]
    return [str(values.get("rope_type", values.get("type", "default"))) for values in per_kind]


@torch.no_grad()
def pin_rope(model: nn.Module, max_len: int) -> int | None:
    """Fix the frequencies of every rotary embedding in ``model`` (mutated) for texts of up to ``max_len`` tokens.

    Returns the length that decided, None where no frequency depends on the length.
    """
    decided = None
    for module in model.modules():
        for kind, rope in _types_of(module):
            if rope in LENGTH_DEPENDENT:
                _pin(module, kind, rope, max_len)
                decided = max_len
    return decided


def _types_of(module: nn.Module) -> Iterator[tuple[str | None, str]]:
    """(kind of layer or None, type) of a rotary embedding; nothing of another module."""
    found = getattr(module, "rope_type", None)
    if isinstance(found, dict):  # Gemma 3: other frequencies in layers with a window
        yield from list(found.items())
    elif isinstance(found, str):
        yield None, found


def _pin(module: Any, kind: str | None, rope: str, max_len: int) -> None:
    prefix = "" if kind is None else f"{kind}_"
    frequencies = getattr(module, f"{prefix}inv_freq")
    config = module.config
    computed, scaling = ROPE_INIT_FUNCTIONS[rope](config, frequencies.device, seq_len=max_len, layer_type=kind)
    frequencies.copy_(computed)
    setattr(module, f"{prefix}attention_scaling", scaling)
    if kind is None:
        module.rope_type = _PINNED
    else:
        module.rope_type = {**module.rope_type, kind: _PINNED}
