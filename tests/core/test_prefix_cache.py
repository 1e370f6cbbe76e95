"""What the prefix cache finds, for whom, and what it counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.scheduling import BlockManager, IntegrityError, MissReason, PrefixCache
from pilotfish_core.scheduling.prefix_cache import block_hash, root_hash


def fill(cache: PrefixCache, tokens: list[int], salt: bytes = b"", first_block: int = 0) -> None:
    parent = root_hash(salt)
    for index in range(len(tokens) // cache.block_size):
        block = tokens[index * cache.block_size : (index + 1) * cache.block_size]
        parent, _new = cache.insert(parent, block, first_block + index)


def test_the_longest_prefix_of_full_blocks_is_found() -> None:
    cache = PrefixCache(4)
    fill(cache, list(range(12)))
    assert cache.match([*range(12), 99], b"").blocks == [0, 1, 2]
    assert cache.match([*range(8), 77, 78, 79, 80, 81], b"").blocks == [0, 1]
    assert cache.match([5, *range(12)], b"").blocks == []


def test_the_last_token_is_always_computed() -> None:
    cache = PrefixCache(4)
    fill(cache, list(range(8)))
    match = cache.match(list(range(8)), b"")
    assert match.blocks == [0]
    assert match.reason is MissReason.TAIL


def test_another_salt_never_hits() -> None:
    cache = PrefixCache(4)
    fill(cache, list(range(8)), salt=b"tenant a")
    assert cache.match([*range(8), 9], b"tenant a").blocks == [0, 1]
    for other in (b"", b"tenant b", b"tenant a\0"):
        assert cache.match([*range(8), 9], other).blocks == []


def test_salts_are_length_prefixed() -> None:
    assert root_hash(b"ab") != root_hash(b"a")
    assert len({root_hash(salt) for salt in (b"", b"\0", b"\0\0")}) == 3


def test_tokens_are_compared_again_on_a_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PrefixCache(2)
    monkeypatch.setattr("pilotfish_core.scheduling.prefix_cache.block_hash", lambda parent, tokens: b"collision")
    cache.insert(root_hash(b""), [1, 2], 0)
    match = cache.match([3, 4, 5], b"")
    assert match.blocks == []
    assert match.reason is MissReason.MISMATCH


def test_equal_content_is_cached_once() -> None:
    cache = PrefixCache(2)
    digest, new = cache.insert(root_hash(b""), [1, 2], 0)
    assert new
    assert cache.insert(root_hash(b""), [1, 2], 5) == (digest, False)
    assert 5 not in cache
    assert len(cache) == 1


def test_only_full_blocks_are_taken() -> None:
    with pytest.raises(IntegrityError, match="3 tokens"):
        PrefixCache(4).insert(root_hash(b""), [1, 2, 3], 0)


def test_misses_are_counted_with_their_reason() -> None:
    cache = PrefixCache(4)
    fill(cache, list(range(12)))
    cache.reused(2)
    match = cache.match([*range(12), 1, 2], b"")
    assert (match.blocks, match.reason) == ([0, 1], MissReason.EVICTED)
    cache.count(match, 14)
    assert cache.hit_tokens == 8
    assert cache.miss_tokens == {MissReason.EVICTED: 4, MissReason.TAIL: 2}
    cache.count(cache.match([7] * 9, b""), 9)
    assert cache.miss_tokens[MissReason.UNKNOWN] == 8


def test_switched_off_it_finds_and_keeps_nothing() -> None:
    cache = PrefixCache(4, enabled=False)
    fill(cache, list(range(8)))
    assert len(cache) == 0
    assert cache.match([*range(8), 1], b"").blocks == []


def test_eviction_forgets_the_oldest_kept_block() -> None:
    cache = PrefixCache(2)
    blocks = BlockManager(2, 2, on_reuse=cache.reused)
    held = blocks.allocate(2) or []
    fill(cache, [1, 2, 3, 4], first_block=held[0])
    for block in reversed(held):
        blocks.release(block, keep=block in cache)
    cache.check_integrity(blocks)
    assert blocks.allocate(1) == [held[1]]  # the tail goes first: more prompts share the head
    assert cache.match([1, 2, 3, 4, 5], b"").blocks == [held[0]]
    cache.check_integrity(blocks)


@given(
    st.lists(st.integers(0, 2), max_size=14),
    st.lists(st.integers(0, 2), min_size=1, max_size=14),
    st.sampled_from([b"", b"x"]),
)
def test_a_match_is_exactly_the_common_prefix_in_blocks(cached: list[int], asked: list[int], salt: bytes) -> None:
    cache = PrefixCache(2)
    fill(cache, cached, salt=salt)
    common = 0
    while common < min(len(cached), len(asked) - 1) and cached[common] == asked[common]:
        common += 1
    assert len(cache.match(asked, salt).blocks) == common // 2
    assert cache.match(asked, b"other").blocks == []


def test_hashes_chain() -> None:
    first, second = block_hash(root_hash(b""), [1]), block_hash(root_hash(b""), [2])
    assert block_hash(first, [3]) != block_hash(second, [3])
