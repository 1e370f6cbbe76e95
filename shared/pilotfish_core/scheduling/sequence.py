"""The cloud's side of one generation, as the scheduler sees it."""

from __future__ import annotations

import enum

from pilotfish_core.cloud_core import CloudCore
from pilotfish_core.parameters import SamplingParams


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life on this engine."""

    WAITING = "waiting"  # holds no blocks: new, or preempted
    RUNNING = "running"  # holds blocks and takes part in steps
    ENDED = "ended"  # finished, failed or aborted; holds nothing


class Sequence:
    """Tokens, protocol core and KV bookkeeping of one generation.

    ``tokens`` is prompt + committed output and only grows. KV is valid for the positions below ``computed_len``;
    slots from there on may hold what rejected drafts left and are overwritten. Only the scheduler changes ``status``,
    ``computed_len``, ``block_table``, ``block_hashes``, ``seniority`` and ``last_step``.
    """

    __slots__ = (
        "arrival",
        "block_hashes",
        "block_table",
        "cache_salt",
        "cached_len",
        "computed_len",
        "core",
        "key",
        "last_step",
        "max_len",
        "params",
        "seniority",
        "slot",
        "status",
        "tenant",
        "tokens",
        "weight",
    )

    def __init__(
        self,
        key: str,
        tokens: list[int],
        core: CloudCore,
        params: SamplingParams,
        *,
        max_len: int,
        cache_salt: bytes = b"",
        tenant: str = "",
        weight: float = 1.0,
    ) -> None:
        self.key = key
        self.tokens = tokens
        self.core = core
        self.params = params
        self.max_len = max_len  # prompt + output can never grow beyond
        self.cache_salt = cache_salt
        self.tenant = tenant  # who shares rows with whom
        self.weight = weight  # of the tenant
        self.status = SequenceStatus.WAITING
        self.arrival = -1  # order of arrival, given by the scheduler
        self.seniority = -1  # order of the first admission
        self.computed_len = 0
        self.cached_len = 0  # how much of it came from the prefix cache at the first admission
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []  # of the leading full blocks whose hash is known
        self.last_step = -1  # the last step it took part in
        self.slot: int | None = None  # the executor's own handle (an arena); meaningless to the scheduler

    def __repr__(self) -> str:
        return f"<Sequence {self.key} {self.status.value} {self.computed_len}/{self.committed_len}>"

    @property
    def committed_len(self) -> int:
        """Prompt + committed output."""
        return len(self.tokens)

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return self.core.prompt_length

    @property
    def uncomputed(self) -> int:
        """Committed positions without KV: 1 while decoding, more during prefill. Never 0 while unfinished."""
        return self.committed_len - self.computed_len

    @property
    def decoding(self) -> bool:
        """Whether the next row yields a token."""
        return self.uncomputed == 1

    def runnable(self, now: float) -> bool:
        """Whether a step should take it: its core is running, not paused, in no step and not held for a draft."""
        return self.core.runnable and not self.core.held(now)
