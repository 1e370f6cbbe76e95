"""Deterministic mode: shapes under which a row's bits depend on its own tokens only.

Kernels choose their order of summation by the shape of the whole call. A rule restricts calls to shapes that were
found, on this machine and for this model, to sum every row alike:

* linear layers run with row counts from a short list only, each tried against the others at start-up;
* attention pads keys to a multiple of 512 (the block of PyTorch's CPU kernel, which adds up block by block, so that
  fully masked blocks change nothing) and repeats a row where a sequence has too few;
* the packed rows are padded so that vectorised element-wise functions have no scalar remainder.

The whole model is then tried in several chunkings. A rule that fails is replaced by a stricter one: one fixed tile for
everything. If that fails too, deterministic mode is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from pilotfish_cloud.engine.attention import KEY_BLOCK, attention
from pilotfish_cloud.engine.attention_plan import AttentionRule, Segment
from pilotfish_cloud.engine.linear import PackedLinear
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_cloud.engine.rule import UNRULED, Rule, Shape
from pilotfish_cloud.engine.slow_sizes import without_slow_sizes
from pilotfish_core.errors import LocalError

ROW_SIZES: Final = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
KV_MULTIPLE: Final = KEY_BLOCK
MAX_QUERY: Final = 128
QUERY_BLOCK: Final = 32  # of PyTorch's CPU kernel, below 192 query rows
_TRIED: Final = {1: 160, 2: 64, 4: 64, 6: 64, 8: 64, 12: 64, 16: 64, 24: 72, 32: 96}  # rows, for small row counts
_LEAST_QUERIES: Final = (1, 2, 4, 8, 16)
_STRICT_TILES: Final = (16, 32)
_VECTOR: Final = 64  # elements that a vectorised loop takes at a time: two registers of bf16
_GRAIN: Final = 32768  # elements from which PyTorch splits an element-wise loop among threads


def calibrate(runner: ModelRunner, *, max_rows: int) -> Rule:
    """Find the cheapest rule that holds and return it; ``runner`` follows it, without its slow row counts.

    Takes about as long as a prefill of two thousand tokens. Raises LocalError when no rule holds.
    """
    for rule in _candidates(runner, max_rows):
        without_slow_sizes(rule, runner)
        if self_check(runner) == 0:
            return rule
    UNRULED.apply(runner)
    raise LocalError(
        "deterministic mode was asked for, but this machine's kernels give other bits for other batch shapes under "
        "every rule tried; run without it",
        private=f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {runner.dtype}",
    )


def _candidates(runner: ModelRunner, max_rows: int) -> Iterator[Rule]:
    max_rows = max(max_rows, 288)  # the self-check's longest steps
    tiles = {linear.shape_key: linear for linear in runner.linears}
    sizes = _agreed({key: equal_sizes(linear) for key, linear in tiles.items()})
    attention = attention_rule(runner)
    if attention is not None and all(sizes.values()):
        least = max(allowed[0] for allowed in sizes.values())
        yield Rule(attention, _row_counts(runner, ROW_SIZES, least, max_rows), tuple(sorted(sizes.items())))
    for tile in _STRICT_TILES:
        queries = tile * runner.shape.group
        rows = _row_counts(runner, (tile,), tile, max_rows)
        yield Rule(AttentionRule(KV_MULTIPLE, queries, queries), rows, tuple((key, (tile,)) for key in sorted(sizes)))


def _agreed(sizes: Mapping[Shape, tuple[int, ...]]) -> dict[Shape, tuple[int, ...]]:
    """Without the small counts that failed for any layer: one kernel serves all, and in some layers shows rarely."""
    failed = {size for size in _TRIED for allowed in sizes.values() if size not in allowed}
    return {key: tuple(size for size in allowed if size not in failed) for key, allowed in sizes.items()}


@torch.inference_mode()
def equal_sizes(linear: PackedLinear, sizes: Iterable[int] = ROW_SIZES) -> tuple[int, ...]:
    """The row counts that give every row the same bits as tiles of eight (or sixteen) do, wherever the row lies.

    Another order of summation shows in few outputs, as bf16 hides most of it (a product of one row on AMD Zen 4: in one
    output of some thousands), so small counts are tried on many rows, half of them with a few large values.
    """
    sizes = tuple(sizes)
    largest = sizes[-1] if linear.out_features < 16 * linear.in_features else min(64, sizes[-1])  # output layers
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(largest, linear.in_features, generator=generator)
    rows[::2] *= torch.randn(rows[::2].shape, generator=generator).exp()
    rows = rows.to(linear.device, linear.dtype)
    wanted = [size for size in sizes if size <= largest]
    best: tuple[int, ...] = ()
    for tile in (8, 16):
        expected = torch.cat([linear.product(part) for part in torch.split(rows, tile)])
        found = []
        for size in wanted:
            begins = {0, largest - size, *range(0, min(_TRIED.get(size, 0), largest - size), size)}
            products = ((begin, linear.product(rows[begin : begin + size].clone())) for begin in begins)
            if all(torch.equal(product, expected[begin : begin + size]) for begin, product in products):
                found.append(size)
        if len(found) > len(best):
            best = tuple(found)
        if 2 * len(best) > len(wanted):
            break  # no other order of summation can hold for more
    return best


@torch.inference_mode()
def attention_rule(runner: ModelRunner) -> AttentionRule | None:
    """The rule with the fewest query rows under which every call gives a row the same bits; None when there is none.

    Every number of query rows is tried, over key lengths that are multiples of the padding.
    """
    equal = {count for count in range(1, MAX_QUERY + 1) if _attends_equally(runner, count)}
    for least in _LEAST_QUERIES:
        rule = AttentionRule(KV_MULTIPLE, least, MAX_QUERY, QUERY_BLOCK)
        if all(count in equal for count in range(1, MAX_QUERY + 1) if rule.allows(count)):
            return rule
    return None


def _attends_equally(runner: ModelRunner, count: int) -> bool:
    """Whether calls of ``count`` query rows give each row what calls of a whole block give it, in any company."""
    shape, generator = runner.shape, torch.Generator().manual_seed(count)
    length = 2 * KV_MULTIPLE
    query, key, value = (
        torch.randn(1, min(shape.num_kv_heads, 2), rows, shape.head_dim, generator=generator).to(
            runner.device, runner.dtype
        )
        for rows in (count + QUERY_BLOCK, length, length)
    )
    seen = torch.randint(1, KV_MULTIPLE + 1, (query.shape[2], 1), generator=generator)
    seen[::2] += KV_MULTIPLE  # every other row looks into the second block
    hidden = (torch.arange(length) >= seen).to(runner.device)
    mask = torch.zeros(1, 1, query.shape[2], length, dtype=query.dtype, device=runner.device)
    mask.masked_fill_(hidden, float("-inf"))

    def attend(begin: int, end: int, keys: int, sequences: int = 1) -> Tensor:
        parts = [query[:, :, begin:end], key[:, :, :keys], value[:, :, :keys], mask[:, :, begin:end, :keys]]
        if sequences > 1:  # others before and after it
            parts = [torch.cat([part.flip(2), *[part] * (sequences - 2), part.flip(2)]) for part in parts]
        rows, past, content, bias = parts
        found = attention(rows, past, content, bias, shape.head_dim**-0.5, shape.softcap)
        return found if sequences == 1 else found[1:2]

    whole = [(begin, begin + QUERY_BLOCK) for begin in range(0, query.shape[2] - QUERY_BLOCK + 1, QUERY_BLOCK)]
    whole.append((query.shape[2] - QUERY_BLOCK, query.shape[2]))
    expected = torch.zeros_like(query)
    for begin, end in whole:
        expected[:, :, begin:end] = attend(begin, end, length)
    for begin in {0, QUERY_BLOCK // 3, QUERY_BLOCK}:
        rows = expected[:, :, begin : begin + count]
        if not torch.equal(attend(begin, begin + count, length), rows):
            return False
        short = attend(begin, begin + count, KV_MULTIPLE)[:, :, (begin + 1) % 2 :: 2]  # rows that see the first block
        if not torch.equal(short, rows[:, :, (begin + 1) % 2 :: 2]):
            return False
    return torch.equal(attend(0, count, length, 4), expected[:, :, :count])


def _row_counts(runner: ModelRunner, sizes: tuple[int, ...], least: int, max_rows: int) -> tuple[int, ...]:
    """Packed row counts up to the first that holds ``max_rows``: sums of ``sizes`` without scalar remainders."""
    largest, counts = sizes[-1], []
    for whole in range(0, max_rows + 1, largest):
        for size in sizes:
            rows = whole + size
            if rows >= least and _vectorises(runner, rows):
                counts.append(rows)
            if counts and counts[-1] >= max_rows:
                return tuple(counts)
    # Widths that never divide evenly: the self-check decides whether that matters.
    return tuple(whole + size for whole in range(0, max_rows + 1, largest) for size in sizes if whole + size >= least)


def _vectorises(runner: ModelRunner, rows: int) -> bool:
    """Whether element-wise loops over ``rows`` have no scalar remainder, on any of the threads."""
    for width in (runner.shape.intermediate, runner.shape.head_dim):
        total = rows * width
        parts = min(torch.get_num_threads(), math.ceil(total / _GRAIN))
        if total % (_VECTOR * parts):
            return False
    return True


@torch.inference_mode()
def bits_of(runner: ModelRunner, *, rows: int = 40) -> str:
    """SHA-256 of the logits of ``rows`` random tokens: machines whose kernels sum in other orders have other ones, be
    they called the same or not. Needs a free arena, and leaves it wiped.
    """
    rows = min(rows, runner.max_len)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, runner.shape.vocab_rows, (rows,), generator=generator).tolist()
    slot = runner.store.acquire()
    try:
        logits = runner.lm_head(runner.hidden(tokens, [Segment(slot, 0, rows, 0)]))
    finally:
        runner.store.release(slot, wipe=True)
    return hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()


@torch.inference_mode()
def self_check(runner: ModelRunner, *, length: int | None = None, rows: int = 128) -> int:
    """Positions of the real model whose logits differ between ways to compute them; 0 when the rule holds.

    The last ``rows`` of ``length`` positions are computed, upon random keys and values. None: just so many that the
    last ones need a second block of keys, or leave the first one out where layers have a window. Needs two free
    arenas, and leaves them wiped.
    """
    if length is None:
        length = KV_MULTIPLE + (runner.shape.window or 0) + 12
    length = min(length, runner.store.capacity)
    rows = min(rows, length)
    tail, start = min(8, rows // 2), length - rows
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, runner.shape.vocab_rows, (2, length), generator=generator).tolist()
    mine, other = runner.store.acquire(), runner.store.acquire()
    try:
        for layer in (*runner.store.keys, *runner.store.values):
            past = layer[mine, :, :start]
            past.copy_(torch.randn(past.shape, generator=generator))
        check = _Chunking(runner, mine, other, ids[0], ids[1], start)
        limit = (runner.row_sizes[-1] if runner.row_sizes else rows + 16) - 16  # room for neighbours and junk
        expected = check.run(_cut(rows, limit)[::-1], tail)  # the tail at the end of a long chunk
        body = rows - tail
        ways = [
            [*_cut(body, 64), *[1] * tail],  # decode
            [*_cut(body, 97), tail],  # odd chunks, one verify
            [min(7, body), *_cut(body - min(7, body), 50), 3, tail - 3],
            [*_cut(body - 5, 33), 1, 4, *_cut(tail, 2)],
        ]
        differing = torch.zeros(tail, dtype=torch.bool)
        for index, way in enumerate(ways):
            found = check.run([chunk for chunk in way if chunk > 0], tail, junk=index % 2 == 1)
            differing |= (found != expected).any(-1)
        return int(differing.sum())
    finally:
        runner.store.release(mine, wipe=True)
        runner.store.release(other, wipe=True)


def _cut(total: int, chunk: int) -> list[int]:
    return [min(chunk, total - begin) for begin in range(0, total, chunk)]


class _Chunking:
    """Computes one sequence from position ``start`` in given chunks, beside a neighbour."""

    def __init__(
        self, runner: ModelRunner, slot: int, other: int, tokens: list[int], neighbour: list[int], start: int
    ) -> None:
        self._runner, self._slot, self._other, self._start = runner, slot, other, start
        self._tokens, self._neighbour = tokens, neighbour

    def run(self, chunks: list[int], tail: int, *, junk: bool = False) -> Tensor:
        """Logits [tail, vocabulary] of the last positions. ``junk``: rejected drafts follow each chunk."""
        runner, position, kept = self._runner, self._start, list[Tensor]()
        for index, rows in enumerate(chunks):
            extra = index % 4 if junk else 0
            extra = min(extra, len(self._tokens) - position - rows)
            neighbours = self._neighbour[: (index * 5) % 13] if len(chunks) > 1 else []
            mine = self._tokens[position : position + rows] + self._neighbour[:extra]
            segments = [
                Segment(self._other, 0, len(neighbours), 0),
                Segment(self._slot, len(neighbours), len(neighbours) + len(mine), position),
            ]
            hidden = runner.hidden([*neighbours, *mine], [s for s in segments if s.end > s.begin])
            first = max(len(self._tokens) - tail - position, 0)
            if first < rows:
                begin = len(neighbours) + first
                kept.append(runner.lm_head(hidden[begin : begin + rows - first]))
            position += rows
        return torch.cat(kept)
