"""Rows taken together give what each gives alone."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilotfish_core.errors import NumericalFailure
from pilotfish_core.noise import words_row, words_rows
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.row_sampling import SampleRow, coupled_tokens
from pilotfish_core.sampling import TokenHistory, coupled_token, filtered_logits

UINT64 = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(st.lists(st.tuples(UINT64, UINT64), min_size=1, max_size=5), st.sampled_from([1, 3, 4, 257, 20_000]))
def test_the_noise_of_rows_is_that_of_each(places: list[tuple[int, int]], vocab: int) -> None:
    words = words_rows([seed for seed, _ in places], [position for _, position in places], vocab)
    for found, (seed, position) in zip(words, places, strict=True):
        assert (found == words_row(seed, position, vocab)).all()


@st.composite
def rows(draw: st.DrawFn, vocab: int) -> tuple[SampleRow, TokenHistory]:
    ids = st.lists(st.integers(0, vocab + 3), max_size=5)
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0, 1e-12])),
        top_k=draw(st.sampled_from([0, 0, 0, 5])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.95, 0.7, 0.5, 0.01])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        logit_bias=draw(st.sampled_from([(), ((1, 2.0), (999_999, 3.0))])),
    )
    history = TokenHistory(draw(ids), draw(ids))
    seen = history.seen(vocab) if params.has_penalties else None
    return SampleRow(params, draw(UINT64), draw(st.integers(0, 2**33)), seen, draw(ids)), history


@settings(deadline=None, max_examples=150)
@given(
    st.data(),
    st.integers(0, 2**31),
    st.sampled_from([1, 4, 30, 2500]),
    st.sampled_from(["normal", "flat", "steps", "equal", "masked", "broken"]),
    st.sampled_from([np.float32, np.float64]),
)
def test_together_as_alone(data: st.DataObject, number: int, vocab: int, shape: str, dtype: type) -> None:
    chosen = data.draw(st.lists(rows(vocab), min_size=1, max_size=9))
    logits: NDArray[Any] = (np.random.default_rng(number).standard_normal((len(chosen), vocab)) * 3).astype(dtype)
    if shape == "flat":
        logits *= 0.001
    elif shape == "steps":
        logits = logits.round()
    elif shape == "equal":
        logits[:] = 1.0
    elif shape == "masked":
        logits[logits < 2] = -math.inf
    elif shape == "broken":
        logits[::2, number % vocab] = (math.nan, math.inf)[number % 2]
    before = logits.copy()
    found = coupled_tokens(logits, [row for row, _ in chosen])
    assert np.array_equal(logits, before, equal_nan=True)
    for outcome, values, (row, history) in zip(found, logits, chosen, strict=True):
        alone = functools.partial(
            coupled_token, values, row.params, row.position, seed=row.seed, history=history, banned=row.banned
        )
        if isinstance(outcome, NumericalFailure):
            with pytest.raises(NumericalFailure) as failure:
                alone()
            assert str(failure.value) == str(outcome)
        else:
            assert outcome == alone()


def test_draws_follow_the_filtered_distribution() -> None:
    """30,000 rows at once, against the softmax of the specification."""
    count = 30_000
    logits = np.array([2.0, 1.5, 1.5, 0.3, 0.0, -0.4, -1.0, 1.1])
    params = SamplingParams(temperature=0.9, top_p=0.9)
    drawn = coupled_tokens(
        np.broadcast_to(logits, (count, 8)), [SampleRow(params, 4, position) for position in range(count)]
    )
    p = np.exp(filtered_logits(logits, params))
    p /= p.sum()
    counts = np.bincount([token for token in drawn if isinstance(token, int)], minlength=8)
    assert counts.sum() == count
    assert not counts[p == 0].any()
    error = counts - count * p
    assert (error[p > 0] ** 2 / (count * p[p > 0])).sum() < 25  # chi-square with 5 degrees: 1e-4


def test_no_rows() -> None:
    assert coupled_tokens(np.zeros((0, 5), np.float32), []) == []
