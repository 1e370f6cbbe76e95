"""Where keys and values lie: one contiguous arena per running sequence, and a pool of cached blocks.

Attention reads an arena in place; gathering scattered blocks for every step was four times as slow on CPU. The block
manager's ids therefore name accounting units for running sequences, and real memory only in the pool: a block that
enters the prefix cache is copied out of its arena once (``store``), a hit copies it into another (``load``).

On CPU, memory is reserved, not used: pages come from the kernel when first written, zeroed, and go back when an arena
is wiped.
"""

from __future__ import annotations

import heapq
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from pilotfish_core.errors import LocalError
from pilotfish_core.scheduling import IntegrityError


class KVStore:
    """Arenas [layers, 2, slots, kv_heads, capacity, head_dim] and pool [blocks, layers, 2, kv_heads, block, head_dim].

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
        self.num_kv_heads, self.head_dim, self.num_slots = num_kv_heads, head_dim, num_slots
        arenas = (num_layers, 2, num_slots, num_kv_heads, self.capacity, head_dim)
        self._arenas, self._memory = _zeros(arenas, dtype, device)
        self._pool, _ = _zeros((num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim), dtype, device)
        self.keys = list(self._arenas[:, 0].unbind())  # by layer: [slots, kv_heads, capacity, head_dim]
        self.values = list(self._arenas[:, 1].unbind())
        self._flat = self._arenas.view(num_layers, 2, -1, head_dim)
        self._heads = torch.arange(num_kv_heads, device=device) * self.capacity
        self._free = list(range(num_slots))  # a heap: low arenas first, so that those in use lie side by side

    @property
    def num_free_slots(self) -> int:
        """Arenas that nobody uses."""
        return len(self._free)

    @property
    def bytes_per_token(self) -> int:
        """Of one position in all layers."""
        return self._arenas[:, :, 0, :, 0].numel() * self._arenas.element_size()

    def acquire(self) -> int:
        """An arena for a sequence that joins. Raises IntegrityError when there is none."""
        if not self._free:
            raise IntegrityError("no free KV arena: more sequences run than max_num_seqs")
        return heapq.heappop(self._free)

    def release(self, slot: int, *, wipe: bool = False) -> None:
        """Give an arena back; ``wipe`` zeroes what it held."""
        if slot in self._free:
            raise IntegrityError(f"KV arena {slot} is released twice")
        if wipe:
            self._wipe(slot)
        heapq.heappush(self._free, slot)

    def cells(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where rows [rows] of these arenas and positions lie: an index for ``write``, of all heads and any layer."""
        begins = slots * (self.num_kv_heads * self.capacity) + positions
        return (begins[:, None] + self._heads).view(-1)

    def write(self, layer: int, cells: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [rows, kv_heads, head_dim] where ``cells`` says."""
        flat = self._flat[layer]
        flat[0].index_copy_(0, cells, keys.reshape(-1, self.head_dim))
        flat[1].index_copy_(0, cells, values.reshape(-1, self.head_dim))

    def load(self, slot: int, index: int, block: int) -> None:
        """Copy cached ``block`` to positions [index * block_size, ...) of the arena."""
        begin = index * self.block_size
        self._arenas[:, :, slot, :, begin : begin + self.block_size] = self._pool[block]

    def store(self, slot: int, index: int, block: int) -> None:
        """Copy those positions of the arena to cached ``block``."""
        begin = index * self.block_size
        self._pool[block] = self._arenas[:, :, slot, :, begin : begin + self.block_size]

    def _wipe(self, slot: int) -> None:
        size = self.keys[0][slot].numel() * self.dtype.itemsize  # mostly whole pages: the capacity is one of 512
        if self._memory is not None and sys.platform == "linux" and size % mmap.PAGESIZE == 0:
            for part in range(2 * len(self.keys)):  # reads as zeros then, and takes no memory
                self._memory.madvise(mmap.MADV_DONTNEED, (part * self.num_slots + slot) * size, size)
        else:
            self._arenas[:, :, slot].zero_()

    def check_integrity(self, used: Sequence[int | None]) -> None:
        """Raises IntegrityError unless each arena is either free or one of ``used``, once."""
        slots = [*self._free, *(slot for slot in used if slot is not None)]
        if sorted(slots) != list(range(self.num_slots)):
            raise IntegrityError(f"KV arenas free or used: {sorted(slots)} of {self.num_slots}")


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
