"""A run in figures: a row with the keys of ``pilotfish bench``, and what only a simulator knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pilotfish_core.modes import Arm
from pilotfish_sim.answers import Answer
from pilotfish_sim.run import Run
from pilotfish_sim.workload import WorkloadKind

Row = dict[str, Any]
Speeds = dict[int, float]  # tokens a second of each measured answer, by its number
PERCENTILES: Final = (50, 90, 99)


def row_of(run: Run) -> Row:
    """What came of a run. ``ratio_to_cloud`` is filled in where the cloud alone ran too: see ``compare``."""
    scenario, answers = run.scenario, run.measured
    return {
        "arm": str(scenario.arm),
        "rtt_ms": scenario.link.rtt_ms,
        "concurrency": scenario.workload.devices,
        "jitter_ms": scenario.link.jitter_ms,
        "answers": len(answers),
        **_speed(run, answers),
        "ratio_to_cloud": None,
        **_counts(answers),
        "identical": all(answer.identical for answer in answers),
        "differing_answers": sum(not answer.identical for answer in answers),
        "failures": sum(bool(answer.error) for answer in answers),
        "reasons": _tally([answer.reason for answer in answers]),
        "arms_chosen": _tally([answer.arm for answer in answers]),
        **_verifier(run),
        **_costs(run, answers),
        "virtual_s": round(run.wall_s, 3),
        "events": run.events,
        "simulated": True,
    }


def speeds_of(run: Run) -> Speeds:
    """Of each measured answer."""
    return {answer.number: answer.tokens_per_s for answer in run.measured}


def compare(rows: Sequence[Row], speeds: Sequence[Speeds], groups: Sequence[Any]) -> None:
    """Fill in ``ratio_to_cloud``: how much faster an answer was than the cloud alone's with the same number, in the
    median. Rows of equal ``groups`` differ in their arm only.
    """
    cloud = {
        group: speed for row, speed, group in zip(rows, speeds, groups, strict=True) if row["arm"] == str(Arm.CLOUD)
    }
    for row, speed, group in zip(rows, speeds, groups, strict=True):
        alone = cloud.get(group, {})
        ratios = [value / alone[number] for number, value in speed.items() if alone.get(number)]
        if ratios:
            row["ratio_to_cloud"] = round(float(np.median(ratios)), 4)


def _speed(run: Run, answers: Sequence[Answer]) -> Row:
    """One stream: an answer's, in the median. Several: of all together."""
    of_answers = [answer.tokens_per_s for answer in answers]
    low, median, high = (round(float(value), 3) for value in np.percentile(of_answers, (25, 50, 75)))
    speed = median
    if run.scenario.workload.devices > 1 or run.scenario.workload.kind is not WorkloadKind.CLOSED:
        speed = _over(sum(answer.tokens for answer in answers), run.wall_s, 3) or 0.0
    row: Row = {"tokens_per_s": speed, "answer_tokens_per_s_quartiles": [low, median, high]}
    for name, values in (
        ("ttft_ms", [answer.ttft_s for answer in answers]),
        ("tpot_ms", [answer.tpot_s for answer in answers]),
    ):
        parts = [round(float(value) * 1e3, 3) for value in np.percentile(values, PERCENTILES)]
        row[name] = parts[0]
        row |= {f"{name}_p{share}": part for share, part in zip(PERCENTILES[1:], parts[1:], strict=True)}
    return row


def _counts(answers: Sequence[Answer]) -> Row:
    tokens = sum(answer.tokens for answer in answers)
    steps = sum(answer.counts.commits for answer in answers)
    sent = sum(answer.counts.sent for answer in answers)
    return {
        "tokens": tokens,
        "steps_per_token": _over(steps, tokens, 4),
        "mean_acceptance_length": _over(tokens, steps, 4),
        "useful_draft_fraction": _over(sum(answer.counts.accepted for answer in answers), sent, 4),
        "sent_draft_tokens": sent,
        "drafted_tokens": sum(answer.counts.drafted for answer in answers),
        "bytes_up_per_token": _over(sum(answer.bytes_up for answer in answers), tokens, 2),
        "bytes_down_per_token": _over(sum(answer.bytes_down for answer in answers), tokens, 2),
        "cached_prompt_fraction": _over(
            sum(answer.cached_tokens for answer in answers), sum(answer.prompt_tokens for answer in answers), 4
        ),
        "reconnects": sum(answer.counts.reconnects for answer in answers),
    }


def _verifier(run: Run) -> Row:
    """Of all replicas, warm-ups included."""
    steps = sum(replica.steps for replica in run.replicas)
    busy = sum(replica.busy_s for replica in run.replicas)
    committed = sum(replica.committed for replica in run.replicas)
    return {
        "utilisation": _over(busy, _span(run) * len(run.replicas), 4),
        "rows_per_step": _over(sum(replica.rows for replica in run.replicas), steps, 2),
        "step_ms": _over(busy * 1e3, steps, 3),
        "target_ms_per_token": _over(busy * 1e3, committed, 3),
    }


def _costs(run: Run, answers: Sequence[Answer]) -> Row:
    """Of GPUs for as long as the run took, of bytes that left the cloud; the device's energy for a token."""
    scenario = run.scenario
    tokens = sum(answer.tokens for answer in answers)
    all_tokens = sum(answer.tokens for answer in run.answers)
    gpus = scenario.target.gpus * scenario.target.replicas
    dollars = gpus * scenario.prices.gpu_hour * _span(run) / 3600
    dollars += scenario.prices.egress_gb * run.path_bytes_down / 1e9
    joules = sum(
        answer.drafting_s * scenario.device.power_w + answer.elapsed_s * scenario.link.radio_w for answer in answers
    )
    battery = scenario.device.battery_wh
    return {
        "usd_per_million_tokens": _over(dollars * 1e6, all_tokens, 4) if scenario.prices.gpu_hour else None,
        "device_j_per_token": _over(joules, tokens, 4),
        "battery_share_per_1000_tokens": None if battery is None else _over(joules * 1000, tokens * battery * 3600, 6),
    }


def _span(run: Run) -> float:
    return max(answer.last_at for answer in run.answers) - min(answer.began for answer in run.answers)


def _tally(values: Sequence[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _over(above: float, below: float, digits: int) -> float | None:
    """The quotient; None for a share of nothing."""
    return round(above / below, digits) if below else None
