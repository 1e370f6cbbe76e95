"""``pilotfish-sim capacity``: users per replica at a promised speed, GPUs for so many users, and the money."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm
from pilotfish_sim.capacity import HOURS_A_MONTH, Capacity, Promise, capacities, verdict
from pilotfish_sim.progress import ProgressBar
from pilotfish_sim.scenario import ARMS, Scenario
from pilotfish_sim.scenario_file import read_file, read_sets, scenario_of


def add_capacity_parser(commands: Any) -> None:
    """Add ``capacity`` to the subcommands."""
    parser = commands.add_parser(
        "capacity",
        help="users per replica at a promised speed, and what they cost",
        description="The most users that one replica carries while TTFT and TPOT are as promised, for each arm: "
        "bisection over the number of devices of the closed loop.",
        epilog="Example: pilotfish-sim capacity docs/scenarios/chat-70b.yaml --users 1000 --tpot-ms 40",
    )
    parser.add_argument("scenario", nargs="?", type=Path, metavar="SCENARIO.yaml", help="default: a plain target")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as link.rtt_ms=50")
    parser.add_argument("--arms", metavar="ARM,...", help="default: cloud, co-located-model where it can, device-async")
    parser.add_argument("--ttft-ms", default="1000", metavar="MS", help="promised (default: %(default)s)")
    parser.add_argument("--tpot-ms", default="50", metavar="MS", help="promised (default: %(default)s)")
    parser.add_argument(
        "--percentile", default="90", metavar="P", help="of answers that have it (default: %(default)s)"
    )
    parser.add_argument("--users", default="1000", metavar="N", help="to be served in all (default: %(default)s)")
    parser.add_argument("--most", default="512", metavar="N", help="users of a replica tried (default: %(default)s)")
    parser.add_argument("--processes", metavar="N", help="at a time (default: as many as processors)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_capacity)


def run_capacity(arguments: argparse.Namespace) -> int:
    """Find, show. Raises PilotfishError."""
    scenario = _scenario(arguments)
    promise = Promise(
        ttft_ms=_number("--ttft-ms", arguments.ttft_ms, 0.001, 1e7),
        tpot_ms=_number("--tpot-ms", arguments.tpot_ms, 0.001, 1e6),
        percentile=int(_number("--percentile", arguments.percentile, 1, 100)),
    )
    users = int(_number("--users", arguments.users, 1, 1e9))
    most = int(_number("--most", arguments.most, 1, 1e6))
    processes = None if arguments.processes is None else int(_number("--processes", arguments.processes, 1, 1024))
    arms = _arms(arguments.arms, scenario)
    with ProgressBar(len(arms), "arms") as bar:
        found = capacities(scenario, arms, promise, most=most, processes=processes, done=bar.show)
    if arguments.json:
        document = {
            "promise": {"ttft_ms": promise.ttft_ms, "tpot_ms": promise.tpot_ms, "percentile": promise.percentile},
            "users": users,
            "arms": [as_dict(one, users) for one in found],
            "verdict": verdict(found),
            "simulated": True,
        }
        _print(json.dumps(document))
        return 0
    head = (
        f"{promise.percentile}% of answers: first token within {promise.ttft_ms:g} ms, {promise.tpot_ms:g} ms for each "
        "other."
    )
    _print("\n".join([head, "", *table(found, users), "", *verdict(found), "Simulated."]))
    return 0


def as_dict(one: Capacity, users: int) -> dict[str, Any]:
    """Plain values."""
    gpus, dollars = one.gpus_for(users), one.usd_per_million_tokens
    return {
        "arm": str(one.arm),
        "users_per_replica": one.users,
        "limit": one.limit,
        "tokens_per_s": one.tokens_per_s,
        "gpus": gpus,
        "usd_per_million_tokens": None if dollars is None else round(dollars, 4),
        "usd_per_month": None if gpus is None or not one.gpu_hour else round(gpus * one.gpu_hour * HOURS_A_MONTH),
        "full": one.full,
        "alone": one.alone,
    }


def table(found: Sequence[Capacity], users: int) -> list[str]:
    """A line for each arm."""
    head = [
        "arm",
        "users/replica",
        "limit",
        "tokens/s",
        f"GPUs for {users}",
        "$/M tokens",
        "TPOT alone",
        "TPOT full",
        "J/tok",
    ]
    rows = [head]
    for one in found:
        full, dollars = one.full or {}, one.usd_per_million_tokens
        rows.append(
            [
                str(one.arm),
                f"{one.users}{'+' if not one.limit else ''}",
                one.limit or "-",
                f"{one.tokens_per_s:.0f}",
                str(one.gpus_for(users) or "-"),
                "-" if dollars is None else f"{dollars:.2f}",
                f"{one.alone['tpot_ms']:.1f}",
                f"{full['tpot_ms']:.1f}" if full else "-",
                f"{full['device_j_per_token']:.2f}" if full and full["device_j_per_token"] else "-",
            ]
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _scenario(arguments: argparse.Namespace) -> Scenario:
    sets = {}
    for key, values in read_sets(arguments.set):
        if len(values) > 1:
            raise InvalidParameter.of(f"--set {key}", ",".join(map(str, values)), "one value")
        sets[key] = values[0]
    if "arm" in sets:
        raise InvalidParameter.of("--set arm", sets["arm"], "--arms, which takes several")
    return scenario_of({} if arguments.scenario is None else read_file(arguments.scenario), sets)


def _arms(given: str | None, scenario: Scenario) -> list[Arm]:
    if given is None:
        beside = [Arm.CO_LOCATED_MODEL] if scenario.target.draft_step_ms is not None else []
        return [Arm.CLOUD, *beside, Arm.ASYNC]
    arms = []
    for name in given.split(","):
        if name not in [str(arm) for arm in ARMS]:
            raise InvalidParameter.of("--arms", name, f"some of {', '.join(ARMS)}")
        arms.append(Arm(name))
    return arms


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InvalidParameter.of(name, text, f"a number from {low:g} to {high:g}")
    return value


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
