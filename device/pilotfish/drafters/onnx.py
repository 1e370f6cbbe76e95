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
from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.errors import ModelLoadError
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import TokenHistory, coupled_candidates

MODEL_FILE: Final = "model.onnx"
RUNTIME: Final = "onnxruntime"
FIRST_CAPACITY: Final = 512  # positions; doubled as needed up to the context length
CHUNK: Final = 512  # rows of one forward at most, which bounds the memory of a long prompt

Row = NDArray[np.float32]  # [vocabulary of the embedding]


class OnnxDrafter(Drafter):
    """An exported draft model; its weights are shared by all contexts, which may run in different threads.

    Raises ModelLoadError when the folder is not whole or ONNX Runtime refuses the graph. ``threads`` is the
    number a forward uses; more than one only pays on idle cores.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; expected at least 1")
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if self.manifest.runtime != RUNTIME:
            raise ModelLoadError(f"{self.folder} was exported for {self.manifest.runtime}, not for {RUNTIME}")
        if MODEL_FILE not in self.manifest.files:
            raise ModelLoadError(f"the manifest of {self.folder} lacks {MODEL_FILE}")
        self.manifest.verify(self.folder)
        self.name = f"onnx-{self.manifest.quant}"
        self.tokenizer_hash = self.manifest.tokenizer_hash
        self.max_length: int = self.manifest.context_length
        self.session = _session(self.folder / MODEL_FILE, threads)
        self.width = _checked_width(self.session, self.manifest, self.folder / MODEL_FILE)  # of a row of logits

    def open(self, params: SamplingParams, prompt_length: int) -> OnnxContext:
        """A fresh, empty context with its own KV."""
        return OnnxContext(self, params, prompt_length)

    def close(self) -> None:
        """Free the weights."""
        del self.session


class OnnxContext(DraftContext):
    """One generation's tokens and KV.

    ``_computed`` counts the leading tokens whose keys and values are in the buffers: at most ``length``,
    and what was only taken in by ``extend`` is computed in one chunk together with the first forward of
    ``draft``. The logits of the last forward are kept until the tokens change.
    """

    def __init__(self, drafter: OnnxDrafter, params: SamplingParams, prompt_length: int) -> None:
        if prompt_length < 0:
            raise ValueError(f"prompt_length is {prompt_length}")
        self._drafter = drafter
        self._params = params
        self._prompt_length = prompt_length
        self._tokens: list[int] = []
        self._computed = 0
        self._logits_of = 0  # length whose last token's logits are in the cache's row; 0: none
        self._cache = _KvCache(drafter)
        self._history: TokenHistory | None = None

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return len(self._tokens)

    def rewind(self, length: int) -> None:
        """Forget all tokens from ``length`` on. O(1): their KV is overwritten later."""
        if not 0 <= length <= len(self._tokens):
            raise ValueError(f"rewind to {length} in a context of {len(self._tokens)} tokens")
        del self._tokens[length:]
        self._computed = min(self._computed, length)
        if self._logits_of > length:
            self._logits_of = 0
        if self._history is not None:
            if length < self._prompt_length:
                self._history = None
            else:
                self._history.rewind(length - self._prompt_length)

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in tokens; ``draft`` computes them. Raises ValueError for ids outside the embedding."""
        for token in tokens:
            if not 0 <= token < self._drafter.width:
                raise ValueError(f"token id {token} is outside the draft model's {self._drafter.width} embeddings")
        self._tokens.extend(tokens)
        if self._history is not None:
            self._history.extend(tokens)

    def draft(self, count: int) -> list[int]:
        """Up to ``count`` tokens by coupled sampling; fewer at the context's end, none when empty."""
        if count < 0:
            raise ValueError(f"draft of {count} tokens")
        start = len(self._tokens)
        while len(self._tokens) < start + count:
            best = self.candidates(1)
            if not best:
                break
            self.extend(best)
        return self._tokens[start:]

    def candidates(self, count: int) -> list[int]:
        """The ``count`` best next tokens by log q + G, best first, without taking any in.

        The first is what ``draft`` would propose. Empty where ``draft`` has nothing to propose.
        """
        if not self._tokens or len(self._tokens) >= self._drafter.max_length:
            return []
        return coupled_candidates(
            self._forward(),
            self._params,
            len(self._tokens),
            count,
            history=self._penalty_history(),
            banned=self._banned(),
            vocab_size=self._drafter.manifest.vocab_size,
        )

    def logits(self) -> Row:
        """Logits after the tokens held, float32 ``[embeddings]``, a copy. Raises ValueError for no tokens."""
        if not 0 < len(self._tokens) <= self._drafter.max_length:
            raise ValueError(f"no logits for a context of {len(self._tokens)} tokens")
        return self._forward().copy()

    def close(self) -> None:
        """Free the KV."""
        self._tokens.clear()
        self._computed = self._logits_of = 0
        self._cache = _KvCache(self._drafter)

    def _forward(self) -> Row:
        """Compute what is not yet computed; the logits after the last token, valid until the next forward."""
        length = len(self._tokens)
        if self._logits_of != length:
            first = min(self._computed, length - 1)  # at least the last token, for its logits
            for begin in range(first, length, CHUNK):
                end = min(begin + CHUNK, length)
                self._cache.forward(self._tokens[begin:end], begin)
                self._computed = end
            self._logits_of = length
        return self._cache.row

    def _banned(self) -> tuple[int, ...]:
        """End tokens, as long as the next output token is below number ``min_tokens`` (from one)."""
        params = self._params
        if len(self._tokens) - self._prompt_length + 1 >= params.min_tokens:
            return ()
        ends = () if params.ignore_eos else self._drafter.manifest.eos_token_ids
        return tuple(t for t in (*params.stop_token_ids, *ends) if t < self._drafter.manifest.vocab_size)

    def _penalty_history(self) -> TokenHistory | None:
        if not self._params.has_penalties:
            return None
        if self._history is None:
            prompt, output = self._tokens[: self._prompt_length], self._tokens[self._prompt_length :]
            history = TokenHistory(prompt, output)
            if len(self._tokens) < self._prompt_length:  # drafting within the prompt: not kept, it would be wrong
                return history
            self._history = history
        return self._history


class _KvCache:
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
        self.row: Row = self._logits.numpy()[0, 0]  # a view of the last forward's logits

    def forward(self, tokens: Sequence[int], begin: int) -> None:
        """Run ``tokens`` at positions ``begin``...; fills their KV and the logits row of the last."""
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


def _session(file: Path, threads: int) -> Any:
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
