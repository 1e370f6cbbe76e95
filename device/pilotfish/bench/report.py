"""The figures for people: a table for each cell, a line that sums it up, and what is to be said of a difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pilotfish.bench.plan import Cell
from pilotfish.bench.rows import Row
from pilotfish.bench.statistics import MIN_PAIRS

Show = Callable[[Row], str]


def _plain(name: str, form: str) -> Show:
    return lambda row: "-" if row[name] is None else format(row[name], form)


def _range(name: str, form: str) -> Show:
    return lambda row: "-" if row[name] is None else "-".join(format(end, form) for end in row[name])


def _same(row: Row) -> str:
    return "yes" if row["identical"] else f"NO ({row['differing_answers']})"


COLUMNS: Final[tuple[tuple[str, int, Show], ...]] = (
    ("tokens/s", 9, _plain("tokens_per_s", ".1f")),
    ("quartiles", 12, _range("tokens_per_s_quartiles", ".1f")),
    ("x cloud", 8, _plain("ratio_to_cloud", ".2f")),
    ("95%", 10, _range("ratio_to_cloud_95", ".2f")),
    ("TTFT ms", 8, _plain("ttft_ms", ".0f")),
    ("TPOT ms", 8, _plain("tpot_ms", ".1f")),
    ("steps/tok", 10, _plain("steps_per_token", ".2f")),
    ("accepted", 9, _plain("mean_acceptance_length", ".2f")),
    ("useful", 7, _plain("useful_draft_fraction", ".0%")),
    ("B up", 6, _plain("bytes_up_per_token", ".1f")),
    ("B down", 7, _plain("bytes_down_per_token", ".1f")),
    ("same", 8, _same),
)
LEGEND: Final = (
    "tokens/s: of an answer from call to last token, median over the answers; with several streams, of all together.\n"
    "x cloud: an answer's speed over that of the cloud alone, same prompt and repeat, median and its 95% interval\n"
    f"(from {MIN_PAIRS} pairs on). accepted: committed tokens a target step, bonus token included, whoever drafted.\n"
    "useful: accepted ones of the draft tokens that the device sent; the cloud's own are in neither number. B:\n"
    "payload a token. same: every token as the reference's."
)


def table(rows: Sequence[Row]) -> list[str]:
    """The rows of one cell, under the names of their columns."""
    width = max(len("arm"), *(len(row["arm"]) for row in rows))
    lines = [f"{'arm':{width}}" + "".join(f"{title:>{size}}" for title, size, _ in COLUMNS)]
    for row in rows:
        lines.append(f"{row['arm']:{width}}" + "".join(f"{show(row):>{size}}" for _, size, show in COLUMNS))
        failures = row.get("drafter_failures")
        if failures:
            lines.append(f"  its drafter failed in {failures} of {row['answers']} answers: {row['drafter_error']}")
        if row["reconnects"]:
            lines.append(f"  it had to connect again {row['reconnects']} times")
    return lines


def summary(verdict: Row) -> str:
    """One cell in a line."""
    cell = Cell(verdict["rtt_ms"], verdict["concurrency"])
    parts = [f"best {verdict['best']} ({verdict['best_tokens_per_s']:.1f} tokens/s)"]
    if verdict["best_device"] is not None:
        parts.append(f"with device drafting {verdict['best_device']} ({verdict['best_device_tokens_per_s']:.1f})")
    if verdict["auto_to_best"] is not None:
        parts.append(f"auto {verdict['auto_to_best']:.0%} of the best")
    parts.append(f"identical: {'yes' if verdict['identical'] else 'NO'}")
    return f"{cell}: {'; '.join(parts)}"


def differences(rows: Sequence[Row], reference: str, *, deterministic: bool) -> list[str]:
    """What to say when answers were not the reference's; nothing when all were."""
    wrong = [row for row in rows if not row["identical"]]
    if not wrong:
        return []
    count, total = sum(row["differing_answers"] for row in wrong), sum(row["answers"] for row in rows)
    lines = [f"DIFFERENT: {count} of {total} answers are not those of {reference}"]
    for row in wrong:
        first = row["first_difference"]
        lines.append(
            f"  {row['arm']} at {Cell(row['rtt_ms'], row['concurrency'])}: {row['differing_answers']} of "
            f"{row['answers']}, first in prompt {first['prompt'] + 1} at token {first['token'] + 1}"
        )
    lines.append(
        "The verifier runs in deterministic mode: this is a defect, please report it."
        if deterministic
        else "The verifier does not run with --deterministic: near-ties may fall differently there."
    )
    return lines
