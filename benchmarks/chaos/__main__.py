"""Several replicas in trouble: Redis, three verifiers and nginx as shipped, with devices over links.

    python -m benchmarks.chaos [--only storm rolling hang affinity overload] [--seconds 60] [--seed 1]
        [--out benchmarks/results/chaos.json]

Real processes on this machine; the reference target in deterministic mode. ``storm``: 24 generations in flight over
links of 20 to 120 ms for a minute, in which replicas are killed (kill -9), drained (SIGTERM) and restarted at random,
Redis is killed and started again, and connections are cut. ``rolling``: every replica restarted in turn under load.
``hang``: a replica is stopped (SIGSTOP) and goes on later. ``affinity``: 40 generations that share 4 long prompts, with
routes and without. ``overload``: one tenant asks for ten times its rows, another one notices or not. Ends with 1 when
something is not as promised. Results of scenarios that are not run again stay in the file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.chaos import affinity, hang, overload, rolling, storm
from pilotfish.bench.machine import load, machine
from pilotfish.demo.stage import find_reference

Scenario = tuple[Callable[..., Coroutine[Any, Any, dict[str, Any]]], Callable[[dict[str, Any]], bool]]
SCENARIOS: dict[str, Scenario] = {
    "storm": (storm.storm, storm.good),
    "rolling": (rolling.rolling, rolling.good),
    "hang": (hang.hang, hang.good),
    "affinity": (affinity.affinity, affinity.good),
    "overload": (overload.overload, overload.good),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of the storm")
    parser.add_argument("--seed", type=int, default=1, help="of the storm")
    parser.add_argument("--keep", type=Path, help="a folder for what the processes write, to look at afterwards")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chaos.json"))
    given = parser.parse_args()
    report: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    model = find_reference(None) / "target"
    failed = []
    for name in given.only:
        run, good = SCENARIOS[name]
        options = {"seconds": given.seconds, "seed": given.seed} if name == "storm" else {}
        before = load()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if given.keep is None else given.keep / name
            folder.mkdir(parents=True, exist_ok=True)
            found = asyncio.run(run(model, folder, **options))
        command = shlex.join(["python", "-m", "benchmarks.chaos", "--only", name])
        report[name] = {"command": command, "good": good(found), "load_before": before} | found
        report["machine"] = machine()
        report["times"] = (
            "taken on a machine of two cores that others used as well: devices and all replicas share them"
        )
        print(json.dumps({name: report[name]}, indent=1), flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if not report[name]["good"]:
            failed.append(name)
    if failed:
        print(f"not as promised: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
