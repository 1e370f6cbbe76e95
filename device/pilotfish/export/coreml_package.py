"""The Core ML package of a draft model: ``Decoder`` traced, converted by coremltools, its weights rounded.

Inputs, all of them flexible in ``new`` and ``total``; the output; and two states, the KV cache::

    input_ids    int32   [1, new]               logits  float16 [1, 1, embeddings]   of the last new token
    position_ids int32   [1, new]               keys    float16 [layers, kv_heads, context, head_size]
    mask         float16 [1, 1, new, total]     values  float16 the same

It needs iOS 18 or macOS 15, the first with states. Weights are float16; int8 with one scale per output; or int4
with a scale and a zero for each 32 inputs, embedding, head and matrices that do not divide by 32 int8.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from pilotfish.drafters.model import CHUNK
from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.coremltools_quiet import quiet
from pilotfish.export.quantise import BLOCK, Packed, dequantise
from pilotfish_core.errors import MissingExtra, ModelLoadError

DEFAULT_CONTEXT: Final = 4096  # of models that have more: the state is allocated whole
MAX_CONTEXT: Final = 32767  # positions are int16 inside the converted program
_QUANTISATION: Final = 3  # as coremltools counts kinds of compression
_TRACED: Final = (2, 5)  # new and total tokens of the example; any that are not one


def write_package(
    checkpoint: Checkpoint,
    quant: str,
    package: Path,
    progress: Callable[[float], None],
    rounded: Mapping[str, Packed] = MappingProxyType({}),
) -> None:
    """Write ``checkpoint`` as the folder ``package``; ``quant`` fp16, int8 or int4.

    ``rounded``: matrices of layers in int4. Others than these, and those of odd sizes, have int8.
    Raises MissingExtra without coremltools, ModelLoadError for a context beyond MAX_CONTEXT.
    """
    if checkpoint.shape.context_length > MAX_CONTEXT:
        raise ModelLoadError(
            f"context length {checkpoint.shape.context_length} is beyond {MAX_CONTEXT}, the longest for Core ML"
        )
    with quiet():
        try:
            import coremltools
        except ImportError:
            raise MissingExtra.of("coremltools", "coreml", "exporting to Core ML") from None
        progress(0.1)  # about the time that the import takes
        model = _converted(coremltools, checkpoint, rounded)
        progress(0.6)
        if quant != "fp16":
            model = _rounded(coremltools, model, checkpoint)
        progress(0.9)
        model.save(str(package))
    for file in package.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # coremltools makes them private


def _converted(ct: Any, checkpoint: Checkpoint, rounded: Mapping[str, Packed]) -> Any:
    import torch

    from pilotfish.export.decoder import Decoder

    decoder = Decoder(checkpoint).eval()
    if rounded:
        _round_layers(decoder, rounded)
    new, total = _TRACED
    ids = torch.zeros(1, new, dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is an old way; the new one takes four times as long here
        trace: Callable[..., Any] = torch.jit.trace
        traced = trace(decoder, (ids, ids, torch.zeros(1, 1, new, total)), check_trace=False)
    length = checkpoint.shape.context_length
    rows, columns = ct.RangeDim(1, min(CHUNK, length), default=1), ct.RangeDim(1, length, default=1)
    cache = tuple(decoder.keys.shape)
    return ct.convert(
        traced,
        inputs=[
            ct.TensorType("input_ids", (1, rows), np.int32),
            ct.TensorType("position_ids", (1, rows), np.int32),
            ct.TensorType("mask", (1, 1, rows, columns), np.float16),
        ],
        outputs=[ct.TensorType("logits", dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=cache, dtype=np.float16), name=name) for name in ("keys", "values")],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )


def _round_layers(decoder: Any, rounded: Mapping[str, Packed]) -> None:
    """Matrices that are packed already, told to coremltools the way its compressed torch models tell it."""
    import torch

    for name, (packed, scales) in rounded.items():
        linear = decoder.matrix(name)
        columns = linear.weight.shape[1]
        if columns % BLOCK:
            continue  # coremltools knows no shorter last block
        linear.weight = torch.nn.Parameter(torch.from_numpy(dequantise(packed, scales, 4, columns)), False)
        turned = scales < 0  # the extreme of a block is on level -8, whatever its sign; here all scales are positive
        told = {
            "quantization_scale": torch.from_numpy(np.abs(scales)),
            "zero_point": torch.from_numpy(np.where(turned, 7, 8).astype(np.uint8)),
            "quantization_n_bits": torch.tensor(4),
            "compression_type": torch.tensor([_QUANTISATION]),
        }
        for key, value in told.items():
            linear.register_buffer(f"_COREML_/weight/{key}", value)
    decoder.register_buffer("_COREML_/metadata_version", torch.tensor(1))


def _rounded(ct: Any, model: Any, checkpoint: Checkpoint) -> Any:
    """Matrices that are not rounded yet, to int8. By default tables and biases would be as well."""
    from coremltools.optimize import coreml as optimize

    config = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0
    )
    by_name, done = {}, 0
    for operation in model._mil_program.functions["main"].operations:
        done += operation.op_type == "constexpr_blockwise_shift_scale"
        name = operation.name if operation.op_type == "const" else ""
        shape: tuple[int, ...] = operation.outputs[0].shape if operation.outputs else ()
        layer = name.startswith("layers_") and name.endswith("_weight_to_fp16") and len(shape) == 2
        if layer or name in ("embedding_to_fp16", "head_weight_to_fp16"):
            by_name[name] = config
    found, wanted = len(by_name) + done, 7 * checkpoint.shape.layers + (1 if checkpoint.tied else 2)
    if found != wanted:  # coremltools names them otherwise than the version this was written for
        raise ModelLoadError(f"coremltools {ct.__version__}: found {found} matrices to round, not {wanted}")
    return optimize.linear_quantize_weights(
        model, optimize.OptimizationConfig(global_config=None, op_name_configs=by_name)
    )
