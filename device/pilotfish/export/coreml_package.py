"""The Core ML package of a draft model: ``Decoder`` traced, converted by coremltools, its weights rounded.

Inputs, all of them flexible in ``new`` and ``total``; the output; and two states, the KV cache::

    input_ids    int32   [1, new]               logits  float16 [1, 1, embeddings]   of the last new token
    position_ids int32   [1, new]               keys    float16 [layers, kv_heads, context, head_size]
    mask         float16 [1, 1, new, total]     values  float16 the same

It needs iOS 18 or macOS 15, the first with states. Weights are float16; int8 with one scale per output; or int4
with a scale and a zero for each 32 inputs (fewer where they do not divide), embedding and head int8.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from pilotfish.drafters.model import CHUNK
from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.coremltools_quiet import quiet
from pilotfish.export.quantise import BLOCK, on_grid
from pilotfish_core.errors import MissingExtra, ModelLoadError

DEFAULT_CONTEXT: Final = 4096  # of models that have more: the state is allocated whole
MAX_CONTEXT: Final = 32767  # positions are int16 inside the converted program
_SMALLEST_BLOCK: Final = 8  # with a scale of 16 bits and a zero, 6.5 bits a weight
_TRACED: Final = (2, 5)  # new and total tokens of the example; any that are not one


def write_package(checkpoint: Checkpoint, quant: str, package: Path, progress: Callable[[float], None]) -> None:
    """Write ``checkpoint`` as the folder ``package``; ``quant`` fp16, int8 or int4.

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
        model = _converted(coremltools, checkpoint, quant)
        progress(0.6)
        if quant != "fp16":
            model = _rounded(coremltools, model, checkpoint, quant)
        progress(0.9)
        model.save(str(package))
    for file in package.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # coremltools makes them private


def _converted(ct: Any, checkpoint: Checkpoint, quant: str) -> Any:
    import torch

    from pilotfish.export.decoder import Decoder

    decoder = Decoder(checkpoint).eval()
    if quant == "int4":
        _clip(decoder)
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


def _clip(decoder: Any) -> None:
    """Weights on grids that clip what is far out, which coremltools would not look for."""
    import torch

    for name, parameter in decoder.layers.named_parameters():
        if parameter.ndim == 2 and _block(parameter.shape[1]):
            weight = on_grid(parameter.numpy(), _block(parameter.shape[1]))
            owner, _, field = name.rpartition(".")
            setattr(decoder.layers.get_submodule(owner), field, torch.nn.Parameter(torch.from_numpy(weight), False))


def _block(columns: int) -> int:
    """Columns that share a scale of int4 values; 0: such a matrix stays at int8.

    coremltools leaves a matrix that does not divide as it is.
    """
    block = math.gcd(columns, BLOCK)
    return block if block >= _SMALLEST_BLOCK else 0


def _rounded(ct: Any, model: Any, checkpoint: Checkpoint, quant: str) -> Any:
    """Matrices only: by default tables of the rotary embedding and biases would be rounded as well."""
    from coremltools.optimize import coreml as optimize

    def config(dtype: str, **granularity: Any) -> Any:
        return optimize.OpLinearQuantizerConfig(
            mode="linear" if dtype == "int4" else "linear_symmetric", dtype=dtype, weight_threshold=0, **granularity
        )

    outer = config("int8", granularity="per_channel")
    by_name = {}
    for operation in model._mil_program.functions["main"].operations:
        name = operation.name if operation.op_type == "const" else ""
        shape: tuple[int, ...] = operation.outputs[0].shape if operation.outputs else ()
        if name in ("embedding_to_fp16", "head_weight_to_fp16"):
            by_name[name] = outer
        elif name.startswith("layers_") and name.endswith("_weight_to_fp16") and len(shape) == 2:
            block = _block(shape[1]) if quant == "int4" else 0
            by_name[name] = config("int4", granularity="per_block", block_size=block) if block else outer
    wanted = 7 * checkpoint.shape.layers + (1 if checkpoint.tied else 2)
    if len(by_name) != wanted:  # coremltools names them otherwise than the version this was written for
        raise ModelLoadError(f"coremltools {ct.__version__}: found {len(by_name)} matrices to round, not {wanted}")
    return optimize.linear_quantize_weights(
        model, optimize.OptimizationConfig(global_config=None, op_name_configs=by_name)
    )
