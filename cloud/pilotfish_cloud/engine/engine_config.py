"""Settings of the embedded engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from pilotfish_cloud.engine.loading import LoadedModel
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.scheduling import FixedRows, Goodput, SchedulerConfig, SpeculationPolicy

_GIB: Final = 2**30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of the embedded engine. Sizes in tokens unless named otherwise."""

    max_model_len: int | None = None  # None: the model's context
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_draft_tokens: int = 32
    max_draft_rows: int = 16
    max_unacknowledged: int = 512
    acknowledge_timeout_s: float = 120.0
    block_size: int = 16
    kv_cache_gib: float = 2.0  # of blocks; arenas of running sequences come on top (see kv_store)
    num_blocks: int | None = None  # None: what kv_cache_gib holds
    prefix_cache: bool = True
    speculation: str = "goodput"  # or fixed: always all drafts up to max_draft_rows, no holds
    hold_cap_s: float = 0.05
    deterministic: bool = False
    threads: int = 1


def speculation_policy(config: EngineConfig, row_sizes: Sequence[int] = ()) -> SpeculationPolicy:
    """What decides about rows and holds; ``row_sizes``: to which steps are padded. Raises InvalidParameter."""
    if config.speculation == "fixed":
        return FixedRows(config.max_draft_rows)
    if config.speculation != "goodput":
        raise InvalidParameter.of("speculation", config.speculation, "goodput or fixed")
    return Goodput(config.max_draft_rows, hold_cap=config.hold_cap_s, row_sizes=row_sizes)


def scheduler_config(loaded: LoadedModel, config: EngineConfig, max_len: int) -> SchedulerConfig:
    """Blocks within the memory granted, no more than could ever be used, enough for one sequence."""
    shape, size = loaded.shape, config.block_size
    bytes_per_block = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * loaded.dtype.itemsize * size
    one = -(-max_len // size)
    num_blocks = config.num_blocks or max(
        min(int(config.kv_cache_gib * _GIB) // bytes_per_block, config.max_num_seqs * one * 2), one
    )
    return SchedulerConfig(
        max_model_len=max_len,
        num_blocks=num_blocks,
        block_size=size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_draft_rows=min(config.max_draft_rows, config.max_draft_tokens),
        prefix_cache=config.prefix_cache,
    )
