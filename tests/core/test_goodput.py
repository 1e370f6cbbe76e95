"""The arithmetic of speculation, against a plain event simulation of the same scheme."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.goodput import (
    FlatStep,
    Pipeline,
    StepTimeOf,
    best_hold,
    best_lockstep,
    best_rows,
    expected_accepted,
    lockstep_rate,
    plain_rate,
    rate,
)


def linear(base: float, per_row: float) -> StepTimeOf:
    return lambda rows: base + per_row * (rows - 1)


def simulated_rate(pipeline: Pipeline, base: float, per_row: float, hold: float, *, tokens: int, seed: int) -> float:
    """Draft tokens are right with probability ``acceptance``; the device answers each refutation after ``response``."""
    rng = random.Random(seed)
    step_time = linear(base, per_row)
    now = 0.0
    renewal, first, right = 0.0, 0, list[bool]()  # of the current branch: when asked for, where it starts, its tokens
    done = 0
    waited = False
    while done < tokens:
        begins = renewal + pipeline.response
        if not waited and hold:
            now, waited = renewal + hold, True
        arrived = 0 if now < begins else 1 + int((now - begins) / pipeline.gap + 1e-9)
        decided = done - first  # plain steps have gone past these tokens of the branch
        drafts = max(0, min(arrived - decided, pipeline.window))
        drafts = best_rows(pipeline.acceptance, drafts, step_time)
        while len(right) < decided + drafts + 1:
            right.append(rng.random() < pipeline.acceptance)
        now += step_time(1 + drafts)
        accepted = 0
        while accepted < drafts and right[decided + accepted]:
            accepted += 1
        done += accepted + 1
        if accepted < drafts or not right[decided + accepted]:
            renewal, first, right, waited = now, done, [], False
    return done / now


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("response", [0.004, 0.024, 0.104])
def test_the_formula_is_what_the_scheme_does(acceptance: float, response: float) -> None:
    pipeline = Pipeline(acceptance=acceptance, response=response, gap=0.004, window=8)
    step_time = linear(0.03, 0.0005)
    for hold in (0.0, response + 0.008):
        simulated = simulated_rate(pipeline, 0.03, 0.0005, hold, tokens=40_000, seed=5)
        assert rate(pipeline, step_time, hold) == pytest.approx(simulated, rel=0.06)


@given(
    acceptance=st.floats(0.0, 0.99),
    response=st.floats(0.0, 1.0),
    gap=st.floats(0.0, 0.2),
    window=st.integers(1, 32),
    base=st.floats(0.005, 0.2),
    per_row=st.floats(0.0, 0.01),
)
def test_speculation_as_planned_never_loses(
    acceptance: float, response: float, gap: float, window: int, base: float, per_row: float
) -> None:
    pipeline = Pipeline(acceptance=acceptance, response=response, gap=gap, window=window)
    step_time = linear(base, per_row)
    best = best_hold(pipeline, step_time, cap=0.5)
    assert best.rate >= rate(pipeline, step_time) >= plain_rate(step_time) * (1 - 1e-9)
    assert 0 <= best.seconds <= 0.5
    assert 0 <= best.tokens <= window
    assert best.rate == pytest.approx(rate(pipeline, step_time, best.seconds))


def test_a_fast_draft_on_a_short_link_is_waited_for_and_on_a_long_one_is_not() -> None:
    step_time = linear(0.036, 0.0003)
    near = Pipeline(acceptance=0.7, response=0.004, gap=0.0015, window=8)
    best = best_hold(near, step_time, cap=0.05)
    assert 0.004 <= best.seconds <= 0.02
    assert 1 <= best.tokens <= 8
    assert best.rate > 1.15 * rate(near, step_time)
    assert best.rate >= max(lockstep_rate(near, step_time, drafts) for drafts in range(1, 9))
    far = Pipeline(acceptance=0.7, response=0.054, gap=0.0015, window=8)
    assert best_hold(far, step_time, cap=0.2).tokens == 0
    assert best_hold(near, step_time, cap=0.003).tokens == 0
    assert best_hold(near, step_time, cap=0.05, margin=0.5).tokens == 0


def test_rows_stop_where_they_cost_more_than_they_bring() -> None:
    assert best_rows(0.05, 8, linear(0.03, 0.003)) == 0
    assert best_rows(0.9, 8, linear(0.03, 0.0001)) == 8
    assert 1 <= best_rows(0.6, 16, linear(0.03, 0.003)) < 8
    assert best_rows(0.9, 0, linear(0.03, 0.0)) == 0


def test_expected_accepted() -> None:
    assert expected_accepted(0.5, 3) == pytest.approx(0.875)
    assert expected_accepted(1.0, 4) == 4.0
    assert expected_accepted(0.0, 4) == 0.0


@given(
    acceptance=st.floats(0.01, 0.99),
    response=st.floats(0.0, 0.5),
    gap=st.floats(1e-5, 0.2),
    window=st.integers(1, 32),
    seconds=st.floats(0.001, 0.5),
)
def test_a_step_of_one_length_is_short_cut_to_the_same_figures(
    acceptance: float, response: float, gap: float, window: int, seconds: float
) -> None:
    pipeline = Pipeline(acceptance=acceptance, response=response, gap=gap, window=window)
    flat, plain = FlatStep(seconds), linear(seconds, 0.0)
    assert rate(pipeline, flat) == pytest.approx(rate(pipeline, plain))
    assert best_hold(pipeline, flat, cap=0.05).rate == pytest.approx(best_hold(pipeline, plain, cap=0.05).rate)
    assert best_lockstep(pipeline, flat) == best_lockstep(pipeline, plain)
