"""The cloud's decisions: which rows a step computes and who holds which KV block. Without torch, without a clock."""

from pilotfish_core.scheduling.block_manager import BlockManager, IntegrityError
from pilotfish_core.scheduling.cloud_drafter import CloudDrafter, CloudNgram
from pilotfish_core.scheduling.fairness import TenantCounters
from pilotfish_core.scheduling.goodput_policy import Goodput
from pilotfish_core.scheduling.prefix_cache import MissReason, PrefixCache
from pilotfish_core.scheduling.row_policy import FixedRows, Hold, SpeculationPolicy
from pilotfish_core.scheduling.scheduler import Scheduler
from pilotfish_core.scheduling.scheduler_config import SchedulerConfig, SchedulerCounts
from pilotfish_core.scheduling.seats import Seats
from pilotfish_core.scheduling.sequence import Sequence, SequenceStatus
from pilotfish_core.scheduling.step import (
    BlockCopy,
    CompletedStep,
    Outcome,
    Sampled,
    ScheduledRows,
    ScheduledStep,
)
from pilotfish_core.scheduling.waiting import WaitingList

__all__ = [
    "BlockCopy",
    "BlockManager",
    "CloudDrafter",
    "CloudNgram",
    "CompletedStep",
    "FixedRows",
    "Goodput",
    "Hold",
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
    "Seats",
    "Sequence",
    "SequenceStatus",
    "SpeculationPolicy",
    "TenantCounters",
    "WaitingList",
]
