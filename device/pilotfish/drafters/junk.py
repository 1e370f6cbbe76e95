"""A drafter of random tokens: shows that no draft, however bad, changes the text."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.noise import philox_block
from pilotfish_core.parameters import SamplingParams


class JunkDrafter(Drafter):
    """Proposes a uniformly random token at each position, a function of its own seed and the position."""

    def __init__(self, vocab_size: int, *, seed: int = 0, max_length: int | None = None) -> None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size {vocab_size}")
        self.name = "junk"
        self.tokenizer_hash = None
        self.max_length = max_length
        self._vocab_size = vocab_size
        self._seed = seed

    def open(self, params: SamplingParams, prompt_length: int) -> DraftContext:
        """A fresh, empty context."""
        return JunkContext(self._vocab_size, self._seed, self.max_length)


class PositionalContext(DraftContext):
    """Holds tokens and proposes one by position; what a drafter without a model needs."""

    def __init__(self, max_length: int | None = None) -> None:
        self._tokens: list[int] = []
        self._max_length = max_length

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return len(self._tokens)

    def rewind(self, length: int) -> None:
        """Forget all tokens from ``length`` on."""
        if not 0 <= length <= len(self._tokens):
            raise ValueError(f"rewind to {length} in a context of {len(self._tokens)} tokens")
        del self._tokens[length:]

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in tokens."""
        self._tokens.extend(tokens)

    def draft(self, count: int) -> list[int]:
        """Up to ``count`` proposals, until ``propose`` has none or the context is full."""
        if count < 0:
            raise ValueError(f"draft of {count} tokens")
        start = len(self._tokens)
        while len(self._tokens) < start + count:
            if self._max_length is not None and len(self._tokens) >= self._max_length:
                break
            token = self.propose(len(self._tokens))
            if token is None:
                break
            self._tokens.append(token)
        return self._tokens[start:]

    def propose(self, position: int) -> int | None:
        """The token to propose at ``position``, or None."""
        raise NotImplementedError


class JunkContext(PositionalContext):
    """One generation's junk."""

    def __init__(self, vocab_size: int, seed: int, max_length: int | None) -> None:
        super().__init__(max_length)
        self._vocab_size = vocab_size
        self._seed = seed

    def propose(self, position: int) -> int:
        """A random token."""
        return random_word(self._seed, position) % self._vocab_size


def random_word(seed: int, position: int, lane: int = 0) -> int:
    """32 random bits, a function of its arguments; apart from the sampling noise (another domain)."""
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    return philox_block((position & 0xFFFFFFFF, position >> 32, 0, 0x6A756E6B), key)[lane]
