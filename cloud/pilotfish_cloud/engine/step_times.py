"""How long a step takes by its rows and its context, measured once at start, so that the policy need not find out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import torch

from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_core.estimators import Load

CONTEXT: Final = 64  # tokens before the rows
LONG: Final = (512, 2048)  # contexts that show what a token of it costs, of one row and of the most
REPEATS: Final = 3  # of which the fastest counts: a neighbour only ever adds


@torch.inference_mode()
def step_times(runner: ModelRunner, *, most: int) -> Iterator[tuple[int, Load, float]]:
    """(rows, load, seconds) for 1, 2, 4, ... rows of one sequence, up to ``most``, and for 1 and ``most`` of them after
    a longer context too. Before any sequence: uses an arena.
    """
    most = max(1, min(most, runner.max_len - 1))
    counts = [1]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    for rows in counts:
        yield _timed(runner, rows, CONTEXT)
    for context in sorted({min(context, runner.max_len - most) for context in LONG}):
        for rows in sorted({1, most}):
            yield _timed(runner, rows, context)


def _timed(runner: ModelRunner, rows: int, context: int) -> tuple[int, Load, float]:
    context = min(context, runner.max_len - rows)
    tokens, times = [1] * rows, []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        runner.lm_head(runner.hidden(tokens, [Segment(0, 0, rows, context)]))
        times.append(time.perf_counter() - began)
    read = context + rows
    return rows, Load(read, rows * read), min(times[1:])
