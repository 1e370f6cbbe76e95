"""Where an answer ends: the cloud's check per token, and the device's filter of the text that may be shown.

Stop strings are defined on the answer's text, character by character: the answer ends at the first
character that completes one; of several that end there, the longest counts. Which tokens carried the
characters decides nothing but ``min_tokens``: what is completed by an earlier token ends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from pilotfish_core.drafts import Finish, FinishReason
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tokenizer import IncrementalDecoder, Tokenizer


class StopChecker:
    """Decides after each output token whether the answer ends there (the core's ``FinishRule``).

    A pure function of the tokens pushed: at a resume, push the committed output again into a fresh one.
    ``tokenizer`` is needed for stop strings only; text is the output's without special tokens, as it is
    shown. ``max_output`` is the room left in the context where that is less than ``max_tokens``.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokenizer: Tokenizer | None = None,
        *,
        eos_token_ids: Iterable[int] = (),
        max_output: int | None = None,
    ) -> None:
        """Raises ValueError for stop strings without a tokenizer."""
        self._rule = _EndRule(params, eos_token_ids)
        self._limit = params.max_tokens if max_output is None else min(params.max_tokens, max_output)
        self._decoder: IncrementalDecoder | None = None
        if params.stop:
            if tokenizer is None:
                raise ValueError("stop strings need a tokenizer")
            self._decoder = IncrementalDecoder(tokenizer, continues=True)
        self._matcher = _StopMatcher(params.stop)
        self._ended = False

    def push(self, token: int) -> Finish | None:
        """Take in the next output token; returns the finish that it completes, if any.

        An end token or stop token id goes before a stop string (it adds no text), both before ``max_tokens``.
        Raises ValueError after the end.
        """
        if self._ended:
            raise ValueError("a token was pushed after the end of the answer")
        finish = self._finish(token)
        self._ended = finish is not None
        return finish

    def _finish(self, token: int) -> Finish | None:
        allowed = self._rule.count()
        if self._rule.ends(token):
            return Finish(FinishReason.STOP, token)
        if self._decoder is not None:
            for character in self._decoder.push(token):
                stop = self._matcher.push(character)
                if stop is not None and allowed:
                    return Finish(FinishReason.STOP, stop)
        if self._rule.tokens >= self._limit:
            return Finish(FinishReason.LENGTH)
        return None


class StopTextFilter:
    """The text of an answer that may be shown while it streams.

    Comes to the same end as ``StopChecker``, by the same rule. What it gives out never holds any part of
    the stop string that ends the answer: a suffix that may still become one is held back. The token that
    ends the answer adds no text where it is an end token or stop token id. Where the device does not know
    the end tokens it can leave them out: they are special tokens, which have no text.
    """

    def __init__(self, params: SamplingParams, tokenizer: Tokenizer, *, eos_token_ids: Iterable[int] = ()) -> None:
        self._rule = _EndRule(params, eos_token_ids)
        self._decoder = IncrementalDecoder(tokenizer, continues=True)
        self._matcher = _StopMatcher(params.stop)
        self._held = ""
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether a stop was seen (or ``flush`` called): nothing comes out any more."""
        return self._ended

    def push(self, token: int) -> str:
        """Take in the next output token; returns the text that is safe to show now, perhaps none."""
        if self._ended:
            return ""
        allowed = self._rule.count()
        if self._rule.ends(token):
            return self.flush()
        text = self._decoder.push(token)
        for index, character in enumerate(text):
            stop = self._matcher.push(character)
            if stop is not None and allowed:
                whole = self._held + text[: index + 1]
                self._held, self._ended = "", True
                return whole[: len(whole) - len(stop)]
        self._held += text
        ready = len(self._held) - self._matcher.pending
        shown, self._held = self._held[:ready], self._held[ready:]
        return shown

    def flush(self) -> str:
        """The answer ended: what was held back and did not become a stop string."""
        if self._ended:
            return ""
        rest, self._held, self._ended = self._held + self._decoder.flush(), "", True
        return rest


class _EndRule:
    """Counts output tokens and knows which of them end the answer by themselves."""

    def __init__(self, params: SamplingParams, eos_token_ids: Iterable[int]) -> None:
        self.tokens = 0
        self._min_tokens = params.min_tokens
        self._ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(eos_token_ids))

    def count(self) -> bool:
        """One more token; whether the answer may end with it."""
        self.tokens += 1
        return self.tokens >= self._min_tokens

    def ends(self, token: int) -> bool:
        """Whether the token just counted ends the answer."""
        return token in self._ends and self.tokens >= self._min_tokens


class _StopMatcher:
    """Knuth-Morris-Pratt over all stop strings at once: one short loop per character, no text kept."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = sorted(set(stops), key=lambda stop: (-len(stop), stop))  # longest first
        self._failures = [_failure(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)

    @property
    def pending(self) -> int:
        """Length of the longest suffix seen that is a proper prefix of a stop string."""
        return max(
            (
                matched if matched < len(stop) else failure[-1]
                for matched, stop, failure in zip(self._matched, self._stops, self._failures, strict=True)
            ),
            default=0,
        )

    def push(self, character: str) -> str | None:
        """Take in a character; returns the longest stop string that it completes."""
        completed: str | None = None
        for index, (stop, failure) in enumerate(zip(self._stops, self._failures, strict=True)):
            matched = self._matched[index]
            if matched == len(stop):
                matched = failure[-1]
            while matched and stop[matched] != character:
                matched = failure[matched - 1]
            matched += stop[matched] == character
            self._matched[index] = matched
            if matched == len(stop) and completed is None:
                completed = stop
        return completed


def _failure(pattern: str) -> list[int]:
    """failure[i]: length of the longest proper prefix of ``pattern`` that ends at i."""
    table = [0] * len(pattern)
    matched = 0
    for index in range(1, len(pattern)):
        while matched and pattern[matched] != pattern[index]:
            matched = table[matched - 1]
        matched += pattern[matched] == pattern[index]
        table[index] = matched
    return table
