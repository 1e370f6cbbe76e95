"""Coupled sampling of many rows together in torch, for logits that live on an accelerator.

The twin of ``pilotfish_core.sampling`` (the specification; read its docstring first). Rows may differ in every
parameter. A row's bits depend on that row alone: sums run in a fixed order of element-wise additions instead of a
kernel whose split depends on the number of rows, and everything else is element-wise, a maximum or an integer count.

Three kinds of rows: greedy (a maximum and its lowest id); filtered (the best PREFIX logits hold all that can be
kept, or, rarely and exactly, a full sort follows); unfiltered (the noise of the whole row).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pilotfish_core.drafts import TokenLogprobs
from pilotfish_core.errors import NumericalFailure
from pilotfish_core.noise import LANES, MASK32, MULTIPLIERS, round_keys, split64
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.row_sampling import SampleRow
from pilotfish_core.sampling import SLACK, bias_by_id

PREFIX = 1024
CHUNK = 2**24  # logits in float64 at a time: 128 MiB


Outcome = tuple[int, TokenLogprobs | None] | NumericalFailure


def sample_batch(logits: Tensor, rows: Sequence[SampleRow]) -> list[Outcome]:
    """Token (and logprobs where asked for) or failure of each row. ``logits``: ``[rows, vocabulary]``, unpadded."""
    size = max(1, CHUNK // logits.shape[1])
    outcomes: list[Outcome] = []
    for start in range(0, len(rows), size):
        outcomes += _sample_chunk(logits[start : start + size], rows[start : start + size])
    return outcomes


def philox(blocks: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Philox4x32-10 words of each row's key and position. ``blocks``: int64 ``[rows or 1, n]``; ``[rows, n, 4]``.

    int64 products wrap, so their low 64 bits are right and a shift needs a mask.
    """
    positions = [split64("position", row.position) for row in rows]
    keys = torch.tensor([round_keys(split64("seed", row.seed)) for row in rows], device=blocks.device)
    c1, c2 = torch.tensor(positions, device=blocks.device).T.unsqueeze(-1)
    c0, c3 = blocks, torch.zeros_like(c1)
    for k0, k1 in keys.permute(1, 2, 0).unsqueeze(-1):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & MASK32) ^ c1 ^ k0, ((p0 >> 32) & MASK32) ^ c3 ^ k1
        c1, c3 = p1 & MASK32, p0 & MASK32
    return torch.stack([c0, c1, c2, c3], dim=-1)


def gumbel(words: Tensor) -> Tensor:
    """Standard Gumbel variates of 32-bit words (int64), float64."""
    return -torch.log(-torch.log((words.to(torch.float64) + 0.5) * 2.0**-32))


def row_sums(values: Tensor) -> Tensor:
    """Sums over the last dimension of ``[rows, n]`` in an order that depends on n only."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        if values.shape[1] % 2:
            folded[:, :1] += values[:, -1:]
        values = folded
    return values[:, 0]


def running_sums(values: Tensor) -> Tensor:
    """Inclusive running sums over the last dimension of ``[rows, n]`` in an order that depends on n only."""
    shift = 1
    while shift < values.shape[1]:
        values = torch.cat([values[:, :shift], values[:, shift:] + values[:, :-shift]], dim=1)
        shift *= 2
    return values


def _sample_chunk(logits: Tensor, rows: Sequence[SampleRow]) -> list[Outcome]:
    adjusted = logits.to(torch.float64, copy=True)
    raw_top = adjusted.amax(dim=1)  # NaN propagates
    bad = ~(raw_top < math.inf)
    _adjust(adjusted, rows)
    top = adjusted.amax(dim=1)
    masked = ~bad & (top == -math.inf)
    adjusted[bad | masked] = 0.0  # harmless values in rows that fail below
    top = torch.where(bad | masked, 0.0, top)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    for kind in (_greedy, _filtered, _unfiltered):
        chosen = [i for i, row in enumerate(rows) if _kind(row.params) is kind]
        if chosen:
            index = torch.tensor(chosen, device=logits.device)
            tokens[index] = kind(adjusted[index], top[index], [rows[i] for i in chosen])
    logprobs = _logprobs(logits, rows, tokens, bad | masked)
    outcomes: list[Outcome] = []
    for i, (token, is_bad, is_masked) in enumerate(zip(tokens.tolist(), bad.tolist(), masked.tolist(), strict=True)):
        if is_bad:
            outcomes.append(NumericalFailure("the model produced logits that are not finite numbers"))
        elif is_masked:
            outcomes.append(NumericalFailure("no token is left to choose from", private="all logits are masked"))
        else:
            outcomes.append((token, logprobs.get(i)))
    return outcomes


def _kind(params: SamplingParams) -> Callable[[Tensor, Tensor, Sequence[SampleRow]], Tensor]:
    if params.is_greedy:
        return _greedy
    return _filtered if params.top_k or params.top_p < 1.0 or params.min_p > 0.0 else _unfiltered


def _adjust(logits: Tensor, rows: Sequence[SampleRow]) -> None:
    """Bias, penalties and bans, in place, touching only the ids concerned."""
    vocab, device = logits.shape[1], logits.device
    flat = logits.view(-1)
    biases = [
        (i * vocab + token, bias) for i, row in enumerate(rows) for token, bias in bias_by_id(row.params, vocab).items()
    ]
    if biases:
        index = torch.tensor([place for place, _ in biases], device=device)
        flat[index] += torch.tensor([bias for _, bias in biases], dtype=torch.float64, device=device)
    for i, row in enumerate(rows):
        if row.seen is not None:
            ids, counts = (torch.from_numpy(part).to(device) for part in row.seen)
            values, params = logits[i, ids], row.params
            values = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
            values = values - (counts > 0).to(torch.float64) * params.presence_penalty
            logits[i, ids] = values - params.frequency_penalty * counts.to(torch.float64)
    bans = [i * vocab + token for i, row in enumerate(rows) for token in row.banned if token < vocab]
    if bans:
        flat[torch.tensor(bans, device=device)] = -math.inf


def _greedy(adjusted: Tensor, top: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    ids = torch.arange(adjusted.shape[1], device=adjusted.device)
    return torch.where(adjusted == top[:, None], ids, adjusted.shape[1]).amin(dim=1)


def _unfiltered(adjusted: Tensor, top: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    vocab = adjusted.shape[1]
    blocks = torch.arange(-(-vocab // LANES), device=adjusted.device)[None]
    noise = gumbel(philox(blocks, rows).reshape(len(rows), -1)[:, :vocab])
    ids = torch.arange(vocab, device=adjusted.device).expand_as(adjusted)
    return _best(_scaled(adjusted, top, rows) + noise, ids)


def _filtered(adjusted: Tensor, top: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    vocab = adjusted.shape[1]
    width = min(PREFIX, vocab)
    values, ids = torch.topk(adjusted, width, dim=1)
    # Equal logits by ascending id: topk's own order among them is not defined.
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    scaled = _scaled(values, top, rows)
    kept, total_needed = _kept_by_min_p_and_top_k(scaled, rows, vocab)
    totals = _full_mass(adjusted, top, rows, total_needed)
    kept = _kept_by_top_p(scaled, kept, rows, totals)
    tokens = _choose(scaled, ids, kept, rows)
    if width == vocab:
        return tokens
    # All that is kept, and all that equals the last of it, must lie within the prefix, and top_k's cut as well.
    inside = values[:, -1:] < values.gather(1, kept[:, None] - 1)
    inside[:, 0] &= torch.tensor([row.params.top_k < width for row in rows], device=values.device)
    outside = (~inside[:, 0]).nonzero()[:, 0].tolist()
    if outside:
        some = [rows[i] for i in outside]
        values, ids = adjusted[outside].sort(dim=1, descending=True, stable=True)
        scaled = _scaled(values, top[outside], some)
        kept, _ = _kept_by_min_p_and_top_k(scaled, some, vocab)
        tokens[outside] = _choose(scaled, ids, _kept_by_top_p(scaled, kept, some, {}), some)
    return tokens


def _kept_by_min_p_and_top_k(scaled: Tensor, rows: Sequence[SampleRow], vocab: int) -> tuple[Tensor, list[int]]:
    """How many of the descending logits are kept, int64 ``[rows]``; and which rows' mass reaches past the prefix."""
    limits = [math.log(row.params.min_p) - SLACK if row.params.min_p else -math.inf for row in rows]
    kept = ((scaled >= _column(limits, scaled)) & (scaled > -math.inf)).sum(dim=1)
    top_k = torch.tensor([row.params.top_k or vocab for row in rows], device=scaled.device)
    kept = torch.minimum(kept, top_k)
    if scaled.shape[1] == vocab:
        return kept, []
    full = (kept == scaled.shape[1]).tolist()
    return kept, [i for i, row in enumerate(rows) if full[i] and row.params.top_p < 1.0 and not row.params.top_k]


def _full_mass(adjusted: Tensor, top: Tensor, rows: Sequence[SampleRow], chosen: list[int]) -> dict[int, Tensor]:
    """Mass of what min_p leaves of the chosen rows, over the whole vocabulary."""
    if not chosen:
        return {}
    some = [rows[i] for i in chosen]
    scaled = _scaled(adjusted[chosen], top[chosen], some)
    limits = [math.log(row.params.min_p) - SLACK if row.params.min_p else -math.inf for row in some]
    mass = row_sums(torch.where(scaled >= _column(limits, scaled), scaled.exp(), 0.0))
    return dict(zip(chosen, mass, strict=True))


def _kept_by_top_p(scaled: Tensor, kept: Tensor, rows: Sequence[SampleRow], totals: dict[int, Tensor]) -> Tensor:
    if all(row.params.top_p == 1.0 for row in rows):
        return kept
    mass = running_sums(scaled.exp())
    total = mass.gather(1, kept[:, None] - 1)
    for i, value in totals.items():
        total[i] = value
    # As the core: top_p * (1 - SLACK) * total. Without top_p the target is out of reach.
    shares = [row.params.top_p * (1.0 - SLACK) if row.params.top_p < 1.0 else math.inf for row in rows]
    reached = (mass < _column(shares, scaled) * total).sum(dim=1) + 1
    return torch.minimum(kept, reached)


def _choose(scaled: Tensor, ids: Tensor, kept: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The winner among the first ``kept`` of ``ids`` ``[rows, n]``."""
    width = min(scaled.shape[1], 1 << (int(kept.max()) - 1).bit_length())
    scaled, ids = scaled[:, :width], ids[:, :width]
    words = philox(ids >> 2, rows).gather(2, (ids & 3)[..., None])[..., 0]
    within = torch.arange(width, device=ids.device) < kept[:, None]
    return _best(torch.where(within, scaled + gumbel(words), -math.inf), ids)


def _best(scores: Tensor, ids: Tensor) -> Tensor:
    """The id of each row's best score, equal ones by lowest id."""
    return torch.where(scores == scores.amax(dim=1, keepdim=True), ids, 2**62).amin(dim=1)


def _scaled(adjusted: Tensor, top: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    return (adjusted - top[:, None]) / _column([row.params.temperature for row in rows], adjusted)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _logprobs(logits: Tensor, rows: Sequence[SampleRow], tokens: Tensor, bad: Tensor) -> dict[int, TokenLogprobs]:
    """Log-probabilities under the raw logits, by row, of the rows that ask for them."""
    chosen = [i for i, row in enumerate(rows) if row.params.logprobs is not None and not bool(bad[i])]
    if not chosen:
        return {}
    left = logits[chosen].to(torch.float64)
    top = left.amax(dim=1, keepdim=True)
    total = row_sums((left - top).exp()).log()[:, None]
    own = (left.gather(1, tokens[chosen][:, None]) - top - total)[:, 0].tolist()
    count = min(logits.shape[1], max(rows[i].params.logprobs or 0 for i in chosen))
    found = []
    for _ in range(count):  # at most 20; each pass takes the best, of equals the lowest id
        best = left.amax(dim=1, keepdim=True)
        ids = torch.arange(logits.shape[1], device=logits.device)
        place = torch.where(left == best, ids, logits.shape[1]).amin(dim=1, keepdim=True)
        found.append(torch.cat([place.to(torch.float64), best - top - total], dim=1))
        left = left.scatter(1, place, -math.inf)
    best_lists = torch.stack(found, dim=1).tolist() if found else [[] for _ in chosen]
    return {
        i: TokenLogprobs(
            own[j], tuple((int(a), b) for a, b in best_lists[j][: rows[i].params.logprobs or 0] if b > -math.inf)
        )
        for j, i in enumerate(chosen)
    }
