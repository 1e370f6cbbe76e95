"""What drafts bring and cost a verifier under load: speculation on against off, at 1 to 64 generations at once.

    python -m benchmarks.speculation_load [--generations 1,8,32,64] [--slices 8] [--slice 64] [--out FILE.json]

One engine (inflated reference target, bfloat16, deterministic, goodput policy) serves so many generations at once. A
run alternates slices of ``--slice`` tokens a generation with drafts and without, so each setting gets ``slices`` pairs
that lie seconds apart (which goes first takes turns, as contexts grow), and slices x slice tokens of each generation on
either side. Drafters: an oracle of acceptance 0.9 (good), of 0.6 (mediocre) and junk, eight tokens after each commit,
at once: what counts here is the verifier. The ratio is tokens a second on over off, median of the pairs with a 95%
bootstrap interval. Texts are checked to be equal.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.load import Load, Oracle, Tokens, loaded, prompts
from pilotfish.bench.machine import load, machine
from pilotfish.bench.statistics import paired_ratio
from pilotfish.demo.stage import find_reference, inflated_target
from pilotfish_cloud.engine.interface import CommitEvent

DRAFTERS: Final = {"good": 0.9, "mediocre": 0.6, "junk": 0.0}
MARGIN: Final = 64  # tokens beyond the slices, that nobody runs out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", default="1,8,32,64")
    parser.add_argument("--drafters", nargs="+", choices=list(DRAFTERS), default=list(DRAFTERS))
    parser.add_argument("--slices", type=int, default=8, help="pairs of each setting")
    parser.add_argument("--slice", type=int, default=64, help="tokens of each generation in one slice")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speculation_load.json"))
    given = parser.parse_args()
    counts = [int(part) for part in given.generations.split(",")]
    reference = find_reference(None)
    target = inflated_target(reference, reference.parent / "build" / "demo")
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.speculation_load", *sys.argv[1:]]),
        "machine": machine(),
        "cells": [],
    }
    print(f"{'drafter':10}{'at once':>8}{'off tok/s':>11}{'on tok/s':>10}{'on/off':>8}  interval      tokens a step")
    with loaded(target, dtype="bfloat16", deterministic=True, max_num_seqs=max(counts)) as running:
        # Slices are of all generations together: a fast one may be further than the average.
        length = 3 * given.slices * given.slice + MARGIN
        truth = prime(running, prompts(running.engine.tokenizer, max(counts)), length)
        for name in given.drafters:
            for count in counts:
                some = dict(list(truth.items())[:count])
                cell = measure(running, some, name, given.slices, given.slice)
                report["cells"].append(cell)
                low, high = cell["interval"] or (float("nan"), float("nan"))
                print(
                    f"{name:10}{count:8}{cell['off_tokens_per_s']:11.1f}{cell['on_tokens_per_s']:10.1f}"
                    f"{cell['ratio']:8.2f}  {low:.2f}-{high:.2f}  {cell['tokens_per_row_step']:8.2f}",
                    flush=True,
                )
    report["load_at_end"] = load()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def prime(running: Load, some: list[Tokens], length: int) -> dict[Tokens, Tokens]:
    """What the target says to each prompt, alone in the sense that nobody drafts; as far as the context goes."""
    room = running.engine.info.max_model_len - max(len(prompt) for prompt in some)
    keys = [running.open(prompt, max_tokens=min(length, room), seed=7) for prompt in some]
    answers = running.answers(keys)
    return {prompt: answers[key] for prompt, key in zip(some, keys, strict=True)}


def measure(running: Load, truth: dict[Tokens, Tokens], name: str, slices: int, size: int) -> dict[str, Any]:
    """Alternate slices off and on, ``slices`` times, after one of each that does not count."""
    oracle = Oracle(DRAFTERS[name], running.engine.info.vocabulary_size)
    prompt_of = {running.open(prompt, max_tokens=len(answer), seed=7): prompt for prompt, answer in truth.items()}
    # Contexts grow, which makes steps dearer: each setting goes first in every other pair.
    places = [(pair, drafting) for pair in range(slices + 1) for drafting in (pair % 2 == 1, pair % 2 == 0)]
    rates: dict[bool, list[float]] = {False: [], True: []}
    commits: Counter[bool] = Counter()
    tokens_of: Counter[bool] = Counter()
    differing = 0
    place, tokens, began = 0, 0, time.perf_counter()
    for event in running.events():
        if not isinstance(event, CommitEvent):
            began = time.perf_counter()  # the prompts' steps are no part of it
            tokens = 0
            continue
        prompt, commit = prompt_of[event.key], event.commit
        begin = commit.position - len(prompt)
        differing += truth[prompt][begin : begin + len(commit.tokens)] != commit.tokens
        tokens += len(commit.tokens)
        pair, drafting = places[place]
        commits[drafting] += 1
        tokens_of[drafting] += len(commit.tokens)
        if drafting and commit.finish is None:
            oracle.answer(running.engine, event.key, commit, len(prompt), truth[prompt])
        if tokens >= size * len(truth):
            now = time.perf_counter()
            if pair:
                rates[drafting].append(tokens / (now - began))
            place, tokens, began = place + 1, 0, now
            if place == len(places):
                break
    finished_early = len(prompt_of) - len(running.running)
    for key in prompt_of:
        running.abort(key)
    if differing:
        raise SystemExit(f"{name}, {len(truth)} at once: {differing} commits differ from the target alone")
    ratio = paired_ratio(list(zip(rates[True], rates[False], strict=False)))
    return {
        "drafter": name,
        "acceptance": DRAFTERS[name],
        "generations": len(truth),
        "off_tokens_per_s": round(sorted(rates[False])[len(rates[False]) // 2], 2),
        "on_tokens_per_s": round(sorted(rates[True])[len(rates[True]) // 2], 2),
        "ratio": round(ratio.value, 3),
        "interval": None if ratio.interval is None else [round(value, 3) for value in ratio.interval],
        "pairs": len(rates[True]),
        "tokens_per_row_step": round(tokens_of[True] / commits[True], 2),
        "finished_early": finished_early,
    }


if __name__ == "__main__":
    main()
