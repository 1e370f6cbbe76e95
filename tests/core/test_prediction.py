"""Drafts from an expected text, against the cloud's buffer, which refuses what breaks the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.drafts import DraftBuffer, DraftRun, RunFate
from pilotfish_core.prediction import NEAR, ExpectedText, Prediction

PROMPT = 5
WINDOW = 8


def played(expected: Sequence[int], answer: Sequence[int], *, most: int = 4, late: int = 0) -> tuple[int, int, int]:
    """Steps, accepted and refuted draft tokens of an answer. ``late``: steps until a run arrives."""
    output: list[int] = []
    buffer = DraftBuffer(PROMPT, output, max_ahead=WINDOW, vocabulary_size=1000)
    prediction = Prediction(ExpectedText(expected), prompt_length=PROMPT, window=WINDOW)
    on_the_way: list[tuple[int, DraftRun | None]] = [(0, prediction.begin())]
    steps = accepted = refuted = 0
    while len(output) < len(answer):
        while on_the_way and on_the_way[0][0] <= steps:
            run = on_the_way.pop(0)[1]
            if run is not None:
                fate = buffer.receive(run)
                assert late or fate is RunFate.KEPT
        draft = buffer.peek(min(most, len(answer) - len(output) - 1))
        count = 0
        while count < len(draft) and draft[count] == answer[len(output) + count]:
            count += 1
        committed = answer[len(output) : len(output) + count + 1]
        steps, accepted, refuted = steps + 1, accepted + count, refuted + len(draft) - count
        output.extend(committed)
        buffer.committed()
        on_the_way.append((steps + late, prediction.committed(committed)))
    assert output == list(answer)
    return steps, accepted, refuted


def test_an_answer_that_is_as_expected_takes_few_steps() -> None:
    text = list(range(100))
    assert played(text, text) == (20, 80, 0)


def test_nothing_is_drafted_without_an_expectation() -> None:
    assert Prediction(ExpectedText([]), prompt_length=PROMPT, window=WINDOW).begin() is None
    assert played([], [1, 2, 3]) == (3, 0, 0)


def test_after_the_end_of_the_expected_text_nothing_is_drafted() -> None:
    assert played([1, 2, 3, 4], [1, 2, 3, 4, 50, 51, 52]) == (3, 4, 0)


@pytest.mark.parametrize(
    ("change", "most_refuted"),
    [
        (lambda text: [*text[:20], 900, *text[21:]], 8),  # another word
        (lambda text: [*text[:20], *text[25:]], 8),  # words left out
        (lambda text: [*text[:20], 900, 901, 902, *text[20:]], 12),  # words put in
        (lambda text: [*text[60:], *text[:60]], 8),  # parts in another order
    ],
)
def test_the_draft_goes_on_where_the_answer_comes_back_to_the_text(change: object, most_refuted: int) -> None:
    text = list(range(100))
    answer = change(text)  # type: ignore[operator]
    steps, _, refuted = played(text, answer)
    assert steps < len(answer) / 3
    assert refuted <= most_refuted


def test_a_single_token_far_away_is_not_believed() -> None:
    text = [*range(NEAR + 10), 500, 501, 502]
    prediction = Prediction(ExpectedText(text), prompt_length=PROMPT, window=WINDOW)
    prediction.begin()
    assert prediction.committed([900, 500]) is None
    run = prediction.committed([501])
    assert run is not None
    assert run.tokens == (502,)
    assert run.start == PROMPT + 3


@given(
    st.lists(st.integers(0, 5), max_size=40),
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.integers(0, 6),
    st.integers(0, 3),
)
def test_whatever_is_expected_breaks_no_rule_and_costs_no_step(
    expected: list[int], answer: list[int], most: int, late: int
) -> None:
    steps, accepted, _ = played(expected, answer, most=most, late=late)
    assert steps + accepted == len(answer)
