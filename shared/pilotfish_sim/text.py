"""The synthetic text: what the target will say at each position of an answer, and what the drafters think it will."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pilotfish_sim.acceptance import Acceptance, Matches

MEAN_COPY = 12.0  # tokens of a copied stretch


class Text:
    """One answer, known beforehand. Token ids are real ids, so the cores compare what they always compare.

    ``prompt`` and ``output`` are the target's; a draft token is either the output's or another id. Ids are spread
    evenly over the vocabulary, but for stretches that repeat earlier text (``repetition``: their share).
    """

    __slots__ = ("_matches", "_own", "output", "prompt")

    def __init__(
        self,
        *,
        shared: Sequence[int],
        prompt_tokens: int,
        output_tokens: int,
        acceptance: Acceptance,
        own_acceptance: float,
        vocabulary: int,
        repetition: float,
        answer: int,
        seed: int,
    ) -> None:
        """``shared`` begins the prompt. ``own_acceptance``: of a draft model in the cloud.

        Raises InvalidParameter for an acceptance trace that ends early.
        """
        random = np.random.default_rng((seed, answer))
        fresh = random.integers(0, vocabulary - 1, size=prompt_tokens - len(shared) + output_tokens).tolist()
        prompt = [*shared, *fresh[: prompt_tokens - len(shared)]]
        output = fresh[prompt_tokens - len(shared) :]
        if repetition:
            output = _repeat(prompt, output, repetition, random)
        self.prompt: tuple[int, ...] = tuple(prompt)
        self.output: list[int] = output
        self._matches: Matches = acceptance.matches(answer, output_tokens, random)
        self._own: list[bool] = (random.random(output_tokens) < own_acceptance).tolist()

    def drafted(self, index: int, count: int, ahead: int) -> list[int]:
        """What the device's drafter proposes at output positions [index, index + count), the first of which lies
        ``ahead`` tokens beyond the committed prefix.
        """
        matches, output = self._matches, self.output
        end = min(index + count, len(output))
        return [
            output[place] if matches.at(place, ahead + place - index) else output[place] + 1
            for place in range(index, end)
        ]

    def drafted_in_cloud(self, index: int, count: int) -> tuple[int, ...]:
        """What a draft model beside the target proposes there."""
        own, output = self._own, self.output
        end = min(index + count, len(output))
        return tuple(output[place] if own[place] else output[place] + 1 for place in range(index, end))


def _repeat(prompt: Sequence[int], output: list[int], share: float, random: np.random.Generator) -> list[int]:
    """Fresh tokens and copies of earlier stretches in turn, so that ``share`` of all are copies."""
    text = list(prompt)
    length = len(prompt) + len(output)
    fresh = iter(output)
    mean_fresh = MEAN_COPY * (1.0 - share) / share
    while len(text) < length:
        for _ in range(min(int(random.geometric(1.0 / max(mean_fresh, 1.0))), length - len(text))):
            text.append(next(fresh))
        count = min(int(random.geometric(1.0 / MEAN_COPY)), length - len(text))
        begin = int(random.integers(0, len(text)))
        for place in range(begin, begin + count):
            text.append(text[place])
    return text[len(prompt) :]
