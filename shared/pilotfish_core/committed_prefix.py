"""What the device knows to be decided of one generation: the prompt, and the output as far as it is committed."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish_core.drafts import Commit
from pilotfish_core.errors import ProtocolViolation


class CommittedPrefix:
    """``output`` is the caller's list, which only grows; ``max_tokens`` bounds it."""

    def __init__(self, prompt: Sequence[int], output: list[int], max_tokens: int) -> None:
        self.prompt = tuple(prompt)
        self.output = output
        self.max_tokens = max_tokens

    @property
    def length(self) -> int:
        """Prompt + output; the position of the next token."""
        return len(self.prompt) + len(self.output)

    @property
    def room(self) -> int:
        """Tokens that the output may still grow by."""
        return self.max_tokens - len(self.output)

    def known(self, commit: Commit) -> int:
        """How many of a commit's tokens, which begins at ``length`` or before, are in the output already.

        Raises ProtocolViolation for one that changes what was committed, or goes beyond ``max_tokens``.
        """
        known = min(self.length - commit.position, len(commit.tokens))
        begin = commit.position - len(self.prompt)
        if begin < 0 or list(commit.tokens[:known]) != self.output[begin : begin + known]:
            raise ProtocolViolation("the verifier changed tokens that it had committed")
        self.check_end(commit)
        return known

    def check_end(self, commit: Commit) -> None:
        """Raises ProtocolViolation for a commit that goes beyond ``max_tokens``."""
        if commit.end > len(self.prompt) + self.max_tokens:
            raise self.too_much()

    def too_much(self) -> ProtocolViolation:
        """What to say when more is committed than can be output."""
        return ProtocolViolation(f"the verifier committed more than the {self.max_tokens} tokens asked for")

    def since(self, start: int, tail: Sequence[int]) -> tuple[int, ...]:
        """Tokens of prompt + output + ``tail``, which is behind them, from position ``start`` on."""
        prompt_length = len(self.prompt)
        if start >= prompt_length:
            after = self.output[start - prompt_length :]
            skipped = max(start - self.length, 0)
            return (*after, *tail[skipped:])
        return (*self.prompt[start:], *self.output, *tail)
