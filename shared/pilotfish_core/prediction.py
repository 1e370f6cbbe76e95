"""Drafts from a text that the caller expects the answer to follow (OpenAI's "predicted outputs").

A drafter without a model: it proposes what the expected text goes on with, and where the answer left it, finds the
place at which the answer has come back to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from pilotfish_core.drafts import DraftRun

NEAR: Final = 16  # tokens after the place that was left, within which a single equal token is believed
LONGEST: Final = 8  # equal tokens beyond which a place does not become more likely
STEADY: Final = 2  # tokens that agreed one after the other: the place was the right one


class ExpectedText:
    """The tokens that an answer is expected to follow, and where each pair of them stands. Never changes: the answers
    of one request share it.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tuple(tokens)
        self.ends_at: dict[tuple[int, int], list[int]] = defaultdict(list)  # pair -> places just after it
        for index in range(2, len(self.tokens) + 1):
            self.ends_at[self.tokens[index - 2], self.tokens[index - 1]].append(index)


class Prediction:
    """What to draft for one generation, from ``begin`` and then after each commit.

    ``window``: draft tokens held by the cloud beyond the commit, at most. Runs follow the rule of branches
    (``DraftBuffer``): a new branch begins at the committed length.
    """

    def __init__(self, expected: ExpectedText, *, prompt_length: int, window: int) -> None:
        self._tokens, self._ends_at = expected.tokens, expected.ends_at
        self._window = window
        self._length = prompt_length  # committed
        self._recent: list[int] = []  # the last committed output tokens, as many as are compared
        self._at: int | None = 0  # where in ``tokens`` the committed text stands; None: it left them
        self._left = 0  # where it did
        self._steady = 0  # tokens that agreed since ``_at`` was found
        self._branch = -1
        self._sent = 0  # tokens up to here are drafted in the branch

    def begin(self) -> DraftRun | None:
        """The first run; None when there is nothing to propose."""
        return self._next(new_branch=True)

    def committed(self, tokens: Sequence[int]) -> DraftRun | None:
        """Take in committed output tokens; returns what to draft further."""
        new_branch = False
        for token in tokens:
            self._length += 1
            self._recent = [*self._recent[1 - LONGEST :], token]
            if self._at is not None:
                if self._at < len(self._tokens) and self._tokens[self._at] == token:
                    self._at += 1
                    self._steady += 1
                    continue
                if self._steady >= STEADY:
                    self._left = self._at
                self._at = None
        if self._at is None:
            self._at = self._place()
            self._steady = 0
            new_branch = True
        return self._next(new_branch=new_branch)

    def _next(self, *, new_branch: bool) -> DraftRun | None:
        if self._at is None:
            return None
        if new_branch or self._at > self._sent or self._branch < 0:
            begin, start, branch = self._at, self._length, self._branch + 1
        else:
            begin, start, branch = self._sent, self._length + self._sent - self._at, self._branch
        run = self._tokens[begin : self._at + self._window]
        if not run:
            return None
        self._branch, self._sent = branch, begin + len(run)
        return DraftRun(branch, start, run)

    def _place(self) -> int | None:
        """Where the committed text has come back: the place after the longest equal piece, of equals the nearest.

        A single token counts only shortly after the place that was left.
        """
        best: tuple[int, int, int] | None = None
        candidates = self._ends_at.get((self._recent[-2], self._recent[-1]), []) if len(self._recent) > 1 else []
        near = range(self._left + 1, min(self._left + NEAR, len(self._tokens)) + 1)
        for place in [*candidates, *(place for place in near if self._tokens[place - 1] == self._recent[-1])]:
            distance = place - self._left if place > self._left else len(self._tokens) + self._left - place
            choice = (-self._equal(place), distance, place)
            if best is None or choice < best:
                best = choice
        return None if best is None else best[2]

    def _equal(self, place: int) -> int:
        """How many tokens before ``place`` are the last committed ones."""
        count = 0
        while count < min(len(self._recent), place) and self._tokens[place - 1 - count] == self._recent[-1 - count]:
            count += 1
        return count
