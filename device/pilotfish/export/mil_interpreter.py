"""A reference interpreter of Core ML's ML programs, in numpy: what the exporter checks a package with where no
Apple runtime is.

It loads the saved ``.mlpackage``, weights and all, and computes what the operators' specification says: each
result in float32, rounded to the type that the program declares. It shows that graph and weights are right; it says
nothing about the speed of Apple's runtime, its rounding or what of it runs on the Neural Engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pilotfish.export.coremltools_quiet import quiet
from pilotfish_core.errors import ModelLoadError

Array = NDArray[Any]
Arguments = Mapping[str, Any]
State = dict[str, Array]

_WEIGHTS: Final = Path("Data", "com.apple.CoreML", "weights")


class MilInterpreter:
    """Runs the function ``main`` of a package. It has the methods of coremltools' ``MLModel`` that a drafter uses."""

    def __init__(self, package: Path) -> None:
        """Raises ModelLoadError, naming the operator, for a program that needs more than this knows."""
        try:
            with quiet():
                import coremltools
                from coremltools.converters.mil.frontend.milproto.load import load

                spec = coremltools.models.utils.load_spec(str(package))
                program = load(spec, spec.specificationVersion, str(package / _WEIGHTS))
        except Exception as error:  # its errors share no base class
            raise ModelLoadError(f"{package} is not a readable Core ML package: {error}") from error
        main = program.functions["main"]
        self._states = {name: tuple(var.shape) for name, var in main.inputs.items() if _is_state(var)}
        self._outputs = [var.name for var in main.outputs]
        self._constants: dict[str, Array] = {}
        self._steps: list[tuple[Any, Callable[[Arguments], Any]]] = []
        for operation in main.operations:
            self._add(operation, package)

    def make_state(self) -> State:
        """Zeroed states, by name."""
        return {name: np.zeros(shape, dtype=np.float16) for name, shape in self._states.items()}

    def predict(self, data: Mapping[str, Array], state: State) -> dict[str, Array]:
        """Outputs by name; ``state`` is changed in place."""
        values: dict[str, Any] = {**self._constants, **data}
        for operation, compute in self._steps:
            arguments = {name: _resolved(var, values, state) for name, var in operation.inputs.items()}
            if operation.op_type in _WRITES:
                target = operation.inputs["state" if "state" in operation.inputs else "input"].name
                state[target] = arguments["value" if "value" in arguments else "data"]
            result = compute(arguments)
            results = result if isinstance(result, list) else [result]
            for var, value in zip(operation.outputs, results, strict=len(operation.outputs) > 0):
                values[var.name] = np.asarray(value).astype(_dtype(var), copy=False)
        return {name: values[name] for name in self._outputs}

    def _add(self, operation: Any, package: Path) -> None:
        kind = operation.op_type
        if kind == "const":
            value = operation.outputs[0].val
            if not isinstance(value, (str, bool)):
                self._constants[operation.outputs[0].name] = _widened(np.asarray(value))
            return
        if kind == "constexpr_blockwise_shift_scale":  # a quantised weight
            arguments = {name: _resolved(var, self._constants, {}) for name, var in operation.inputs.items()}
            self._constants[operation.outputs[0].name] = _dequantised(arguments)
            return
        compute = _OPERATORS.get(kind)
        if compute is None:
            raise ModelLoadError(f"{package} uses the operator {kind}, which the reference interpreter does not know")
        self._steps.append((operation, compute))


def _is_state(var: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(types.is_state(var.sym_type))


def _dtype(var: Any) -> Any:
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(var.dtype)


def _resolved(var: Any, values: Mapping[str, Any], state: State) -> Any:
    if isinstance(var, (list, tuple)):
        return [_resolved(entry, values, state) for entry in var]
    if var is None:
        return None
    if var.name in state:
        return state[var.name]
    if var.name in values:
        return values[var.name]
    return var.val  # strings and flags


def _widened(value: Array) -> Array:
    """Float16 constants are read once as float32, the type of all arithmetic here."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _dequantised(arguments: Arguments) -> Array:
    """``(data - offset) * scale``, each scale and offset for a block of equal size along every axis."""
    data, scale, offset = arguments["data"], arguments["scale"], arguments.get("offset")
    weight = np.asarray(data).astype(np.float32)
    if offset is not None:
        weight = weight - _spread(np.asarray(offset).astype(np.float32), weight.shape)
    result: Array = weight * _spread(np.asarray(scale).astype(np.float32), weight.shape)
    return result.astype(np.float16).astype(np.float32)


def _spread(blocks: Array, shape: tuple[int, ...]) -> Array:
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis=axis)
    return blocks


def _wide(value: Any) -> Any:
    value = np.asarray(value)
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _flags(value: Any, rank: int) -> list[bool]:
    return [False] * rank if value is None else [bool(flag) for flag in np.atleast_1d(value)]


def _index(arguments: Arguments) -> tuple[Any, ...]:
    """The slices and, for squeezed axes, integers that ``slice_by_index`` and ``slice_update`` mean."""
    begin, end = np.atleast_1d(arguments["begin"]), np.atleast_1d(arguments["end"])
    rank = len(begin)
    stride = np.ones(rank, int) if arguments.get("stride") is None else np.atleast_1d(arguments["stride"])
    from_start, to_end = (_flags(arguments.get(name), rank) for name in ("begin_mask", "end_mask"))
    squeezed = _flags(arguments.get("squeeze_mask"), rank)
    return tuple(
        int(begin[axis])
        if squeezed[axis]
        else slice(
            None if from_start[axis] else int(begin[axis]),
            None if to_end[axis] else int(end[axis]),
            int(stride[axis]),
        )
        for axis in range(rank)
    )


def _slice_update(a: Arguments) -> Array:
    result: Array = np.array(a["x"])
    result[_index(a)] = a["update"]
    return result


def _split(a: Arguments) -> list[Array]:
    if a.get("split_sizes") is not None:
        return np.split(a["x"], np.cumsum(a["split_sizes"])[:-1], axis=int(a["axis"]))
    return np.split(a["x"], int(a["num_splits"]), axis=int(a["axis"]))


def _reshape(a: Arguments) -> Array:
    shape = [a["x"].shape[axis] if size == 0 else int(size) for axis, size in enumerate(np.atleast_1d(a["shape"]))]
    result: Array = np.reshape(a["x"], shape)
    return result


def _gather(a: Arguments) -> Array:
    if int(a.get("batch_dims") or 0):
        raise ModelLoadError("the reference interpreter does not know batched gathers")
    result: Array = np.take(a["x"], np.asarray(a["indices"]).astype(np.int64), axis=int(a["axis"]))
    return result


def _linear(a: Arguments) -> Array:
    result: Array = _wide(a["x"]) @ _wide(a["weight"]).T
    return result if a.get("bias") is None else result + _wide(a["bias"])


def _attention(a: Arguments) -> Array:
    query, key, value = (_wide(a[name]) for name in ("query", "key", "value"))
    scores = query @ np.swapaxes(key, -1, -2) / np.sqrt(np.float32(query.shape[-1]))
    if a.get("attn_mask") is not None:
        scores = scores + _wide(a["attn_mask"])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = weights / weights.sum(axis=-1, keepdims=True) @ value
    return result


def _reduce(function: Callable[..., Any]) -> Callable[[Arguments], Any]:
    def compute(a: Arguments) -> Any:
        axes = tuple(int(axis) for axis in np.atleast_1d(a["axes"]))
        return function(_wide(a["x"]), axis=axes, keepdims=bool(a["keep_dims"]))

    return compute


def _elementwise(function: Callable[..., Any]) -> Callable[[Arguments], Any]:
    return lambda a: function(_wide(a["x"]), _wide(a["y"]))


_WRITES: Final = frozenset({"coreml_update_state", "write_state"})

_OPERATORS: Final[dict[str, Callable[[Arguments], Any]]] = {
    "abs": lambda a: np.abs(_wide(a["x"])),
    "add": _elementwise(np.add),
    "cast": lambda a: a["x"],  # the declared type of the result does it
    "clip": lambda a: np.clip(_wide(a["x"]), a["alpha"], a["beta"]),
    "concat": lambda a: np.concatenate([np.atleast_1d(value) for value in a["values"]], axis=int(a["axis"])),
    "coreml_update_state": lambda a: a["value"],
    "expand_dims": lambda a: np.expand_dims(a["x"], tuple(int(axis) for axis in np.atleast_1d(a["axes"]))),
    "gather": _gather,
    "greater_equal": _elementwise(np.greater_equal),
    "identity": lambda a: a["x"],
    "inverse": lambda a: 1.0 / (_wide(a["x"]) + np.float32(a["epsilon"])),
    "linear": _linear,
    "mul": _elementwise(np.multiply),
    "read_state": lambda a: a["input"],
    "real_div": _elementwise(np.divide),
    "reduce_max": _reduce(np.max),
    "reduce_mean": _reduce(np.mean),
    "reshape": _reshape,
    "rsqrt": lambda a: 1.0 / np.sqrt(_wide(a["x"]) + np.float32(a["epsilon"])),
    "scaled_dot_product_attention": _attention,
    "select": lambda a: np.where(a["cond"], a["a"], a["b"]),
    "shape": lambda a: np.asarray(np.shape(a["x"]), dtype=np.int32),
    "silu": lambda a: _wide(a["x"]) / (1.0 + np.exp(-_wide(a["x"]))),
    "slice_by_index": lambda a: np.asarray(a["x"])[_index(a)],
    "slice_update": _slice_update,
    "split": _split,
    "squeeze": lambda a: np.squeeze(a["x"], tuple(int(axis) for axis in np.atleast_1d(a["axes"]))),
    "sub": _elementwise(np.subtract),
    "tile": lambda a: np.tile(a["x"], tuple(int(count) for count in np.atleast_1d(a["reps"]))),
    "transpose": lambda a: np.transpose(a["x"], [int(axis) for axis in a["perm"]]),
    "write_state": lambda a: [],
}
