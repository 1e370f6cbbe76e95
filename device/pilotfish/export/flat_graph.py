"""The ONNX graph for browsers: one input with all past keys and values, one output with the new ones.

WebAssembly has no buffers that a graph updates in place, and every tensor is copied in and out of its memory, so
the caller keeps one array in the order of positions: appending is a copy behind its end, a rollback a shorter view::

    input_ids    int32   [1, new]              logits   float32 [1, 1, embeddings]   of the last new token
    position_ids int32   [1, new]              new      float32 [new, layers, 2, kv_heads, head_size]
    past         float32 [past, layers, 2, kv_heads, head_size]     (2: key, value)

Only plain operators, whatever the runtime's version. Matrices are float32, float16 in the file only, or int8 with
one scale per output, multiplied by activations that are rounded to 8 bits as they come (MatMulInteger): measured in
WebAssembly that is nearly as fast as float32 for one token and faster for several, where the block-quantised
MatMulNBits of the desktop's graph is ten times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.graph import GraphBuilder, save_graph
from pilotfish.export.quantise import quantise_rows

MASKED: Final = -1e9
_INT8: Final = "int8"


def write_flat_graph(checkpoint: Checkpoint, quant: str, file: Path, progress: Callable[[float], None]) -> None:
    """Write ``checkpoint`` as ``file``, and ``file.data`` beside it for larger ones; ``quant`` fp32, fp16 or int8."""
    save_graph(_FlatBuilder(checkpoint, quant).build(progress), file)


class _FlatBuilder(GraphBuilder):
    """The same decoder over another cache."""

    def __init__(self, checkpoint: Checkpoint, quant: str) -> None:
        super().__init__(checkpoint, "fp32" if quant == _INT8 else quant)
        self._dynamic = quant == _INT8
        self._rounded: dict[str, tuple[str, str, str]] = {}  # of an activation: its values, scale, zero point
        self._masks: dict[int, str] = {}  # by window
        self._new: list[str] = []

    def _inputs(self) -> list[Any]:
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT32, [1, "new"]),
            helper.make_tensor_value_info("position_ids", TensorProto.INT32, [1, "new"]),
            helper.make_tensor_value_info("past", TensorProto.FLOAT, ["past", *self._slot()]),
        ]

    def _outputs(self) -> list[Any]:
        self._node("Concat", self._new, "new", axis=1, output="new")
        return [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, self._shape.embeddings]),
            helper.make_tensor_value_info("new", TensorProto.FLOAT, ["new", *self._slot()]),
        ]

    def _slot(self) -> list[int]:
        return [self._shape.layers, 2, self._shape.kv_heads, self._shape.head_size]

    def _prepare(self) -> None:
        """What all layers share: rows of the rotary embedding, and which key is at which index."""
        for name in ("cosines", "sines"):
            rows = self._node("Gather", [name, "position_ids"], f"{name}.rows")
            self._node(
                "Reshape", [rows, self._ints("rotary_shape", [-1, 1, self._shape.head_size // 2])], f"{name}.new"
            )
        zero, one = self._ints("zero", 0), self._ints("one", 1)
        self._node("Shape", ["past"], "past_length", start=0, end=1)
        self._node("Shape", ["input_ids"], "new_length", start=1, end=2)
        self._node("Add", ["past_length.out", "new_length.out"], "total_length")
        first, total = (
            self._node("Squeeze", [f"{name}.out"], f"{name}.number") for name in ("past_length", "total_length")
        )
        self._node("Range", [zero, total, one], "keys")
        column = self._ints("column", [-1, 1])
        self._node("Reshape", [self._node("Range", [first, total, one], "queries"), column], "queries.column")
        positions = self._node("Cast", ["position_ids"], "positions", to=TensorProto.INT64)
        self._node("Reshape", [positions, column], "positions.column")
        self._node("Greater", ["keys.out", "queries.column.out"], "later")
        parts = [self._ints("score_heads", [self._shape.kv_heads, -1]), "new_length.out", "total_length.out"]
        self._node("Concat", parts, "score_shape", axis=0)
        self._node(
            "Concat", [self._ints("joined_heads", [self._shape.kv_heads, -1]), "total_length.out"], "joined", axis=0
        )

    def _mask(self, window: int) -> str:
        """Added to scores ``[.., new, total]``; made once for each window."""
        if not self._masks:
            self._prepare()
        if window not in self._masks:
            hidden = "later.out"
            if window > 0:
                behind = self._node("Sub", ["positions.column.out", "keys.out"], f"behind.{window}")
                far = self._node("GreaterOrEqual", [behind, self._ints(f"window.{window}", window)], f"far.{window}")
                hidden = self._node("Or", [hidden, far], f"hidden.{window}")
            values = [self._float(name, value) for name, value in (("masked", MASKED), ("seen", 0.0))]
            self._masks[window] = self._node("Where", [hidden, *values], f"mask.{window}")
        return self._masks[window]

    def _attention(self, hidden: str, layer: int) -> str:
        prefix, shape = f"model.layers.{layer}.self_attn", self._shape
        mask = self._mask(shape.windows[layer])
        query, key, value = (self._matmul(hidden, f"{prefix}.{part}_proj") for part in "qkv")
        if self._checkpoint.has(f"{prefix}.q_norm.weight"):
            query, key = self._head_norm(query, f"{prefix}.q_norm"), self._head_norm(key, f"{prefix}.k_norm")
        heads, kv_heads = (self._ints(f"{n}_heads", [-1, n, shape.head_size]) for n in (shape.heads, shape.kv_heads))
        query = self._rotated(self._node("Reshape", [query, heads], f"{prefix}.query"), f"{prefix}.query")
        key = self._rotated(self._node("Reshape", [key, kv_heads], f"{prefix}.key"), f"{prefix}.key")
        value = self._node("Reshape", [value, kv_heads], f"{prefix}.value")
        # The query heads of one KV head are rows of one matrix, so that no key is copied for each of them.
        groups = self._ints("groups", [-1, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_size])
        query = self._node("Reshape", [query, groups], f"{prefix}.groups")
        query = self._node("Transpose", [query], f"{prefix}.by_head", perm=[1, 2, 0, 3])
        query = self._node(
            "Reshape", [query, self._ints("rows", [shape.kv_heads, -1, shape.head_size])], f"{prefix}.rows"
        )
        keys, values = self._all(key, value, layer, prefix)
        scores = self._node("MatMul", [query, keys], f"{prefix}.scores")
        scores = self._node("Mul", [scores, self._float("scale", shape.head_size**-0.5)], f"{prefix}.scaled")
        scores = self._node("Reshape", [scores, "score_shape.out"], f"{prefix}.per_token")
        weights = self._node(
            "Softmax", [self._node("Add", [scores, mask], f"{prefix}.masked")], f"{prefix}.softmax", axis=-1
        )
        weights = self._node("Reshape", [weights, "joined.out"], f"{prefix}.weights")
        answer = self._node("MatMul", [weights, values], f"{prefix}.answer")
        split = self._node(
            "Concat",
            [self._ints("answer_heads", [shape.heads]), "new_length.out", self._ints("answer_size", [shape.head_size])],
            f"{prefix}.split_shape",
            axis=0,
        )
        answer = self._node("Reshape", [answer, split], f"{prefix}.split")
        answer = self._node("Transpose", [answer], f"{prefix}.by_token", perm=[1, 0, 2])
        joined = self._node(
            "Reshape", [answer, self._ints("hidden", [1, -1, shape.heads * shape.head_size])], f"{prefix}.joined"
        )
        return self._matmul(joined, f"{prefix}.o_proj")

    def _all(self, key: str, value: str, layer: int, prefix: str) -> tuple[str, str]:
        """Keys ``[kv_heads, head_size, total]`` and values ``[kv_heads, total, head_size]``; notes the new ones."""
        axis = self._ints("pair_axis", [1])
        pair = [self._node("Unsqueeze", [part, axis], f"{part}.one") for part in (key, value)]
        new = self._node("Concat", pair, f"{prefix}.new", axis=1)
        self._new.append(self._node("Unsqueeze", [new, axis], f"{prefix}.new.layer"))
        past = self._node("Gather", ["past", self._ints(f"layer.{layer}", layer)], f"{prefix}.past", axis=1)
        both = self._node("Concat", [past, new], f"{prefix}.both", axis=0)
        keys, values = (
            self._node("Gather", [both, self._ints(name, index)], f"{prefix}.all_{name}", axis=1)
            for index, name in enumerate(("keys_at", "values_at"))
        )
        return (
            self._node("Transpose", [keys], f"{prefix}.keys", perm=[1, 2, 0]),
            self._node("Transpose", [values], f"{prefix}.values", perm=[1, 0, 2]),
        )

    def _rotated(self, value: str, name: str) -> str:
        """Rotary embedding of ``[new, heads, head_size]``."""
        halves = [f"{name}.left", f"{name}.right"]
        self._nodes.append(helper.make_node("Split", [value], halves, f"{name}.split", axis=-1, num_outputs=2))
        (left, right), parts = halves, []
        for operator, first, second in (("Sub", left, right), ("Add", right, left)):
            terms = [
                self._node("Mul", [first, "cosines.new.out"], f"{first}.cosine"),
                self._node("Mul", [second, "sines.new.out"], f"{second}.sine"),
            ]
            parts.append(self._node(operator, terms, f"{first}.turned"))
        return self._node("Concat", parts, f"{name}.rotated", axis=-1)

    def _embedding(self) -> str:
        if not self._dynamic:
            return super()._embedding()
        name, tied = "model.embed_tokens", self._checkpoint.tied
        packed, scales = self._by_output("lm_head" if tied else name, (name,), transposed=tied)
        rows = self._node("Gather", [packed, "input_ids"], f"{name}.rows", axis=int(tied))
        if tied:  # stored as the head wants it, a column for each token
            rows = self._node("Transpose", [rows], f"{name}.turned", perm=[1, 2, 0])
        scale = self._node("Gather", [scales, "input_ids"], f"{name}.scale")
        column = self._node("Unsqueeze", [scale, self._ints("last_axis", [-1])], f"{name}.column")
        wide = self._node("Cast", [rows], f"{name}.wide", to=TensorProto.FLOAT)
        return self._node("Mul", [wide, column], name)

    def _matmul(self, value: str, name: str, parts: Sequence[str] = (), output: str | None = None) -> str:
        if not self._dynamic:
            return super()._matmul(value, name, parts, output)
        if value not in self._rounded:
            rounded = (f"{value}.values", f"{value}.step", f"{value}.zero")
            self._nodes.append(helper.make_node("DynamicQuantizeLinear", [value], list(rounded), f"{value}.rounding"))
            self._rounded[value] = rounded
        values, step, zero = self._rounded[value]
        packed, scales = self._by_output(name, parts or (name,), transposed=True)
        product = self._node("MatMulInteger", [values, packed, zero], f"{name}.integer")
        scale = self._node("Mul", [step, scales], f"{name}.scale")
        wide = self._node("Cast", [product], f"{name}.wide", to=TensorProto.FLOAT)
        biased = self._checkpoint.has(f"{name}.bias")
        product = self._node("Mul", [wide, scale], name, output=None if biased else output)
        if not biased:
            return product
        bias = self._constant(f"{name}.bias", self._joined((name,), "bias"))
        return self._node("Add", [product, bias], f"{name}.biased", output=output)

    def _by_output(self, name: str, parts: Sequence[str], *, transposed: bool) -> tuple[str, str]:
        """Names of int8 values and of scales, one for each output; made once."""
        packed, scales = f"{name}.int8", f"{name}.scales"
        if all(weight.name != packed for weight in self._weights):
            values, steps = quantise_rows(self._joined(parts, "weight"))
            self._constant(packed, values.T if transposed else values)
            self._constant(scales, steps)
        return packed, scales

    def _ints(self, name: str, value: int | Sequence[int]) -> str:
        return self._shared(name, np.asarray(value, dtype=np.int64))

    def _float(self, name: str, value: float) -> str:
        return self._shared(name, np.asarray(value, dtype=np.float32))

    def _shared(self, name: str, value: NDArray[Any]) -> str:
        if all(weight.name != name for weight in self._weights):
            self._constant(name, value)
        return name
