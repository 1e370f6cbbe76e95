"""The noise both sides share: standard Gumbel variates from a counter-based generator, without state.

Variate ``G(seed, position, token)`` is made of one 32-bit word of Philox4x32-10 (Salmon, Moraes, Dror, Shaw:
"Parallel random numbers: as easy as 1, 2, 3", SC 2011)::

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (token >> 2, position low 32, position high 32, domain)
    word    = lane (token & 3) of the block
    u       = (word + 0.5) / 2**32                never 0 or 1, exact in float64
    G       = -log(-log(u))                       float64, within [GUMBEL_MIN, GUMBEL_MAX]

``domain`` is 0 for sampling and 1 for sub-seeds (``derive_seed``), so the two never share a block. Four neighbouring
tokens share a block. Test vectors for other languages: ``vectors/`` beside this file.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pilotfish_core.errors import InvalidParameter

Words = NDArray[np.uint32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)
ROUNDS: Final = 10
LANES: Final = 4
MASK32: Final = 0xFFFFFFFF
SAMPLING_DOMAIN: Final = 0
SEED_DOMAIN: Final = 1
GUMBEL_MIN: Final = -math.log(-math.log(0.5 / 2**32))  # -3.1
GUMBEL_MAX: Final = -math.log(-math.log((MASK32 + 0.5) / 2**32))  # 22.9

_M0, _M1 = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_MASK = np.uint64(MASK32)
_SHIFT = np.uint64(32)
_ROW_SHARE: Final = 6  # above one id in this many, a whole row (each block once) is cheaper than the ids alone


def round_keys(key: tuple[int, int]) -> list[tuple[int, int]]:
    """The key of each of the ten rounds (two 32-bit words each)."""
    return [((key[0] + i * WEYL[0]) & MASK32, (key[1] + i * WEYL[1]) & MASK32) for i in range(ROUNDS)]


def philox_block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block of Philox4x32-10 in plain integers: the definition, and quickest for a single block."""
    c0, c1, c2, c3 = counter
    for k0, k1 in round_keys(key):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
    return c0, c1, c2, c3


def philox_blocks(first: NDArray[np.uint64], rest: tuple[int, int, int], key: tuple[int, int]) -> Words:
    """Blocks for counters ``(first[i], *rest)``; ``first`` holds 32-bit values. Returns uint32 ``[len(first), 4]``.

    Works in place on two pairs of 64-bit buffers: memory traffic, not arithmetic, is what it costs. Words 1 and 3
    keep the product's upper half as garbage until they are mixed in and masked, which saves two passes a round.
    """
    keys = round_keys(key)
    # Rounds one and two, with what does not depend on ``first`` in plain integers.
    r1, r2, r3 = rest
    p1 = r2 * MULTIPLIERS[1]
    s0, s1 = (p1 >> 32) ^ r1 ^ keys[0][0], p1 & MASK32
    c3 = first * _M0
    c2 = (c3 >> _SHIFT) ^ np.uint64(r3 ^ keys[0][1])
    p0 = s0 * MULTIPLIERS[0]
    c1 = c2 * _M1
    c0 = (c1 >> _SHIFT) ^ np.uint64(s1 ^ keys[1][0])
    c2 = (c3 & _MASK) ^ np.uint64((p0 >> 32) ^ keys[1][1])
    c3 = np.full_like(c3, p0 & MASK32)
    a, b = np.empty_like(c0), np.empty_like(c0)
    for k0, k1 in keys[2:]:
        np.multiply(c0, _M0, out=c0)
        np.multiply(c2, _M1, out=c2)
        np.right_shift(c2, _SHIFT, out=a)
        np.bitwise_xor(a, c1, out=a)
        np.bitwise_xor(a, np.uint64(k0), out=a)
        np.bitwise_and(a, _MASK, out=a)
        np.right_shift(c0, _SHIFT, out=b)
        np.bitwise_xor(b, c3, out=b)
        np.bitwise_xor(b, np.uint64(k1), out=b)
        np.bitwise_and(b, _MASK, out=b)
        c0, c1, c2, c3, a, b = a, c2, b, c0, c1, c3
    words = np.empty((len(first), LANES), dtype=np.uint32)
    for lane, column in enumerate((c0, c1, c2, c3)):
        words[:, lane] = column  # the cast keeps the low 32 bits
    return words


def split64(name: str, value: int) -> tuple[int, int]:
    """Low and high 32 bits. Raises InvalidParameter when ``value`` is not an unsigned 64-bit integer."""
    if not 0 <= value < 2**64:
        raise InvalidParameter.of(name, value, "an integer in [0, 2^64)")
    return value & MASK32, value >> 32


def words_row(seed: int, position: int, vocab_size: int) -> Words:
    """The words of tokens 0 .. vocab_size - 1 at one position, each block computed once. uint32 ``[vocab_size]``."""
    key, rest = _key_and_rest(seed, position)
    blocks = np.arange(-(-vocab_size // LANES), dtype=np.uint64)
    return philox_blocks(blocks, rest, key).reshape(-1)[:vocab_size]


def words_at(seed: int, position: int, ids: Ids) -> Words:
    """The words of the given token ids (any order, repeats allowed) at one position. uint32 ``[len(ids)]``."""
    if ids.size == 0:
        return np.empty(0, dtype=np.uint32)
    span = int(ids.max()) + 1
    if ids.size * _ROW_SHARE > span > 256:
        return words_row(seed, position, span)[ids]
    key, rest = _key_and_rest(seed, position)
    blocks = philox_blocks((ids >> 2).astype(np.uint64), rest, key)
    return blocks[np.arange(ids.size), ids & 3]


def gumbel_of_words(words: Words) -> Floats:
    """Standard Gumbel variates of 32-bit words, float64, same shape."""
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    result: Floats = -np.log(-np.log(uniform))
    return result


def gumbel_at(seed: int, position: int, ids: Ids) -> Floats:
    """``G(seed, position, id)`` for the given token ids, float64 ``[len(ids)]``."""
    return gumbel_of_words(words_at(seed, position, ids))


def gumbel_row(seed: int, position: int, vocab_size: int) -> Floats:
    """``G(seed, position, ·)`` for tokens 0 .. vocab_size - 1, float64 ``[vocab_size]``."""
    return gumbel_of_words(words_row(seed, position, vocab_size))


def least_word(gumbel: float) -> int:
    """A word below which no variate reaches ``gumbel``: comparing words is far cheaper than two logarithms each.

    Returns 0 .. 2^32; errs low by at least one, never high.
    """
    if gumbel <= GUMBEL_MIN:
        return 0
    return max(0, math.floor(math.exp(-math.exp(-gumbel)) * 2.0**32) - 2)


def derive_seed(seed: int, index: int) -> int:
    """The seed of choice ``index`` of a request with ``n > 1``; choice 0 has the request's own seed."""
    low, high = split64("index", index)
    if index == 0:
        split64("seed", seed)
        return seed
    words = philox_block((low, high, 0, SEED_DOMAIN), split64("seed", seed))
    return words[0] | words[1] << 32


def _key_and_rest(seed: int, position: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    low, high = split64("position", position)
    return split64("seed", seed), (low, high, SAMPLING_DOMAIN)
