"""Block quantisation of matrices in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 32  # columns that share a scale
_ROWS_AT_ONCE: Final = 4096  # bounds the working memory
_SHRINKS: Final = {4: tuple(1.0 - 0.03 * step for step in range(11)), 8: (1.0,)}
_CLIPS: Final = (1.0, 0.92, 0.84, 0.76)  # shares of a block's least and largest value that its levels span

Matrix = NDArray[np.float32]


def quantise(weight: Matrix, bits: int, block: int = BLOCK) -> tuple[NDArray[np.uint8], Matrix]:
    """Symmetric round-to-nearest per block of ``block`` columns, ``bits`` 4 or 8.

    ``weight`` is ``[rows, columns]``. Returns the packed values, uint8 ``[rows, blocks, block * bits //
    8]`` (4 bits: the even column in the low half), and the scales, float32 ``[rows, blocks]``; a weight is
    ``(value - 2**(bits-1)) * scale``. Missing columns of the last block are zeros.

    The scale puts the block's extreme on the end of the range (so it may be negative). For 4 bits smaller
    scales are tried as well, which clip the extreme, and the one with the least squared error is kept.
    """
    rows, columns = weight.shape
    blocks = -(-columns // block)
    padded = np.zeros((rows, blocks * block), dtype=np.float32)
    padded[:, :columns] = weight
    packed = np.empty((rows, blocks, block * bits // 8), dtype=np.uint8)
    scales = np.empty((rows, blocks), dtype=np.float32)
    for begin in range(0, rows, _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        values, scales[part] = _quantise_rows(padded[part].reshape(-1, blocks, block), bits)
        packed[part] = values if bits == 8 else values[..., 0::2] | values[..., 1::2] << 4
    return packed, scales


def quantise_rows(weight: Matrix) -> tuple[NDArray[np.int8], Matrix]:
    """Symmetric round-to-nearest with one scale per row of ``[rows, columns]``.

    Returns int8 values in [-127, 127] of the same shape and the scales, float32 ``[rows]``.
    """
    scales = (np.abs(weight).max(axis=1, initial=0.0) / 127).astype(np.float32)
    scales[scales == 0] = 1.0
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


def on_grid(weight: Matrix, block: int) -> Matrix:
    """``weight`` on grids of 16 levels, chosen with the clipping that a plain 4-bit quantiser does not try.

    Per block of ``block`` columns (a divisor of their number) the values are ``(level - zero) * scale``, levels 0 to
    15 and zero an integer, with the least squared error of those tried. Both end levels are taken, so that a
    quantiser which spans a block from its least to its largest value finds the same grid again.
    """
    blocks = weight.reshape(len(weight), -1, block)
    lowest = np.minimum(blocks.min(axis=-1, keepdims=True), 0.0)
    highest = np.maximum(blocks.max(axis=-1, keepdims=True), 0.0)
    best, best_error = blocks, np.full(lowest.shape, np.inf, dtype=np.float32)
    for below in _CLIPS:
        for above in _CLIPS:
            scale = (highest * above - lowest * below) / 15
            scale[scale == 0] = 1.0
            zero = np.rint(-lowest * below / scale)
            levels = np.clip(np.rint(blocks / scale) + zero, 0, 15)
            rounded = (levels - zero) * scale
            error = np.square(rounded - blocks).sum(axis=-1, keepdims=True)
            spans = (levels.min(axis=-1, keepdims=True) == 0) & (levels.max(axis=-1, keepdims=True) == 15)
            better = (error < best_error) & spans
            best = np.where(better, rounded, best)
            best_error = np.where(better, error, best_error)
    result: Matrix = best.reshape(weight.shape).astype(np.float32)
    return result


def dequantise(packed: NDArray[np.uint8], scales: Matrix, bits: int, columns: int) -> Matrix:
    """What ``quantise`` made of a matrix, float32 ``[rows, columns]``."""
    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    weight = (values.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    result: Matrix = weight.reshape(len(packed), -1)[:, :columns]
    return result


def _quantise_rows(weight: Matrix, bits: int) -> tuple[NDArray[np.uint8], Matrix]:
    """``weight`` is ``[rows, blocks, block]``; values unpacked."""
    middle = 2 ** (bits - 1)
    where = np.abs(weight).argmax(axis=-1)[..., None]
    full = np.take_along_axis(weight, where, axis=-1) / -middle
    full[full == 0] = 1.0
    best_error = np.full(full.shape, np.inf, dtype=np.float32)
    best_scale, best_values = full, np.zeros(weight.shape, dtype=np.uint8)
    for shrink in _SHRINKS[bits]:
        scale = (full * shrink).astype(np.float32)
        values = np.clip(np.rint(weight / scale), -middle, middle - 1)
        error = np.square(values * scale - weight).sum(axis=-1, keepdims=True)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_values = np.where(better, (values + middle).astype(np.uint8), best_values)
    return best_values, best_scale[..., 0]
