"""Block quantisation of matrices in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 32  # columns that share a scale
_ROWS_AT_ONCE: Final = 4096  # bounds the working memory
_SHRINKS: Final = {4: tuple(1.0 - 0.03 * step for step in range(11)), 8: (1.0,)}

Matrix = NDArray[np.float32]
Packed = tuple[NDArray[np.uint8], Matrix]  # values and scales of a matrix, as ``quantise`` returns them


def quantise(weight: Matrix, bits: int, block: int = BLOCK) -> Packed:
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
        packed[part] = _packed(values, bits)
    return packed, scales


def pack(levels: Matrix, bits: int, block: int = BLOCK) -> NDArray[np.uint8]:
    """Whole numbers ``[rows, columns]`` in ``[-2**(bits-1), 2**(bits-1))`` as ``quantise`` packs them."""
    rows, columns = levels.shape
    blocks = -(-columns // block)
    values = np.full((rows, blocks * block), 2 ** (bits - 1), dtype=np.uint8)
    values[:, :columns] = (levels + 2 ** (bits - 1)).astype(np.uint8)
    return _packed(values.reshape(rows, blocks, block), bits)


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return values
    return (values[..., 0::2] | values[..., 1::2] << 4).astype(np.uint8)


def quantise_rows(weight: Matrix) -> tuple[NDArray[np.int8], Matrix]:
    """Symmetric round-to-nearest with one scale per row of ``[rows, columns]``.

    Returns int8 values in [-127, 127] of the same shape and the scales, float32 ``[rows]``.
    """
    scales = (np.abs(weight).max(axis=1, initial=0.0) / 127).astype(np.float32)
    scales[scales == 0] = 1.0
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


def unpack4(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The values, 0 to 15, of 4-bit blocks ``[rows, blocks, block // 2]`` as ``[rows, blocks * block]``."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def dequantise(packed: NDArray[np.uint8], scales: Matrix, bits: int, columns: int) -> Matrix:
    """What ``quantise`` made of a matrix, float32 ``[rows, columns]``."""
    values = packed if bits == 8 else unpack4(packed).reshape(*packed.shape[:2], -1)
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
