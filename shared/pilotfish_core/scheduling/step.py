"""What scheduler and executor tell each other about one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq

from pilotfish_core.drafts import Commit, TokenLogprobs
from pilotfish_core.errors import PilotfishError
from pilotfish_core.estimators import Load
from pilotfish_core.scheduling.sequence import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class ScheduledRows:
    """One sequence's part of a step: positions [start, start + rows).

    ``committed`` counts the committed tokens among its rows, ``draft`` are the draft tokens after them. The rows from
    the last committed one on yield a target token each; a prefill chunk that stops earlier yields none.
    """

    sequence: Sequence
    start: int
    committed: int
    draft: tuple[int, ...]
    yields: int  # target tokens to sample: 0 or 1 + len(draft)

    @property
    def rows(self) -> int:
        """Query tokens in the step."""
        return self.committed + len(self.draft)

    @property
    def token_ids(self) -> list[int]:
        """Inputs of the rows."""
        return [*self.sequence.tokens[self.start : self.start + self.committed], *self.draft]


@dataclasses.dataclass(frozen=True, slots=True)
class BlockCopy:
    """Block ``index`` of the sequence's table and the block id where its contents are kept."""

    sequence: Sequence
    index: int
    block: int


@dataclasses.dataclass(slots=True)
class ScheduledStep:
    """What the executor must do, in this order: drop, attach, load, forward.

    ``preempted`` lost their KV. ``admitted`` begin (again). ``loads`` names cached blocks that an executor with private
    KV per sequence must copy in; one that reads blocks in place ignores them.
    """

    scheduled: list[ScheduledRows]
    preempted: list[Sequence]
    admitted: list[Sequence]
    loads: list[BlockCopy]

    @property
    def num_rows(self) -> int:
        """Rows of the forward pass."""
        return sum(entry.rows for entry in self.scheduled)

    @property
    def load(self) -> Load:
        """KV that its attention reads: each sequence's once, and once for each of its rows."""
        context = [entry.start + entry.rows for entry in self.scheduled]
        pairs = (length * entry.rows for length, entry in zip(context, self.scheduled, strict=True))
        return Load(sum(context), sum(pairs))


@dataclasses.dataclass(frozen=True, slots=True)
class Sampled:
    """The target's tokens for the yielding rows of one sequence."""

    tokens: Seq[int]
    logprobs: Seq[TokenLogprobs] | None = None


# What became of one entry of a step: its tokens (none for a chunk that yields none), or why its sequence failed.
Outcome = Sampled | PilotfishError


@dataclasses.dataclass(slots=True)
class CompletedStep:
    """Commits and failures of a step, and the blocks that an executor with private KV must copy out."""

    commits: list[tuple[Sequence, Commit]] = dataclasses.field(default_factory=list)
    failures: list[tuple[Sequence, PilotfishError]] = dataclasses.field(default_factory=list)
    ended: list[Sequence] = dataclasses.field(default_factory=list)
    stores: list[BlockCopy] = dataclasses.field(default_factory=list)
