"""Never lose a word: cuts of the link, killed processes, and a link that is away while the device writes on.

    python -m benchmarks.cuts [--cuts 500] [--kills 100] [--offline 40] [--json OUT] [--draft DIR]

A real verifier (the reference target, deterministic) in a process of its own. *Cuts*: answers through a TCP proxy that
resets each connection after a random number of bytes, within a frame or not, until so many cuts are counted. *Kills*:
processes of ``pilotfish generate --save FILE`` that are killed with -9 after a random number of characters, and go on
with ``--resume FILE``. *Offline*: in mid-answer the link goes down until 64 unverified tokens were shown, then it is
back. Every text must be the undisturbed one. What an app is told along the way is checked piece by piece.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.cuts_runs import Answers, Tally, cut_answers, killed_answers, offline_answers
from pilotfish.bench.machine import machine
from pilotfish.demo.stage import VerifierProcess, exported_draft, find_reference

SEED: Final = 20


def line(tally: Tally) -> str:
    """One row, to be read."""
    verdict = "identical" if not tally.failures else f"{len(tally.failures)} WRONG: {tally.failures[0]}"
    figures = ", ".join(f"{name} {value}" for name, value in tally.counts.items())
    return f"{tally.name:9}{tally.answers:5} answers, {tally.tokens:6} tokens, {figures}: {verdict}"


async def measure(server: str, draft: Path, given: argparse.Namespace) -> list[Tally]:
    """All three, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        answers = await Answers.undisturbed(server)
        rows = []
        for run in (
            cut_answers(server, draft, answers, random.Random(SEED), given.cuts),
            killed_answers(server, draft, answers, random.Random(SEED), given.kills, Path(folder)),
            offline_answers(server, draft, answers, random.Random(SEED), given.offline),
        ):
            rows.append(await run)
            print(line(rows[-1]), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=500)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--offline", type=int, default=40, help="answers whose link is away for a while")
    parser.add_argument("--draft", type=Path, help="exported folder (default: the reference draft, int8)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    given = parser.parse_args()
    reference = find_reference(None)
    draft = given.draft or exported_draft(reference, reference.parent / "build" / "demo", "int8")
    where, began = machine(), time.monotonic()
    verifier = VerifierProcess(reference / "target", "--deterministic")
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(verifier.stop)
        verifier.start()
        verifier.wait_ready()
        rows = asyncio.run(measure(verifier.address, draft, given))
    if given.json is not None:
        report: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "benchmarks.cuts", *sys.argv[1:]]),
            "machine": where,
            "seconds": round(time.monotonic() - began),
            "rows": [tally.as_dict() for tally in rows],
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(tally.failures for tally in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
