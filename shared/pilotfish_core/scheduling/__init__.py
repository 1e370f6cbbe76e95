"""The cloud's decisions: which rows a step computes and who holds which KV block. Without torch, without a clock."""

from pilotfish_core.scheduling.block_manager import BlockManager, IntegrityError
from pilotfish_core.scheduling.prefix_cache import MissReason, PrefixCache
from pilotfish_core.scheduling.scheduler import (
    BlockCopy,
    CompletedStep,
    DraftRowPolicy,
    FixedDraftRows,
    Outcome,
    Sampled,
    ScheduledRows,
    ScheduledStep,
    Scheduler,
    SchedulerConfig,
    SchedulerCounts,
)
from pilotfish_core.scheduling.sequence import Sequence, SequenceStatus

__all__ = [
    "BlockCopy",
    "BlockManager",
    "CompletedStep",
    "DraftRowPolicy",
    "FixedDraftRows",
    "IntegrityError",
    "MissReason",
    "Outcome",
    "PrefixCache",
    "Sampled",
    "ScheduledRows",
    "ScheduledStep",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerCounts",
    "Sequence",
    "SequenceStatus",
]
