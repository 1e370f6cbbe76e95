"""Blocks of KV memory: who holds which, and which may be taken next. Pure bookkeeping, no memory of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from pilotfish_core.errors import PilotfishError


class IntegrityError(PilotfishError):
    """The bookkeeping contradicts itself: a defect of ours, never the caller's fault."""


class BlockManager:
    """Reference-counted blocks of ``block_size`` token positions, ids 0 .. num_blocks - 1.

    A block is *held* (one or more references) or *free*. A free block may be *kept*: its contents are still worth
    something to the prefix cache, so it is handed out last, least recently released first, and ``on_reuse`` is called
    with its id before it changes hands.
    """

    def __init__(self, num_blocks: int, block_size: int, on_reuse: Callable[[int], None] | None = None) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} tokens; both must be positive")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._on_reuse = on_reuse
        self._references = [0] * num_blocks
        self._plain: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._kept: OrderedDict[int, None] = OrderedDict()  # least recently released first

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` could hand out now, kept ones included."""
        return len(self._plain) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Free blocks whose contents the prefix cache still offers."""
        return len(self._kept)

    @property
    def num_held(self) -> int:
        """Blocks with at least one reference."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` positions take."""
        return -(-num_tokens // self.block_size)

    def references(self, block: int) -> int:
        """How many sequences hold ``block``."""
        return self._references[block]

    def allocate(self, count: int) -> list[int] | None:
        """Hand out ``count`` blocks with one reference each; None, and nothing changed, when there are too few."""
        if count > self.num_free:
            return None
        blocks = []
        for _ in range(count):
            if self._plain:
                block, _none = self._plain.popitem(last=False)
            else:
                block, _none = self._kept.popitem(last=False)
                if self._on_reuse is not None:
                    self._on_reuse(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def share(self, block: int) -> None:
        """One more reference to a held or kept block; a kept one is taken off the free list, contents intact.

        Raises IntegrityError for a free block that is not kept: its contents are nobody's.
        """
        if self._references[block] == 0:
            if block not in self._kept:
                raise IntegrityError(f"block {block} is free and not kept; it cannot be shared")
            del self._kept[block]
        self._references[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """One reference less. The last one frees the block; ``keep`` says whether its contents are worth keeping.

        Raises IntegrityError when nobody holds it.
        """
        if self._references[block] == 0:
            raise IntegrityError(f"block {block} is released but nobody holds it")
        self._references[block] -= 1
        if self._references[block] == 0:
            (self._kept if keep else self._plain)[block] = None

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every block is exactly one of held, plain free, kept free."""
        for block, references in enumerate(self._references):
            places = (references > 0) + (block in self._plain) + (block in self._kept)
            if references < 0 or places != 1:
                raise IntegrityError(f"block {block}: {references} references, on {places} lists")
