"""What deterministic mode changes and what it costs, on this machine.

    python -m benchmarks.determinism MODEL... [--dtype bfloat16] [--threads 1] [--context 300] [--json OUT]

``differing`` counts, of the last 8 positions, those whose logits change with the chunking, the batch or rejected drafts
(five ways to compute them, see ``pilotfish_cloud.engine.determinism.self_check``). Times are milliseconds of one step:
of rows of one sequence (1: decode, more: verify), of eight sequences decoding together, and of a prefill chunk.
``bare`` is transformers' own forward with its own cache. With one thread, times are CPU time of that thread, the least
of the repetitions, modes taking turns: a loaded machine disturbs them little.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from pilotfish.bench.machine import load
from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.determinism import calibrate, self_check
from pilotfish_cloud.engine.fingerprint import machine_facts
from pilotfish_cloud.engine.loading import DTYPES, load_model
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_cloud.engine.rule import Rule, normal_rule
from pilotfish_cloud.engine.slow_sizes import without_slow_sizes

CELLS = {"1 row": [1], "2 rows": [2], "4 rows": [4], "8 rows": [8], "16 rows": [16], "8 x 1 row": [1] * 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+")
    parser.add_argument("--dtype", choices=sorted(DTYPES), action="append", help="default: both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=300, help="tokens before the step")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for model in arguments.model:
        for dtype in arguments.dtype or sorted(DTYPES):
            results.append(measure(arguments, model, dtype))
            show(results[-1])
    if arguments.json:
        report = {
            "command": shlex.join(["python", "-m", "benchmarks.determinism", *sys.argv[1:]]),
            "machine": machine_facts(torch.device("cpu")),
            "load": load(),
            "results": results,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, model: Path, dtype: str) -> dict[str, object]:
    """All figures of one model in one dtype."""
    loaded = load_model(model, dtype=dtype)
    max_len = min(loaded.shape.max_position, 1536)
    runner = ModelRunner(loaded, num_slots=8, num_blocks=1, block_size=16, max_len=max_len)
    began = time.perf_counter()
    rule = calibrate(runner, max_rows=512)
    calibrated = time.perf_counter() - began
    rules = {"normal": normal_rule(runner, max_rows=512), "deterministic": rule}
    rules = {name: without_slow_sizes(each, runner) for name, each in rules.items()}
    differing = {}
    for name, each in rules.items():
        each.apply(runner)
        differing[name] = self_check(runner, length=max_len - 5, rows=700)
    bare = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[dtype], attn_implementation="sdpa").eval()
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    cells = {
        name: time_cell(clock, runner, rules, bare, rows, arguments.context, arguments.repeat)
        for name, rows in {**CELLS, "prefill 256": [256]}.items()
    }
    return {
        "model": str(model),
        "dtype": dtype,
        "threads": arguments.threads,
        "context": arguments.context,
        "parameters": sum(parameter.numel() for parameter in bare.parameters()),
        "rule": {
            "kv_multiple": rule.attention.kv_multiple,
            "min_query": rule.attention.min_query,
            "row_sizes": rule.row_sizes,
            "tiles": {f"{key[0]}x{key[1]}": sizes for key, sizes in rule.tiles},
        },
        "calibration_s": round(calibrated, 2),
        "differing": differing,
        "ms": cells,
    }


@torch.inference_mode()
def time_cell(
    clock: Callable[[], float],
    runner: ModelRunner,
    rules: dict[str, Rule],
    bare: torch.nn.Module,
    rows: list[int],
    context: int,
    repeat: int,
) -> dict[str, float]:
    """Milliseconds of a step in each mode and of transformers' forward."""
    tokens = [token % 100 for token in range(sum(rows))]
    segments, begin = [], 0
    for slot, count in enumerate(rows):
        segments.append(Segment(slot, begin, begin + count, context))
        begin += count
    ids = torch.tensor(tokens).view(len(rows), -1)

    def step() -> None:
        runner.lm_head(runner.hidden(tokens, segments)[-min(len(tokens), 32) :])

    cache = DynamicCache()
    bare(torch.zeros(len(rows), context, dtype=torch.long), past_key_values=cache, logits_to_keep=1)

    def forward() -> None:
        bare(ids, past_key_values=cache, logits_to_keep=min(ids.shape[1], 32))

    best: dict[str, float] = {}
    for _ in range(repeat):
        for name, rule in rules.items():
            rule.apply(runner)
            began = clock()
            step()
            best[name] = min(best.get(name, 1e9), clock() - began)
        began = clock()
        forward()
        best["bare"] = min(best.get("bare", 1e9), clock() - began)
        cache.crop(-ids.shape[1])
    return {name: round(seconds * 1e3, 3) for name, seconds in best.items()}


def show(result: dict[str, object]) -> None:
    """A table for people."""
    differing, cells = result["differing"], result["ms"]
    if not isinstance(differing, dict) or not isinstance(cells, dict):
        raise TypeError("unexpected result")
    print(f"\n{result['model']} {result['dtype']}, {result['threads']} thread(s), context {result['context']}")
    print(f"rule {result['rule']}\ncalibration {result['calibration_s']} s")
    print("differing of 8: " + ", ".join(f"{mode} {count}" for mode, count in differing.items()))
    print(f"{'step':12} {'bare':>9} {'normal':>9} {'determ.':>9} {'determ./normal':>15} {'normal/bare':>12}")
    for name, ms in cells.items():
        normal, strict, bare = ms["normal"], ms["deterministic"], ms["bare"]
        print(f"{name:12} {bare:9.2f} {normal:9.2f} {strict:9.2f} {strict / normal:15.2f} {normal / bare:12.2f}")


if __name__ == "__main__":
    main()
