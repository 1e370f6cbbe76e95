"""Limits of one scheduler, and what it counts."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one engine. Raises ValueError when a single sequence could never be served."""

    max_model_len: int
    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512  # rows of a step
    max_draft_rows: int = 16  # of one sequence in a step, beyond its decode row
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; expected at least one row for each "
                f"of max_num_seqs = {self.max_num_seqs} sequences"
            )
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"{self.num_blocks} blocks of {self.block_size} tokens cannot hold one sequence of "
                f"max_model_len = {self.max_model_len}"
            )
        if self.max_draft_rows < 0:
            raise ValueError(f"max_draft_rows is {self.max_draft_rows}; expected 0 or more")


@dataclasses.dataclass(slots=True)
class SchedulerCounts:
    """Totals since start; rows as scheduled."""

    steps: int = 0
    prefill_rows: int = 0
    decode_rows: int = 0
    draft_rows: int = 0
    preemptions: int = 0
    holds: int = 0
