"""Coupled sampling of many rows together in numpy: the same tokens as ``sampling.coupled_token`` gives, row by row.

With a small vocabulary one row costs more in calls than in arithmetic, so rows are taken together: noise for every
token of every row. Under top_p the best of all tokens is the best of the nucleus if it lies within, which the mass of
what is likelier tells without a sort. Where it does not, or where rounding could decide, and under top_k and min_p,
which leave few tokens to make noise for, a row goes its own way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from pilotfish_core.errors import NumericalFailure
from pilotfish_core.noise import Floats, Ids, gumbel_of_words, words_rows
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.race import Logits
from pilotfish_core.sampling import SLACK, adjusted_in_place, coupled_token_of_adjusted

_PIECE: Final = 32_768  # logits taken at a time, whose buffers stay in the cache
_UNSURE: Final = 1e-9  # relative: sums in another order differ by less


@dataclasses.dataclass(frozen=True, slots=True)
class SampleRow:
    """What belongs to one row of logits: parameters, the noise's seed and position, seen ids with their counts in the
    output (penalties only), ids that may not come."""

    params: SamplingParams
    seed: int
    position: int
    seen: tuple[Ids, Ids] | None = None
    banned: Sequence[int] = ()


def coupled_tokens(logits: Logits, rows: Sequence[SampleRow]) -> list[int | NumericalFailure]:
    """The token of each row, or why it has none. ``logits``: ``[rows, vocabulary]``, float32 or float64, unchanged."""
    step = max(1, _PIECE // max(1, logits.shape[1]))
    return [
        outcome
        for start in range(0, len(rows), step)
        for outcome in _tokens(logits[start : start + step], rows[start : start + step])
    ]


def _tokens(logits: Logits, rows: Sequence[SampleRow]) -> list[int | NumericalFailure]:
    outcomes: list[int | NumericalFailure] = [-1] * len(rows)
    top = logits.max(axis=1).astype(np.float64)
    values = logits.astype(np.float64)
    for i in np.flatnonzero(~(np.abs(top) < math.inf)).tolist():  # NaN, too
        none_left = top[i] == -math.inf
        outcomes[i] = NumericalFailure(
            "no token is left to choose from" if none_left else "the model produced logits that are not finite numbers",
            private=f"largest: {top[i]}",
        )
    for i, row in enumerate(rows):
        if row.seen is not None or row.banned or row.params.logit_bias:
            if outcomes[i] != -1:
                continue
            try:
                top[i] = adjusted_in_place(values[i], row.params, row.seen, row.banned)
            except NumericalFailure as error:
                outcomes[i] = error
    fine = [i for i, outcome in enumerate(outcomes) if outcome == -1]
    together = [i for i in fine if _is_raced(rows[i].params)]
    if together:
        every = len(together) == len(rows)
        tokens = _raced(
            values if every else values[together], top if every else top[together], [rows[i] for i in together]
        )
        for i, token in zip(together, tokens, strict=True):
            outcomes[i] = token
    for i in fine:
        if outcomes[i] == -1:
            outcomes[i] = _alone(values[i], top[i], rows[i])
    return outcomes


def _is_raced(params: SamplingParams) -> bool:
    return not (params.is_greedy or params.top_k or params.min_p > 0.0)


def _alone(values: Floats, top: float, row: SampleRow) -> int:
    return coupled_token_of_adjusted(values, float(top), row.params, row.seed, row.position)


def _raced(values: Floats, top: Floats, rows: Sequence[SampleRow]) -> list[int]:
    """Tokens of rows with a temperature, from adjusted logits and the largest of each; -1 where it is not sure."""
    scaled = values - top[:, None]
    with np.errstate(over="ignore"):
        scaled /= np.array([row.params.temperature for row in rows])[:, None]
    scores = gumbel_of_words(words_rows([row.seed for row in rows], [row.position for row in rows], values.shape[1]))
    scores += scaled
    tokens: list[int] = scores.argmax(axis=1).tolist()  # the first of equals
    for i, (token, row) in enumerate(zip(tokens, rows, strict=True)):
        if row.params.top_p < 1.0 and not _in_nucleus(token, values[i], scaled[i], row.params.top_p):
            tokens[i] = -1
    return tokens


def _in_nucleus(token: int, values: Floats, scaled: Floats, top_p: float) -> bool:
    """Whether ``token`` surely lies in it."""
    before = values > values[token]
    before[:token] |= values[:token] == values[token]
    weights = np.exp(scaled)
    total = float(weights.sum())
    return float(weights[before].sum()) < (top_p * (1.0 - SLACK) - _UNSURE) * total
