"""How fast the simulator is: events a second of its clock, and real seconds for many devices through the real cores.

    python -m benchmarks.sim_speed [--devices 200] [--seconds 60] [--arm device-async] [--profile] [--json OUT]

One processor. *Clock*: processes that do nothing but ask to be called again, at random times. *Run*: so many devices
in a closed loop for so many virtual seconds against a 70 B target on H100s, by LTE; replicas as needed so that nobody
waits for a seat. Both times are given: of the wall, and of the processor (which a busy machine sways less).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from pilotfish.bench.machine import load, machine
from pilotfish_sim.clock import Clock
from pilotfish_sim.run import simulate
from pilotfish_sim.scenario import Scenario

EVENTS = 500_000
PROCESSES = 1_000


def clock_speed() -> dict[str, Any]:
    """Events a second when each event asks for the next one."""
    clock, chance = Clock(), random.Random(1)
    left = EVENTS

    def called(_: object) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            clock.at(clock.now + chance.random(), called)

    for _ in range(PROCESSES):
        called(None)
    began = time.process_time()
    clock.run()
    seconds = time.process_time() - began
    return {"events": clock.events, "events_per_s": round(clock.events / seconds)}


def run_speed(devices: int, seconds: float, arm: str, *, profile: bool) -> dict[str, Any]:
    """A whole run."""
    scenario = Scenario.of(
        {
            "arm": arm,
            "link": "lte",
            "device": "phone-npu",
            "acceptance": 0.8,
            "target": {"preset": "70b-4xh100", "replicas": max(1, devices // 200)},
            "workload": {"devices": devices, "duration_s": seconds, "prompt_tokens": 200, "output_tokens": 400},
        }
    )
    profiler = cProfile.Profile()
    wall, processor = time.perf_counter(), time.process_time()
    if profile:
        profiler.enable()
    run = simulate(scenario)
    profiler.disable()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    tokens = sum(answer.tokens for answer in run.answers)
    return {
        "devices": devices,
        "arm": arm,
        "virtual_s": round(run.wall_s, 1),
        "wall_s": round(wall, 2),
        "processor_s": round(processor, 2),
        "events": run.events,
        "events_per_s": round(run.events / processor),
        "tokens": tokens,
        "us_per_token": round(processor / tokens * 1e6, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "identical": all(answer.identical for answer in run.answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--arm", default="device-async")
    parser.add_argument("--profile", action="store_true", help="print where the time goes (it slows all down)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    given = parser.parse_args()
    where = machine()
    figures = {
        "clock": clock_speed(),
        "run": run_speed(given.devices, given.seconds, given.arm, profile=given.profile),
    }
    for name, values in figures.items():
        print(f"{name:6}", ", ".join(f"{key} {value}" for key, value in values.items()))
    if given.json is not None:
        command = shlex.join(["python", "-m", "benchmarks.sim_speed", *sys.argv[1:]])
        report = {"command": command, "machine": where, "load_at_end": load(), **figures}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
