"""Which rows of a step attend together: one call for many sequences whose arenas lie side by side.

A call of its own for each sequence and layer costs more than what it computes once tens of sequences decode together.
So sequences in neighbouring arenas share one, padded to the longest of them, and to the most rows, as long as the
padding costs less than a call. An arena in between that has no part in the step is computed along and thrown away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

CALL_COST: Final = 2**17  # multiplications that take as long as one more call: some 30 microseconds
_KEY_STEP: Final = 64  # positions to which the first key of a window is rounded down


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionRule:
    """Shapes of attention calls. A deterministic engine's rule gives every row the same bits in any company.

    Keys are padded to a multiple of ``kv_multiple`` positions. For each sequence a call has at least ``min_query`` and
    at most ``max_query`` query rows (query heads that share a key head count as rows). Where the kernel takes its rows
    in blocks of ``query_block``, the last block too has ``min_query`` rows at least.
    """

    kv_multiple: int = 1
    min_query: int = 1
    max_query: int = 4096
    query_block: int = 4096

    def allows(self, queries: int) -> bool:
        """Whether a call may have this many query rows of a sequence."""
        if not self.min_query <= queries <= self.max_query:
            return False
        rest = queries % self.query_block
        return rest == 0 or rest >= min(self.min_query, self.query_block)

    def split(self, wanted: int, group: int) -> tuple[int, int]:
        """How many of ``wanted`` rows with ``group`` query heads a key head the next call computes, and how many it
        takes (more: repetitions of the last one)."""
        most = max(self.max_query // group, 1)
        rows = min(wanted, most)
        for taken in range(rows, most + 1):
            if self.allows(taken * group):
                return rows, taken
        for taken in range(rows - 1, 0, -1):
            if self.allows(taken * group):
                return taken, taken
        return rows, rows


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Rows [begin, end) of the packed step: positions [start, start + end - begin) of the sequence in ``slot``."""

    slot: int
    begin: int
    end: int
    start: int


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What one sequence needs of a call: rows [begin, end), ``taken`` with repetitions, over keys [first, length)."""

    slot: int
    begin: int
    end: int
    taken: int
    position: int  # of row ``begin``
    first: int
    length: int


def calls_of(segments: Iterable[Segment], group: int, rule: AttentionRule, window: int | None) -> list[Call]:
    """The rows of all segments, cut as ``rule`` has it."""
    calls = []
    for segment in segments:
        begin = segment.begin
        while begin < segment.end:
            rows, taken = rule.split(segment.end - begin, group)
            position = segment.start + begin - segment.begin
            length = -(-(position + rows) // rule.kv_multiple) * rule.kv_multiple
            first = 0
            if window is not None:
                step = max(rule.kv_multiple, _KEY_STEP)
                first = max(position + 1 - window, 0) // step * step
            calls.append(Call(segment.slot, begin, begin + rows, taken, position, first, length))
            begin += rows
    return calls


@dataclasses.dataclass(slots=True)
class Batch:
    """Calls for arenas [low, high), each with ``taken`` rows over keys [first, length)."""

    calls: list[Call]
    low: int
    high: int
    taken: int
    first: int
    length: int

    @property
    def cost(self) -> int:
        """Query rows times keys, of the arenas in between too."""
        return (self.high - self.low) * self.taken * (self.length - self.first)

    def with_call(self, call: Call) -> Batch:
        """This batch, wide enough for one more call of a higher slot."""
        return Batch(
            [*self.calls, call],
            self.low,
            call.slot + 1,
            max(self.taken, call.taken),
            min(self.first, call.first),
            max(self.length, call.length),
        )


def batches_of(calls: Iterable[Call], call_cost: float) -> list[Batch]:
    """Calls put together where that costs less than calls apart; ``call_cost`` is in query rows times keys."""
    batches: list[Batch] = []
    for call in sorted(calls, key=lambda call: (call.slot, call.begin)):
        alone = Batch([call], call.slot, call.slot + 1, call.taken, call.first, call.length)
        if batches and call.slot >= batches[-1].high:
            wider = batches[-1].with_call(call)
            if wider.cost <= batches[-1].cost + alone.cost + call_cost:
                batches[-1] = wider
                continue
        batches.append(alone)
    return batches


class AttentionPlan:
    """The batches of one step for layers of one window, with their masks, and where their rows come from.

    ``query_rows`` [taken rows] are packed rows in the order of the batches; ``result_rows`` [packed rows] says where
    among them each packed row's result lies. None where that is the order of the packed rows themselves.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        *,
        num_rows: int,
        group: int,
        window: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        query_rows: list[int] = []
        result_rows = [0] * num_rows  # padding belongs to nobody and may hold anything
        self.steps: list[tuple[Batch, int, int, Tensor | None]] = []  # batch, its taken rows [begin, end), mask
        for batch in batches:
            begin, positions = len(query_rows), list[int]()
            calls = iter(batch.calls)
            call = next(calls)
            for slot in range(batch.low, batch.high):
                if call.slot != slot:
                    query_rows += [0] * batch.taken
                    positions += [batch.first] * batch.taken  # sees one key at least: a row that sees none is NaN
                    continue
                count = call.end - call.begin
                result_rows[call.begin : call.end] = range(len(query_rows), len(query_rows) + count)
                more = batch.taken - count
                query_rows += [*range(call.begin, call.end), *[call.end - 1] * more]
                last = call.position + count - 1
                positions += [*range(call.position, last + 1), *[last] * more]
                call = next(calls, call)
            mask = _mask(batch, positions, group, window, dtype, device)
            self.steps.append((batch, begin, len(query_rows), mask))
        self.num_taken = len(query_rows)
        self.query_rows = _index(query_rows, num_rows, device)
        self.result_rows = _index(result_rows, self.num_taken, device)


def _index(rows: list[int], size: int, device: torch.device) -> Tensor | None:
    return None if rows == list(range(size)) else torch.tensor(rows, device=device)


def _mask(
    batch: Batch, positions: list[int], group: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """[arenas, 1, query rows, keys]: 0 where a row may look, -inf elsewhere; None when every row sees every key."""
    everything = min(positions) >= batch.length - 1 and (window is None or max(positions) - window < batch.first)
    if everything:
        return None
    arenas, taken = batch.high - batch.low, batch.taken
    keys = torch.arange(batch.first, batch.length, device=device)
    queries = torch.tensor(positions, device=device).view(arenas, taken, 1)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    return mask.unsqueeze(2).expand(arenas, taken, group, len(keys)).reshape(arenas, 1, taken * group, len(keys))
