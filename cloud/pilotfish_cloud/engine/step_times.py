"""How long a step takes as a function of its rows, measured once at start, so that the policy need not find out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import torch

from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.model_runner import ModelRunner

CONTEXT: Final = 64  # tokens before the rows
REPEATS: Final = 3  # of which the fastest counts: a neighbour only ever adds


@torch.inference_mode()
def step_times(runner: ModelRunner, *, most: int) -> Iterator[tuple[int, float]]:
    """(rows, seconds) for 1, 2, 4, ... rows of one sequence, up to ``most``. Before any sequence: uses an arena."""
    most = max(1, min(most, runner.max_len - 1))
    counts = [1]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    for rows in counts:
        tokens = [1] * rows
        times = []
        for _ in range(1 + REPEATS):
            began = time.perf_counter()
            runner.lm_head(runner.hidden(tokens, [Segment(0, 0, rows, min(CONTEXT, runner.max_len - rows))]))
            times.append(time.perf_counter() - began)
        yield rows, min(times[1:])
