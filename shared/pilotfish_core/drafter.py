"""What proposes tokens: the interface of every drafter (ONNX Runtime, Core ML, n-gram, ...).

Two objects, as device runtimes have them: a heavy ``Drafter`` (weights, loaded once) and a light ``DraftContext``
per generation (its KV cache and sampling state).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

from pilotfish_core.parameters import SamplingParams


class DraftContext(abc.ABC):
    """One generation's state inside a drafter: the tokens it has taken in, and their KV.

    Not thread-safe: one call at a time, from any thread. The driver calls ``rewind`` then ``extend`` to make the
    context equal to prompt + committed output + the draft so far, then ``draft``.
    """

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Number of tokens held, drafted ones included."""

    @abc.abstractmethod
    def rewind(self, length: int) -> None:
        """Forget all tokens from ``length`` on. In place: no recomputation of what is kept.

        Raises ValueError when ``length`` is negative or beyond what is held.
        """

    @abc.abstractmethod
    def extend(self, tokens: Sequence[int]) -> None:
        """Take in tokens that were decided elsewhere. May be lazy: compute can wait for ``draft``."""

    @abc.abstractmethod
    def draft(self, count: int) -> list[int]:
        """Propose up to ``count`` next tokens and take them in.

        Token at position t (index in prompt + output) is chosen by coupled sampling with the generation's seed.
        Returns fewer (or none) when there is nothing to propose, such as at the context's end. Releases the GIL
        while it computes where the runtime can.
        """

    def close(self) -> None:  # noqa: B027 - optional
        """Free what the context holds; it is not used afterwards."""


class Drafter(abc.ABC):
    """A source of draft tokens, loaded once and shared by generations."""

    name: str  # for logs and metrics: "onnx-int8", "ngram", ...
    tokenizer_hash: str | None  # hex, of the vocabulary it was built for; None: works on any ids
    max_length: int | None  # positions it can hold; None: any

    @abc.abstractmethod
    def open(self, params: SamplingParams, prompt_length: int) -> DraftContext:
        """A fresh context. ``prompt_length`` separates prompt from output for the penalties."""

    def close(self) -> None:  # noqa: B027 - optional
        """Free the weights. Open contexts must be closed before."""
