"""What the demo measured, as plain values and as a table."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Sequence
from typing import Any

from pilotfish.demo.answers import Answer
from pilotfish.result import Metrics


def digest(answers: Iterable[Answer]) -> str:
    """SHA-256 over the answers' token ids and texts, in their order."""
    whole = [[answer.result.text, list(answer.result.token_ids)] for answer in answers]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def summary(answers: Sequence[Answer], failovers: int) -> dict[str, Any]:
    """The figures. Rates over ``cloud`` and plain ``hybrid`` answers; ``identical`` covers every answer."""
    alone = {answer.prompt: answer for answer in answers if answer.kind == "cloud"}
    others = [answer for answer in answers if answer.kind != "cloud"]
    return {
        "identical": all(_same(answer, alone[answer.prompt]) for answer in others),
        "prompts": len(alone),
        "answers": len(answers),
        "failovers": failovers,
        "cloud": _rates([answer.result.metrics for answer in answers if answer.kind == "cloud"]),
        "hybrid": _rates([answer.result.metrics for answer in answers if answer.kind == "hybrid"]),
        "junk": _rates([answer.result.metrics for answer in answers if answer.kind == "junk"]),
        "sha256": {
            "cloud": digest(alone[answer.prompt] for answer in others),
            "others": digest(others),
        },
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
    }


def _same(one: Answer, other: Answer) -> bool:
    return one.result.token_ids == other.result.token_ids and one.result.text == other.result.text


def _rates(all_metrics: Sequence[Metrics]) -> dict[str, float]:
    tokens = sum(metrics.completion_tokens for metrics in all_metrics)
    steps = sum(metrics.steps for metrics in all_metrics)
    elapsed = sum(metrics.elapsed_s for metrics in all_metrics)
    if not tokens or not elapsed:
        return {}
    return {
        "tokens_per_s": round(tokens / elapsed, 2),
        "ttft_ms": round(1000 * sum(metrics.ttft_s for metrics in all_metrics) / len(all_metrics), 1),
        "steps_per_token": round(steps / tokens, 4),
        "mean_acceptance_length": round(tokens / steps, 3),
        "bytes_up_per_token": round(sum(metrics.bytes_up for metrics in all_metrics) / tokens, 2),
        "bytes_down_per_token": round(sum(metrics.bytes_down for metrics in all_metrics) / tokens, 2),
    }


ROWS = (
    ("tokens per second", "tokens_per_s", "{:.1f}"),
    ("time to first token", "ttft_ms", "{:.0f} ms"),
    ("target steps per token", "steps_per_token", "{:.2f}"),
    ("mean acceptance length", "mean_acceptance_length", "{:.2f}"),
    ("payload up per token", "bytes_up_per_token", "{:.1f} B"),
    ("payload down per token", "bytes_down_per_token", "{:.1f} B"),
)


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines: one column for the cloud alone, one with the device drafting, one with junk drafts."""
    lines = [f"{'':24}{'cloud alone':>14}{'hybrid':>14}{'junk drafts':>14}"]
    for title, key, form in ROWS:
        cells = (
            form.format(figures[column][key]) if figures[column] else "-" for column in ("cloud", "hybrid", "junk")
        )
        lines.append(f"{title:24}" + "".join(f"{cell:>14}" for cell in cells))
    return lines
