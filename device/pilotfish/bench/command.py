"""``pilotfish bench``: arguments, processes and output."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pilotfish.bench.apart import run_apart
from pilotfish.bench.machine import load, machine
from pilotfish.bench.plan import ARMS, Cell, reference_of
from pilotfish.bench.plots import draw
from pilotfish.bench.progress import Progress
from pilotfish.bench.prompts import PROMPTS
from pilotfish.bench.report import LEGEND, differences, summary, table
from pilotfish.bench.rows import Row, rows_of, verdict_of
from pilotfish.bench.runner import Measured
from pilotfish.bench.settings import DEFAULT_PROMPTS, LOCAL, STDOUT, Settings, settings_of
from pilotfish.bench.stage import staged
from pilotfish.bench.sweep import Target, sweep
from pilotfish.demo.stage import LAYERS
from pilotfish.files import replace_file
from pilotfish.output import note, show
from pilotfish.trace_file import tracing


def add_bench_parser(commands: Any) -> None:
    """Add ``bench`` to the subcommands. Values stay text: each mistake in them is one line of ours."""
    parser = commands.add_parser(
        "bench",
        help="compare ways to speculate: arms x round trips x concurrency",
        description="Generate the same answers with each arm, over links of several round trips, and compare the "
        "speed. Every answer must be the same; exit code 1 says that one was not.",
        epilog=f"Arms: {', '.join(ARMS)}.",
    )
    parser.add_argument("--server", required=True, help=f"ADDR[,ADDR...] of verifiers, or '{LOCAL}': start one here")
    parser.add_argument(
        "--arms", default="cloud,device-lockstep,device-async,auto", help="between commas (default: %(default)s)"
    )
    parser.add_argument("--rtt", default="0,20,100", metavar="MS,...", help="round trips (default: %(default)s)")
    parser.add_argument("--concurrency", default="1", metavar="N,...", help="streams at once (default: %(default)s)")
    parser.add_argument("--repeats", default="1", metavar="N", help="of every prompt (default: %(default)s)")
    parser.add_argument(
        "--warmup",
        default="1",
        metavar="N",
        help="answers of each arm in each cell that do not count (default: %(default)s)",
    )
    parser.add_argument(
        "--pin", action="store_true", help="the verifier on the first processor, device and links on the last"
    )
    _add_answers(parser.add_argument_group("answers"))
    _add_drafting(parser.add_argument_group("drafting"))
    _add_link(parser.add_argument_group("link", "of every round trip; as `pilotfish-sim link` knows them"))
    _add_local(parser.add_argument_group(f"--server {LOCAL}"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", nargs="?", const=STDOUT, metavar="FILE", help="the figures as JSON, to FILE or to standard output"
    )
    output.add_argument(
        "--trace",
        metavar="FILE.jsonl",
        help="when what happened, for pilotfish-sim calibrate; the local verifier's own goes to FILE.cloud.jsonl",
    )
    output.add_argument("--plot", metavar="FILE.png", help="tokens/s over the round trip as a picture")
    parser.set_defaults(run=run)


def _add_answers(group: Any) -> None:
    group.add_argument(
        "--prompts", metavar="N", help=f"how many; up to {len(PROMPTS)} of ours (default: {DEFAULT_PROMPTS})"
    )
    group.add_argument(
        "--prompt-file", metavar="F", help="a JSON list of strings, or text with lines of --- between prompts"
    )
    group.add_argument("--max-tokens", default="128", metavar="N", help="of every answer (default: %(default)s)")
    group.add_argument("--temperature", default="0.8", metavar="T", help="(default: %(default)s)")
    group.add_argument("--seed", default="7", metavar="N", help="(default: %(default)s)")
    group.add_argument("--model", default="", help="name of the served model (default: the only one)")
    group.add_argument("--timeout", default="600", metavar="SECONDS", help="of one answer (default: %(default)s)")


def _add_drafting(group: Any) -> None:
    group.add_argument(
        "--draft",
        help="exported folder, 'ngram', 'none', 'slow:MS[,DIR]' (a folder, at least MS a token), 'oracle:ACCURACY,MS' "
        "(the true tokens, that share of them right), 'junk' (default: the reference draft, elsewhere ngram)",
    )
    group.add_argument("--tokenizer", help="folder or tokenizer.json (default: the verifier's)")
    group.add_argument(
        "--window", default="16", metavar="N", help="at most so many tokens ahead (default: %(default)s)"
    )


def _add_link(group: Any) -> None:
    group.add_argument("--jitter", default="0", metavar="MS", help="of the round trip; half of it each way")
    group.add_argument("--distribution", help="of the jitter: uniform, normal or exponential")
    group.add_argument("--rate", help="both ways, such as 20mbit")
    group.add_argument("--rate-up", metavar="RATE", help="towards the verifier")
    group.add_argument("--rate-down", metavar="RATE", help="back")
    group.add_argument("--queue", metavar="SIZE", help="may wait before a slow wire, such as 64kib")
    group.add_argument("--loss", metavar="SHARE", help="of segments; they come late")


def _add_local(group: Any) -> None:
    group.add_argument("--reference", metavar="DIR", help="folder of the reference pair (default: that of the clone)")
    group.add_argument("--work-dir", metavar="DIR", help="for prepared models (default: build/demo beside it)")
    group.add_argument("--dtype", help="float32 or bfloat16 (default: bfloat16)")
    group.add_argument(
        "--target-layers",
        metavar="N",
        help=f"of the target, which decide what a step takes; at least the reference's own (default: {LAYERS})",
    )
    group.add_argument(
        "--verifier-flags", metavar="FLAGS", help="more for `pilotfish-cloud serve`: --verifier-flags='--threads 2'"
    )
    group.add_argument(
        "--no-cloud-draft-model",
        dest="cloud_draft_model",
        action="store_false",
        help="no draft model beside the target, even where a co-located arm is measured",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, write. Returns 0 only when all answers to a prompt are equal. Raises PilotfishError."""
    settings = settings_of(arguments)
    progress = Progress()
    out: Callable[[str], None] = note if settings.json == STDOUT else lambda line: show(line + "\n")
    began, facts = time.time(), machine()
    rows: list[Row] = []
    verdicts: list[Row] = []

    def say(*lines: str) -> None:
        progress.clear()
        for line in lines:
            out(line)

    def done(cell: Cell, measured: Measured) -> None:
        own = rows_of(measured, cell, settings.arms, settings.link, seed=settings.sampling["seed"])
        rows.extend(own)
        verdicts.append(verdict_of(own))
        say("", str(cell), *table(own))

    with staged(settings, progress.say) as stage, tracing(settings.trace) as trace:
        try:
            target = run_apart(sweep(settings, stage, progress, done, trace))
        finally:
            progress.clear()
        pins = stage.pins
    wrong = differences(rows, reference_of(settings.arms), deterministic=target.deterministic)
    say("", LEGEND, "", *map(summary, verdicts), *wrong)
    everything = {
        "command": shlex.join(["pilotfish", *sys.argv[1:]]),
        "options": {name: value for name, value in vars(arguments).items() if name not in ("command", "run")},
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "elapsed_s": round(time.time() - began, 1),
        "machine": facts | {"load_at_end": load()},
        "pinned": pins and dataclasses.asdict(pins),
        "target": dataclasses.asdict(target),
        "prompts": list(settings.prompts),
        "identical": not wrong,
        "cells": verdicts,
        "rows": rows,
    }
    if settings.json == STDOUT:
        show(json.dumps(everything) + "\n")
    elif settings.json is not None:
        replace_file(settings.json, json.dumps(everything, indent=1) + "\n")
        say(f"figures: {settings.json}")
    if settings.plot is not None:
        Path(settings.plot).write_bytes(draw(rows, _title(settings, target, rows)))
        say(f"picture: {settings.plot}")
    return 1 if wrong else 0


def _title(settings: Settings, target: Target, rows: Sequence[Row]) -> str:
    drafters = dict.fromkeys(row["drafter"] for row in rows if row["drafter"] != "none")
    sampling = settings.sampling
    models = [f"{target.model} ({target.dtype})", *(f"draft {name}" for name in drafters)]
    work = [
        f"{len(settings.prompts)} prompts x {sampling['max_tokens']} tokens",
        f"temperature {sampling['temperature']:g}",
        *([f"jitter {settings.link.jitter_ms:g} ms"] if settings.link.jitter_ms else []),
    ]
    return f"{', '.join(models)}\n{', '.join(work)}"
