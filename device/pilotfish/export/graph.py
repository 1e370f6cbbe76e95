"""The ONNX graph of a draft model, built node by node.

One row of logits out, whatever the number of tokens in, since a drafter samples after the last token only::

    input_ids    int64   [1, new]          logits              float32 [1, 1, embeddings]
    seqlens_k    int32   [1]   last index  present.N.key|value float32 [1, kv_heads, capacity, head_size]
    total_length int32   [1]               (the same buffers as past.N.key|value)

Attention is ONNX Runtime's GroupQueryAttention (rotary embedding and KV update inside). Matrices are MatMul
(fp32) or MatMulNBits (8 or 4 bits, int8 activations); a tied embedding shares the head's quantised tensor.
Embedding and head have 8 bits even where the layers have 4. Tried with weights rounded in torch, on an
early checkpoint of the reference target (384 positions): relative RMS of logits 0.057 instead of 0.090,
coupled match with fp32 0.95 instead of 0.91. Zero points on top of that: 0.056 and 0.96, within the noise
of so few positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pilotfish.export.checkpoint import Checkpoint
from pilotfish.export.quantise import BLOCK, Packed, quantise
from pilotfish_core.errors import ModelLoadError

OPSET: Final = 21
IR_VERSION: Final = 10  # what ONNX Runtime 1.22 reads
CONTRIB: Final = "com.microsoft"
INLINE_UP_TO: Final = 32 * 2**20  # bytes of weights kept in model.onnx itself
_OUTER_BITS: Final = 8  # of embedding and head
_INT8_ACTIVATIONS: Final = 4  # MatMulNBits accuracy_level


_BITS: Final = {"int8": 8, "int4": 4}  # of the layers' matrices


def write_graph(
    checkpoint: Checkpoint,
    quant: str,
    file: Path,
    progress: Callable[[float], None],
    rounded: Mapping[str, Packed] = MappingProxyType({}),
) -> None:
    """Write ``checkpoint`` as ``file``, and ``file.data`` beside it for larger ones.

    ``quant``: fp32, fp16 (weights that are stored in half; ONNX Runtime widens them once, as it loads), int8 or
    int4. ``rounded``: matrices of layers in int4 that are packed already; others are rounded to nearest. Raises
    ModelLoadError when an embedding does not divide into blocks of a quantised model.
    """
    save_graph(GraphBuilder(checkpoint, quant, rounded).build(progress), file)


def save_graph(model: Any, file: Path) -> None:
    """Write a ModelProto, its weights in ``file.data`` where they are large."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    external = size > INLINE_UP_TO
    onnx.save_model(
        model,
        str(file),
        save_as_external_data=external,
        all_tensors_to_one_file=True,
        location=f"{file.name}.data",
    )


class GraphBuilder:
    """Collects nodes and weights. Methods return the name of the value they compute."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        quant: str,
        rounded: Mapping[str, Packed] = MappingProxyType({}),
    ) -> None:
        self._checkpoint = checkpoint
        self._given = rounded
        self._shape = checkpoint.shape
        self._half = quant == "fp16"
        self._bits = _BITS.get(quant)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._check()

    def _check(self) -> None:
        if self._bits is not None and self._shape.hidden % BLOCK:
            raise ModelLoadError(f"hidden size {self._shape.hidden} is not a multiple of {BLOCK}; export as fp32")

    def build(self, progress: Callable[[float], None]) -> Any:
        """The whole model as a ModelProto. ``progress`` is told the share of its layers."""
        for name, table in zip(("cosines", "sines"), self._checkpoint.rotary(), strict=True):
            self._constant(name, table)
        hidden, skip = self._embedding(), ""
        for layer in range(self._shape.layers):
            prefix = f"model.layers.{layer}"
            normed, hidden = self._norm(hidden, skip, f"{prefix}.input_layernorm")
            skip = self._attention(normed, layer)
            normed, hidden = self._norm(hidden, skip, f"{prefix}.post_attention_layernorm")
            skip = self._mlp(normed, prefix)
            progress((layer + 1) / self._shape.layers)
        normed, _ = self._norm(hidden, skip, "model.norm")
        last = self._constant("last_row", np.asarray([-1], dtype=np.int64))
        self._matmul(self._node("Gather", [normed, last], "last", axis=1), "lm_head", output="logits")
        graph = helper.make_graph(self._nodes, "draft", self._inputs(), self._outputs(), self._weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pilotfish")

    def _inputs(self) -> list[Any]:
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "new"]),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total_length", TensorProto.INT32, [1]),
            *self._kv("past"),
        ]

    def _outputs(self) -> list[Any]:
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, self._shape.embeddings])
        return [logits, *self._kv("present")]

    def _kv(self, side: str) -> list[Any]:
        shape = [1, self._shape.kv_heads, "capacity", self._shape.head_size]
        return [
            helper.make_tensor_value_info(f"{side}.{layer}.{kind}", TensorProto.FLOAT, shape)
            for layer in range(self._shape.layers)
            for kind in ("key", "value")
        ]

    def _embedding(self) -> str:
        """Rows of the embedding for ``input_ids``."""
        name = "model.embed_tokens"
        if self._bits is None:
            rows = self._node("Gather", [self._stored(name), "input_ids"], f"{name}.rows")
            return self._widened(rows) if self._half else rows
        packed, scales = self._quantised("lm_head" if self._checkpoint.tied else name)
        flat = self._constant("flat", np.asarray([self._shape.embeddings, -1], dtype=np.int64))
        rows = self._node("Reshape", [packed, flat], f"{name}.rows")
        return self._node(
            "GatherBlockQuantized",
            [rows, "input_ids", scales],
            name,
            domain=CONTRIB,
            bits=_OUTER_BITS,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )

    def _norm(self, hidden: str, skip: str, name: str) -> tuple[str, str]:
        """(norm of hidden + skip, that sum)."""
        weight = self._constant(f"{name}.weight", self._checkpoint.weight(f"{name}.weight"))
        epsilon = self._shape.norm_epsilon
        if not skip:
            output = self._node(
                "SimplifiedLayerNormalization", [hidden, weight], name, axis=-1, epsilon=epsilon, stash_type=1
            )
            return output, hidden
        outputs = [f"{name}.out", "", "", f"{name}.sum"]
        self._nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [hidden, skip, weight],
                outputs,
                name,
                domain=CONTRIB,
                epsilon=epsilon,
            )
        )
        return outputs[0], outputs[3]

    def _attention(self, hidden: str, layer: int) -> str:
        prefix = f"model.layers.{layer}.self_attn"
        shape = self._shape
        if self._checkpoint.has(f"{prefix}.q_norm.weight"):
            query = self._head_norm(self._matmul(hidden, f"{prefix}.q_proj"), f"{prefix}.q_norm")
            key = self._head_norm(self._matmul(hidden, f"{prefix}.k_proj"), f"{prefix}.k_norm")
            qkv = [query, key, self._matmul(hidden, f"{prefix}.v_proj")]
        else:
            parts = [f"{prefix}.{part}_proj" for part in "qkv"]
            qkv = [self._matmul(hidden, f"{prefix}.qkv_proj", parts), "", ""]
        outputs = [f"{prefix}.out", f"present.{layer}.key", f"present.{layer}.value"]
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*qkv, *past, "seqlens_k", "total_length", "cosines", "sines"],
                outputs,
                prefix,
                domain=CONTRIB,
                num_heads=shape.heads,
                kv_num_heads=shape.kv_heads,
                scale=shape.head_size**-0.5,
                local_window_size=shape.windows[layer],
                do_rotary=1,
                rotary_interleaved=0,
            )
        )
        return self._matmul(outputs[0], f"{prefix}.o_proj")

    def _head_norm(self, value: str, name: str) -> str:
        """RMS norm over each head of ``[1, new, heads * head_size]`` (Qwen 3)."""
        weight = self._constant(f"{name}.weight", self._checkpoint.weight(f"{name}.weight"))
        heads = self._constant(f"{name}.heads", np.asarray([0, 0, -1, self._shape.head_size], dtype=np.int64))
        joined = self._constant(f"{name}.joined", np.asarray([0, 0, -1], dtype=np.int64))
        split = self._node("Reshape", [value, heads], f"{name}.split")
        normed = self._node(
            "SimplifiedLayerNormalization",
            [split, weight],
            name,
            axis=-1,
            epsilon=self._shape.norm_epsilon,
            stash_type=1,
        )
        return self._node("Reshape", [normed, joined], f"{name}.join")

    def _mlp(self, hidden: str, prefix: str) -> str:
        gate = self._matmul(hidden, f"{prefix}.mlp.gate_proj")
        up = self._matmul(hidden, f"{prefix}.mlp.up_proj")
        sigmoid = self._node("Sigmoid", [gate], f"{prefix}.mlp.sigmoid")
        active = self._node("Mul", [gate, sigmoid], f"{prefix}.mlp.silu")
        product = self._node("Mul", [active, up], f"{prefix}.mlp.product")
        return self._matmul(product, f"{prefix}.mlp.down_proj")

    def _matmul(self, value: str, name: str, parts: Sequence[str] = (), output: str | None = None) -> str:
        """``value`` times the matrix ``name``, or the matrices ``parts`` side by side, plus their biases."""
        parts = parts or (name,)
        biased = self._checkpoint.has(f"{parts[0]}.bias")
        product = f"{name}.product" if biased else output or f"{name}.out"
        if self._bits is None:
            weight = self._matrix(name, parts)
            self._nodes.append(helper.make_node("MatMul", [value, weight], [product], name))
        else:
            packed, scales = self._quantised(name, parts)
            rows, columns = self._joined(parts, "weight").shape
            self._nodes.append(
                helper.make_node(
                    "MatMulNBits",
                    [value, packed, scales],
                    [product],
                    name,
                    domain=CONTRIB,
                    K=columns,
                    N=rows,
                    bits=self._bits_of(name),
                    block_size=BLOCK,
                    accuracy_level=_INT8_ACTIVATIONS,
                )
            )
        if not biased:
            return product
        bias = self._constant(f"{name}.bias", self._joined(parts, "bias"))
        return self._node("Add", [product, bias], f"{name}.biased", output=output)

    def _matrix(self, name: str, parts: Sequence[str]) -> str:
        """A matrix as MatMul wants it. ONNX Runtime computes what leads from the stored one to it as it loads."""
        if name == "lm_head" and self._checkpoint.tied:
            stored = self._stored("model.embed_tokens")
            return self._node(
                "Transpose", [self._widened(stored) if self._half else stored], f"{name}.turned", perm=[1, 0]
            )
        turned = self._joined(parts, "weight").T
        if not self._half:
            return self._constant(f"{name}.transposed", turned)
        return self._widened(self._constant(f"{name}.transposed", halved(turned)))

    def _stored(self, name: str) -> str:
        """Name of a matrix as it is in the checkpoint, float32 or float16; made once."""
        constant = f"{name}.weight"
        if all(weight.name != constant for weight in self._weights):
            weight = self._checkpoint.weight(constant)
            self._constant(constant, halved(weight) if self._half else weight)
        return constant

    def _widened(self, value: str) -> str:
        return self._node("Cast", [value], f"{value}.wide", to=TensorProto.FLOAT)

    def _joined(self, parts: Sequence[str], kind: str) -> NDArray[np.float32]:
        return np.concatenate([self._checkpoint.weight(f"{part}.{kind}") for part in parts])

    def _quantised(self, name: str, parts: Sequence[str] = ()) -> tuple[str, str]:
        """Names of packed values and scales; made once."""
        packed, scales = f"{name}.packed", f"{name}.scales"
        if all(weight.name != packed for weight in self._weights):
            given = [self._given[part] for part in parts or (name,) if part in self._given]
            if given:
                values = tuple(np.concatenate(arrays) for arrays in zip(*given, strict=True))
            else:
                values = quantise(self._joined(parts or (name,), "weight"), self._bits_of(name))
            self._constant(packed, values[0])
            self._constant(scales, values[1])
        return packed, scales

    def _bits_of(self, name: str) -> int:
        if self._bits is None or not name.startswith("model.layers."):
            return _OUTER_BITS
        return self._bits

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self._weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def _node(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        *,
        domain: str = "",
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        output = output or f"{name}.out"
        self._nodes.append(
            helper.make_node(operator, list(inputs), [output], name, domain=domain or None, **attributes)
        )
        return output


def halved(array: NDArray[np.float32]) -> NDArray[np.float16]:
    """In float16; what is beyond its range becomes infinite, and the check after the export finds it."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16)
