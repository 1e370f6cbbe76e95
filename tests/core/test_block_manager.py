"""Reference counts and the free list, under any order of calls."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.scheduling import BlockManager, IntegrityError


def taken(blocks: BlockManager, count: int) -> list[int]:
    found = blocks.allocate(count)
    assert found is not None
    return found


def test_blocks_for_rounds_up() -> None:
    blocks = BlockManager(4, 16)
    assert [blocks.blocks_for(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_allocation_is_all_or_nothing() -> None:
    blocks = BlockManager(3, 16)
    assert blocks.allocate(4) is None
    assert blocks.num_free == 3
    assert len(blocks.allocate(3) or ()) == 3
    assert blocks.allocate(1) is None
    assert blocks.allocate(0) == []


def test_plain_blocks_are_handed_out_before_kept_ones_and_kept_ones_oldest_first() -> None:
    reused: list[int] = []
    blocks = BlockManager(4, 16, on_reuse=reused.append)
    first, second, third, fourth = taken(blocks, 4)
    for block in (third, first, fourth):
        blocks.release(block, keep=True)
    blocks.release(second, keep=False)
    assert (blocks.num_free, blocks.num_kept, blocks.num_held) == (4, 3, 0)
    assert blocks.allocate(1) == [second]
    assert reused == []
    assert blocks.allocate(2) == [third, first]
    assert reused == [third, first]


def test_a_shared_block_stays_until_its_last_holder_leaves() -> None:
    blocks = BlockManager(1, 16)
    (block,) = taken(blocks, 1)
    blocks.share(block)
    blocks.release(block, keep=True)
    assert (blocks.references(block), blocks.num_free) == (1, 0)
    blocks.release(block, keep=True)
    assert blocks.num_kept == 1
    blocks.share(block)  # a hit on a kept block
    assert (blocks.references(block), blocks.num_kept) == (1, 0)


def test_misuse_is_an_integrity_error() -> None:
    blocks = BlockManager(2, 16)
    with pytest.raises(IntegrityError, match="nobody holds"):
        blocks.release(0, keep=False)
    with pytest.raises(IntegrityError, match="not kept"):
        blocks.share(0)
    with pytest.raises(ValueError, match="positive"):
        BlockManager(0, 16)


@given(st.integers(1, 12), st.lists(st.tuples(st.sampled_from("asrk"), st.integers(0, 11)), max_size=80))
def test_every_block_is_held_plain_or_kept_whatever_happens(count: int, actions: list[tuple[str, int]]) -> None:
    reused: list[int] = []
    blocks = BlockManager(count, 16, on_reuse=reused.append)
    held: Counter[int] = Counter()
    kept: set[int] = set()
    for action, number in actions:
        block = number % count
        if action == "a":
            free = blocks.num_free
            given_out = blocks.allocate(number)
            assert (given_out is None) == (number > free)
            for fresh in given_out or ():
                assert not held[fresh]
                held[fresh] += 1
        elif action == "s" and (held[block] or block in kept):
            blocks.share(block)
            held[block] += 1
            kept.discard(block)
        elif action in "rk" and held[block]:
            blocks.release(block, keep=action == "k")
            held[block] -= 1
            if action == "k" and not held[block]:
                kept.add(block)
        kept -= set(reused)
        reused.clear()
        blocks.check_integrity()
        assert blocks.num_held == sum(count > 0 for count in held.values())
        assert blocks.num_kept == len(kept)
