"""The exactness benchmark's results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The whole report: machine, command, tables, problems."""
    settings, design = report["settings"], report["design"]
    lines = [
        "# Exactness",
        "",
        f"Command: `{report['command']}` ({report.get('seconds', 0):.0f} s)  ",
        "Machine: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report["machine"].items())
        + "  ",
        f"Each cell: {settings['prompts']} held-out prompts x {settings['tokens']} tokens, seed {settings['seed']}, "
        f"target {settings['target']}, {report['draft']}, code {settings['code']}",
    ]
    if report["alone"]:
        lines += ["", "## The target alone, one at a time in each of two processes", "", *_alone(report["alone"])]
    if report["deterministic"]:
        lines += ["", "## Deterministic mode against the target alone", ""]
        if design:
            lines += [
                f"Pairwise design: {design['cells']} cells cover {design['pairs'] - design['pairs_missing']} of the "
                f"{design['pairs']} pairs of choices.",
                "",
            ]
        lines += [*_cells(report["deterministic"]), "", _sum(report["deterministic"])]
    if report["reference"]:
        lines += ["", "## The target alone against transformers and the specification (float32)", ""]
        lines += _reference(report["reference"])
    if report["normal"]:
        lines += ["", "## Normal mode against itself alone", "", *_cells(report["normal"])]
    records = [record for part in ("deterministic", "reference", "normal") for record in report[part]]
    edited = [record["name"] for record in records if record["code"] != settings["code"]]
    if edited:
        lines += ["", f"The code was edited during the run: {len(edited)} results are of later code."]
    lines += ["", *[f"PROBLEM: {problem}  " for problem in report["problems"]]]
    return "\n".join(lines).rstrip() + "\n"


def _alone(records: Sequence[dict[str, Any]]) -> list[str]:
    return _table(
        ["mode", "dtype", "sampling", "fingerprint of both", "steps", "seconds"],
        (
            [
                "deterministic" if record["deterministic"] else "normal",
                record["dtype"],
                record["sampling"],
                " ".join(record["fingerprints"]),
                str(record["steps"]),
                f"{record['seconds']:.0f}",
            ]
            for record in records
        ),
    )


def _cells(records: Sequence[dict[str, Any]]) -> list[str]:
    heads = ["dtype", "sampling", "draft", "window", "at once", "resumed", "prefix cache", "answers differ"]
    heads += ["tokens differ", "first differences a token", "steps", "of them verified drafts", "accepted / sent", "s"]
    return _table(heads, (_cell(record) for record in records))


def _cell(record: dict[str, Any]) -> list[str]:
    counts = record["counts"]
    return [
        record["dtype"],
        record["sampling"],
        record["draft"],
        str(record["window"]),
        str(record["batch"]),
        str(counts["resumes"]),
        f"{record['cache']} ({counts['cached_tokens']})",
        f"{record['differing_answers']} of {record['answers']}",
        f"{record['differing_tokens']} of {record['tokens']}",
        f"1 in {record['compared'] / record['flips']:.0f}" if record["flips"] else "0",
        str(counts["steps"]),
        str(counts["drafted_steps"]),
        f"{counts['accepted_draft_tokens']} / {counts['sent_draft_tokens']}",
        f"{record['seconds']:.0f}",
    ]


def _sum(records: Sequence[dict[str, Any]]) -> str:
    def total(name: str) -> int:
        return sum(record[name] for record in records)

    def counted(name: str) -> int:
        return sum(record["counts"][name] for record in records)

    return (
        f"In all: **{total('differing_tokens')} of {total('tokens')} tokens and {total('differing_answers')} of "
        f"{total('answers')} answers differ**; {counted('steps')} steps, {counted('drafted_steps')} of which verified "
        f"drafts, {counted('accepted_draft_tokens')} draft tokens accepted of {counted('sent_draft_tokens')} sent, "
        f"{counted('resumes')} answers resumed in the other process."
    )


def _reference(records: Sequence[dict[str, Any]]) -> list[str]:
    heads = ["sampling", "positions", "mismatches", "near-tie", "edge of the nucleus", "unexplained"]
    heads += ["near-ties in all", "smallest lead", "s"]
    rows = (
        [
            record["sampling"],
            str(record["positions"]),
            str(record["mismatches"]),
            str(record["near_tie_mismatches"]),
            str(record["edge_mismatches"]),
            str(record["unexplained"]),
            str(record["near_ties"]),
            f"{record['smallest_lead']:.1e}",
            f"{record['seconds']:.0f}",
        ]
        for record in records
    )
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads)), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
