"""Rounding to 4 bits with a look at what goes in: GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers", 2023).

A matrix is rounded column by column, and the error of each column is made up for by those not yet rounded, weighed by
how the inputs of the columns go together on real text. Scales are those of ``quantise``. Inputs of a group of layers
are taken from one pass of the model whose earlier layers are rounded already.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.quantise import BLOCK, Packed, dequantise, pack, quantise
from pilotfish_core.errors import ModelLoadError
from pilotfish_core.tokenizer import Tokenizer

SEQUENCES: Final = 32
LENGTH: Final = 256  # tokens of each
_MEMORY: Final = 2**30  # bytes of products of inputs at once
_DAMPINGS: Final = (0.01, 0.1, 1.0)  # of the mean square of the inputs, on the diagonal; more where less fails


def calibration_ids(tokenizer: Tokenizer, text: str | None) -> list[list[int]]:
    """Sequences of ``text``; None: of modules of the standard library, others than what is measured on."""
    if text is None:
        import argparse
        import difflib
        import logging
        import statistics
        import tarfile

        text = "\n".join(inspect.getsource(module) for module in (argparse, difflib, logging, statistics, tarfile))
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = [ids[begin : begin + LENGTH] for begin in range(0, len(ids), LENGTH)]
    step = max(1, len(pieces) // SEQUENCES)  # from all of the text
    return pieces[::step][:SEQUENCES]


def round_layers(
    checkpoint: Checkpoint, sequences: list[list[int]], progress: Callable[[float], None]
) -> dict[str, Packed]:
    """All matrices of the layers in 4 bits, by their name without ``.weight``. The checkpoint is left as it was."""
    import torch

    matrices = {
        name: module
        for name, module in checkpoint.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers.")
    }
    kept = {name: module.weight.detach().clone() for name, module in matrices.items()}
    result: dict[str, Packed] = {}
    try:
        for group in _groups(matrices):
            products = _products(checkpoint, {name: matrices[name] for name in group}, sequences)
            for name in group:
                packed, scales = result[name] = _rounded(kept[name], products[name])
                wide = dequantise(packed, scales, 4, kept[name].shape[1])
                with torch.no_grad():
                    matrices[name].weight.copy_(torch.from_numpy(wide))
                progress(len(result) / len(matrices))
    finally:
        with torch.no_grad():
            for name, module in matrices.items():
                module.weight.copy_(kept[name])
    return result


def _groups(matrices: dict[str, Any]) -> Iterator[list[str]]:
    """Names of matrices whose products fit into memory together."""
    group: list[str] = []
    size = 0
    for name, module in matrices.items():
        needed = 4 * module.weight.shape[1] ** 2
        if group and size + needed > _MEMORY:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    yield group


def _products(checkpoint: Checkpoint, matrices: dict[str, Any], sequences: list[list[int]]) -> dict[str, Any]:
    """Sum over tokens of the outer products of each matrix's inputs, float32 ``[columns, columns]``."""
    import torch

    products = {name: torch.zeros(2 * (module.weight.shape[1],)) for name, module in matrices.items()}

    def noting(name: str) -> Callable[[Any, Any], None]:
        def note(_: Any, inputs: Any) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            products[name].addmm_(rows.T, rows)

        return note

    hooks = [module.register_forward_pre_hook(noting(name)) for name, module in matrices.items()]
    try:
        for ids in sequences:
            checkpoint.logits(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return products


def _rounded(weight: Any, products: Any) -> Packed:
    """GPTQ of ``[rows, columns]``; ``products`` is used up."""
    import torch

    rest, columns = weight.clone(), weight.shape[1]
    upper = _factor(products)
    levels = torch.empty_like(rest)
    scales = []
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        scale = torch.from_numpy(quantise(rest[:, begin:end].numpy(), 4)[1][:, 0])
        scales.append(scale.numpy())
        errors = torch.empty(len(rest), end - begin)
        for column in range(begin, end):
            level = torch.clamp(torch.round(rest[:, column] / scale), -8, 7)
            error = (rest[:, column] - level * scale) / upper[column, column]
            rest[:, column:end] -= error[:, None] * upper[column, column:end]
            levels[:, column], errors[:, column - begin] = level, error
        rest[:, end:] -= errors @ upper[begin:end, end:]
    return pack(levels.numpy(), 4), np.stack(scales, axis=1)


def _factor(products: Any) -> Any:
    """Upper Cholesky factor of the inverse."""
    import torch

    diagonal = torch.diagonal(products)
    mean = diagonal.mean().clamp(min=1e-6)
    for damping in _DAMPINGS:
        diagonal += damping * mean
        try:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(products))
            return torch.linalg.cholesky(inverse, upper=True)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined] # its documented place
            continue
    raise ModelLoadError("the model computes no usable numbers on the calibration text, so int4 cannot be chosen")
