"""Linear layers over prepacked weights, run with row counts from a list (``rule``, ``determinism``).

On CPU, oneDNN computes a matrix product from weights that were reordered once at load: faster for few rows than
``F.linear`` (which reorders bf16 weights in every call), and its order of summation hardly depends on the number of
rows. Where it does depend, ``tile_sizes`` lists the numbers of rows that a deterministic engine may use; in normal mode
it keeps them few, since each has a kernel of its own.

Layers that take the same input (query, key and value; gate and up) are one product: small ones are slow for what they
compute. A step of one to four rows takes a tenth less, one of 32 a fiftieth (111 M parameters, AMD Zen 4).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# By their names in transformers' model classes.
JOINED: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def packing_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build and machine have oneDNN's prepacked product for ``dtype``."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


class PackedLinear(nn.Module):
    """``nn.Linear`` for inference. Input [..., in_features], output [..., out_features], never in place.

    ``tile_sizes`` (ascending) restricts the row counts of single products; None: any. Rows that fill no tile are
    padded with zeros.
    """

    def __init__(self, *linears: nn.Linear, packed: bool) -> None:
        """``linears`` of the same input, whose outputs follow each other."""
        super().__init__()
        self.in_features, self.out_features = linears[0].in_features, sum(linear.out_features for linear in linears)
        weight = (
            linears[0].weight.detach() if len(linears) == 1 else torch.cat([one.weight.detach() for one in linears])
        )
        self.dtype, self.device = weight.dtype, weight.device
        # A copy of its own: a loader's memory map may be aligned in any way, an allocation is not.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.clone(), 8) if packed else weight
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._packed = packed
        self.tile_sizes: tuple[int, ...] | None = None

    @property
    def shape_key(self) -> tuple[int, int, bool]:
        """Layers with equal keys run the same kernels."""
        return self.in_features, self.out_features, self._bias is not None

    def product(self, rows: Tensor) -> Tensor:
        """One product, whatever its number of rows."""
        if self._packed:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
            return result
        return F.linear(rows, self._weight, self._bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """The product in tiles."""
        sizes = self.tile_sizes
        if sizes is None:
            return self.product(inputs)
        rows = inputs.reshape(-1, self.in_features)
        count = rows.shape[0]
        if count in sizes:
            return self.product(rows).view(*inputs.shape[:-1], self.out_features)
        result = rows.new_empty(count, self.out_features)
        begin = 0
        for size in tiles_of(count, sizes):
            end = min(begin + size, count)
            tile = rows[begin:end]
            if end - begin < size:
                tile = F.pad(tile, (0, 0, 0, size - (end - begin)))
            result[begin:end] = self.product(tile)[: end - begin]
            begin = end
        return result.view(*inputs.shape[:-1], self.out_features)


def tiles_of(count: int, sizes: Sequence[int]) -> list[int]:
    """Tiles from ascending ``sizes`` that cover ``count`` rows; the last may stick out, by less than its half or as
    little as the sizes allow."""
    tiles, left = [sizes[-1]] * (count // sizes[-1]), count % sizes[-1]
    while left > 0:
        index = bisect.bisect_left(sizes, left)
        if sizes[index] > left and sizes[index] >= 2 * left and index > 0:
            index -= 1
        tiles.append(sizes[index])
        left -= sizes[index]
    return tiles


class _Joined:
    """Layers of one input: whoever is asked first computes all, the others are asked with the same tensor."""

    def __init__(self, linear: PackedLinear, sizes: Sequence[int]) -> None:
        self._linear, self._sizes = linear, list(sizes)
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def output(self, index: int, inputs: Tensor) -> Tensor:
        if inputs is not self._input or index not in self._outputs:
            self._input = inputs
            self._outputs = dict(enumerate(self._linear(inputs).split(self._sizes, -1)))
        output = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return output


class _Part(nn.Module):
    """One of several layers of the same input."""

    def __init__(self, joined: _Joined, index: int) -> None:
        super().__init__()
        self._joined, self._index = joined, index

    def forward(self, inputs: Tensor) -> Tensor:
        return self._joined.output(self._index, inputs)


def _joinable(module: nn.Module) -> Iterator[dict[str, nn.Linear]]:
    """Children of ``module`` that its forward calls in turn with the same input, by name."""
    children = dict(module.named_children())
    for names in JOINED:
        linears = {name: child for name in names if type(child := children.get(name)) is nn.Linear}
        kinds = {(each.in_features, each.bias is None, each.weight.dtype) for each in linears.values()}
        if len(linears) == len(names) and len(kinds) == 1:
            yield linears


def pack_linears(model: nn.Module, *, packed: bool) -> list[PackedLinear]:
    """Replace every ``nn.Linear`` in ``model`` (mutated) and return the replacements.

    Of one layer at a time both exist.
    """
    replaced: list[PackedLinear] = []
    # Not the layers themselves: a list that holds them would hold their weights beside the packed ones.
    for module in [module for module in model.modules() if type(module) is not nn.Linear]:
        for linears in _joinable(module):
            linear = PackedLinear(*linears.values(), packed=packed)
            joined = _Joined(linear, [each.out_features for each in linears.values()])
            for index, name in enumerate(linears):
                setattr(module, name, _Part(joined, index))
            replaced.append(linear)
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                linear = PackedLinear(child, packed=packed)
                setattr(module, name, linear)
                replaced.append(linear)
    return replaced
