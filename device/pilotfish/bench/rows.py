"""Figures from what was measured: a row for each arm in each cell, and a verdict for each cell. Plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pilotfish.bench.link_process import LinkOptions
from pilotfish.bench.plan import Cell, reference_of
from pilotfish.bench.runner import Answer, Measured, Round, Tokens
from pilotfish.bench.statistics import Quartiles, paired_ratio
from pilotfish_core.modes import Arm

Row = dict[str, Any]


def reference_tokens(answers: Sequence[Answer], arms: Sequence[Arm]) -> dict[int, Tokens]:
    """What every answer to a prompt (its index) must be: the first one of the reference arm."""
    reference = reference_of(arms)
    tokens: dict[int, Tokens] = {}
    for answer in answers:
        if answer.arm is reference:
            tokens.setdefault(answer.prompt, answer.token_ids)
    return tokens


def rows_of(measured: Measured, cell: Cell, arms: Sequence[Arm], link: LinkOptions, *, seed: int = 0) -> list[Row]:
    """A row for each arm in one cell. Every arm must have answered in it; ``seed`` is the bootstrap's."""
    tokens = reference_tokens(measured.answers, arms)
    own = {arm: [answer for answer in measured.answers if (answer.arm, answer.cell) == (arm, cell)] for arm in arms}
    rounds = {arm: [one for one in measured.rounds if (one.arm, one.cell) == (arm, cell)] for arm in arms}
    return [
        {
            "arm": str(arm),
            "rtt_ms": cell.rtt_ms,
            "concurrency": cell.concurrency,
            "jitter_ms": link.jitter_ms,
            "link": link.as_dict(),
            "answers": len(own[arm]),
        }
        | _speed(own[arm], rounds[arm])
        | _ratio(own[arm], own.get(Arm.CLOUD, []), seed)
        | _counts(own[arm])
        | _agreement(own[arm], tokens)
        | _decisions(own[arm])
        for arm in arms
    ]


def verdict_of(rows: Sequence[Row]) -> Row:
    """What the rows of one cell come to: which fixed arm was best, and how near ``auto`` came to it."""
    fixed = [row for row in rows if row["arm"] != Arm.AUTO] or list(rows)
    best = max(fixed, key=_tokens_per_s)
    device = max((row for row in rows if Arm(row["arm"]).device_drafts), key=_tokens_per_s, default=None)
    auto = next((row for row in rows if row["arm"] == Arm.AUTO and row is not best), None)
    return {
        "rtt_ms": best["rtt_ms"],
        "concurrency": best["concurrency"],
        "best": best["arm"],
        "best_tokens_per_s": best["tokens_per_s"],
        "best_device": None if device is None else device["arm"],
        "best_device_tokens_per_s": None if device is None else device["tokens_per_s"],
        "auto_tokens_per_s": None if auto is None else auto["tokens_per_s"],
        "auto_to_best": None if auto is None else _over(auto["tokens_per_s"], best["tokens_per_s"], 4),
        "identical": all(row["identical"] for row in rows),
    }


def _tokens_per_s(row: Row) -> float:
    return float(row["tokens_per_s"])


def _speed(answers: Sequence[Answer], rounds: Sequence[Round]) -> Row:
    """One stream: of an answer, over the answers. Several: of all together, over the rounds; one has no spread."""
    of_answers = Quartiles.of([answer.metrics.tokens_per_s for answer in answers])
    speed = of_answers.median
    spread: Quartiles | None = of_answers
    if rounds:
        speed = sum(one.tokens for one in rounds) / sum(one.wall_s for one in rounds)
        spread = Quartiles.of([one.tokens_per_s for one in rounds]) if len(rounds) > 1 else None
    return {
        "tokens_per_s": round(speed, 3),
        "tokens_per_s_quartiles": None if spread is None else [round(spread.low, 3), round(spread.high, 3)],
        "answer_tokens_per_s_quartiles": [
            round(of_answers.low, 3),
            round(of_answers.median, 3),
            round(of_answers.high, 3),
        ],
        "ttft_ms": _median_ms([answer.metrics.ttft_s for answer in answers]),
        "tpot_ms": _median_ms([answer.metrics.tpot_s for answer in answers]),
    }


def _ratio(answers: Sequence[Answer], cloud: Sequence[Answer], seed: int) -> Row:
    """How much faster an answer was than the cloud's alone to the same prompt in the same repeat: the median."""
    alone = {(answer.prompt, answer.repeat): answer.metrics.tokens_per_s for answer in cloud}
    pairs = [
        (answer.metrics.tokens_per_s, alone[answer.prompt, answer.repeat])
        for answer in answers
        if alone.get((answer.prompt, answer.repeat))
    ]
    if not pairs:
        return {"ratio_to_cloud": None, "ratio_to_cloud_95": None}
    ratio = paired_ratio(pairs, seed=seed)
    interval = None if ratio.interval is None else [round(end, 4) for end in ratio.interval]
    return {"ratio_to_cloud": round(ratio.value, 4), "ratio_to_cloud_95": interval}


def _counts(answers: Sequence[Answer]) -> Row:
    """Over all answers together.

    ``useful_draft_fraction``: of the draft tokens that the device sent, those that the target accepted; None when it
    sent none. What the cloud drafted itself is in neither (it comes down as the cloud's own tokens), but it saves steps
    and so counts in ``steps_per_token`` and ``mean_acceptance_length``.
    """
    all_metrics = [answer.metrics for answer in answers]
    tokens = sum(len(answer.token_ids) for answer in answers)
    steps = sum(metrics.steps for metrics in all_metrics)
    sent = sum(metrics.sent_draft_tokens for metrics in all_metrics)
    return {
        "tokens": tokens,
        "steps_per_token": _over(steps, tokens, 4),
        "mean_acceptance_length": _over(tokens, steps, 4),
        "useful_draft_fraction": _over(sum(metrics.accepted_draft_tokens for metrics in all_metrics), sent, 4),
        "sent_draft_tokens": sent,
        "bytes_up_per_token": _over(sum(metrics.bytes_up for metrics in all_metrics), tokens, 2),
        "bytes_down_per_token": _over(sum(metrics.bytes_down for metrics in all_metrics), tokens, 2),
        "cached_prompt_fraction": _over(
            sum(metrics.cached_tokens for metrics in all_metrics),
            sum(metrics.prompt_tokens for metrics in all_metrics),
            4,
        ),
        "reconnects": sum(metrics.reconnects for metrics in all_metrics),
    }


def _agreement(answers: Sequence[Answer], tokens: Mapping[int, Tokens]) -> Row:
    differing = [answer for answer in answers if answer.token_ids != tokens[answer.prompt]]
    row: Row = {"identical": not differing, "differing_answers": len(differing)}
    if differing:
        first = differing[0]
        row["first_difference"] = {
            "prompt": first.prompt,
            "repeat": first.repeat,
            "token": first_difference(first.token_ids, tokens[first.prompt]),
        }
    return row


def first_difference(one: Tokens, other: Tokens) -> int:
    """Index of the first token that differs, or at which the shorter one ends."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _decisions(answers: Sequence[Answer]) -> Row:
    """What the device's policy said at the end of the answers, and whether its drafter failed."""
    policies = [answer.metrics.policy for answer in answers]
    errors = [answer.metrics.drafter_error for answer in answers if answer.metrics.drafter_error]
    row: Row = {"reasons": _tally(policies, "reason"), "drafter": answers[0].metrics.drafter}
    if arms := _tally(policies, "arm"):
        row["arms_chosen"] = arms
    if errors:
        row["drafter_failures"], row["drafter_error"] = len(errors), errors[0]
    return row


def _tally(policies: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    values = (policy.get(name) for policy in policies)
    return dict(Counter(str(value) for value in values if value is not None).most_common())


def _median_ms(seconds: Sequence[float]) -> float:
    return round(Quartiles.of(seconds).median * 1e3, 3)


def _over(above: float, below: float, digits: int) -> float | None:
    """The quotient; None for a share of nothing."""
    return round(above / below, digits) if below else None
