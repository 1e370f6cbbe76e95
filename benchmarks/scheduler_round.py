"""What the scheduler itself costs a step: milliseconds of schedule + complete + look_ahead, without a model.

    python -m benchmarks.scheduler_round [--sequences 64] [--drafts 8] [--rounds 300] [--json]

Every sequence decodes with so many buffered drafts, of which the target takes each with the given probability; its
device answers after a refutation within a millisecond. Median and 95th percentile of the thread's CPU time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from pilotfish.bench.machine import machine
from pilotfish_core.cloud_core import CloudCore, CloudLimits
from pilotfish_core.drafts import DraftRun, Finish
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.scheduling import Goodput, Sampled, Scheduler, SchedulerConfig, Sequence

VOCABULARY = 1000


class Never:
    """An answer that goes on."""

    def push(self, token: int) -> Finish | None:
        return None


def sequences(count: int, length: int) -> list[Sequence]:
    made = []
    for number in range(count):
        core = CloudCore(
            prompt_length=16,
            output=(),
            finish_rule=Never(),
            vocabulary_size=VOCABULARY,
            max_output=length - 16,
            limits=CloudLimits(max_unacknowledged=10**6),
            now=0.0,
        )
        made.append(Sequence(str(number), [number] * 16, core, SamplingParams(), max_len=length))
    return made


class Rounds:
    """A scheduler with decoding sequences, their devices and a target that takes drafts with ``acceptance``."""

    def __init__(self, count: int, drafts: int, acceptance: float, *, per_row_ms: float = 0.05) -> None:
        length = 8192
        config = SchedulerConfig(
            max_model_len=length,
            num_blocks=count * length // 16,
            max_num_seqs=count,
            max_num_batched_tokens=max(512, count * (1 + drafts)),
        )
        self.policy = Goodput(drafts)
        for rows in (1, 8, 64, 512):
            self.policy.observe(rows, 0.03 + per_row_ms * 1e-3 * rows)
        self.scheduler = Scheduler(config, self.policy)
        self.sequences = sequences(count, length)
        self.drafts, self.acceptance, self.per_row = drafts, acceptance, per_row_ms * 1e-3
        self.chance = random.Random(7)
        self.now = 0.0
        self.branches = [-1] * count
        self.ends = [0] * count
        for one in self.sequences:
            self.scheduler.add(one)

    def feed(self) -> None:
        """The devices fill the buffers."""
        for index, one in enumerate(self.sequences):
            core = one.core
            if core.refuted:
                self.branches[index] += 1
                self.ends[index] = core.length
            missing = core.length + self.drafts - self.ends[index]
            if missing > 0:
                core.receive(DraftRun(self.branches[index], self.ends[index], (1,) * missing), self.now + 0.001)
                self.ends[index] += missing

    def round(self) -> float:
        """One step; seconds of CPU time that the scheduler took."""
        self.feed()
        self.now += 0.002
        began = time.thread_time()
        step = self.scheduler.schedule(self.now)
        taken = time.thread_time() - began
        if step is None:
            self.now += 0.05
            return taken
        outcomes = {}
        for entry in step.scheduled:
            tokens = []
            for _ in range(entry.yields):
                tokens.append(1 if self.chance.random() < self.acceptance else 2)
            outcomes[entry.sequence.key] = Sampled(tokens)
        seconds = 0.03 + self.per_row * step.num_rows
        self.now += seconds
        began = time.thread_time()
        self.policy.observe(step.num_rows, seconds * self.chance.uniform(0.97, 1.05))
        done = self.scheduler.complete(step, outcomes, self.now)
        self.scheduler.look_ahead(done, self.now)
        return taken + time.thread_time() - began


def measure(count: int, drafts: int, acceptance: float, rounds: int) -> dict[str, Any]:
    bench = Rounds(count, drafts, acceptance)
    times = [bench.round() * 1e3 for _ in range(rounds + 30)][30:]
    return {
        "sequences": count,
        "acceptance": acceptance,
        "median_ms": round(statistics.median(times), 3),
        "p95_ms": round(statistics.quantiles(times, n=20)[-1], 3),
        "rows_a_step": round(
            (bench.scheduler.counts.decode_rows + bench.scheduler.counts.draft_rows) / bench.scheduler.counts.steps, 1
        ),
        "holds": bench.scheduler.counts.holds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--drafts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = [
        measure(count, given.drafts, rate, given.rounds) for count in given.sequences for rate in (0.2, 0.7, 0.9)
    ]
    if given.json:
        print(json.dumps({"machine": machine(), "results": results}, indent=1))
        return
    for result in results:
        print("  ".join(f"{name} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
