"""One answer of a request, as it grows: its tokens with their log probabilities, its figures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from pilotfish_core.drafts import Finish, TokenLogprobs
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tokenizer import IncrementalDecoder, Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredToken:
    """A committed token with its log probabilities; ``offset``: characters of the answer before it."""

    token: int
    logprobs: TokenLogprobs
    offset: int


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """What is added to an answer: text that may be shown, scored tokens if they were asked for, the end.

    ``verified`` is False for text that no target has decided, which is only sent to who asked for it.
    """

    text: str
    scored: tuple[ScoredToken, ...] = ()
    finish: Finish | None = None
    verified: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Seat:
    """An answer's place in its request: ``index`` among the answers, ``prompt_index`` among the prompts."""

    index: int
    prompt_index: int
    prompt: tuple[int, ...]
    params: SamplingParams


class Choice:
    """One answer. A door's own kind of it sets the figures as it learns them."""

    def __init__(self, seat: Seat, tokenizer: Tokenizer) -> None:
        self.index, self.prompt_index = seat.index, seat.prompt_index
        self.prompt, self.params = seat.prompt, seat.params
        self.tokens = self.steps = self.cached_tokens = 0
        self.drafted = self.accepted = 0  # draft tokens verified, whoever drafted, and the target's of them
        self.predicted = self.rightly_predicted = 0  # the same of the request's ``prediction``
        self.finish: Finish | None = None
        self.first_at: float | None = None  # time.monotonic() of the first tokens, and of the last
        self.last_at = 0.0
        self.first_tokens = 0  # that came together as the first
        self._decoder = None if seat.params.logprobs is None else IncrementalDecoder(tokenizer, continues=True)
        self._decoded = 0  # characters

    def count(self, tokens: int) -> None:
        """So many came together, just now."""
        if not tokens:
            return
        self.last_at = time.monotonic()
        if self.first_at is None:
            self.first_at, self.first_tokens = self.last_at, tokens
        self.tokens += tokens

    def score(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> tuple[ScoredToken, ...]:
        """The tokens with their log probabilities, where those were asked for."""
        scored: list[ScoredToken] = []
        if self._decoder is not None and logprobs is not None:
            for token, entry in zip(tokens, logprobs, strict=True):
                scored.append(ScoredToken(token, entry, self._decoded))
                self._decoded += len(self._decoder.push(token))
        return tuple(scored)
