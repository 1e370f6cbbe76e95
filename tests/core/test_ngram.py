"""The n-gram drafter: the contract, and against a plain search."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.drafter import Drafter
from pilotfish_core.ngram import NgramContext, NgramDrafter
from pilotfish_core.parameters import SamplingParams
from tests.core.drafter_contract import ExactChunksContract, FollowsContextContract

PARAMS = SamplingParams()
TOKENS = st.lists(st.integers(0, 3), max_size=40)


def opened(tokens: Sequence[int], *, max_ngram: int = 4, min_ngram: int = 2) -> NgramContext:
    context = NgramDrafter(max_ngram=max_ngram, min_ngram=min_ngram).open(PARAMS, 0)
    context.extend(tokens)
    return context


def searched(tokens: Sequence[int], max_ngram: int, min_ngram: int) -> list[int]:
    """The next token by the definition, or none: longest suffix first, most recent earlier occurrence."""
    for size in range(max_ngram, min_ngram - 1, -1):
        suffix = list(tokens[len(tokens) - size :])
        for end in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) >= size and list(tokens[end - size : end]) == suffix:
                return [tokens[end]]
    return []


class TestContract(FollowsContextContract, ExactChunksContract):
    @pytest.fixture
    def drafter(self) -> Drafter:
        return NgramDrafter()


@given(tokens=TOKENS, sizes=st.sampled_from([(4, 2), (3, 1), (2, 2), (5, 3)]), count=st.integers(0, 6))
def test_equals_a_search(tokens: list[int], sizes: tuple[int, int], count: int) -> None:
    expected = list(tokens)
    for _ in range(count):
        expected += searched(expected, *sizes)
    context = opened(tokens, max_ngram=sizes[0], min_ngram=sizes[1])
    assert context.draft(count) == expected[len(tokens) :]


@given(steps=st.lists(st.tuples(st.integers(0, 40), TOKENS, st.integers(0, 4)), max_size=8))
def test_rewinds_leave_no_trace(steps: list[tuple[int, list[int], int]]) -> None:
    context, held = opened([]), list[int]()
    for back, tokens, count in steps:
        del held[max(0, len(held) - back) :]
        context.rewind(len(held))
        context.extend(tokens)
        held += tokens
        drafted = context.draft(count)
        assert drafted == opened(held).draft(count)
        held += drafted


def test_proposes_what_followed() -> None:
    assert opened([5, 6, 7, 8, 9, 1, 5, 6, 7]).draft(3) == [8, 9, 1]
    assert opened([1, 2, 9, 1, 2, 8, 1, 2]).draft(1) == [8]  # the most recent
    assert opened([4, 1, 2, 9, 5, 1, 2, 8, 4, 1, 2]).draft(1) == [9]  # the longest before the most recent
    assert opened([1, 2, 3, 4]).draft(5) == []
    assert opened([1, 2, 1, 2]).draft(5) == [1, 2, 1, 2, 1]


def test_sizes_are_checked() -> None:
    for max_ngram, min_ngram in ((1, 2), (3, 0)):
        with pytest.raises(ValueError, match="min_ngram"):
            NgramDrafter(max_ngram=max_ngram, min_ngram=min_ngram)
