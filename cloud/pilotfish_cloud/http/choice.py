"""One answer of a request, as it grows: its text, its tokens with their log probabilities, its figures."""

from __future__ import annotations

import dataclasses
import time

from pilotfish_core.cloud_core import VerifyCounts
from pilotfish_core.drafts import Commit, DraftRun, Finish, TokenLogprobs
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prediction import Prediction
from pilotfish_core.stops import StopTextFilter
from pilotfish_core.tokenizer import IncrementalDecoder, Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredToken:
    """A committed token with its log probabilities; ``offset``: characters of the answer before it."""

    token: int
    logprobs: TokenLogprobs
    offset: int


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """What a commit adds to an answer: text that may be shown, scored tokens if they were asked for, the end."""

    text: str
    scored: tuple[ScoredToken, ...] = ()
    finish: Finish | None = None


class Choice:
    """One answer. ``index`` among those of the request, ``prompt_index`` among its prompts."""

    def __init__(
        self,
        index: int,
        prompt_index: int,
        prompt: tuple[int, ...],
        params: SamplingParams,
        tokenizer: Tokenizer,
        prediction: Prediction | None,
    ) -> None:
        self.index, self.prompt_index = index, prompt_index
        self.prompt, self.params = prompt, params
        self.prediction = prediction
        self.tokens = self.steps = self.cached_tokens = 0
        self.finish: Finish | None = None
        self.counts = VerifyCounts()  # known at the end
        self.first_at: float | None = None  # time.monotonic() of the first commit, and of the last
        self.last_at = 0.0
        self.first_tokens = 0  # of the first commit
        self._filter = StopTextFilter(params, tokenizer, eos_token_ids=tokenizer.eos_token_ids)
        self._decoder = None if params.logprobs is None else IncrementalDecoder(tokenizer, continues=True)
        self._decoded = 0  # characters

    def take(self, commit: Commit, counts: VerifyCounts | None) -> Delta:
        """Take in the next commit."""
        if commit.tokens:
            self.last_at = time.monotonic()
            if self.first_at is None:
                self.first_at, self.first_tokens = self.last_at, len(commit.tokens)
            self.steps += 1
        self.tokens += len(commit.tokens)
        text = "".join([self._filter.push(token) for token in commit.tokens])
        if commit.finish is not None:
            text += self._filter.flush()
            self.finish = commit.finish
            self.counts = counts or self.counts
        return Delta(text, tuple(self._scored(commit)), commit.finish)

    def draft(self, commit: Commit | None) -> DraftRun | None:
        """What the expected text has for the next steps; ``commit``: the last one, None before the first."""
        if self.prediction is None:
            return None
        if commit is None:
            return self.prediction.begin()
        return None if commit.finish is not None else self.prediction.committed(commit.tokens)

    def _scored(self, commit: Commit) -> list[ScoredToken]:
        scored: list[ScoredToken] = []
        if self._decoder is None or commit.logprobs is None:
            return scored
        for token, logprobs in zip(commit.tokens, commit.logprobs, strict=True):
            scored.append(ScoredToken(token, logprobs, self._decoded))
            self._decoded += len(self._decoder.push(token))
        return scored
