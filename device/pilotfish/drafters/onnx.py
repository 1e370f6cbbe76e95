"""The ONNX Runtime drafter: a folder that ``pilotfish export`` wrote, run on the CPU.

The graph's GroupQueryAttention gets past and present bound to the same buffers ``[1, heads, capacity,
head_size]``: new keys and values are written in place, and a rollback is no more than a smaller length at
the next forward (bit-exact: stale slots are never read).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pilotfish.drafters.manifest import KvShape, Manifest
from pilotfish.drafters.model import KvCache, ModelDrafter, Row
from pilotfish_core.errors import ModelLoadError

MODEL_FILE: Final = "model.onnx"
RUNTIME: Final = "onnxruntime"
FIRST_CAPACITY: Final = 512  # positions; doubled as needed up to the context length


class OnnxDrafter(ModelDrafter):
    """A model in ONNX Runtime; contexts may run in different threads.

    Raises ModelLoadError when the folder is not whole or ONNX Runtime refuses the graph. ``threads`` is the
    number a forward uses; more than one only pays on idle cores.
    """

    runtime = RUNTIME
    model_file = MODEL_FILE

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        super().__init__(folder, "onnx")
        self.session = open_session(self.folder / MODEL_FILE, threads)
        self.width = _checked_width(self.session, self.manifest, self.folder / MODEL_FILE)

    def new_cache(self) -> KvCache:
        """Buffers that grow with the context."""
        return _SharedKv(self)

    def close(self) -> None:
        """Free the weights."""
        del self.session


class _SharedKv(KvCache):
    """The buffers of one context and their bindings to the graph.

    A one-row forward reuses one binding: only three small input buffers change. Keeps every OrtValue and
    array that a binding refers to alive (ONNX Runtime does not).
    """

    def __init__(self, drafter: OnnxDrafter) -> None:
        self._session = drafter.session
        self._shape: KvShape = drafter.manifest.kv
        self._limit = drafter.max_length
        self._capacity = 0
        self._values: list[Any] = []  # OrtValue; per layer key, value
        self._ids = np.zeros((1, 1), dtype=np.int64)
        self._last = np.zeros(1, dtype=np.int32)  # GroupQueryAttention's seqlens_k: index of the last position
        self._total = np.zeros(1, dtype=np.int32)
        self._logits = _value((1, 1, drafter.width), np.float32)
        self._single: Any = None
        self._row: Row = self._logits.numpy()[0, 0]  # a view of the last forward's logits

    def forward(self, tokens: Sequence[int], begin: int) -> Row:
        """Fills the KV of ``tokens`` in place."""
        end = begin + len(tokens)
        if end > self._capacity:
            self._grow(end, begin)
        self._last[0], self._total[0] = end - 1, end
        if len(tokens) == 1:
            self._ids[0, 0] = tokens[0]
            self._session.run_with_iobinding(self._single)
        else:
            ids = np.asarray([tokens], dtype=np.int64)  # named: the binding does not keep it alive
            self._session.run_with_iobinding(self._binding(ids))
        return self._row

    def _grow(self, needed: int, used: int) -> None:
        """Larger buffers, with the first ``used`` positions copied."""
        capacity = max(self._capacity, FIRST_CAPACITY)
        while capacity < needed:
            capacity *= 2
        capacity = min(capacity, self._limit)
        shape = (1, self._shape.heads, capacity, self._shape.head_size)
        values = [_value(shape, np.dtype(self._shape.dtype)) for _ in range(2 * self._shape.layers)]
        for old, new in zip(self._values, values, strict=False):
            new.numpy()[:, :, :used] = old.numpy()[:, :, :used]
        self._values, self._capacity = values, capacity
        self._single = self._binding(self._ids)

    def _binding(self, ids: NDArray[np.int64]) -> Any:
        binding = self._session.io_binding()
        for name, array in (("input_ids", ids), ("seqlens_k", self._last), ("total_length", self._total)):
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for index, value in enumerate(self._values):
            name = f"{index // 2}.{'value' if index % 2 else 'key'}"
            binding.bind_ortvalue_input(f"past.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        binding.bind_ortvalue_output("logits", self._logits)
        return binding


def _value(shape: Sequence[int], dtype: Any) -> Any:
    """A zeroed OrtValue on the CPU."""
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, "cpu")
    value.numpy().fill(0)
    return value


def open_session(file: Path, threads: int) -> Any:
    """A session on the CPU that leaves other cores alone. Raises ModelLoadError (file and reason)."""
    if threads < 1:
        raise ValueError(f"threads is {threads}; expected at least 1")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # never burn a core of the user's
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelLoadError(f"ONNX Runtime cannot load {file}: {reason}") from error


def _checked_width(session: Any, manifest: Manifest, file: Path) -> int:
    """Width of a row of logits. Raises ModelLoadError for a graph that is not the one the manifest describes.

    Buffers are made by the manifest and bound to the graph: one of them alone must not say how large they are.
    """
    kv = manifest.kv
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if (len(inputs), len(outputs)) != (3 + 2 * kv.layers, 1 + 2 * kv.layers):
        raise ModelLoadError(
            f"{file} has {len(inputs)} inputs and {len(outputs)} outputs: not a graph of {kv.layers} layers, as the "
            "manifest says"
        )
    types = {"float32": "tensor(float)", "float16": "tensor(float16)"}
    cache = (types.get(kv.dtype, kv.dtype), 4, kv.heads, kv.head_size)
    names = [f"{layer}.{kind}" for layer in range(kv.layers) for kind in ("key", "value")]
    expected = {"input_ids": "tensor(int64)", "seqlens_k": "tensor(int32)", "total_length": "tensor(int32)"}
    given = {entry.name: entry for entry in inputs} | {entry.name: entry for entry in outputs}
    for side in ("past", "present"):
        for name in names:
            entry = given.get(f"{side}.{name}")
            found = None if entry is None else (entry.type, len(entry.shape), *entry.shape[1::2])
            if found != cache:
                raise ModelLoadError(f"{file} has {side}.{name} as {found}, the manifest says {cache}")
    for name, kind in expected.items():
        if name not in given or given[name].type != kind:
            raise ModelLoadError(f"{file} has no input {name} of {kind}")
    logits = given.get("logits")
    width = None if logits is None or logits.type != "tensor(float)" else logits.shape[-1]
    if type(width) is not int or width < manifest.vocab_size:
        raise ModelLoadError(f"{file} has logits of width {width}, the manifest a vocabulary of {manifest.vocab_size}")
    return width
