"""One small decoder in torch for Llama, Mistral, Qwen 2 and Qwen 3: the source of the Core ML export.

It computes what the transformers models compute, written so that it can be traced: positions and mask are
inputs, keys and values live in two buffers of fixed size which the caller addresses by position, and no operator
depends on anything but shapes. It is safe in float16: see ``_RmsNorm``.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from torch.nn import functional

from pilotfish.export.checkpoint import Checkpoint, ModelShape

MASKED: Final = -1e4  # added to the score of a key that must not be seen; float16 holds it
_PARTS: Final = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
_SMALLEST: Final = 1e-2  # divisor of a row of zeros


class Decoder(nn.Module):
    """The model of a checkpoint with its KV cache, float32.

    ``keys`` and ``values`` are buffers ``[layers, kv_heads, context, head_size]``. A rollback is no more than
    positions that go back: what is behind them is never read.
    """

    keys: torch.Tensor
    values: torch.Tensor
    cosines: torch.Tensor
    sines: torch.Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        shape = checkpoint.shape
        cosines, sines = checkpoint.rotary()
        self.register_buffer("cosines", torch.from_numpy(cosines))
        self.register_buffer("sines", torch.from_numpy(sines))
        cache = (shape.layers, shape.kv_heads, shape.context_length, shape.head_size)
        self.register_buffer("keys", torch.zeros(cache))
        self.register_buffer("values", torch.zeros(cache))
        self.embedding = _parameter(checkpoint, "model.embed_tokens.weight")
        self.layers = nn.ModuleList(_Layer(checkpoint, layer) for layer in range(shape.layers))
        self.norm = _RmsNorm(checkpoint, "model.norm")
        self.head = _Linear(checkpoint, "lm_head")

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits after the last of the new tokens, ``[1, 1, embeddings]``; fills their keys and values.

        ``input_ids`` and ``position_ids`` are int32 ``[1, new]``. ``mask`` ``[1, 1, new, total]`` is added to the
        scores: 0 for a key that a token sees, MASKED for another. Its width says where the new tokens are stored:
        they are the last of ``total``. Layers with a window narrow the mask by position themselves.
        """
        cosines = functional.embedding(position_ids, self.cosines)[:, None]
        sines = functional.embedding(position_ids, self.sines)[:, None]
        hidden = functional.embedding(input_ids, self.embedding)
        for layer in self.layers:
            hidden = layer(hidden, cosines, sines, mask, position_ids, self.keys, self.values)
        logits: torch.Tensor = self.head(self.norm(hidden[:, -1:]))
        return logits

    def matrix(self, name: str) -> nn.Module:
        """The module of a layer's matrix by its name in the checkpoint, such as ``model.layers.0.mlp.up_proj``."""
        _, _, layer, _, part = name.split(".")
        return self.layers.get_submodule(f"{layer}.{_PARTS[part]}")


class _Layer(nn.Module):
    """Attention and feed-forward network of layer number ``layer``."""

    distances: torch.Tensor

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        super().__init__()
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        self.layer = layer
        self.shape: ModelShape = checkpoint.shape
        self.window = checkpoint.shape.windows[layer]
        if self.window > 0:
            self.register_buffer("distances", torch.arange(checkpoint.shape.context_length, dtype=torch.int32))
        self.before_attention = _RmsNorm(checkpoint, f"{prefix}.input_layernorm")
        self.before_mlp = _RmsNorm(checkpoint, f"{prefix}.post_attention_layernorm")
        self.query, self.key, self.value, self.output = (_Linear(checkpoint, f"{attention}.{p}_proj") for p in "qkvo")
        self.gate, self.up, self.down = (_Linear(checkpoint, f"{mlp}.{part}_proj") for part in ("gate", "up", "down"))
        self.normed = checkpoint.has(f"{attention}.q_norm.weight")
        if self.normed:  # Qwen 3
            self.query_norm = _RmsNorm(checkpoint, f"{attention}.q_norm")
            self.key_norm = _RmsNorm(checkpoint, f"{attention}.k_norm")

    def forward(
        self,
        hidden: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        hidden = hidden + self._attention(self.before_attention(hidden), cosines, sines, mask, positions, keys, values)
        normed = self.before_mlp(hidden)
        moved: torch.Tensor = hidden + self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return moved

    def _attention(
        self,
        normed: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        shape = self.shape
        groups = shape.heads // shape.kv_heads
        new, total = mask.shape[2], mask.shape[3]
        first = total - new
        query = self.query(normed).reshape(1, -1, shape.heads, shape.head_size)
        key = self.key(normed).reshape(1, -1, shape.kv_heads, shape.head_size)
        value = self.value(normed).reshape(1, -1, shape.kv_heads, shape.head_size)
        if self.normed:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = (_rotate(part.transpose(1, 2), cosines, sines) for part in (query, key))
        at = self.layer
        keys[at : at + 1, :, first:total] = key
        values[at : at + 1, :, first:total] = value.transpose(1, 2)
        seen = mask
        if self.window > 0:
            behind = positions[:, None, :, None] - self.distances[:total]
            seen = seen + (behind >= self.window).to(mask.dtype) * MASKED
        # The query heads of one KV head are rows of one matrix, so that no key is copied.
        answer = functional.scaled_dot_product_attention(
            query.reshape(1, shape.kv_heads, -1, shape.head_size),
            keys[at : at + 1, :, :total],
            values[at : at + 1, :, :total],
            seen.repeat(1, 1, groups, 1),
        )
        answer = answer.reshape(1, shape.heads, -1, shape.head_size).transpose(1, 2)
        mixed: torch.Tensor = self.output(answer.reshape(1, -1, shape.heads * shape.head_size))
        return mixed


class _RmsNorm(nn.Module):
    """Root mean square norm over the last axis, by way of the row divided by its largest entry.

    The square of an activation of 300 is beyond float16, and decoders have larger ones; the detour is exact.
    """

    root_epsilon: torch.Tensor  # a number would become Core ML's inverse, which adds an epsilon of its own

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        super().__init__()
        self.weight = _parameter(checkpoint, f"{name}.weight")
        self.register_buffer("root_epsilon", torch.tensor([checkpoint.shape.norm_epsilon**0.5]))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        largest = value.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST)
        scaled = value / largest
        epsilon = self.root_epsilon / largest
        return scaled * torch.rsqrt((scaled * scaled).mean(-1, keepdim=True) + epsilon * epsilon) * self.weight


class _Linear(nn.Module):
    """A matrix of the checkpoint, with its bias where it has one."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        super().__init__()
        self.weight = _parameter(checkpoint, f"{name}.weight")
        self.bias = _parameter(checkpoint, f"{name}.bias") if checkpoint.has(f"{name}.bias") else None

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return functional.linear(value, self.weight, self.bias)


def _rotate(value: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``[1, heads, new, head_size]``."""
    left, right = value.chunk(2, -1)
    return torch.cat([left * cosines - right * sines, right * cosines + left * sines], dim=-1)


def _parameter(checkpoint: Checkpoint, name: str) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(checkpoint.weight(name)), requires_grad=False)
