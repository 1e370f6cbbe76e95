"""The n-gram drafter (prompt lookup): what followed the last time these tokens stood here follows again.

Needs no model and no vocabulary, so the device uses it as a source of its own and the cloud to fill steps
for which the device sent nothing. After Saxena, "Prompt Lookup Decoding" (2023), with an index instead of a
search.
"""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.parameters import SamplingParams

_NONE = -1


class NgramDrafter(Drafter):
    """Proposes the continuation of the most recent earlier occurrence of the longest matching suffix.

    Suffixes of ``max_ngram`` down to ``min_ngram`` tokens are looked up. Sampling parameters do not matter:
    it has no distribution to sample from.
    """

    def __init__(self, *, max_ngram: int = 4, min_ngram: int = 2) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"min_ngram {min_ngram} and max_ngram {max_ngram}: 1 <= min <= max is needed")
        self.name = "ngram"
        self.tokenizer_hash = None
        self.max_length = None
        self._sizes = tuple(range(max_ngram, min_ngram - 1, -1))

    def open(self, params: SamplingParams, prompt_length: int) -> NgramContext:
        """A fresh, empty context."""
        return NgramContext(self._sizes)


class NgramContext(DraftContext):
    """The tokens, and for each position where each n-gram that ends there ended before.

    ``_Index.before[i]`` holds that for the n-gram that ends at length i + 1, so a look-up is one list
    access and a rewind restores the dictionaries exactly, in O(tokens dropped). ``draft`` looks up for each
    token anew: k tokens at once are the same as one token k times.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._indexes = [_Index(size) for size in sizes]

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return len(self._tokens)

    def rewind(self, length: int) -> None:
        """Forget all tokens from ``length`` on, in O(tokens forgotten)."""
        if not 0 <= length <= len(self._tokens):
            raise ValueError(f"rewind to {length} in a context of {len(self._tokens)} tokens")
        while len(self._tokens) > length:
            for index in self._indexes:
                index.pop(self._tokens)
            self._tokens.pop()

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in and index tokens."""
        for token in tokens:
            self._tokens.append(token)
            for index in self._indexes:
                index.push(self._tokens)

    def draft(self, count: int) -> list[int]:
        """Up to ``count`` copied tokens; fewer where no suffix occurred before."""
        if count < 0:
            raise ValueError(f"draft of {count} tokens")
        start = len(self._tokens)
        while len(self._tokens) < start + count:
            end = self._match()
            if end == _NONE:
                break
            self.extend((self._tokens[end],))
        return self._tokens[start:]

    def _match(self) -> int:
        """Length of the context up to the end of the best earlier occurrence."""
        if self._tokens:
            for index in self._indexes:
                if index.before[-1] != _NONE:
                    return index.before[-1]
        return _NONE


class _Index:
    """For n-grams of one size: the last length at which each ended, and what that was before."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._last: dict[tuple[int, ...], int] = {}
        self.before: list[int] = []

    def push(self, tokens: Sequence[int]) -> None:
        """``tokens`` has just grown by one."""
        if len(tokens) < self._size:
            self.before.append(_NONE)
            return
        key = tuple(tokens[-self._size :])
        self.before.append(self._last.get(key, _NONE))
        self._last[key] = len(tokens)

    def pop(self, tokens: Sequence[int]) -> None:
        """``tokens`` is about to lose its last one."""
        before = self.before.pop()
        if len(tokens) < self._size:
            return
        key = tuple(tokens[-self._size :])
        if before == _NONE:
            del self._last[key]
        else:
            self._last[key] = before
