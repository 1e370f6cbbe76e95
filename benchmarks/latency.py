"""Every arm over links of every length, and over bad links: the figures behind what the README says of speed.

    python -m benchmarks.latency [--only NAME ...] [--prompts 6] [--max-tokens 96] [--target-layers 14]

Runs ``pilotfish bench`` once for each setting (real processes on this machine, verifier and device pinned to a
processor each, arms taking turns at each prompt) and writes its JSON, a picture of the main one, and ``latency.md``
with a table of all that is there. Nothing else should run meanwhile. About 40 minutes. The default depth of the target
makes a step of 35 ms on an AMD EPYC (Zen 4); the table says what it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

DISTANCES: Final = "0,10,20,50,100,200,400"
ALL: Final = "cloud,co-located-ngram,co-located-model,device-lockstep,device-async,auto"
DEVICE: Final = "cloud,device-lockstep,device-async"
# Name: what it shows, and the options of ``pilotfish bench``.
SETTINGS: Final[dict[str, tuple[str, list[str]]]] = {
    "distances": ("the reference draft, all arms", ["--arms", ALL, "--rtt", DISTANCES]),
    "no-cloud-model": (
        "the same where the operator runs no draft model",
        ["--arms", "cloud,co-located-ngram,device-async,auto", "--rtt", "0,20,50,100", "--no-cloud-draft-model"],
    ),
    "oracle": (
        "a drafter of acceptance 0.9 and 5 ms a token",
        ["--arms", DEVICE, "--rtt", "0,10,20,50,100", "--draft", "oracle:0.9,5"],
    ),
    "jitter": (
        "round trip 60 ms, jitter 40 ms",
        ["--arms", f"{DEVICE},auto", "--rtt", "60", "--jitter", "40", "--no-cloud-draft-model"],
    ),
    "uplink": (
        "an uplink of 256 kbit/s",
        ["--arms", f"{DEVICE},auto", "--rtt", "40", "--rate-up", "256kbit", "--no-cloud-draft-model"],
    ),
    "junk": (
        "a drafter of junk, 512 tokens",
        ["--arms", "cloud,device-async", "--rtt", "0,20", "--draft", "junk", "--max-tokens", "512"],
    ),
    "slow": (
        "a device of 100 ms a token, three times slower than the target's step",
        ["--arms", "cloud,device-async", "--rtt", "0,20", "--draft", "slow:100", "--max-tokens", "256"],
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--target-layers", type=int, default=14, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    status = 0
    for name in given.only:
        _, options = SETTINGS[name]
        defaults = ["--prompts", str(given.prompts), "--max-tokens", str(given.max_tokens), "--pin"]
        defaults += ["--target-layers", str(given.target_layers)]
        command = [sys.executable, "-m", "pilotfish", "bench", "--server", "local", *defaults, *options]
        command += ["--json", str(given.out / f"{name}.json")]
        if name == "distances":
            command += ["--plot", str(given.out / f"{name}.png")]
        print(f"\n== {name}: {SETTINGS[name][0]}", flush=True)
        status |= subprocess.run(command, check=False).returncode
    (given.out / "latency.md").write_text(document(given.out), encoding="utf-8")
    return status


def document(folder: Path) -> str:
    """A table for each setting whose figures are there."""
    parts = [
        "# Speed of the arms over links\n",
        "Made by `python -m benchmarks.latency`. Tokens a second of one answer (median over the answers, from call to "
        "last token), and its ratio to the cloud alone for the same prompt (median, 95% interval of the paired "
        "bootstrap). The target is the inflated reference target, bfloat16, deterministic; temperature 0.8.\n",
    ]
    for name, (title, _) in SETTINGS.items():
        file = folder / f"{name}.json"
        if file.is_file():
            parts += table(title, json.loads(file.read_text(encoding="utf-8")))
    return "\n".join(parts)


def table(title: str, report: dict[str, Any]) -> list[str]:
    """One setting: a line for each distance, a column for each arm."""
    rows: Sequence[dict[str, Any]] = report["rows"]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    distances = list(dict.fromkeys(row["rtt_ms"] for row in rows))
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report["machine"].items())
    lines = [
        f"## {title[0].upper()}{title[1:]}\n",
        f"`{report['command']}`\n",
        f"{machine}. All texts {'identical' if report['identical'] else '**NOT** identical'}.\n",
        f"| RTT | {' | '.join(arms)} |",
        f"|---|{'---|' * len(arms)}",
    ]
    for distance in distances:
        cells = []
        for arm in arms:
            row = next(row for row in rows if (row["arm"], row["rtt_ms"]) == (arm, distance))
            interval = row["ratio_to_cloud_95"]
            spread = "" if interval is None else f" ({interval[0]:.2f}-{interval[1]:.2f})"
            ratio = "" if arm == "cloud" else f", {row['ratio_to_cloud']:.2f}x{spread}"
            cells.append(f"{row['tokens_per_s']:.1f}{ratio}")
        lines.append(f"| {distance:g} ms | {' | '.join(cells)} |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main())
