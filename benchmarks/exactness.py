"""Whether drafts ever change the text: differing tokens against the target alone, through the real thing.

    python -m benchmarks.exactness [--prompts 200] [--tokens 128] [--out benchmarks/results/exactness.json]
        [--only deterministic|reference|normal] [--quick] [--reference FOLDER]

Every answer comes over gRPC on loopback from `pilotfish-cloud serve` processes, two of equal settings at a time,
through the SDK's AsyncClient. Three parts:

deterministic   a pairwise design over draft, window, sampling, batch, resume, dtype and prefix cache: every pair of
                choices meets at least once. Each cell runs all prompts; expected are 0 differing tokens.
reference       the target alone (float32) against plain transformers and the sampling specification as written. A
                mismatch that no near-tie explains is a failure.
normal          how often normal mode differs from itself alone and unbatched: measured, not judged.

``--reference`` names a folder of another pair. ``exactness_inflated.json`` is of the demo's inflated target: a folder
with links, ``target`` to build/demo/target-* and ``draft`` to reference/draft.

A cell that is done (same weights, settings, code and torch) is not run again when ``--out`` names a file that has it.
The exit status is 1 when a deterministic cell differs or its evidence is missing, or a reference mismatch is
unexplained. Run from the repository root; needs the extras ``cloud`` and ``export``.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.exactness_design import FACTORS, SAMPLINGS, Cell, all_pairs, design, missing_pairs, normal_cells
from benchmarks.exactness_reference import EDGE, NEAR, Reference, ReferenceCounts
from benchmarks.exactness_report import PARTS, ROOT, Report, code_digest
from benchmarks.exactness_runs import (
    Bench,
    Run,
    Verifiers,
    compare,
    held_out_prompts,
    run_alone,
    run_cell,
    warm,
)
from benchmarks.exactness_table import markdown
from pilotfish.bench.machine import load
from pilotfish.demo.stage import exported_draft
from pilotfish_core.tokenizer import Tokenizer

RESULTS: Final = ROOT / "benchmarks" / "results" / "exactness.json"
WORK: Final = ROOT / "build" / "exactness"  # the exported draft, and answers of the target alone
NORMAL_SAMPLINGS: Final = ("T 0", "T 0.8 top_p 0.95")


def main() -> int:
    """Measure, print and write; returns the exit status."""
    given = _arguments()
    torch.set_num_threads(1)
    parts = (given.only,) if given.only else PARTS
    bench = make_bench(given.reference, WORK, prompts=given.prompts, tokens=given.tokens, seed=given.seed)
    report = Report(given.out, bench, sys.argv[1:])
    began = time.monotonic()
    caches = ("warm",) if given.warm else FACTORS["cache"]
    session = Session(bench, report, given.dtypes, caches=caches, drafts=given.drafts)
    asyncio.run(session.run(parts))
    report.finish(time.monotonic() - began)
    print(markdown(report.value))
    return 1 if report.value["problems"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, help="held-out prompts of each cell (default: 200; --quick: 12)")
    parser.add_argument("--tokens", type=int, help="tokens of each answer (default: 128; --quick: 32)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE.json", help="results; a table beside it")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    parser.add_argument("--seed", type=int, default=2024, help="of prompts, design and cuts")
    parser.add_argument("--reference", type=Path, default=ROOT / "reference", help="folder of target and draft")
    parser.add_argument("--dtypes", nargs="+", choices=FACTORS["dtype"], default=list(FACTORS["dtype"]))
    parser.add_argument(
        "--drafts", nargs="+", choices=[*FACTORS["draft"], "none"], help="cells of these drafters now, others later"
    )
    parser.add_argument("--warm", action="store_true", help="no cells with verifiers just started: saves their starts")
    given = parser.parse_args()
    given.prompts = given.prompts or (12 if given.quick else 200)
    given.tokens = given.tokens or (32 if given.quick else 128)
    if given.tokens < 4 or given.prompts < 2:
        parser.error("at least 2 prompts and 4 tokens are needed")
    if given.quick and given.out == RESULTS:
        given.out = WORK / "quick.json"
    return given


def make_bench(reference: Path, work: Path, *, prompts: int, tokens: int, seed: int) -> Bench:
    """Prompts, tokenizer and exported draft."""
    tokenizer = Tokenizer.load(reference / "target")
    return Bench(
        target=reference / "target",
        draft=exported_draft(reference, work, "int8"),
        tokenizer=tokenizer,
        prompts=held_out_prompts(tokenizer, prompts, seed),
        tokens=tokens,
        seed=seed,
    )


class Session:
    """Runs the parts, one pair of verifier processes at a time."""

    def __init__(
        self,
        bench: Bench,
        report: Report,
        dtypes: Sequence[str],
        *,
        caches: Sequence[str],
        drafts: Sequence[str] | None = None,
    ) -> None:
        self._bench = bench
        self._report = report
        self._dtypes = dtypes
        self._caches = caches
        self._drafts = drafts
        self._settings = report.value["settings"]

    async def run(self, parts: Sequence[str]) -> None:
        """Run ``parts`` in order."""
        if "deterministic" in parts:
            await self._deterministic()
        if "reference" in parts:
            await self._reference()
        if "normal" in parts:
            await self._normal()

    async def _deterministic(self) -> None:
        factors = {**FACTORS, "dtype": tuple(self._dtypes), "cache": tuple(self._caches)}
        cells = design(factors, self._bench.seed)
        missing = missing_pairs([dataclasses.asdict(cell) for cell in cells], factors)
        self._report.value["design"] = {
            "factors": {name: list(levels) for name, levels in factors.items()},
            "cells": len(cells),
            "pairs": len(all_pairs(factors)),
            "pairs_missing": len(missing),
        }
        pairs = self._report.value["design"]["pairs"]
        say(f"design: {len(cells)} cells cover {pairs - len(missing)} of {pairs} pairs of choices")
        for dtype in self._dtypes:
            await self._cells("deterministic", dtype, [cell for cell in cells if cell.dtype == dtype])

    async def _normal(self) -> None:
        for dtype in self._dtypes:
            cells = normal_cells([dtype], NORMAL_SAMPLINGS)
            await self._cells("normal", dtype, [cell for cell in cells if cell.cache in self._caches])

    async def _cells(self, part: str, dtype: str, cells: Sequence[Cell]) -> None:
        """Cells of one dtype and mode: the target alone first, then warm cells, then cold ones."""
        wanted = [cell for cell in cells if self._drafts is None or cell.draft in self._drafts]
        todo = [cell for cell in wanted if not self._report.has(self._identity(cell.key, cell.draft))]
        if not todo:
            return
        bench, deterministic = self._bench, cells[0].deterministic
        async with Verifiers(bench.target, dtype=dtype, deterministic=deterministic) as verifiers:
            names = [name for name in SAMPLINGS if any(cell.sampling == name for cell in todo)]
            alone = {name: await self._alone(verifiers, dtype, deterministic, name) for name in names}
            warmed_at = 0
            for index, cell in enumerate(todo):
                if cell.cache == "cold":
                    await verifiers.restart()
                elif warmed_at != verifiers.starts:
                    await warm(bench, verifiers)
                    warmed_at = verifiers.starts
                label = f"{part} {dtype} {index + 1}/{len(todo)}"
                expected = alone[cell.sampling]
                run = await run_cell(bench, verifiers, cell, expected.answers, Meter(label, bench))
                record = self._identified(cell.key, cell.draft) | record_of(bench, verifiers, cell, run, expected)
                self._report.add(part, record)
                say(
                    f"{label}: {cell.key}: {record['differing_tokens']} of {record['tokens']} tokens differ, "
                    f"{record['counts']['accepted_draft_tokens']} accepted, {record['counts']['resumes']} resumed, "
                    f"{record['seconds']} s"
                )

    async def _reference(self) -> None:
        bench = self._bench
        identities = {name: self._identity(f"reference {name}") for name in SAMPLINGS}
        names = [name for name, identity in identities.items() if not self._report.has(identity)]
        if not names:
            return
        runs = {name: self._kept("float32", True, name) for name in names}
        if not all(runs.values()):
            async with Verifiers(bench.target, dtype="float32", deterministic=True) as verifiers:
                runs = {name: await self._alone(verifiers, "float32", True, name) for name in names}
        reference = Reference(bench.target, bench.tokenizer.vocab_size)
        for name in names:
            record = check_reference(bench, reference, name, runs[name])
            self._report.add("reference", self._identified(f"reference {name}") | record)

    async def _alone(self, verifiers: Verifiers, dtype: str, deterministic: bool, sampling: str) -> Run:
        """The target's own answers, from the work folder when they were made under these settings."""
        run, mode = self._kept(dtype, deterministic, sampling), "deterministic" if deterministic else "normal"
        if run is None or run.fingerprints != set(verifiers.fingerprints):
            label = f"alone {dtype} {mode} {sampling}"
            run = await run_alone(self._bench, verifiers, sampling, Meter(label, self._bench))
            WORK.mkdir(parents=True, exist_ok=True)
            value = {
                "answers": [run.answers[prompt.index] for prompt in self._bench.prompts],
                "fingerprints": sorted(run.fingerprints),
                "steps": run.counts.steps,
                "seconds": run.seconds,
            }
            self._file_of(dtype, deterministic, sampling).write_text(json.dumps(value), encoding="utf-8")
            say(f"{label}: {run.seconds:.0f} s")
        self._report.add(
            "alone",
            self._identified(f"alone {dtype} {mode} {sampling} {sorted(run.fingerprints)}")
            | {
                "dtype": dtype,
                "sampling": sampling,
                "deterministic": deterministic,
                "fingerprints": sorted(run.fingerprints),
                "steps": run.counts.steps,
                "seconds": round(run.seconds, 1),
            },
        )
        return run

    def _kept(self, dtype: str, deterministic: bool, sampling: str) -> Run | None:
        file = self._file_of(dtype, deterministic, sampling)
        if not file.is_file():
            return None
        value = json.loads(file.read_text(encoding="utf-8"))
        run = Run(answers={index: tuple(answer) for index, answer in enumerate(value["answers"])})
        run.fingerprints, run.counts.steps, run.seconds = set(value["fingerprints"]), value["steps"], value["seconds"]
        return run

    def _file_of(self, dtype: str, deterministic: bool, sampling: str) -> Path:
        return WORK / f"alone-{self._identity(f'{dtype} {deterministic} {sampling}')}.json"

    def _identity(self, key: str, drafter: str = "") -> str:
        text = json.dumps([key, self._settings, self._bench.draft_model(drafter)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _identified(self, key: str, drafter: str = "") -> dict[str, Any]:
        """``code`` is what ran, should someone have edited it since the beginning."""
        return {
            "id": self._identity(key, drafter),
            "name": key,
            "draft_model": self._bench.draft_model(drafter),
            "code": code_digest(),
            "load": load(),
        }


def record_of(bench: Bench, verifiers: Verifiers, cell: Cell, run: Run, expected: Run) -> dict[str, Any]:
    """A cell's result, with what shows that it tested what it says."""
    fingerprints = sorted(run.fingerprints | set(verifiers.fingerprints))
    record: dict[str, Any] = {
        **dataclasses.asdict(cell),
        **compare(bench, run, expected.answers),
        "counts": dataclasses.asdict(run.counts),
        "fingerprints": fingerprints,
        "seconds": round(run.seconds, 1),
    }
    return record | {"problems": problems_of(cell, run, record, expected) if cell.deterministic else []}


def problems_of(cell: Cell, run: Run, record: dict[str, Any], expected: Run) -> list[str]:
    """Why a deterministic cell does not show what it should; empty when it does."""
    problems = []
    if record["differing_tokens"] or record["differing_answers"]:
        problems.append(f"{record['differing_tokens']} tokens in {record['differing_answers']} answers differ")
    if set(record["fingerprints"]) != expected.fingerprints or len(record["fingerprints"]) != 1:
        problems.append(f"fingerprints {record['fingerprints']}, alone {sorted(expected.fingerprints)}")
    if run.drafter_errors:
        problems.append(f"the drafter failed {len(run.drafter_errors)} times: {run.drafter_errors[0]}")
    if cell.draft != "none" and run.counts.drafted_steps == 0:
        problems.append("no draft was verified")
    if cell.draft not in ("none", "junk") and run.counts.accepted_draft_tokens == 0:
        problems.append("no draft token was accepted")
    if cell.resume and run.counts.resumes == 0:
        problems.append("no answer was resumed")
    if cell.cache == "warm" and run.counts.cached_tokens == 0:
        problems.append("nothing came from the prefix cache")
    return problems


def check_reference(bench: Bench, reference: Reference, sampling: str, run: Run | None) -> dict[str, Any]:
    """All answers of the target alone under one way of sampling, token by token."""
    if run is None:
        raise ValueError(f"no answers for {sampling}")
    counts, began = ReferenceCounts(), time.monotonic()
    tick = Meter(f"reference {sampling}", bench)
    for number, prompt in enumerate(bench.prompts):
        reference.check(prompt, run.answers[prompt.index], SAMPLINGS[sampling], counts)
        tick(number + 1)
    say(f"reference {sampling}: {counts.mismatches} of {counts.positions} differ, {counts.unexplained} unexplained")
    problems = [f"{counts.unexplained} mismatches are no near-tie"] if counts.unexplained else []
    return {
        "sampling": sampling,
        "near": NEAR,
        "edge": EDGE,
        **dataclasses.asdict(counts),
        "seconds": round(time.monotonic() - began, 1),
        "problems": problems,
    }


class Meter:
    """Shows how many answers are there, where a person looks."""

    def __init__(self, label: str, bench: Bench) -> None:
        self._label, self._total = label, len(bench.prompts)

    def __call__(self, done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{self._label}: {done}/{self._total}", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line on stderr."""
    print(f"\r\033[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
