"""Attention over our own KV store, for model classes of ``transformers`` unchanged.

``register()`` makes the name ``pilotfish`` known to transformers. The model then calls ``attend`` in every layer with
the packed rows of a step; the step's ``AttentionStep`` (a keyword argument that passes through the model) says which
rows belong to which sequence. There is no entry of that name in the mask interface, so transformers builds no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from pilotfish_cloud.engine.attention_plan import (
    CALL_COST,
    AttentionPlan,
    AttentionRule,
    Segment,
    batches_of,
    calls_of,
)
from pilotfish_cloud.engine.kv_store import KVStore

ATTENTION_NAME: Final = "pilotfish"
KEY_BLOCK: Final = 512  # keys that are summed up together; of PyTorch's CPU kernel


class AttentionStep:
    """Where each row of one step reads and writes KV. Built once per step, used by every layer.

    ``num_rows`` counts the packed rows including padding at the end, which belongs to no segment.
    """

    def __init__(
        self,
        store: KVStore,
        segments: Sequence[Segment],
        num_rows: int,
        group: int,
        rule: AttentionRule,
    ) -> None:
        self.store = store
        self.num_rows = num_rows
        self.group = group  # query heads per key head
        self._segments, self._rule = segments, rule
        self._plans: dict[int | None, AttentionPlan] = {}  # by sliding window
        slots: list[int] = []
        positions: list[int] = []
        for segment in segments:
            count = segment.end - segment.begin
            slots.extend([segment.slot] * count)
            positions.extend(range(segment.start, segment.start + count))
        self.num_used = len(slots)
        self.positions = torch.tensor(positions, device=store.device)
        self._cells = store.cells(torch.tensor(slots, device=store.device), self.positions)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None = None,
    ) -> Tensor:
        """Store keys and values of all rows, attend, and return [1, rows, heads, head_dim].

        query [1, heads, rows, head_dim]; key, value [1, kv_heads, rows, head_dim]. ``softcap`` bounds the scores.
        """
        used = self.num_used
        self.store.write(layer, self._cells, key[0, :, :used].transpose(0, 1), value[0, :, :used].transpose(0, 1))
        keys, values = self.store.keys[layer], self.store.values[layer]  # [slots, kv_heads, capacity, head_dim]
        plan = self._plan(window)
        heads, dim, kv_heads, group = query.shape[1], query.shape[3], key.shape[1], self.group
        rows = query[0].transpose(0, 1)  # [rows, heads, head_dim], as the projection wrote them
        if plan.query_rows is not None:
            rows = rows.index_select(0, plan.query_rows)
        results = []
        for batch, begin, end, mask in plan.steps:
            arenas, taken = batch.high - batch.low, batch.taken
            # Query heads of one key head become rows.
            folded = rows[begin:end].reshape(arenas, taken, kv_heads, group, dim).transpose(1, 2)
            attended = attention(
                folded.reshape(arenas, kv_heads, taken * group, dim),
                keys[batch.low : batch.high, :, batch.first : batch.length],
                values[batch.low : batch.high, :, batch.first : batch.length],
                mask,
                scale,
                softcap,
            )
            unfolded = attended.reshape(arenas, kv_heads, taken, group, dim).transpose(1, 2)
            results.append(unfolded.reshape(end - begin, heads, dim))
        output = results[0] if len(results) == 1 else torch.cat(results)
        if plan.result_rows is not None:
            output = output.index_select(0, plan.result_rows)
        return output[None]

    def _plan(self, window: int | None) -> AttentionPlan:
        plan = self._plans.get(window)
        if plan is None:
            store = self.store
            calls = calls_of(self._segments, self.group, self._rule, window)
            one = store.num_kv_heads * self.group * store.head_dim  # multiplications of a query row and a key
            plan = self._plans[window] = AttentionPlan(
                batches_of(calls, CALL_COST / one),
                num_rows=self.num_rows,
                group=self.group,
                window=window,
                dtype=store.dtype,
                device=store.device,
            )
        return plan


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """[sequences, kv_heads, query rows, head_dim]; ``mask`` [sequences, 1, query rows, keys] is added to the scores."""
    if softcap is not None:
        return _capped(query, key, value, mask, scale, softcap)
    if query.shape[2] == 1 and query.device.type == "cpu" and query.dtype != torch.float32:
        # PyTorch's kernel takes half the time for two narrow rows that it takes for one.
        query = query.expand(-1, -1, 2, -1)
        mask = None if mask is None else mask.expand(-1, -1, 2, -1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)[:, :, :1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """With scores bounded to (-softcap, softcap) by a hyperbolic tangent, which PyTorch's kernels do not know.

    Keys are taken in blocks of a fixed size, so that more keys, if masked, do not change how the others are added up.
    """
    dtype = query.dtype
    if query.device.type == "cpu":  # narrow products are slow there, and each block's sum would be rounded
        query, key, value = query.float(), key.float(), value.float()
    blocks = [slice(begin, begin + KEY_BLOCK) for begin in range(0, key.shape[2], KEY_BLOCK)]
    scores = torch.cat([query @ key[:, :, block].transpose(2, 3) for block in blocks], -1) * scale
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    output = weights[..., blocks[0]] @ value[:, :, blocks[0]]
    for block in blocks[1:]:
        output = output + weights[..., block] @ value[:, :, block]
    return output.to(dtype)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    attention_step: AttentionStep,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise TypeError(f"attention layer without an index: {module!r}")
    return attention_step.attend(layer, query, key, value, scaling, sliding_window, softcap), None


def register() -> None:
    """Make transformers know our attention. May be called any number of times."""
    AttentionInterface.register(ATTENTION_NAME, _attend)
