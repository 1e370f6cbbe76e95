"""What every drafter promises (pilotfish_core.drafter), as one abstract test class.

A subclass names its drafter and whether it is a model; pytest runs all of this against it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import pytest

from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.parameters import SamplingParams

SAMPLED = SamplingParams(temperature=0.8, seed=11)


class DrafterContract(abc.ABC):
    """Subclasses give the fixture ``drafter``, and ``prompt`` for which it proposes at least 8 tokens.

    ``exact_chunks``: one forward of n tokens gives the bits of n forwards of one. Quantised kernels do not,
    which costs acceptance only; tests that would compare the two then keep to equal chunking.
    """

    exact_chunks = True
    prompt: Sequence[int] = (1, 2, 3, 1, 2, 3, 1, 2)

    @pytest.fixture
    @abc.abstractmethod
    def drafter(self) -> Drafter:
        """The drafter under test."""

    def context(self, drafter: Drafter, tokens: Sequence[int], params: SamplingParams = SAMPLED) -> DraftContext:
        context = drafter.open(params, len(self.prompt))
        context.extend(tokens)
        return context

    def test_names_itself(self, drafter: Drafter) -> None:
        assert drafter.name
        assert drafter.tokenizer_hash is None or len(drafter.tokenizer_hash) == 64
        assert drafter.max_length is None or drafter.max_length > 0

    def test_length_counts_what_is_held(self, drafter: Drafter) -> None:
        context = drafter.open(SAMPLED, len(self.prompt))
        assert context.length == 0
        context.extend(self.prompt)
        assert context.length == len(self.prompt)
        drafted = context.draft(5)
        assert len(drafted) == 5
        assert context.length == len(self.prompt) + 5
        context.extend([])
        context.rewind(context.length)
        assert context.length == len(self.prompt) + 5
        context.rewind(len(self.prompt) + 2)
        assert context.length == len(self.prompt) + 2
        context.rewind(0)
        assert context.length == 0
        context.close()

    def test_draft_of_none(self, drafter: Drafter) -> None:
        context = self.context(drafter, self.prompt)
        assert context.draft(0) == []
        assert context.length == len(self.prompt)
        with pytest.raises(ValueError, match="-1"):
            context.draft(-1)

    def test_an_empty_context_is_no_error(self, drafter: Drafter) -> None:
        assert len(drafter.open(SAMPLED, 0).draft(2)) <= 2

    @pytest.mark.parametrize("length", [-1, 9])
    def test_rewind_outside_is_an_error(self, drafter: Drafter, length: int) -> None:
        context = self.context(drafter, self.prompt)
        with pytest.raises(ValueError, match="rewind"):
            context.rewind(length)
        assert context.length == len(self.prompt)

    def test_draft_is_reproducible(self, drafter: Drafter) -> None:
        first = self.context(drafter, self.prompt).draft(8)
        assert len(first) == 8
        assert self.context(drafter, self.prompt).draft(8) == first

    def test_rewind_and_draft_again(self, drafter: Drafter) -> None:
        context = self.context(drafter, self.prompt)
        drafted = context.draft(8)
        kept = 0 if self.exact_chunks else 1  # the first comes from the prompt's chunk
        for back in (kept, 3, 7):
            context.rewind(len(self.prompt) + back)
            assert context.draft(8 - back) == drafted[back:]

    def test_draft_in_pieces(self, drafter: Drafter) -> None:
        whole = self.context(drafter, self.prompt).draft(8)
        context = self.context(drafter, self.prompt)
        assert [*context.draft(3), *context.draft(1), *context.draft(4)] == whole

    def test_extend_in_pieces(self, drafter: Drafter) -> None:
        whole = self.context(drafter, self.prompt).draft(8)
        context = drafter.open(SAMPLED, len(self.prompt))
        for token in self.prompt:
            context.extend([token])
        assert context.draft(8) == whole

    def test_contexts_do_not_touch_each_other(self, drafter: Drafter) -> None:
        alone = self.context(drafter, self.prompt).draft(6)
        one, two = self.context(drafter, self.prompt), self.context(drafter, [3, 2, 1])
        drafted = []
        for _ in range(6):
            drafted += one.draft(1)
            two.draft(1)
        assert drafted == alone


class ExactChunksContract(DrafterContract):
    """Of drafters for which one forward of n tokens gives the bits of n forwards of one."""

    def test_extend_between_drafts(self, drafter: Drafter) -> None:
        """A draft that was computed in between leaves no trace."""
        whole = self.context(drafter, self.prompt).draft(8)
        context = drafter.open(SAMPLED, len(self.prompt))
        for token in self.prompt:
            context.extend([token])
            held = context.length
            context.draft(1)
            context.rewind(held)
        assert context.draft(8) == whole


class FollowsContextContract(DrafterContract):
    """Of drafters that propose for any context, not for known ones only."""

    def test_other_tokens_after_a_rewind(self, drafter: Drafter) -> None:
        context = self.context(drafter, self.prompt)
        context.draft(6)
        other = [2, 3, 1, 2]
        context.rewind(len(self.prompt) - 3)
        context.extend(other)
        fresh = self.context(drafter, [*self.prompt[:-3]])
        if not self.exact_chunks:
            fresh.draft(1)  # computes what the first context had computed
            fresh.rewind(len(self.prompt) - 3)
        fresh.extend(other)
        assert context.draft(5) == fresh.draft(5)


class BoundedContract(DrafterContract):
    """Of drafters that hold a limited number of tokens."""

    def test_ends_at_the_context_end(self, drafter: Drafter) -> None:
        assert drafter.max_length is not None
        tokens = [self.prompt[i % len(self.prompt)] for i in range(drafter.max_length - 3)]
        context = self.context(drafter, tokens)
        assert len(context.draft(10)) <= 3
        context.rewind(len(tokens))
        context.extend([1, 2, 3])
        assert context.length == drafter.max_length
        assert context.draft(2) == []
        context.extend([1])  # the target may have more room than the draft model
        assert context.draft(1) == []
        context.rewind(len(self.prompt))
        assert context.draft(4) == self.context(drafter, tokens[: len(self.prompt)]).draft(4) or not self.exact_chunks


class ModelDrafterContract(FollowsContextContract, BoundedContract):
    """Further promises of drafters that sample from a distribution of their own."""

    @abc.abstractmethod
    def expected(self, drafter: Drafter, tokens: Sequence[int], params: SamplingParams) -> int:
        """The token that coupled sampling on the model's logits after ``tokens`` gives."""

    @pytest.mark.parametrize(
        "params",
        [
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=1.0, seed=3),
            SamplingParams(temperature=1.0, seed=2**64 - 1),
            SamplingParams(temperature=0.7, seed=3, top_k=20, top_p=0.9, min_p=0.01),
            SamplingParams(
                temperature=0.9, seed=5, repetition_penalty=1.5, presence_penalty=0.7, frequency_penalty=0.4
            ),
            SamplingParams(temperature=0.0, repetition_penalty=2.0, logit_bias=((3, 2.0), (5, -100.0))),
        ],
        ids=["greedy", "seed", "large-seed", "filters", "penalties", "bias"],
    )
    def test_tokens_are_those_of_coupled_sampling(self, drafter: Drafter, params: SamplingParams) -> None:
        context = self.context(drafter, self.prompt, params)
        tokens = list(self.prompt)
        tokens += context.draft(4)
        context.rewind(len(self.prompt) + 2)  # the penalties' history goes back with it
        del tokens[len(self.prompt) + 2 :]
        context.extend([7])
        tokens += [7, *context.draft(3)]
        skipped = len(self.prompt) + 2
        for position in range(len(self.prompt), len(tokens)):
            if position != skipped:
                assert tokens[position] == self.expected(drafter, tokens[:position], params)

    def test_the_seed_decides(self, drafter: Drafter) -> None:
        drafts = {tuple(self.context(drafter, self.prompt, SamplingParams(seed=seed)).draft(8)) for seed in range(4)}
        assert len(drafts) == 4
