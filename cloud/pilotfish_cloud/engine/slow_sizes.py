"""Row counts that take longer than a larger one does: left out, so that steps are padded past them.

oneDNN takes another kernel for one or two rows than for three to six, on AMD Zen 4 a slower one (a step of 111 M
parameters: 15.6, 18.6, 14.1 ms for 1, 2, 4 rows in bfloat16; 30, 38, 24 in float32). Which counts those are is measured
at start. Which of a rule's counts a step takes changes no bit in deterministic mode, and is no part of the fingerprint.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from typing import Final

import torch

from pilotfish_cloud.engine.attention_plan import Segment
from pilotfish_cloud.engine.model_runner import ModelRunner
from pilotfish_cloud.engine.rule import Rule

LARGEST: Final = 16  # rows: beyond it time grows with each
GAIN: Final = 0.04  # share by which a larger count must be faster: less is noise, or padding that comes to nothing
ROUNDS: Final = 4  # of which the fastest counts: a neighbour only ever adds
ENOUGH_S: Final = 1.5  # of measuring, for models so large that noise matters little
CONTEXT: Final = 64  # tokens before the rows


@torch.inference_mode()
def without_slow_sizes(rule: Rule, runner: ModelRunner) -> Rule:
    """``rule`` with the row counts and output tiles that no larger one outruns; ``runner`` follows it.

    Before any sequence: uses an arena. Elsewhere than on CPU, and without a list of sizes, that is ``rule`` itself.
    """
    rule.apply(runner)
    context = min(CONTEXT, runner.max_len - LARGEST)
    head = runner.output_layer
    if runner.device.type != "cpu" or rule.row_sizes is None or head.tile_sizes is None or context < 0:
        return rule
    tiles = head.tile_sizes
    steps, outputs = _timed(runner, [size for size in {*rule.row_sizes, *tiles} if size <= LARGEST], context)
    narrowed = dataclasses.replace(
        rule, row_sizes=_without_slow(rule.row_sizes, steps), output_tiles=_without_slow(tiles, outputs)
    )
    narrowed.apply(runner)
    return narrowed


def _without_slow(sizes: tuple[int, ...], seconds: Mapping[int, float]) -> tuple[int, ...]:
    kept = undominated((size, seconds[size]) for size in sizes if size <= LARGEST)
    return (*kept, *(size for size in sizes if size > LARGEST))


def _timed(runner: ModelRunner, sizes: Iterable[int], context: int) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds of the layers and of the output layer after them, whose weights are no longer in any cache by then."""
    sizes, head = sorted(sizes), runner.output_layer
    steps, outputs = dict.fromkeys(sizes, math.inf), dict.fromkeys(sizes, math.inf)
    inputs = torch.zeros(LARGEST, head.in_features, dtype=head.dtype)
    began = time.perf_counter()
    for round_ in range(1 + ROUNDS):
        for size in sizes:  # in turns, so that a busy moment slows all of them
            start = time.perf_counter()
            runner.hidden([0] * size, [Segment(0, 0, size, context)])
            middle = time.perf_counter()
            head.product(inputs[:size])
            if round_:  # the first prepares kernels
                steps[size] = min(steps[size], middle - start)
                outputs[size] = min(outputs[size], time.perf_counter() - middle)
        if round_ and time.perf_counter() - began > ENOUGH_S:
            break
    return steps, outputs


def undominated(times: Iterable[tuple[int, float]]) -> tuple[int, ...]:
    """Of (size, seconds), ascending: the sizes that no larger one outruns by ``GAIN``."""
    kept: list[int] = []
    best = float("inf")
    for size, seconds in sorted(times, reverse=True):
        if seconds * (1 - GAIN) <= best:
            kept.append(size)
        best = min(best, seconds)
    return tuple(reversed(kept))
