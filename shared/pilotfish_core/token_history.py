"""Tokens so far, counted as the penalties need them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.noise import Ids


class TokenHistory:
    """Tokens so far, counted as the penalties need them; follows a draft forwards and back in O(1) a token.

    ``length`` counts output tokens. ``push``, ``extend`` and ``rewind`` mutate; nothing else does. The penalties at a
    position count the prompt, the output and the draft tokens before it, so: push them, sample, rewind.
    """

    def __init__(self, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> None:
        unique = np.unique(np.asarray(prompt, dtype=np.int64))
        if unique.size and unique[0] < 0:
            raise InvalidParameter.of("prompt token", int(unique[0]), "a non-negative token id")
        self._slots = {int(token): slot for slot, token in enumerate(unique)}
        self._ids = unique
        self._counts = np.zeros(unique.size, dtype=np.int64)
        self._prompt_ids = unique.size
        self._output: list[int] = []
        self.extend(output)

    @property
    def length(self) -> int:
        """Number of output tokens held."""
        return len(self._output)

    def push(self, token: int) -> None:
        """Append one output token."""
        if token < 0:
            raise InvalidParameter.of("token", token, "a non-negative token id")
        slot = self._slots.setdefault(token, len(self._slots))
        if slot >= self._ids.size:
            grown = max(64, 2 * slot)
            self._ids = np.concatenate([self._ids, np.zeros(grown - slot, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(grown - slot, dtype=np.int64)])
        self._ids[slot] = token
        self._counts[slot] += 1
        self._output.append(token)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append output tokens."""
        for token in tokens:
            self.push(token)

    def rewind(self, length: int) -> None:
        """Forget output tokens from ``length`` on. Raises ValueError when that many are not held."""
        if not 0 <= length <= len(self._output):
            raise ValueError(f"cannot rewind to {length} of {len(self._output)} output tokens")
        for token in self._output[length:]:
            self._counts[self._slots[token]] -= 1
        del self._output[length:]

    def seen(self, vocab_size: int) -> tuple[Ids, Ids]:
        """Ids below ``vocab_size`` in prompt or output (each once), and how often each occurs in the output."""
        ids, counts = self._ids[: len(self._slots)], self._counts[: len(self._slots)]
        held = counts > 0
        held[: self._prompt_ids] = True
        held &= ids < vocab_size
        return ids[held], counts[held]
