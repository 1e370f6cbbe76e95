"""The torch decoder that Core ML packages are made of, against transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.decoder import MASKED, Decoder
from tests.device import models as tiny

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
}


def run(decoder: Decoder, ids: Sequence[int], begin: int) -> NDArray[np.float32]:
    """Logits after ``ids`` at positions ``begin``..."""
    end = begin + len(ids)
    positions = torch.arange(begin, end, dtype=torch.int32)
    mask = torch.where(torch.arange(end)[None] > positions[:, None], MASKED, 0.0)[None, None]
    with torch.no_grad():
        row: NDArray[np.float32] = decoder(torch.tensor([ids], dtype=torch.int32), positions[None], mask)[0, 0].numpy()
    return row


def relative_rms(rows: Any, expected: Any) -> float:
    return float(np.sqrt(np.square(rows - expected).sum() / np.square(expected).sum()))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_equals_transformers(kind: str, tmp_path: Path) -> None:
    """In one chunk, token by token, and in pieces; relative RMS at most 1e-5."""
    name, changes = KINDS[kind]
    checkpoint = Checkpoint(tiny.build(name, tmp_path, **changes))
    ids = [int(token) for token in np.random.default_rng(2).integers(0, 259, 60)]
    expected = checkpoint.logits(ids)
    decoder = Decoder(checkpoint)
    for chunks in ([60], [1] * 60, [30, *[1] * 10, *[5] * 4]):
        ends = np.cumsum(chunks)
        rows = [run(decoder, ids[end - size : end], end - size) for size, end in zip(chunks, ends, strict=True)]
        assert relative_rms(np.stack(rows), expected[ends - 1]) <= 1e-5


def test_a_rollback_leaves_no_trace(tmp_path: Path) -> None:
    decoder = Decoder(Checkpoint(tiny.build("Llama", tmp_path)))
    run(decoder, [1, 2, 3, 4], 0)
    alone = run(decoder, [5], 4)
    run(decoder, [9, 9, 9], 4)
    np.testing.assert_array_equal(run(decoder, [5], 4), alone)


def test_activations_whose_squares_float16_cannot_hold(tmp_path: Path) -> None:
    """Every operator in float16; a plain norm is infinite at once where an activation is beyond 256."""
    checkpoint = Checkpoint(tiny.build("Llama", tmp_path, tie_word_embeddings=False, initializer_range=0.1))
    with torch.no_grad():
        checkpoint.model.model.embed_tokens.weight[:, 3] = 3000.0  # a massive activation, as trained models have
    ids = [int(token) for token in np.random.default_rng(2).integers(0, 259, 40)]
    expected = checkpoint.logits(ids)[-1]
    decoder = Decoder(checkpoint).half()
    positions = torch.arange(40, dtype=torch.int32)
    mask = torch.where(torch.arange(40)[None] > positions[:, None], MASKED, 0.0)[None, None].half()
    with torch.no_grad():
        row = decoder(torch.tensor([ids], dtype=torch.int32), positions[None], mask)[0, 0].float().numpy()
    assert relative_rms(row, expected) < 0.02
