"""How far the simulator is off: real runs on this machine, half of them to calibrate on, the other half to predict.

    python -m benchmarks.sim_validation [--quick] [--only-predict] [--out benchmarks/results/sim_validation]

Records arms x round trips 0, 20, 50 and 100 ms x 1, 8 and 32 generations at once with ``pilotfish bench --server local
--trace`` (the real verifier and device as processes, pinned to a processor each, the link emulator between them, the
inflated reference target, arms taking turns), thins the traces and keeps them gzipped, under 2 MB in all; then
``pilotfish-sim calibrate --holdout 0.5`` predicts the second half of each cell from the first, and, for harder
questions, whole cells from the others. Writes ``sim_validation.md`` and ``.json``. Nothing else should run meanwhile.
About 15 minutes; ``--only-predict`` works on the traces that are there, in some minutes.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pilotfish.bench.machine import load, machine
from pilotfish_sim.calibrate_command import error_table
from pilotfish_sim.calibration import calibrate
from pilotfish_sim.holdout import AIMS, BY, Cell, hold_out, medians
from pilotfish_sim.trace_file import read_traces

ARMS: Final = "cloud,device-lockstep,device-async"
ROUND_TRIPS: Final = "0,20,50,100"
# Name: generations at once, prompts, repeats (an even number: half of them is held out), tokens.
PARTS: Final[dict[str, tuple[int, int, int, int]]] = {
    "one": (1, 6, 2, 64),
    "eight": (8, 8, 4, 48),
    "thirty-two": (32, 32, 2, 32),
}
QUICK: Final[dict[str, tuple[int, int, int, int]]] = {"one": (1, 2, 2, 24), "eight": (8, 8, 2, 16)}
DRAFTS_KEPT: Final = 400  # draft tasks of a client, of which calibration needs no more
MAX_BYTES: Final = 2_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: whether all of it works")
    parser.add_argument("--only-predict", action="store_true", help="from the traces that are there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sim_validation"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"command": shlex.join(["python", "-m", "benchmarks.sim_validation", *sys.argv[1:]])}
    record = given.out / "machine.json"
    if not given.only_predict:
        began, where = time.time(), machine()
        if not record_all(given.out, quick=given.quick):
            return 1
        where |= {"load_at_end": load(), "recorded_s": round(time.time() - began)}
        record.write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")
    facts["machine"] = json.loads(record.read_text(encoding="utf-8"))
    files = sorted(given.out.glob("*.jsonl.gz"))
    size = sum(file.stat().st_size for file in files)
    say(f"{len(files)} traces, {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        say(f"too large to be kept: at most {MAX_BYTES / 1e6:.0f} MB")
        return 1
    traces = read_traces(files)
    parts = {by: hold_out(traces, 0.5, by=by, acceptance="recorded", done=progress(by)) for by in BY}
    residuals = calibrate(traces).residuals
    write(given.out, facts | {"trace_bytes": size, "residuals": dict(residuals)}, parts)
    return 0


def record_all(out: Path, *, quick: bool) -> bool:
    """Run the real commands. Returns whether all went well."""
    for old in out.glob("*.jsonl.gz"):
        old.unlink()
    for number, (name, (streams, prompts, repeats, tokens)) in enumerate((QUICK if quick else PARTS).items()):
        say(f"recording {name} ({number + 1} of {len(QUICK if quick else PARTS)})")
        with tempfile.TemporaryDirectory() as folder:
            trace, source = Path(folder) / f"{name}.jsonl", Path(folder) / "prompts.json"
            source.write_text(json.dumps(texts(prompts)), encoding="utf-8")
            command = [
                sys.executable, "-m", "pilotfish", "bench", "--server", "local", "--pin", "--no-cloud-draft-model",
                "--arms", ARMS, "--rtt", "0,50" if quick else ROUND_TRIPS, "--concurrency", str(streams),
                "--prompt-file", str(source), "--repeats", str(repeats), "--max-tokens", str(tokens),
                "--trace", str(trace), "--json", str(Path(folder) / "figures.json"),
            ]  # fmt: skip
            if subprocess.run(command, check=False).returncode != 0:
                return False
            for part in sorted(Path(folder).glob("*.jsonl")):
                thin(part, out / f"{part.name}.gz")
    return True


def texts(count: int) -> list[str]:
    """Prompts: those of ``pilotfish bench``, and from the first ones again with another name on top."""
    from pilotfish.bench.prompts import PROMPTS

    return [
        (f"# part {number // len(PROMPTS)}\n" if number >= len(PROMPTS) else "") + PROMPTS[number % len(PROMPTS)]
        for number in range(count)
    ]


def thin(source: Path, target: Path) -> None:
    """Keep what calibration needs: of a client's draft tasks the first ones; runs that were sent say nothing more."""
    lines = source.read_text(encoding="ascii").splitlines()
    owners = {
        values["generation"]: values["client"] for values in map(json.loads, lines) if values["r"] == "generation"
    }
    kept: list[str] = []
    drafts: collections.Counter[int] = collections.Counter()
    for line in lines[:-1]:
        values = json.loads(line)
        if values["r"] == "flush":
            continue
        if values["r"] == "draft":
            owner = owners.get(values["generation"], -1)
            drafts[owner] += 1
            if drafts[owner] > DRAFTS_KEPT:
                continue
        kept.append(line)
    kept.append(json.dumps({"r": "end", "records": len(kept) - 1}, separators=(",", ":")))
    with target.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=9, mtime=0) as file:
        file.write("".join(f"{line}\n" for line in kept).encode("ascii"))


def write(out: Path, facts: dict[str, Any], parts: dict[str, list[Cell]]) -> None:
    """The tables, for people and for programs."""
    found = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts["machine"].items())
    lines = [
        "# The simulator against real runs\n",
        "Made by `python -m benchmarks.sim_validation`: error of the prediction, relative to what was measured. "
        "*answers*: the second half of each cell from the first halves of all. *cells*: every other cell from the "
        "rest, so arm, distance and load were not seen. *real halves apart*: how far the two halves of the measurement "
        "differ from each other.\n",
        f"{found}. Traces: {facts['trace_bytes'] / 1e6:.2f} MB. Residuals of the fits: "
        f"{', '.join(f'{name} {value:g}' for name, value in facts['residuals'].items())}.\n",
    ]
    summary: dict[str, Any] = {}
    for by, cells in parts.items():
        table = error_table(cells)
        lines += [f"## Held out by {by}\n", "```", *table, "```", ""]
        summary[by] = {
            "median_errors": medians([cell.errors for cell in cells]),
            "median_halves": medians([cell.halves for cell in cells if cell.halves is not None]),
            "cells": [
                {
                    "arm": cell.arm, "rtt_ms": cell.rtt_ms, "concurrency": cell.concurrency, "answers": cell.answers,
                    "real": rounded(cell.real), "predicted": rounded(cell.predicted), "errors": rounded(cell.errors),
                }
                for cell in cells
            ],
        }  # fmt: skip
        say("", f"held out by {by}", *table)
    (out / "sim_validation.md").write_text("\n".join(lines), encoding="utf-8")
    document = json.dumps(facts | {"aims": AIMS, "parts": summary}, indent=1) + "\n"
    (out / "sim_validation.json").write_text(document, encoding="utf-8")


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def progress(by: str) -> Any:
    def done(count: int, total: int) -> None:
        if count % 6 == 0 or count == total:
            say(f"predicting by {by}: {count} of {total} cells")

    return done


def say(*lines: str | Sequence[str]) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
