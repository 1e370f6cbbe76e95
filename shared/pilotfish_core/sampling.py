"""Coupled sampling of one row of logits: the specification, and a fast exact way to it (numpy, one thread).

Order of operations, in float64 from the logits on::

    adjusted = logits + logit_bias, then repetition, presence and frequency penalties; banned ids and ids from
               vocab_size on masked
    scaled   = (adjusted - max adjusted) / temperature
    order    = adjusted descending, equal ones by ascending id
    kept     = the longest common prefix of ``order`` under
               min_p   scaled >= log(min_p) - SLACK
               top_k   the first k
               top_p   of what min_p and top_k left: the smallest prefix whose mass reaches
                       top_p * (1 - SLACK) of theirs, the crossing token included
    token    = argmax over kept of scaled + G(seed, position, id); equal scores: the lowest id

SLACK (1e-10) makes sets with an exact answer (masses .4 .3 .2 .1, top_p .7) independent of an engine's
last bit. Temperature 0 is the first of ``order``; filters and noise play no part.

``filtered_logits`` is the plain reading of this. ``coupled_token`` and ``coupled_candidates`` give the same tokens
without sorting the vocabulary or making its noise: see ``pilotfish_core.race``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from pilotfish_core.errors import NumericalFailure
from pilotfish_core.noise import Floats, Ids
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.race import ROUNDING, SMALL, Logits, Race, largest, level_of, scaled_logits
from pilotfish_core.token_history import TokenHistory

__all__ = [
    "SLACK",
    "TokenHistory",
    "bias_by_id",
    "coupled_candidates",
    "coupled_token",
    "filtered_logits",
    "penalised",
    "token_logprobs",
]

SLACK: Final = 1e-10
_SPARE: Final = 6  # candidates beyond those asked for, so that top_p rarely needs a sort


def filtered_logits(
    logits: Logits,
    params: SamplingParams,
    *,
    history: TokenHistory | None = None,
    banned: Sequence[int] = (),
    vocab_size: int | None = None,
) -> Floats:
    """``scaled`` where kept and -inf elsewhere, float64 ``[vocab_size]``: the specification, plainly.

    The most likely token is at 0; softmax of the result is the target's distribution p. Temperature 0 leaves only
    the arg-max. ``history`` matters only with penalties (none: nothing seen). Raises NumericalFailure when a logit
    is NaN or +inf, or when nothing is left to choose.
    """
    adjusted, top = _adjusted(logits, params, history, banned, vocab_size)
    result = np.full(adjusted.size, -np.inf)
    if params.is_greedy:
        result[int(adjusted.argmax())] = 0.0
        return result
    order = np.argsort(-adjusted.astype(np.float64), kind="stable")
    scaled = scaled_logits(adjusted[order], top, params.temperature)
    kept = _kept_count(scaled, params)
    result[order[:kept]] = scaled[:kept]
    return result


def coupled_token(
    logits: Logits,
    params: SamplingParams,
    position: int,
    *,
    seed: int | None = None,
    history: TokenHistory | None = None,
    banned: Sequence[int] = (),
    vocab_size: int | None = None,
) -> int:
    """The token at ``position`` (index in prompt + output) under the shared noise.

    ``seed`` is ``params.seed`` unless given (sub-seeds of n > 1). Exact: equal to
    ``argmax(filtered_logits(...) + gumbel_row(...))``. Raises as ``filtered_logits``.
    """
    return coupled_candidates(
        logits, params, position, 1, seed=seed, history=history, banned=banned, vocab_size=vocab_size
    )[0]


def coupled_candidates(
    logits: Logits,
    params: SamplingParams,
    position: int,
    count: int,
    *,
    seed: int | None = None,
    history: TokenHistory | None = None,
    banned: Sequence[int] = (),
    vocab_size: int | None = None,
) -> list[int]:
    """The ``count`` best tokens by ``scaled + G``, best first; fewer when the filters keep fewer.

    Temperature 0: by adjusted logit. Exact, equal scores by lowest id. Raises as ``filtered_logits``.
    """
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1")
    adjusted, top = _adjusted(logits, params, history, banned, vocab_size)
    return _candidates(adjusted, top, params, count, params.seed if seed is None else seed, position)


def _candidates(
    adjusted: Logits, top: float, params: SamplingParams, count: int, seed: int, position: int
) -> list[int]:
    if params.is_greedy:
        if count == 1:
            return [int(adjusted.argmax())]  # numpy's arg-max is the first of equals
        best = largest(adjusted, count)
        best = best[np.argsort(-adjusted[best].astype(np.float64), kind="stable")]
        return [int(token) for token in best if adjusted[token] > -np.inf]
    race = Race(params.temperature, top, seed, position)
    ids, values = _after_min_p_and_top_k(race, adjusted, params)
    if params.top_p < 1.0:
        return _nucleus_candidates(race, ids, values, params, count)
    return _as_list(race.best(ids, values, count))


def token_logprobs(
    logits: Logits, tokens: Sequence[int], best: int, *, vocab_size: int | None = None
) -> tuple[list[float], list[tuple[int, float]]]:
    """Log-probabilities under the raw logits (no bias, penalty or filter; ids from ``vocab_size`` on excluded).

    Returns those of ``tokens``, and ``(id, logprob)`` of the ``best`` most likely, best first, ties by lowest id.
    """
    row, top = _checked(logits, vocab_size)
    shifted = row.astype(np.float64) - top
    log_total = math.log(float(np.exp(shifted).sum()))
    ids = largest(row, min(best, row.size)) if best else np.empty(0, dtype=np.int64)
    ids = ids[np.argsort(-row[ids].astype(np.float64), kind="stable")]  # shifted ones may have become equal
    return (
        [float(shifted[token]) - log_total for token in tokens],
        [(int(token), float(shifted[token]) - log_total) for token in ids if row[token] > -np.inf],
    )


def penalised(values: Floats, counts: Ids, params: SamplingParams) -> Floats:
    """Logits of seen tokens after the repetition, presence and frequency penalties (``counts``: in the output)."""
    values = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    values = values - np.where(counts > 0, params.presence_penalty, 0.0)
    result: Floats = values - params.frequency_penalty * counts
    return result


def adjusted_in_place(
    row: Floats, params: SamplingParams, seen: tuple[Ids, Ids] | None, banned: Sequence[int]
) -> float:
    """Bias, penalties and bans, on float64 logits; returns the largest. ``seen``: ids, and their counts in the output.

    Raises NumericalFailure as ``filtered_logits``.
    """
    for token, bias in bias_by_id(params, row.size).items():
        row[token] += bias
    if seen is not None:
        ids, counts = seen
        row[ids] = penalised(row[ids], counts, params)
    for token in banned:
        if token < row.size:
            row[token] = -np.inf
    top = float(row.max())
    if math.isnan(top) or top == math.inf:
        raise NumericalFailure("the penalties left logits that are not finite numbers", private=f"largest: {top}")
    if top == -math.inf:
        raise NumericalFailure("no token is left to choose from", private="all logits are masked")
    return top


def coupled_token_of_adjusted(adjusted: Logits, top: float, params: SamplingParams, seed: int, position: int) -> int:
    """The token at ``position`` by logits after bias, penalties and bans, the largest of which is ``top``."""
    return _candidates(adjusted, top, params, 1, seed, position)[0]


def bias_by_id(params: SamplingParams, vocab_size: int) -> dict[int, float]:
    """The logit bias of each id below ``vocab_size``; entries for one id add up in their order."""
    total: dict[int, float] = {}
    for token, bias in params.logit_bias:
        if token < vocab_size:
            total[token] = total.get(token, 0.0) + bias
    return total


def _nucleus_candidates(race: Race, ids: Ids | None, values: Logits, params: SamplingParams, count: int) -> list[int]:
    """Candidates under top_p, mostly without sorting: score a superset of the nucleus, then test its best."""
    if values.size > SMALL:
        mass = _Mass(race, values, params.top_p)
        for part in _likely_nuclei(values, race, params.top_p):
            weights = mass.each(values[part])
            if float(weights.sum()) >= mass.above * (1.0 + SLACK):
                break
        values = values[part]
        ids = part if ids is None else ids[part]
        wanted = count + _SPARE
        found = race.best(ids, values, wanted)
        places = np.searchsorted(ids, found)
        kept = []
        for token, place in zip(found.tolist(), places.tolist(), strict=True):
            before = values > values[place]
            before[:place] |= values[:place] == values[place]
            if mass.lies_above(float(weights[before].sum())):
                kept.append(token)
                if len(kept) == count:
                    return kept
        if found.size < wanted:
            return kept
        order = np.argsort(-values.astype(np.float64), kind="stable")
        reached = int(np.searchsorted(np.cumsum(weights[order]), mass.exact())) + 1
        order = np.sort(order[:reached])
        return _as_list(race.best(ids[order], values[order], count))
    order = np.argsort(-values.astype(np.float64), kind="stable")
    kept_count = _kept_count(race.scaled(values[order]), params)
    order = np.sort(order[:kept_count])
    return _as_list(race.best(order if ids is None else ids[order], values[order], count))


def _as_list(tokens: Ids) -> list[int]:
    return [int(token) for token in tokens]


class _Mass:
    """The mass that a nucleus has to reach, out of softmax numerators of adjusted logits.

    Exponentials of a whole vocabulary cost more in float64 than all else, so the total is first taken in float32: an
    exponent above -30 is off by at most 30 x 2^-23, what lies below weighs nothing. Only what falls between ``below``
    and ``above`` needs the exact one.
    """

    PIECE: Final = 16_384  # values, whose exponentials stay in the cache
    ERROR: Final = 2e-5  # relative; 30 x 2^-23 is 4e-6

    def __init__(self, race: Race, values: Logits, top_p: float) -> None:
        self._race, self._values = race, values
        self._share = top_p * (1.0 - SLACK)
        with np.errstate(over="ignore", under="ignore"):
            near = self._share * math.fsum(self._quickly(piece) for piece in self._pieces())
        self.below, self.above = near * (1.0 - self.ERROR), near * (1.0 + self.ERROR)

    def each(self, values: Logits) -> Floats:
        """The numerators, float64."""
        return np.exp(self._race.scaled(values))

    def exact(self) -> float:
        """The mass to reach."""
        total = math.fsum(float(self.each(piece).sum()) for piece in self._pieces())
        self.below = self.above = self._share * total
        return self.above

    def lies_above(self, mass: float) -> bool:
        """Whether ``mass`` does not reach it."""
        if self.below <= mass < self.above:
            return mass < self.exact()
        return mass < self.below

    def _pieces(self) -> Iterator[Logits]:
        return (self._values[i : i + self.PIECE] for i in range(0, self._values.size, self.PIECE))

    def _quickly(self, piece: Logits) -> float:
        scaled = np.empty(piece.size, dtype=np.float32)
        np.subtract(piece, self._race.top, out=scaled, casting="same_kind")
        np.divide(scaled, self._race.temperature, out=scaled)
        np.exp(scaled, out=scaled)
        return float(scaled.sum(dtype=np.float64))


def _likely_nuclei(values: Logits, race: Race, top_p: float) -> Iterator[Ids]:
    """Ever larger sets of indices, by value: a few, what a sample of the values suggests, all. The first that has
    the mass is a superset of the nucleus.
    """
    yield np.flatnonzero(values >= level_of(values, SMALL // 4))
    sample = np.sort(values[:: max(1, values.size // 2048)])[::-1]
    mass = np.cumsum(np.exp(race.scaled(sample)))
    share = top_p + 0.3 * (1.0 - top_p)
    place = min(sample.size - 1, int(np.searchsorted(mass, share * mass[-1])) + 16)
    yield np.flatnonzero(values >= max(sample[place], np.finfo(values.dtype).min))
    yield np.flatnonzero(values > -np.inf)


def _checked(logits: Logits, vocab_size: int | None) -> tuple[Logits, float]:
    """The row below ``vocab_size`` as float32 or float64, and its largest logit."""
    if logits.ndim != 1 or logits.size < (vocab_size or 1):
        raise ValueError(f"logits have shape {logits.shape}; expected [at least {vocab_size or 1}]")
    row = logits[:vocab_size]
    if row.dtype not in (np.float32, np.float64):
        row = row.astype(np.float32 if row.dtype == np.float16 else np.float64)
    top = float(row.max())  # NaN propagates
    if math.isnan(top) or top == math.inf:
        raise NumericalFailure("the model produced logits that are not finite numbers", private=f"largest: {top}")
    if top == -math.inf:
        raise NumericalFailure("no token is left to choose from", private="all logits are -inf")
    return row, top


def _adjusted(
    logits: Logits,
    params: SamplingParams,
    history: TokenHistory | None,
    banned: Sequence[int],
    vocab_size: int | None,
) -> tuple[Logits, float]:
    """Logits after bias, penalties and bans, and the largest. Not copied when none applies."""
    row, top = _checked(logits, vocab_size)
    penalties = history is not None and params.has_penalties
    if not (penalties or params.logit_bias or banned):
        return row, top
    row = row.astype(np.float64)  # copies
    seen = history.seen(row.size) if penalties and history is not None else None
    return row, adjusted_in_place(row, params, seen, banned)


def _kept_count(scaled: Floats, params: SamplingParams) -> int:
    """How many of the descending ``scaled`` logits min_p, top_k and top_p keep."""
    kept = int(np.count_nonzero(scaled > -np.inf))
    if params.min_p > 0.0:
        kept = int(np.count_nonzero(scaled >= math.log(params.min_p) - SLACK))
    if params.top_k:
        kept = min(kept, params.top_k)
    if params.top_p < 1.0:
        mass = np.cumsum(np.exp(scaled[:kept]))
        kept = min(kept, int(np.searchsorted(mass, params.top_p * (1.0 - SLACK) * mass[-1])) + 1)
    return kept


def _after_min_p_and_top_k(race: Race, adjusted: Logits, params: SamplingParams) -> tuple[Ids | None, Logits]:
    """Ids (ascending; None: all) and adjusted logits of what min_p and top_k keep."""
    ids: Ids | None = None
    if params.min_p > 0.0:
        limit = math.log(params.min_p) - SLACK
        ids = np.flatnonzero(adjusted >= race.floor_of(limit - ROUNDING, adjusted.dtype))
        ids = ids[race.scaled(adjusted[ids]) >= limit]
    values = adjusted if ids is None else adjusted[ids]
    if 0 < params.top_k < values.size:
        picks = largest(values, params.top_k)
        ids = picks if ids is None else ids[picks]
        values = values[picks]
    return ids, values
