"""What all drafters with a model share: the exported folder, and one generation's tokens over a runtime's KV.

A runtime adds a ``KvCache``: it computes keys and values of tokens at given positions, and the logits after the
last. Everything else (what is computed when, rollback, coupled sampling) is the same for all of them.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pilotfish.drafters.manifest import Manifest
from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.errors import ModelLoadError
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory, coupled_candidates

CHUNK: Final = 512  # rows of one forward at most, which bounds the memory of a long prompt

Row = NDArray[np.float32]  # [vocabulary of the embedding]


class KvCache(abc.ABC):
    """Keys and values of one context, inside a runtime."""

    @abc.abstractmethod
    def forward(self, tokens: Sequence[int], begin: int) -> Row:
        """Compute ``tokens`` at positions ``begin``...; the logits after the last, valid until the next forward.

        Those before ``begin`` were computed earlier; whatever was at ``begin`` and behind it is overwritten.
        """


class ModelDrafter(Drafter):
    """An exported draft model; its weights are shared by all contexts.

    Raises ModelLoadError when the folder is not whole or was made for another runtime.
    """

    runtime: ClassVar[str]  # the manifest's word for it
    model_file: ClassVar[str]  # a file of the manifest without which there is no model
    width: int  # of a row of logits: the rows of the embedding

    def __init__(self, folder: str | Path, name: str) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if self.manifest.runtime != self.runtime:
            raise ModelLoadError(f"{self.folder} was exported for {self.manifest.runtime}, not for {self.runtime}")
        if self.model_file not in self.manifest.files:
            raise ModelLoadError(f"the manifest of {self.folder} lacks {self.model_file}")
        self.manifest.verify(self.folder)
        self.name = f"{name}-{self.manifest.quant}"
        self.tokenizer_hash = self.manifest.tokenizer_hash
        self.max_length: int = self.manifest.context_length

    @abc.abstractmethod
    def new_cache(self) -> KvCache:
        """An empty one."""

    def open(self, params: SamplingParams, prompt_length: int) -> ModelContext:
        """A fresh, empty context with its own KV."""
        return ModelContext(self, params, prompt_length)


class ModelContext(DraftContext):
    """One generation's tokens and KV.

    ``_computed`` counts the leading tokens whose keys and values are in the buffers: at most ``length``,
    and what was only taken in by ``extend`` is computed in chunks together with the first forward of
    ``draft``. The logits of the last forward are kept until the tokens change.
    """

    def __init__(self, drafter: ModelDrafter, params: SamplingParams, prompt_length: int) -> None:
        if prompt_length < 0:
            raise ValueError(f"prompt_length is {prompt_length}")
        self._drafter = drafter
        self._params = params
        self._prompt_length = prompt_length
        self._tokens: list[int] = []
        self._computed = 0
        self._logits_of = 0  # length whose last token's logits ``_row`` holds; 0: none
        self._row: Row = np.zeros(0, dtype=np.float32)
        self._cache = drafter.new_cache()
        self._history: TokenHistory | None = None

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return len(self._tokens)

    def rewind(self, length: int) -> None:
        """Forget all tokens from ``length`` on. O(1): their KV is overwritten later."""
        if not 0 <= length <= len(self._tokens):
            raise ValueError(f"rewind to {length} in a context of {len(self._tokens)} tokens")
        del self._tokens[length:]
        self._computed = min(self._computed, length)
        if self._logits_of > length:
            self._logits_of = 0
        if self._history is not None:
            if length < self._prompt_length:
                self._history = None
            else:
                self._history.rewind(length - self._prompt_length)

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in tokens; ``draft`` computes them. Raises ValueError for ids outside the embedding."""
        for token in tokens:
            if not 0 <= token < self._drafter.width:
                raise ValueError(f"token id {token} is outside the draft model's {self._drafter.width} embeddings")
        self._tokens.extend(tokens)
        if self._history is not None:
            self._history.extend(tokens)

    def draft(self, count: int) -> list[int]:
        """Up to ``count`` tokens by coupled sampling; fewer at the context's end, none when empty."""
        if count < 0:
            raise ValueError(f"draft of {count} tokens")
        start = len(self._tokens)
        while len(self._tokens) < start + count:
            best = self.candidates(1)
            if not best:
                break
            self.extend(best)
        return self._tokens[start:]

    def candidates(self, count: int) -> list[int]:
        """The ``count`` best next tokens by log q + G, best first, without taking any in.

        The first is what ``draft`` would propose. Empty where ``draft`` has nothing to propose.
        """
        if not self._tokens or len(self._tokens) >= self._drafter.max_length:
            return []
        return coupled_candidates(
            self._forward(),
            self._params,
            len(self._tokens),
            count,
            history=self._penalty_history(),
            banned=self._banned(),
            vocab_size=self._drafter.manifest.vocab_size,
        )

    def logits(self) -> Row:
        """Logits after the tokens held, float32 ``[embeddings]``, a copy. Raises ValueError for no tokens."""
        if not 0 < len(self._tokens) <= self._drafter.max_length:
            raise ValueError(f"no logits for a context of {len(self._tokens)} tokens")
        return self._forward().copy()

    def close(self) -> None:
        """Free the KV."""
        self._tokens.clear()
        self._computed = self._logits_of = 0
        self._cache = self._drafter.new_cache()

    def _forward(self) -> Row:
        """Compute what is not yet computed; the logits after the last token, valid until the next forward."""
        length = len(self._tokens)
        if self._logits_of != length:
            first = min(self._computed, length - 1)  # at least the last token, for its logits
            for begin in range(first, length, CHUNK):
                end = min(begin + CHUNK, length)
                self._row = self._cache.forward(self._tokens[begin:end], begin)
                self._computed = end
            self._logits_of = length
        return self._row

    def _banned(self) -> tuple[int, ...]:
        """End tokens, as long as the next output token is below number ``min_tokens`` (from one)."""
        params = self._params
        if len(self._tokens) - self._prompt_length + 1 >= params.min_tokens:
            return ()
        ends = () if params.ignore_eos else self._drafter.manifest.eos_token_ids
        return tuple(t for t in (*params.stop_token_ids, *ends) if t < self._drafter.manifest.vocab_size)

    def _penalty_history(self) -> TokenHistory | None:
        if not self._params.has_penalties:
            return None
        if self._history is None:
            prompt, output = self._tokens[: self._prompt_length], self._tokens[self._prompt_length :]
            history = TokenHistory(prompt, output)
            if len(self._tokens) < self._prompt_length:  # drafting within the prompt: not kept, it would be wrong
                return history
            self._history = history
        return self._history
