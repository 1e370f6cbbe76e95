"""Whether a tenant with one generation keeps its share beside one with fifty that send drafts of junk.

    python -m benchmarks.fairness [--out benchmarks/results/fairness.json]

One engine (reference target, float32; all drafts verified, the worst case), with a seat for everybody and with seats
for half of them. The tenant ``one`` drafts right, eight tokens after each commit, so it wants nine rows in every step
and commits as many tokens as it is given rows. The other tenant has 50 generations at all times. Half of a step's rows
would be more than ``one`` can use, so its fair share is what it gets alone: *share* is its rows in a step among the
others over those alone; *begins* is the time from its opening to its first token.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.load import Load, Oracle, Tokens, loaded, prompts
from pilotfish.bench.machine import load, machine
from pilotfish.demo.stage import find_reference
from pilotfish_cloud.engine.interface import CommitEvent

MANY: Final = 50
LENGTH: Final = 512
ROWS: Final = 72  # in a step: 51 for decoding, 21 for all drafts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fairness.json"))
    given = parser.parse_args()
    model = find_reference(None) / "target"
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.fairness", *sys.argv[1:]]),
        "machine": machine(),
        "cells": [],
    }
    for seats in (64, 26):
        options = {"max_num_seqs": seats, "max_num_batched_tokens": ROWS, "speculation": "fixed"}
        with loaded(model, deterministic=True, **options) as running:
            one, *many = prompts(running.engine.tokenizer, 1 + MANY)
            key = running.open(one, max_tokens=LENGTH, seed=1, tenant="one")
            truth = running.answers([key])[key]
            alone = follow(running, one, truth)
            crowd = Crowd(running, many)
            among = follow(running, one, truth, crowd)
            crowd.end()
        share = round(among["rows_a_step"] / alone["rows_a_step"], 3)
        report["cells"].append({"seats": seats, "share": share, "alone": alone, "among_50": among})
        print(json.dumps(report["cells"][-1]), flush=True)
    report["load_at_end"] = load()
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


class Crowd:
    """The other tenant: whoever ends is replaced, and each commit is answered with junk."""

    def __init__(self, running: Load, some: list[Tokens]) -> None:
        self.prompts: dict[str, Tokens] = {}
        self._running = running
        self._oracle = Oracle(0.0, running.engine.info.vocabulary_size)
        for prompt in some:
            self._open(prompt)

    def take(self, event: CommitEvent) -> None:
        prompt = self.prompts[event.key]
        if event.commit.finish is not None:
            del self.prompts[event.key]
            self._open(prompt)
            return
        truth = (0,) * (event.commit.end - len(prompt) + 8)  # wrong, whatever it is
        self._oracle.answer(self._running.engine, event.key, event.commit, len(prompt), truth)

    def end(self) -> None:
        for key in self.prompts:
            self._running.abort(key)

    def _open(self, prompt: Tokens) -> None:
        self.prompts[self._running.open(prompt, max_tokens=200, tenant="many")] = prompt


def follow(running: Load, prompt: Tokens, truth: Tokens, crowd: Crowd | None = None) -> dict[str, float]:
    """One answer of the tenant ``one``, whose drafts are right. Raises SystemExit when its text changed."""
    oracle = Oracle(1.0, running.engine.info.vocabulary_size)
    if crowd is not None:
        warm_up(running, crowd)
    began = time.perf_counter()
    key = running.open(prompt, max_tokens=LENGTH, seed=1, tenant="one")
    output: list[int] = []
    commits, first = 0, 0.0
    for event in running.events():
        if not isinstance(event, CommitEvent):
            continue
        if event.key != key:
            if crowd is not None:
                crowd.take(event)
            continue
        first = first or time.perf_counter()
        output += event.commit.tokens
        commits += 1
        if event.commit.finish is not None:
            break
        oracle.answer(running.engine, key, event.commit, len(prompt), truth)
    if tuple(output) != truth:
        raise SystemExit("the text of the tenant with one generation changed")
    return {
        "rows_a_step": round((len(output) - 1) / (commits - 1), 2),
        "begins_ms": round(1e3 * (first - began), 1),
        "tokens_per_s": round(len(output) / (time.perf_counter() - began), 1),
    }


def warm_up(running: Load, crowd: Crowd) -> None:
    """Until the crowd is in full swing."""
    commits = 0
    for event in running.events():
        if isinstance(event, CommitEvent):
            crowd.take(event)
            commits += 1
            if commits == 20 * MANY:
                return


if __name__ == "__main__":
    main()
