"""What a step of the embedded engine costs over transformers' own forward of the same rows.

    python -m benchmarks.step_cost [--model FOLDER] [--generations 1 16 64] [--dtype float32] [--json OUT]

Generations of 256 tokens decode together, one row each, without drafts. After every step of the engine its own thread
runs transformers' forward of as many rows over as much context, so the two take turns on one core. ``step`` is all
between two batches of events: messages, scheduling, forward, sampling, commits. ``forward`` is the model runner's part
of it. ``dynamic`` and ``static`` are transformers' forwards with its growing cache (which it copies in every step) and
with one contiguous cache padded to the end of the run, scaled_dot_product_attention in both. Ratios are medians over
pairs, to the faster of the two; times are medians in milliseconds, CPU time of the thread and wall clock. The model is
the reference target, inflated (a step takes tens of milliseconds), unless one is named.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import shlex
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache, StaticCache

from pilotfish.bench.machine import load, machine
from pilotfish.demo.stage import find_reference, inflated_target
from pilotfish_cloud.engine.engine import EmbeddedEngine
from pilotfish_cloud.engine.engine_config import EngineConfig
from pilotfish_cloud.engine.interface import CommitEvent, EngineEvent, FailedEvent, OpenRequest
from pilotfish_cloud.engine.loading import DTYPES, load_model
from pilotfish_core.parameters import SamplingParams

WARM_UP: Final = 4  # pairs that do not count
PATIENCE_S: Final = 1800.0
CLOCKS: Final[dict[str, Callable[[], float]]] = {"cpu": time.thread_time, "wall": time.perf_counter}
Times = dict[str, dict[str, list[float]]]  # by what and by clock: seconds of each pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: the reference target, inflated")
    parser.add_argument("--generations", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--dtype", choices=sorted(DTYPES), action="append", help="default: float32 and bfloat16")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--deterministic", action="store_true", help="the engine's deterministic mode")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    reference = find_reference(None)
    model = given.model or inflated_target(reference, reference.parent / "build" / "demo")
    where = machine()
    results = []
    for dtype in given.dtype or ["float32", "bfloat16"]:
        bare = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[dtype], attn_implementation="sdpa").eval()
        for generations, temperature in itertools.product(given.generations, given.temperature):
            results.append(cell(given, model, dtype, bare, generations, temperature))
            show(results[-1])
    if given.json is not None:
        command = shlex.join(["python", "-m", "benchmarks.step_cost", *sys.argv[1:]])
        report = {"command": command, "machine": where, "load_at_end": load(), "results": results}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def cell(
    given: argparse.Namespace, model: Path, dtype: str, bare: Any, generations: int, temperature: float
) -> dict[str, Any]:
    """Times and ratios of one number of generations in one dtype at one temperature."""
    config = EngineConfig(
        max_model_len=given.context + given.pairs + 64,
        max_num_seqs=generations,
        prefix_cache=True,
        deterministic=given.deterministic,
    )
    engine = EmbeddedEngine(load_model(model, dtype=dtype), config)
    run = PairedRun(engine, bare, generations, given.context, given.pairs)
    with run.measuring():
        prompt = tuple(token % 1000 + 1 for token in range(given.context))
        for number in range(generations):
            params = {"temperature": temperature, "seed": number, "max_tokens": 60 + given.pairs}
            sampling = SamplingParams.from_mapping({**params, "ignore_eos": True})
            engine.open(OpenRequest(key=str(number), prompt=prompt, params=sampling))
    return {
        "model": model.name,
        "dtype": dtype,
        "generations": generations,
        "context": given.context,
        "deterministic": given.deterministic,
        "temperature": temperature,
        "pairs": given.pairs,
        **{clock: summary(run.times, clock) for clock in CLOCKS},
    }


class PairedRun:
    """Runs transformers' forwards in the engine's thread, between its steps, and keeps the times of both."""

    def __init__(self, engine: EmbeddedEngine, bare: Any, generations: int, context: int, pairs: int) -> None:
        self.times: Times = defaultdict(lambda: {clock: [] for clock in CLOCKS})
        self._engine, self._bare, self._generations, self._pairs = engine, bare, generations, pairs
        length = context + pairs + WARM_UP + 1
        self._caches: dict[str, Cache] = {
            "dynamic": DynamicCache(config=bare.config),
            "static": StaticCache(config=bare.config, max_cache_len=length),
        }
        shape = (generations, bare.config.num_key_value_heads, context, bare.config.head_dim)
        for cache in self._caches.values():
            for layer in range(bare.config.num_hidden_layers):
                cache.update(torch.randn(shape, dtype=bare.dtype), torch.randn(shape, dtype=bare.dtype), layer)
        self._ids = torch.arange(1, generations + 1).view(-1, 1)
        self._began: dict[str, float] | None = None
        self._done = threading.Event()
        self._error: Exception | None = None
        self._pair = 0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """The engine runs until all pairs are measured. Raises what failed."""
        forward = self._engine.runner.forward
        self._forward: dict[str, float] = {}

        def timed(scheduled: Any) -> Any:
            began = _now()
            computed = forward(scheduled)
            self._forward = _since(began)
            return computed

        self._engine.runner.forward = timed  # type: ignore[method-assign]
        self._engine.start(self._listen)
        try:
            yield
            if not self._done.wait(PATIENCE_S):
                raise TimeoutError("the engine did not get there")
        finally:
            self._engine.close()
        if self._error is not None:
            raise self._error

    def _listen(self, events: Sequence[EngineEvent]) -> None:
        if self._done.is_set():
            return
        step = None if self._began is None else _since(self._began)
        failed = next((event.error for event in events if isinstance(event, FailedEvent)), None)
        if failed is not None:
            self._error = failed
            self._done.set()
        commits = sum(isinstance(event, CommitEvent) for event in events)
        if commits == self._generations and step is not None:
            self._measure(step)
        if commits:
            self._began = _now()

    @torch.inference_mode()
    def _measure(self, step: dict[str, float]) -> None:
        """The other half of a pair. Steps in which all decode follow each other, so ``step`` is one of them."""
        self._pair += 1
        found = {"step": step, "forward": self._forward}
        for name, cache in self._caches.items():
            began = _now()
            self._bare(self._ids, past_key_values=cache)
            found[name] = _since(began)
        if self._pair > WARM_UP:
            for name, values in found.items():
                for clock, seconds in values.items():
                    self.times[name][clock].append(seconds)
        if self._pair == WARM_UP + self._pairs:
            self._done.set()


def _now() -> dict[str, float]:
    return {name: clock() for name, clock in CLOCKS.items()}


def _since(began: dict[str, float]) -> dict[str, float]:
    return {name: clock() - began[name] for name, clock in CLOCKS.items()}


def summary(times: Times, clock: str) -> dict[str, float]:
    """Medians in milliseconds, and ratios to the faster of transformers' forwards."""
    median = {name: statistics.median(values[clock]) for name, values in times.items()}
    bare = min(("dynamic", "static"), key=median.__getitem__)
    ratio = functools.partial(_ratio, times, bare, clock)
    return {
        **{f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in median.items()},
        "forward_ratio": ratio("forward"),
        "step_ratio": ratio("step"),
    }


def _ratio(times: Times, bare: str, clock: str, name: str) -> float:
    pairs = zip(times[name][clock], times[bare][clock], strict=True)
    return round(statistics.median(ours / theirs for ours, theirs in pairs), 3)


def show(result: dict[str, Any]) -> None:
    """Two lines for people."""
    mode = ", deterministic" if result["deterministic"] else ""
    for clock in CLOCKS:
        values = result[clock]
        times = ", ".join(f"{name} {values[f'{name}_ms']:.1f}" for name in ("step", "forward", "dynamic", "static"))
        print(
            f"{result['dtype']}{mode} {result['generations']:3} x {result['context']}, "
            f"temperature {result['temperature']}, {clock:4}: {times} ms; "
            f"step {values['step_ratio']:.2f}, forward {values['forward_ratio']:.2f} of transformers'"
        )


if __name__ == "__main__":
    main()
