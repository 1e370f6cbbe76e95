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
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pilotfish_core.errors import InvalidParameter

Words = NDArray[np.uint32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Blocks = NDArray[np.uint64]

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
_MULTIPLIERS = np.array([[[MULTIPLIERS[0]]], [[MULTIPLIERS[1]]]], dtype=np.uint64)
_MASK = np.uint64(MASK32)
_SHIFT = np.uint64(32)
_PIECE: Final = 13_000  # blocks whose buffers fit a second-level cache
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


def philox_blocks(first: Blocks, rest: tuple[int, int, int], key: tuple[int, int]) -> Words:
    """Blocks for counters ``(first[i], *rest)``; ``first`` holds 32-bit values. Returns uint32 ``[len(first), 4]``."""
    keys = round_keys(key)
    columns = [np.array([[[k0]], [[k1]]], dtype=np.uint64) for k0, k1 in keys[2:]]
    words = np.empty((len(first), LANES), dtype=np.uint32)
    pieces = max(1, -(-len(first) // _PIECE))
    scratch = np.empty(8 * -(-len(first) // pieces), dtype=np.uint64)  # once: fresh pages cost as much as a round
    for piece in range(pieces):
        start, end = len(first) * piece // pieces, len(first) * (piece + 1) // pieces
        buffers = scratch[: 8 * (end - start)].reshape(4, 2, 1, end - start)
        _first_rounds(buffers[:, :, 0], first[start:end], rest, keys)
        mixed, low = _last_rounds(buffers, columns)
        for lane, column in enumerate((mixed[0], low[0], mixed[1], low[1])):
            words[start:end, lane] = column[0]  # the cast keeps the low 32 bits
    return words


def _first_rounds(buffers: Blocks, first: Blocks, rest: tuple[int, int, int], keys: list[tuple[int, int]]) -> None:
    """Two rounds, with what does not depend on ``first`` in plain integers. Fills words (0, 2) and (1, 3)."""
    mixed, low, spare, _ = buffers
    r1, r2, r3 = rest
    p1 = r2 * MULTIPLIERS[1]
    p0 = ((p1 >> 32) ^ r1 ^ keys[0][0]) * MULTIPLIERS[0]
    np.multiply(first, _M0, out=mixed[1])
    np.right_shift(mixed[1], _SHIFT, out=spare[0])
    np.bitwise_xor(spare[0], np.uint64(r3 ^ keys[0][1]), out=spare[0])
    np.multiply(spare[0], _M1, out=low[0])
    np.right_shift(low[0], _SHIFT, out=mixed[0])
    np.bitwise_xor(mixed[0], np.uint64((p1 & MASK32) ^ keys[1][0]), out=mixed[0])
    np.bitwise_and(mixed[1], _MASK, out=mixed[1])
    np.bitwise_xor(mixed[1], np.uint64((p0 >> 32) ^ keys[1][1]), out=mixed[1])
    low[1] = p0 & MASK32


def _first_rounds_of_rows(buffers: Blocks, first: Blocks, rest: tuple[Blocks, Blocks], keys: list[Blocks]) -> None:
    """As ``_first_rounds``, for ``[2, rows, n]`` buffers. ``rest`` and halves of ``keys`` are ``[rows, 1]``."""
    mixed, low, spare, _ = buffers
    r1, r2 = rest
    p1 = r2 * _M1
    p0 = ((p1 >> _SHIFT) ^ r1 ^ keys[0][0]) * _M0
    product = first * _M0
    np.bitwise_xor(product >> _SHIFT, np.uint64(SAMPLING_DOMAIN) ^ keys[0][1], out=spare[0])
    np.multiply(spare[0], _M1, out=low[0])
    np.right_shift(low[0], _SHIFT, out=mixed[0])
    np.bitwise_xor(mixed[0], (p1 & _MASK) ^ keys[1][0], out=mixed[0])
    np.bitwise_xor(product & _MASK, (p0 >> _SHIFT) ^ keys[1][1], out=mixed[1])
    low[1] = p0 & _MASK


def _last_rounds(buffers: Blocks, columns: list[Blocks]) -> tuple[Blocks, Blocks]:
    """The other eight rounds on ``[2, rows, n]`` buffers, five passes each: what they cost is memory traffic and calls.

    The low words keep the products' upper halves as garbage, dropped when they are mixed in or cast.
    """
    mixed, low, spare, product = buffers
    for column in columns:
        np.multiply(mixed, _MULTIPLIERS, out=product)
        swapped = product[::-1]
        np.right_shift(swapped, _SHIFT, out=spare)
        np.bitwise_xor(spare, low, out=spare)
        np.bitwise_xor(spare, column, out=spare)
        np.bitwise_and(spare, _MASK, out=spare)
        mixed, low, spare, product = spare, swapped, mixed, low
    return mixed, low


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


def words_rows(seeds: Sequence[int], positions: Sequence[int], vocab_size: int) -> Words:
    """``words_row`` of several seeds and positions at once. uint32 ``[len(seeds), vocab_size]``."""
    keys = np.array([round_keys(split64("seed", seed)) for seed in seeds], dtype=np.uint64)  # [rows, round, half]
    columns = [np.ascontiguousarray(part.T[:, :, None]) for part in keys.transpose(1, 0, 2)]  # each [half, rows, 1]
    low, high = np.array([split64("position", position) for position in positions], dtype=np.uint64).T[:, :, None]
    first = np.arange(-(-vocab_size // LANES), dtype=np.uint64)
    words = np.empty((len(seeds), first.size, LANES), dtype=np.uint32)
    step = max(1, _PIECE // first.size)
    scratch = np.empty(8 * min(step, len(seeds)) * first.size, dtype=np.uint64)
    for start in range(0, len(seeds), step):
        part = slice(start, min(start + step, len(seeds)))
        rows = part.stop - start
        buffers = scratch[: 8 * rows * first.size].reshape(4, 2, rows, first.size)
        _first_rounds_of_rows(buffers, first, (low[part], high[part]), [column[:, part] for column in columns[:2]])
        mixed, below = _last_rounds(buffers, [column[:, part] for column in columns[2:]])
        for lane, column in enumerate((mixed[0], below[0], mixed[1], below[1])):
            words[part, :, lane] = column
    return words.reshape(len(seeds), -1)[:, :vocab_size]


def words_at(seed: int, position: int, ids: Ids) -> Words:
    """The words of the given token ids (any order, repeats allowed) at one position. uint32 ``[len(ids)]``."""
    if ids.size == 0:
        return np.empty(0, dtype=np.uint32)
    span = int(ids.max()) + 1
    if ids.size * _ROW_SHARE > span > 256:
        return words_row(seed, position, span)[ids]
    key, rest = _key_and_rest(seed, position)
    blocks = philox_blocks((ids >> 2).astype(np.uint64), rest, key)
    words: Words = blocks[np.arange(ids.size), ids & 3]
    return words


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
