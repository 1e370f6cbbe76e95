import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pilotfish_core.errors import InvalidParameter, NumericalFailure
from pilotfish_core.noise import gumbel_row
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import (
    TokenHistory,
    coupled_candidates,
    coupled_token,
    filtered_logits,
    token_logprobs,
)

KEEP_ALL = SamplingParams()


def kept(logits: Any, params: SamplingParams, **more: Any) -> list[int]:
    """Ids that the filters keep."""
    result = filtered_logits(np.asarray(logits, dtype=np.float64), params, **more)
    return np.flatnonzero(result > -np.inf).tolist()


def by_definition(logits: Any, params: SamplingParams, position: int, count: int, **more: Any) -> list[int]:
    """Candidates read off the plain specification."""
    if params.is_greedy:
        plain = dataclasses.replace(params, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
        scores = filtered_logits(logits, plain, **more)
    else:
        scores = filtered_logits(logits, params, **more)
        scores = scores + gumbel_row(params.seed, position, scores.size)
    order = np.argsort(-scores, kind="stable")[:count]
    return [int(token) for token in order if scores[token] > -np.inf]


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.1, 0.8, 1.0, 3.0, 1e-12])),
        top_k=draw(st.sampled_from([0, 0, 1, 5, 40, 1500])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.01])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 1.5, -0.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.3, -2.0])),
        logit_bias=draw(st.sampled_from([(), ((3, 4.0), (70_000, 1.0)), ((0, -100.0), (1, 0.5), (0, 1.0))])),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    sampling_params(),
    st.integers(0, 2**31),
    st.sampled_from([1, 3, 17, 1025, 3000, 9001]),
    st.sampled_from(["normal", "flat", "constant", "peaked", "steps", "masked"]),
    st.sampled_from([np.float32, np.float64, np.float16]),
    st.integers(1, 9),
)
def test_the_fast_way_equals_the_specification(
    params: SamplingParams, number: int, size: int, shape: str, dtype: type, count: int
) -> None:
    random = np.random.default_rng(number)
    logits = random.standard_normal(size) * random.choice([1.0, 2.5, 6.0])
    if shape == "flat":
        logits *= 0.001
    elif shape == "constant":
        logits[:] = logits[0]
    elif shape == "peaked":
        logits[random.integers(0, size, 5)] += 15
    elif shape == "steps":
        logits = np.round(logits)
    elif shape == "masked":
        logits[random.random(size) < 0.9] = -np.inf
        logits[size // 2] = 1.0
    logits = logits.astype(dtype)
    more: dict[str, Any] = {
        "history": TokenHistory(random.integers(0, size + 9, 40).tolist(), random.integers(0, size, 9).tolist()),
        "banned": [] if size < 9 else [token for token in random.integers(0, size, 3).tolist() if token != size // 2],
        "vocab_size": size if size < 9 else size - 2,
    }
    expected = by_definition(logits, params, number, count, **more)
    assert coupled_candidates(logits, params, number, count, **more) == expected
    assert coupled_token(logits, params, number, **more) == expected[0]


@pytest.mark.parametrize("shape", ["std 2.5", "peaked", "flat", "constant", "one far above"])
@pytest.mark.parametrize(
    "params",
    [
        KEEP_ALL,
        SamplingParams(temperature=0.8, top_p=0.95, top_k=50),
        SamplingParams(temperature=0.8, top_p=0.95),
        SamplingParams(top_p=0.2),
        SamplingParams(min_p=0.001, top_p=0.99),
        SamplingParams(top_k=30_000),
        SamplingParams(temperature=100.0),
    ],
)
def test_the_fast_way_is_exact_at_a_full_vocabulary(shape: str, params: SamplingParams) -> None:
    size = 151_936
    random = np.random.default_rng(1)
    logits = random.standard_normal(size).astype(np.float32) * np.float32(2.5)
    if shape == "peaked":
        logits[random.integers(0, size, 40)] += random.uniform(8, 18, 40).astype(np.float32)
    elif shape == "flat":
        logits *= np.float32(0.01)
    elif shape == "constant":
        logits[:] = 3.0
    elif shape == "one far above":
        logits[77_777] = 60.0
    for position in range(2):
        expected = by_definition(logits, params, position, 4)
        assert coupled_candidates(logits, params, position, 4) == expected
        assert coupled_token(logits, params, position) == expected[0]


def test_filters_in_small() -> None:
    logits = np.log([0.4, 0.1, 0.3, 0.2])
    assert kept(logits, KEEP_ALL) == [0, 1, 2, 3]
    assert kept(logits, SamplingParams(top_k=2)) == [0, 2]
    assert kept(logits, SamplingParams(top_p=0.5)) == [0, 2]  # the crossing token is included
    assert kept(logits, SamplingParams(top_p=0.7)) == [0, 2]  # 0.4 + 0.3 reaches 0.7 whatever the rounding
    assert kept(logits, SamplingParams(top_p=0.71)) == [0, 2, 3]
    assert kept(logits, SamplingParams(top_p=1e-9)) == [0]
    assert kept(logits, SamplingParams(min_p=0.5)) == [0, 2, 3]
    assert kept(logits, SamplingParams(min_p=0.51)) == [0, 2]
    assert kept(logits, SamplingParams(min_p=1.0)) == [0]
    # top_p counts what top_k left: 0.4 / 0.7 is more than 0.55.
    assert kept(logits, SamplingParams(top_k=2, top_p=0.55)) == [0]
    assert kept(logits, SamplingParams(temperature=0.0)) == [0]


def test_the_most_likely_token_always_stays() -> None:
    """SpecEdge's mask removed it."""
    logits = np.array([0.0, 9.0, 1.0])
    for params in (SamplingParams(top_p=1e-6), SamplingParams(top_k=1), SamplingParams(min_p=1.0)):
        assert kept(logits, params) == [1]


def test_ties_go_to_the_lowest_ids() -> None:
    logits = np.array([1.0, 2.0, 2.0, 2.0, 1.0])
    assert kept(logits, SamplingParams(top_k=2)) == [1, 2]
    assert kept(logits, SamplingParams(top_k=4)) == [0, 1, 2, 3]
    assert kept(logits, SamplingParams(top_p=0.5)) == [1, 2]
    greedy = SamplingParams(temperature=0.0)
    assert coupled_token(logits, greedy, 0) == 1
    assert coupled_candidates(logits, greedy, 0, 4) == [1, 2, 3, 0]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_nucleus_that_ends_where_a_quick_sum_cannot_tell(share: float) -> None:
    """Equal masses: whether the token after the nucleus belongs to it is a question of the last bits."""
    logits = np.zeros(4096, dtype=np.float32)
    params = SamplingParams(top_p=share)
    inside = int(4096 * share)
    assert kept(logits, params) == list(range(inside))
    for position in range(40):
        expected = by_definition(logits, params, position, 5)
        assert coupled_candidates(logits, params, position, 5) == expected
        assert max(expected) < inside


def test_temperature_comes_before_min_p_and_after_penalties() -> None:
    logits = np.array([2.0, 0.0])
    assert kept(logits, SamplingParams(min_p=0.2)) == [0]
    assert kept(logits, SamplingParams(min_p=0.2, temperature=2.0)) == [0, 1]
    scaled = filtered_logits(
        logits, SamplingParams(temperature=2.0, presence_penalty=1.0), history=TokenHistory((), (0,))
    )
    assert scaled.tolist() == [0.0, -0.5]


def test_penalties() -> None:
    logits = np.array([2.0, -2.0, 2.0, 4.0])
    history = TokenHistory(prompt=[0, 1, 1], output=[2, 2])

    def difference(**values: float) -> list[float]:
        params = SamplingParams(**values)  # type: ignore[arg-type]
        return [float(value) + 4.0 for value in filtered_logits(logits, params, history=history)]

    assert difference(repetition_penalty=2.0) == [1.0, -4.0, 1.0, 4.0]
    assert difference(presence_penalty=0.5) == [2.0, -2.0, 1.5, 4.0]
    assert difference(frequency_penalty=0.5) == [2.0, -2.0, 1.0, 4.0]
    assert difference(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25) == [1.0, -4.0, 0.0, 4.0]


def test_bias_applies_before_the_repetition_penalty_and_adds_up() -> None:
    params = SamplingParams(logit_bias=((0, 3.0), (0, 1.0), (9, 5.0)), repetition_penalty=2.0)
    scaled = filtered_logits(np.array([-2.0, 4.0]), params, history=TokenHistory([0]))
    assert scaled.tolist() == [-3.0, 0.0]  # (-2 + 4) / 2 = 1, and 4


def test_banned_ids_and_padding_never_come() -> None:
    logits = np.array([1.0, 5.0, 2.0, 9.0])
    assert kept(logits, KEEP_ALL, banned=[1, 77], vocab_size=3) == [0, 2]
    assert coupled_token(logits, SamplingParams(temperature=0.0), 0, banned=[1], vocab_size=3) == 2
    assert coupled_candidates(logits, KEEP_ALL, 0, 9, banned=[1], vocab_size=3) in ([0, 2], [2, 0])


@pytest.mark.parametrize("params", [KEEP_ALL, SamplingParams(temperature=0.0), SamplingParams(top_p=0.5)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_fail(params: SamplingParams, bad: float) -> None:
    with pytest.raises(NumericalFailure):
        coupled_token(np.array([0.0, bad, 1.0], dtype=np.float32), params, 0)
    with pytest.raises(NumericalFailure):
        token_logprobs(np.array([0.0, bad, 1.0]), [0], 1)
    assert coupled_token(np.array([0.0, bad], dtype=np.float32), params, 0, vocab_size=1) == 0  # padding is not read


def test_nothing_to_choose_from_fails() -> None:
    with pytest.raises(NumericalFailure, match="no token"):
        coupled_token(np.full(3, -np.inf), KEEP_ALL, 0)
    with pytest.raises(NumericalFailure, match="no token"):
        coupled_token(np.zeros(2), KEEP_ALL, 0, banned=[0, 1])
    with pytest.raises(ValueError, match="shape"):
        coupled_token(np.zeros(3), KEEP_ALL, 0, vocab_size=4)
    with pytest.raises(ValueError, match="count"):
        coupled_candidates(np.zeros(3), KEEP_ALL, 0, 0)


def test_masked_logits_are_legal() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf], dtype=np.float32)
    for params in (KEEP_ALL, SamplingParams(top_k=2), SamplingParams(temperature=1e-12)):
        assert coupled_candidates(logits, params, 3, 3) == [1]


def test_inputs_are_left_alone() -> None:
    logits = np.arange(4.0)
    before = logits.copy()
    coupled_token(logits, SamplingParams(logit_bias=((1, 9.0),), presence_penalty=1.0), 0, history=TokenHistory([1]))
    assert np.array_equal(logits, before)


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32)),
    st.integers(0, 6),
)
@example(np.array([0, 29, 1e-30], dtype=np.float32), 3)  # equal once the largest is subtracted
def test_logprobs_are_log_softmax_of_the_raw_logits(logits: Any, best: int) -> None:
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    chosen, top = token_logprobs(logits, [0, logits.size - 1], best)
    assert chosen == pytest.approx([exact[0], exact[-1]], abs=1e-12)
    order = np.argsort(-logits, kind="stable")[:best]
    assert [token for token, _ in top] == order.tolist()
    assert [value for _, value in top] == pytest.approx(exact[order].tolist(), abs=1e-12)


def test_logprobs_leave_out_masked_tokens_and_padding() -> None:
    chosen, top = token_logprobs(np.array([0.0, -np.inf, 0.0, 50.0]), [2], 9, vocab_size=3)
    assert chosen == pytest.approx([-math.log(2)])
    assert [token for token, _ in top] == [0, 2]


@given(st.lists(st.integers(0, 99), max_size=80), st.lists(st.integers(0, 99), max_size=80), st.data())
def test_history_counts_after_any_walk(prompt: list[int], output: list[int], data: st.DataObject) -> None:
    history = TokenHistory(prompt)
    for token in output:
        history.push(token)
    length = data.draw(st.integers(0, len(output)))
    history.rewind(length)
    tail = data.draw(st.lists(st.integers(0, 99), max_size=9))
    history.extend(tail)
    expected = output[:length] + tail
    ids, counts = history.seen(90)
    assert history.length == len(expected)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
        token: expected.count(token) for token in {*prompt, *expected} if token < 90
    }


def test_history_refuses_what_it_cannot_hold() -> None:
    history = TokenHistory([1], [2, 3])
    for length in (-1, 3):
        with pytest.raises(ValueError, match="rewind"):
            history.rewind(length)
    with pytest.raises(InvalidParameter):
        history.push(-1)
    with pytest.raises(InvalidParameter):
        TokenHistory([-1])
