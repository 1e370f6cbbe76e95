"""What a busy device costs a verifier on the same machine: a step's time while a drafter drafts beside it, and not.

    python -m benchmarks.neighbours [--target-layers 14] [--rounds 8]

The engine's step (one row, 64 tokens of context, bfloat16, deterministic mode) runs on the first processor, the
reference draft (int8) in a process of its own on the last one, for a second in turn with a second of rest. Verifier and
device are on different machines in the field: what this shows is a share of the asynchronous arm's time in the other
benchmarks that it would not lose there, and that lockstep, whose device rests while the target computes, does not lose
here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

from pilotfish.bench.machine import machine
from pilotfish.demo.stage import exported_draft, find_reference, inflated_target
from pilotfish.drafters import load_drafter
from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.determinism import calibrate
from pilotfish_cloud.engine.loading import load_model
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_core.parameters import SamplingParams

TURN_S = 1.0


def draft_on_demand(folder: str) -> None:
    """For each line of standard input: draft for a second, then say so."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    drafter = load_drafter(folder)
    if drafter is None:
        raise SystemExit(f"{folder} is no draft model")
    context = drafter.open(SamplingParams(max_tokens=128), 64)
    context.extend(list(range(64)))
    for _ in sys.stdin:
        end = time.perf_counter() + TURN_S
        while time.perf_counter() < end:
            context.draft(8)
            context.rewind(64)
        print("done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target-layers", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--drafter", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drafter is not None:
        draft_on_demand(given.drafter)
        return
    reference = find_reference(None)
    work = reference.parent / "build" / "demo"
    target, draft = inflated_target(reference, work, given.target_layers), exported_draft(reference, work, "int8")
    processors = os.sched_getaffinity(0)
    command = [sys.executable, "-m", "benchmarks.neighbours", "--drafter", str(draft)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        os.sched_setaffinity(0, {min(processors)})
        torch.set_num_threads(1)
        runner = ModelRunner(
            load_model(target, dtype="bfloat16"), num_slots=2, num_blocks=1, block_size=16, max_len=640
        )
        calibrate(runner, max_rows=128)
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * given.rounds):
            busy = number % 2 == 1
            if busy and other.stdin is not None:
                other.stdin.write("\n")
                other.stdin.flush()
            times[busy] += steps(runner)
            if busy and other.stdout is not None:
                other.stdout.readline()
        if other.stdin is not None:
            other.stdin.close()
    alone, beside = (statistics.median(times[busy]) * 1e3 for busy in (False, True))
    print(machine())
    print(f"a step takes {alone:.1f} ms alone, {beside:.1f} ms beside a drafter: {beside / alone:.3f} times as long")


@torch.inference_mode()
def steps(runner: ModelRunner) -> list[float]:
    """Seconds of each step for as long as a turn."""
    found, end = list[float](), time.perf_counter() + TURN_S
    while time.perf_counter() < end:
        began = time.perf_counter()
        runner.lm_head(runner.hidden([1], [Segment(0, 0, 1, 64)]))
        found.append(time.perf_counter() - began)
    return found


if __name__ == "__main__":
    main()
