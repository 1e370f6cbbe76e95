"""A drafter that knows the answer: for tests and benchmarks with a chosen acceptance rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pilotfish.drafters.junk import PositionalContext, random_word
from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.parameters import SamplingParams


class OracleDrafter(Drafter):
    """Proposes known outputs, each token right with probability ``accuracy`` independently of the others.

    ``sequences`` are whole ones, prompt + output; a context follows the first that begins with its prompt,
    and proposes nothing where none does or beyond its end. Which positions are wrong is a function of
    ``seed`` and the position alone, so a repeated draft is the same.
    """

    def __init__(
        self,
        sequences: Iterable[Sequence[int]],
        *,
        vocab_size: int,
        accuracy: float = 1.0,
        seed: int = 0,
        max_length: int | None = None,
    ) -> None:
        if not 0.0 <= accuracy <= 1.0:
            raise ValueError(f"accuracy {accuracy} is not in [0, 1]")
        if vocab_size < 2:
            raise ValueError(f"vocab_size {vocab_size}; a wrong token needs at least 2")
        self.name = f"oracle-{accuracy:g}"
        self.tokenizer_hash = None
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.accuracy = accuracy
        self.seed = seed
        self.sequences = [list(sequence) for sequence in sequences]

    def open(self, params: SamplingParams, prompt_length: int) -> DraftContext:
        """A fresh, empty context."""
        return OracleContext(self, prompt_length)


class OracleContext(PositionalContext):
    """One generation: follows the known sequence that its prompt begins."""

    def __init__(self, oracle: OracleDrafter, prompt_length: int) -> None:
        super().__init__(oracle.max_length)
        self._oracle = oracle
        self._prompt_length = prompt_length
        self._sequence: Sequence[int] | None = None

    def rewind(self, length: int) -> None:
        """Forget all tokens from ``length`` on."""
        super().rewind(length)
        if length < self._prompt_length:
            self._sequence = None

    def propose(self, position: int) -> int | None:
        """The known token at ``position``, or a wrong one."""
        if self._sequence is None:
            prompt = self._tokens[: self._prompt_length]
            fitting = (s for s in self._oracle.sequences if s[: self._prompt_length] == prompt)
            self._sequence = next(fitting, ())
        if position >= len(self._sequence):
            return None
        token = self._sequence[position]
        oracle = self._oracle
        if random_word(oracle.seed, position) < oracle.accuracy * 2**32:
            return token
        return (token + 1 + random_word(oracle.seed, position, 1) % (oracle.vocab_size - 1)) % oracle.vocab_size
