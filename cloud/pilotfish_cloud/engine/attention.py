"""Attention over our own KV store, for model classes of ``transformers`` unchanged.

``register()`` makes the name ``pilotfish`` known to transformers. The model then calls ``attend`` in every layer with
the packed rows of a step; the step's ``AttentionStep`` (a keyword argument that passes through the model) says which
rows belong to which sequence. There is no entry of that name in the mask interface, so transformers builds no mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from pilotfish_cloud.engine.kv_store import KVStore

ATTENTION_NAME: Final = "pilotfish"


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionRule:
    """Shapes of single attention calls. A deterministic engine's rule gives every row the same bits in any company.

    Keys are padded to a multiple of ``kv_multiple`` positions. A call has at least ``min_query`` and at most
    ``max_query`` query rows (query heads that share a key head count as rows). Where the kernel takes its rows in
    blocks of ``query_block``, the last block too has ``min_query`` rows at least.
    """

    kv_multiple: int = 1
    min_query: int = 1
    max_query: int = 4096
    query_block: int = 4096

    def allows(self, queries: int) -> bool:
        """Whether a call may have this many query rows."""
        if not self.min_query <= queries <= self.max_query:
            return False
        rest = queries % self.query_block
        return rest == 0 or rest >= min(self.min_query, self.query_block)


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Rows [begin, end) of the packed step: positions [start, start + end - begin) of the sequence in ``slot``."""

    slot: int
    begin: int
    end: int
    start: int


@dataclasses.dataclass(slots=True)
class _Call:
    """One attention call: query rows [first, last) of which [begin, end) count, over keys [0, length)."""

    slot: int
    first: int
    last: int
    begin: int
    end: int
    position: int  # of row ``begin``
    length: int
    masks: dict[int | None, Tensor | None]  # by sliding window


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
        slots: list[int] = []
        positions: list[int] = []
        self._calls: list[_Call] = []
        for segment in segments:
            count = segment.end - segment.begin
            slots.extend([segment.slot] * count)
            positions.extend(range(segment.start, segment.start + count))
            self._calls.extend(self._calls_of(segment, rule))
        self.num_used = len(slots)
        self.slots = torch.tensor(slots, device=store.device)
        self.positions = torch.tensor(positions, device=store.device)

    def _calls_of(self, segment: Segment, rule: AttentionRule) -> list[_Call]:
        calls = []
        begin = segment.begin
        while begin < segment.end:
            rows, taken = self._rows_of_call(segment.end - begin, rule)
            end = begin + rows
            # Too few rows: the call takes neighbouring rows along and throws their results away.
            last = min(begin + taken, self.num_rows)
            position = segment.start + begin - segment.begin
            length = -(-(position + rows) // rule.kv_multiple) * rule.kv_multiple
            calls.append(_Call(segment.slot, last - taken, last, begin, end, position, length, {}))
            begin = end
        return calls

    def _rows_of_call(self, wanted: int, rule: AttentionRule) -> tuple[int, int]:
        """How many of ``wanted`` rows the next call computes, and how many it takes (more: neighbours)."""
        most = max(min(rule.max_query // self.group, self.num_rows), 1)
        for taken in range(min(wanted, most), most + 1):
            if rule.allows(taken * self.group):
                return min(wanted, most), taken
        for taken in range(min(wanted, most) - 1, 0, -1):
            if rule.allows(taken * self.group):
                return taken, taken
        return min(wanted, most), min(wanted, most)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """Store keys and values of all rows, attend, and return [1, rows, heads, head_dim].

        query [1, heads, rows, head_dim]; key, value [1, kv_heads, rows, head_dim].
        """
        keys, values = self.store.keys[layer], self.store.values[layer]  # [slots, kv_heads, capacity, head_dim]
        used = self.num_used
        keys[self.slots, :, self.positions] = key[0, :, :used].transpose(0, 1)
        values[self.slots, :, self.positions] = value[0, :, :used].transpose(0, 1)
        kv_heads, rows, dim = key.shape[1], query.shape[2], query.shape[3]
        # Query heads of one key head become rows: [kv_heads, rows, group, head_dim]; a slice of rows is a view.
        folded = query[0].view(kv_heads, self.group, rows, dim).transpose(1, 2).contiguous()
        output = query.new_empty(rows, kv_heads, self.group, dim)
        if used < rows:
            output[used:] = 0.0
        for call in self._calls:
            rows_taken = call.last - call.first
            attended = F.scaled_dot_product_attention(
                folded[:, call.first : call.last].view(1, kv_heads, rows_taken * self.group, dim),
                keys[call.slot : call.slot + 1, :, : call.length],
                values[call.slot : call.slot + 1, :, : call.length],
                attn_mask=self._mask(call, window),
                scale=scale,
            ).view(kv_heads, rows_taken, self.group, dim)
            output[call.begin : call.end] = attended[:, call.begin - call.first : call.end - call.first].transpose(0, 1)
        return output.view(1, rows, kv_heads * self.group, dim)

    def _mask(self, call: _Call, window: int | None) -> Tensor | None:
        """[1, 1, query rows, length]: 0 where a row may look, -inf elsewhere; None when every row sees everything."""
        if window not in call.masks:
            call.masks[window] = self._build_mask(call, window)
        return call.masks[window]

    def _build_mask(self, call: _Call, window: int | None) -> Tensor | None:
        plain = call.last - call.first == 1 and call.length == call.position + 1
        if plain and (window is None or window > call.position):
            return None
        keys = torch.arange(call.length, device=self.store.device)
        queries = torch.arange(call.first, call.last, device=self.store.device) - call.begin + call.position
        # Rows taken along may see position 0 at least: a row that sees nothing would be NaN.
        queries = queries.clamp(0, call.length - 1).unsqueeze(1)
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        mask = torch.zeros(hidden.shape, dtype=self.store.dtype, device=self.store.device)
        mask.masked_fill_(hidden, float("-inf"))
        return mask.repeat_interleave(self.group, 0)[None, None]


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
    **_unused: Any,
) -> tuple[Tensor, None]:
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise TypeError(f"attention layer without an index: {module!r}")
    return attention_step.attend(layer, query, key, value, scaling, sliding_window), None


def register() -> None:
    """Make transformers know our attention. May be called any number of times."""
    AttentionInterface.register(ATTENTION_NAME, _attend)
