"""How much each constant of the policy matters: sweeps of the simulator around the values that are shipped.

    python -m benchmarks.policy_lab [--only NAME ...] [--processes N] [--out benchmarks/results/policy_lab.md]

One constant at a time is changed, the others stay. For each value the same answers are generated in every *world*
(link, drafter, acceptance, target), and compared with those of the shipped value: the geometric mean over the worlds of
the speed's ratio, and the worst world. Virtual time: it does not matter what else the machine does. About ten minutes
on two processors.

A constant is kept where no other value is better in the mean without being worse somewhere; differences below 1% are
the luck of the draft.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pilotfish_core.tuning import DraftTuning, RowTuning
from pilotfish_sim.progress import ProgressBar
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.sweep import sweep

# Measured: the reference target of 14 layers on one core of an AMD EPYC, bfloat16, deterministic.
CPU: Final = {
    "step_ms": {4: 35, 6: 36.5, 8: 46, 12: 55, 16: 66, 24: 90, 32: 115},
    "row_sizes": [4, 6, 8, 12, 16, 24, 32],
    "draft_step_ms": 4,
    "draft_acceptance": 0.7,
}
BURSTS: Final = {"kind": "bursts"}
ANSWERS: Final = {"answers": 12, "prompt_tokens": 60, "output_tokens": 160}


@dataclasses.dataclass(frozen=True)
class Constant:
    """``half``: the section of a scenario that it belongs to. ``arms`` in which it has a part."""

    name: str
    values: tuple[float, ...]
    half: str = "device"
    arms: tuple[str, ...] = ("device-async",)

    @property
    def shipped(self) -> float:
        """What the policy has."""
        value: float = getattr(DraftTuning() if self.half == "device" else RowTuning(), self.name)
        return value


BOTH: Final = ("device-async", "auto")
CONSTANTS: Final = (
    Constant("worth", (0.01, 0.02, 0.1, 0.2)),
    Constant("flush_share", (0.02, 0.05, 0.2, 0.4)),
    Constant("enough", (2, 4, 8, 12)),
    Constant("burst", (1, 4, 16)),
    Constant("burst_share", (0.05, 0.1, 0.5)),
    Constant("settled", (2, 4, 16, 32), arms=("auto",)),
    Constant("trouble", (0.01, 0.02, 0.06, 0.1), arms=BOTH),
    Constant("hysteresis", (0.001, 0.005, 0.03, 0.06), arms=BOTH),
    Constant("rivalry", (0.01, 0.02, 0.08, 0.16), arms=("auto",)),
    Constant("useful", (0.02, 0.2, 0.4), "target"),
    Constant("worthwhile", (0.001, 0.03, 0.06), "target"),
    Constant("dearer", (1.0, 1.05, 1.2, 1.4), "target"),
    Constant("farther", (1.1, 1.25, 2.0, 4.0), "target"),
    Constant("together", (1, 2, 4, 16), "target"),
    Constant("plain_every", (32, 64, 256, 512), "target"),
)


def worlds() -> dict[str, dict[str, Any]]:
    """By name: scenarios without an arm."""
    found: dict[str, dict[str, Any]] = {}
    for rtt, (draft_ms, acceptance) in itertools.product((0, 20, 60, 120), ((1, 0.65), (5, 0.85), (10, 0.75))):
        found[f"{rtt} ms, draft {draft_ms} ms, {acceptance:.0%}"] = {
            "link": {"rtt_ms": rtt}, "device": {"draft_ms": draft_ms}, "acceptance": acceptance, "target": CPU,
            "workload": ANSWERS,
        }  # fmt: skip
    found["Wi-Fi, bursts of easy text"] = {
        "link": "wifi", "device": {"draft_ms": 5}, "acceptance": BURSTS, "target": CPU, "workload": ANSWERS,
    }  # fmt: skip
    found["junk at 20 ms"] = {
        "link": {"rtt_ms": 20}, "device": {"draft_ms": 1}, "acceptance": 0.02, "target": CPU, "workload": ANSWERS,
    }  # fmt: skip
    for streams in (4, 16):
        found[f"{streams} streams at 20 ms"] = {
            "link": {"rtt_ms": 20}, "device": {"draft_ms": 5}, "acceptance": 0.8, "target": CPU,
            "workload": ANSWERS | {"devices": streams, "answers": 4},
        }  # fmt: skip
    return found


def speeds(settings: Sequence[tuple[str, Mapping[str, Any]]], processes: int | None) -> list[float]:
    """Tokens a second of each (arm, scenario), all at the same seed."""
    scenarios = [Scenario.of({**values, "arm": arm}) for arm, values in settings]
    with ProgressBar(len(scenarios), "runs") as bar:
        rows = sweep(scenarios, [{} for _ in scenarios], processes=processes, done=bar.show)
    return [float(row["tokens_per_s"]) for row in rows]


def with_constant(values: Mapping[str, Any], constant: Constant, value: float) -> dict[str, Any]:
    """The scenario with that value of the constant."""
    return {**values, constant.half: {**values[constant.half], "tuning": {constant.name: value}}}


def measure(constant: Constant, processes: int | None) -> list[str]:
    """Lines of the table."""
    cells = [(arm, name, values) for arm in constant.arms for name, values in worlds().items()]
    tried = sorted({*constant.values, constant.shipped})
    settings = [(arm, with_constant(values, constant, value)) for value in tried for arm, _, values in cells]
    found = speeds(settings, processes)
    by_value = {value: found[place * len(cells) : (place + 1) * len(cells)] for place, value in enumerate(tried)}
    shipped, lines = by_value[constant.shipped], []
    for value in tried:
        ratios = [new / old for new, old in zip(by_value[value], shipped, strict=True)]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        worst, best = min(range(len(ratios)), key=ratios.__getitem__), max(ratios)
        arm, name, _ = cells[worst]
        if value == constant.shipped:
            lines.append(f"| `{constant.name}` | **{value:g}** | 1 | | |")
        else:
            where = f"{ratios[worst]:.3f} ({arm}: {name})"
            lines.append(f"| `{constant.name}` | {value:g} | {mean:.4f} | {where} | {best:.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [constant.name for constant in CONSTANTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--processes", type=int, metavar="N", help="at a time (default: as many as processors)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there")
    given = parser.parse_args()
    lines = [
        "# The policy's constants, one at a time",
        "",
        f"Made by `{shlex.join(['python', '-m', 'benchmarks.policy_lab', *sys.argv[1:]])}`, in virtual time: tokens a "
        "second with another value over those with the shipped one (bold), geometric mean and extremes over "
        f"{len(worlds())} worlds: round trips of 0, 20, 60 and 120 ms with three drafters each, Wi-Fi with text that "
        "is easy and hard in turn, a drafter of junk, 4 and 16 streams.",
        "",
        "| constant | value | mean | worst | best |",
        "|---|---|---|---|---|",
    ]
    for constant in CONSTANTS:
        if constant.name in given.only:
            own = measure(constant, given.processes)
            print("\n".join(own), flush=True)
            lines += own
            if given.out is not None:
                given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
