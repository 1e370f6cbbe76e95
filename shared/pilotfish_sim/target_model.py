"""What a step of the target costs, and how many tokens of KV fit: a measured curve, or a roofline from data sheets."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

from pilotfish_core.tuning import RowTuning
from pilotfish_sim.fields import Section, Wrong, checked, constants, flag, integer, number, numbers, text

GIB: Final = 2**30


class StepTime(Protocol):
    """What a step takes."""

    def __call__(self, rows: int, context: int, sequences: int = 1, /) -> float:
        """Seconds, by its rows, the KV tokens that its attention reads, and its sequences."""


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A dense decoder: ``parameters`` in all, KV of ``layers`` x ``kv_heads`` x ``head_dim``. From config.json."""

    parameters: float
    layers: int
    kv_heads: int
    head_dim: int

    def kv_bytes(self, bits: int = 16) -> int:
        """Of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bits // 8


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """A data sheet: dense FLOP/s at 16 and 8 bits, memory bandwidth in bytes/s and size in bytes."""

    flops_16: float
    flops_8: float
    bandwidth: float
    memory: float


# Parameters and shapes: config.json of meta-llama/Llama-3.1-8B and -70B, Qwen/Qwen2.5-7B and -32B on Hugging Face.
MODELS: Final[dict[str, Model]] = {
    "llama-3.1-8b": Model(8.03e9, 32, 8, 128),
    "llama-3.1-70b": Model(70.6e9, 80, 8, 128),
    "qwen2.5-7b": Model(7.62e9, 28, 4, 128),
    "qwen2.5-32b": Model(32.8e9, 64, 8, 128),
}

# NVIDIA data sheets "H100 Tensor Core GPU" (SXM), "H200 Tensor Core GPU" (SXM), "A100 80GB" (SXM), "L40S"; without
# sparsity. 8 bits are FP8, on the A100 INT8.
GPUS: Final[dict[str, Gpu]] = {
    "h100": Gpu(989e12, 1979e12, 3.35e12, 80e9),
    "h200": Gpu(989e12, 1979e12, 4.8e12, 141e9),
    "a100": Gpu(312e12, 624e12, 2.039e12, 80e9),
    "l40s": Gpu(362e12, 733e12, 0.864e12, 48e9),
}


def _step_ms(value: Any) -> Any:
    """A constant, or rows -> milliseconds."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {1: value}
    expected = "milliseconds above 0, or a curve such as {1: 41, 8: 50, 32: 88} (rows: milliseconds, never falling)"
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, Mapping) or not value:
        raise Wrong(expected)
    try:
        points = sorted((int(rows), float(ms)) for rows, ms in value.items())
    except (TypeError, ValueError):
        raise Wrong(expected) from None
    times = [ms for _, ms in points]
    if points[0][0] < 1 or not all(0 < ms < 1e6 for ms in times) or times != sorted(times):
        raise Wrong(expected)
    return tuple(points)


def _row_sizes(value: Any) -> tuple[int, ...]:
    """Ascending row counts."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Wrong("a list of row counts, such as [4, 8, 16]")
    sizes = [size for size in value if isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= 10**6]
    if len(sizes) != len(value) or sizes != sorted(set(sizes)):
        raise Wrong("row counts that ascend, such as [4, 8, 16]")
    return tuple(sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target(Section):
    """A verifier replica: either ``step_ms`` (measured), or ``model`` on ``gpus`` x ``gpu`` (roofline).

    ``efficiency``: of the data sheet's FLOP/s and bandwidth that are reached. ``overhead_ms``: of a step beside the
    roofline (launches, sampling, scheduling). With a curve, ``context_us``: microseconds for each 1,000 KV tokens that
    a step reads; ``sequence_us``: for each sequence of a step after the first; ``kv_tokens``: tokens of KV that fit.
    ``row_sizes``: to which steps are padded, as embedded engines pad them; larger ones are not.
    ``spread``: factors, one of which is drawn for each step. ``service_ms``: what the service adds to a frame in each
    direction; ``open_ms``: to the opening of a stream, beside that. The other fields are the flags of
    ``pilotfish-cloud serve``.
    """

    section: ClassVar[str] = "target"

    step_ms: tuple[tuple[int, float], ...] | None = checked(None, _step_ms)
    row_sizes: tuple[int, ...] = checked((), _row_sizes)
    context_us: float = number(0.0, 0.0, 1e6, "microseconds")
    sequence_us: float = number(0.0, 0.0, 1e6, "microseconds")
    spread: tuple[float, ...] = numbers(0.01, 100.0)
    open_ms: float = number(0.0, 0.0, 1e5, "milliseconds")
    kv_tokens: int | None = integer(None, 16, 10**9, "tokens")
    model: str = text("")
    gpu: str = text("")
    gpus: int = integer(1, 1, 64)
    weight_bits: int = integer(16, 4, 16)
    flops_efficiency: float = number(0.6, 0.0, 1.0, above=True)
    bandwidth_efficiency: float = number(0.75, 0.0, 1.0, above=True)
    overhead_ms: float = number(0.0, 0.0, 1e4, "milliseconds")
    memory_share: float = number(0.9, 0.0, 1.0, above=True)
    replicas: int = integer(1, 1, 10_000)
    service_ms: float = number(0.0, 0.0, 1e4, "milliseconds")
    block_size: int = integer(16, 1, 1024, "tokens")
    max_model_len: int = integer(8192, 2, 10**7, "tokens")
    max_num_seqs: int = integer(256, 1, 10**5)
    max_num_batched_tokens: int = integer(2048, 1, 10**6, "rows")
    max_draft_tokens: int = integer(32, 1, 1024)
    max_draft_rows: int = integer(16, 0, 1024)
    prefix_cache: bool = flag(True)
    speculation: str = text("goodput")
    hold_cap_ms: float = number(50.0, 0.0, 1e4, "milliseconds")
    tuning: RowTuning = constants(RowTuning)
    policy: str = text("")  # module:Class of a SpeculationPolicy under study
    draft_step_ms: float | None = number(None, 0.0, 1e4, "milliseconds", above=True)
    draft_acceptance: float = number(0.8, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.speculation not in ("goodput", "fixed"):
            raise self.wrong("speculation", self.speculation, "goodput or fixed")
        if self.step_ms is None:
            self._check_roofline()
            return
        for name in ("model", "gpu"):
            if getattr(self, name):
                raise self.wrong(name, getattr(self, name), "nothing beside target.step_ms, which says it all")
        self._check_sizes()

    def _check_roofline(self) -> None:
        for name, known in (("model", MODELS), ("gpu", GPUS)):
            value = getattr(self, name)
            if value not in known:
                raise self.wrong(name, value, f"one of {', '.join(known)} (or target.step_ms)")
        for name in ("context_us", "sequence_us", "kv_tokens"):
            if getattr(self, name):
                raise self.wrong(name, getattr(self, name), "nothing beside target.model, from which it follows")
        if self._kv_bytes_free < self.max_model_len * MODELS[self.model].kv_bytes():
            need = MODELS[self.model].parameters * self.weight_bits / 8 / GIB
            raise self.wrong(
                "gpus", self.gpus, f"enough memory for {need:.0f} GiB of weights and {self.max_model_len} tokens of KV"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise self.wrong(
                "max_num_batched_tokens", self.max_num_batched_tokens, f"a row each of {self.max_num_seqs} max_num_seqs"
            )
        if self.num_blocks * self.block_size < self.max_model_len:
            raise self.wrong("max_model_len", self.max_model_len, f"at most the KV of {self.kv_capacity} tokens")

    @property
    def kv_capacity(self) -> int:
        """Tokens of KV that fit a replica."""
        if self.step_ms is None:
            return int(self._kv_bytes_free // MODELS[self.model].kv_bytes())
        if self.kv_tokens is not None:
            return self.kv_tokens
        return self.max_model_len * self.max_num_seqs

    @property
    def num_blocks(self) -> int:
        """Blocks of KV."""
        return self.kv_capacity // self.block_size

    def padded(self, rows: int) -> int:
        """The rows that a step of so many computes."""
        place = bisect.bisect_left(self.row_sizes, rows)
        return rows if place == len(self.row_sizes) else self.row_sizes[place]

    def step_time(self) -> StepTime:
        """Seconds of a step, by its rows, the KV tokens that its attention reads, and its sequences."""
        seconds = self._unpadded()
        if not self.row_sizes:
            return seconds
        return lambda rows, context, sequences=1, /: seconds(self.padded(rows), context, sequences)

    def _unpadded(self) -> StepTime:
        if self.step_ms is not None:
            return _curve(self.step_ms, self.context_us * 1e-9, self.sequence_us * 1e-6)
        model, gpu = MODELS[self.model], GPUS[self.gpu]
        flops = (gpu.flops_16 if self.weight_bits > 8 else gpu.flops_8) * self.gpus * self.flops_efficiency
        bandwidth = gpu.bandwidth * self.gpus * self.bandwidth_efficiency
        weights_s = model.parameters * self.weight_bits / 8 / bandwidth
        row_s, context_s = 2 * model.parameters / flops, model.kv_bytes() / bandwidth
        overhead_s = self.overhead_ms / 1e3

        def seconds(rows: int, context: int, sequences: int = 1, /) -> float:
            return overhead_s + max(weights_s, rows * row_s) + context * context_s

        return seconds

    @property
    def _kv_bytes_free(self) -> float:
        gpu, model = GPUS[self.gpu], MODELS[self.model]
        return gpu.memory * self.gpus * self.memory_share - model.parameters * self.weight_bits / 8


def _curve(points: tuple[tuple[int, float], ...], context_s: float, sequence_s: float) -> StepTime:
    """Straight lines between the points, flat before the first and going on as the last two beyond the last."""
    rows_of, seconds_of = [rows for rows, _ in points], [ms / 1e3 for _, ms in points]
    slope = 0.0
    if len(points) > 1:
        slope = (seconds_of[-1] - seconds_of[-2]) / (rows_of[-1] - rows_of[-2])

    def seconds(rows: int, context: int, sequences: int = 1, /) -> float:
        place = bisect.bisect_left(rows_of, rows)
        if place == 0:
            base = seconds_of[0]
        elif place == len(rows_of):
            base = seconds_of[-1] + (rows - rows_of[-1]) * slope
        else:
            low, high = rows_of[place - 1], rows_of[place]
            share = (rows - low) / (high - low)
            base = seconds_of[place - 1] + share * (seconds_of[place] - seconds_of[place - 1])
        return base + context * context_s + (sequences - 1) * sequence_s

    return seconds
