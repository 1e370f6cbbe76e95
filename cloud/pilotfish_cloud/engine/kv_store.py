"""Where keys and values lie: one contiguous arena per running sequence, and a pool of cached blocks.

Attention reads an arena in place; gathering scattered blocks for every step was four times as slow on CPU. The block
manager's ids therefore name accounting units for running sequences, and real memory only in the pool: a block that
enters the prefix cache is copied out of its arena once (``store``), a hit copies it into another (``load``).

On CPU, memory is reserved, not used: pages come from the kernel when first written, zeroed, and go back when an arena
is wiped.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from pilotfish_core.errors import LocalError
from pilotfish_core.scheduling import IntegrityError


class KVStore:
    """Arenas [slots, layers, 2, kv_heads, capacity, head_dim] and pool [blocks, layers, 2, kv_heads, block, head_dim].

    Everything in an arena is finite at all times: padded attention multiplies what lies beyond a sequence's end by
    zero. An arena whose sequence computed NaN must be released with ``wipe=True``.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        num_blocks: int,
        block_size: int,
        max_len: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dtype, self.device, self.block_size = dtype, device, block_size
        self.capacity = -(-max_len // 512) * 512
        inner = (num_layers, 2, num_kv_heads)
        self._arenas, self._memory = _zeros((num_slots, *inner, self.capacity, head_dim), dtype, device)
        self._pool, _ = _zeros((num_blocks, *inner, block_size, head_dim), dtype, device)
        self.keys = [self._arenas[:, layer, 0] for layer in range(num_layers)]
        self.values = [self._arenas[:, layer, 1] for layer in range(num_layers)]
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free_slots(self) -> int:
        """Arenas that nobody uses."""
        return len(self._free)

    @property
    def bytes_per_token(self) -> int:
        """Of one position in all layers."""
        return self._arenas[0, ..., 0, :].numel() * self._arenas.element_size()

    def acquire(self) -> int:
        """An arena for a sequence that joins. Raises IntegrityError when there is none."""
        if not self._free:
            raise IntegrityError("no free KV arena: more sequences run than max_num_seqs")
        return self._free.pop()

    def release(self, slot: int, *, wipe: bool = False) -> None:
        """Give an arena back; ``wipe`` zeroes what it held."""
        if slot in self._free:
            raise IntegrityError(f"KV arena {slot} is released twice")
        if wipe:
            self._wipe(slot)
        self._free.append(slot)

    def load(self, slot: int, index: int, block: int) -> None:
        """Copy cached ``block`` to positions [index * block_size, ...) of the arena."""
        begin = index * self.block_size
        self._arenas[slot, :, :, :, begin : begin + self.block_size] = self._pool[block]

    def store(self, slot: int, index: int, block: int) -> None:
        """Copy those positions of the arena to cached ``block``."""
        begin = index * self.block_size
        self._pool[block] = self._arenas[slot, :, :, :, begin : begin + self.block_size]

    def _wipe(self, slot: int) -> None:
        arena = self._arenas[slot]
        size = arena.numel() * arena.element_size()  # a multiple of the page: the capacity is one of 512
        if self._memory is not None and sys.platform == "linux" and size % mmap.PAGESIZE == 0:
            self._memory.madvise(mmap.MADV_DONTNEED, slot * size, size)  # reads as zeros, takes no memory
        else:
            arena.zero_()

    def check_integrity(self, used: Sequence[int | None]) -> None:
        """Raises IntegrityError unless each arena is either free or one of ``used``, once."""
        slots = [*self._free, *(slot for slot in used if slot is not None)]
        if sorted(slots) != list(range(self._arenas.shape[0])):
            raise IntegrityError(f"KV arenas free or used: {sorted(slots)} of {self._arenas.shape[0]}")


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, mmap.mmap | None]:
    """Zeros; on CPU in memory that the kernel provides page by page on first write, which is returned too."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device), None
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    try:
        if sys.platform == "win32":
            memory = mmap.mmap(-1, size)
        else:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            memory = mmap.mmap(-1, size, flags=flags)
    except (OSError, OverflowError) as error:
        raise LocalError(
            f"no memory for {size / 2**30:.1f} GiB of KV cache ({error}); lower --max-model-len or --max-num-seqs"
        ) from None
    return torch.frombuffer(memory, dtype=dtype).view(shape), memory
