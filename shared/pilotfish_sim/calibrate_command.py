"""``pilotfish-sim calibrate``: traces of real runs to models, and how well these predict the rest of the traces."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter, MissingExtra
from pilotfish_sim.calibration import Calibration, calibrate
from pilotfish_sim.holdout import AIMS, BY, METRICS, Cell, hold_out, medians
from pilotfish_sim.progress import ProgressBar
from pilotfish_sim.trace_file import read_traces

ACCEPTANCES: Final = ("recorded", "position", "rate")
_TITLES: Final = {
    "tokens_per_s": "tokens/s",
    "tpot_ms": "TPOT p50",
    "tpot_ms_p99": "TPOT p99",
    "ttft_ms": "TTFT p50",
    "ttft_ms_p99": "TTFT p99",
}


def add_calibrate_parser(commands: Any) -> None:
    """Add ``calibrate`` to the subcommands."""
    parser = commands.add_parser(
        "calibrate",
        help="fit the models to traces of real runs",
        description="Fit device, link, step time, service and acceptance to what --trace FILE of pilotfish bench, "
        "pilotfish generate and pilotfish-cloud serve wrote.",
        epilog="A scenario uses it by name: target: calibration.yaml; or it is a scenario itself: pilotfish-sim run "
        "calibration.yaml --set arm=device-async.",
    )
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE", help="of devices and verifiers, .gz too")
    parser.add_argument("--out", type=Path, metavar="CALIBRATION.yaml", help="write the models there")
    parser.add_argument(
        "--holdout",
        metavar="SHARE",
        help="calibrate on the rest, predict this share of the traces, and print the errors; what is written to --out "
        "is fitted to all",
    )
    parser.add_argument(
        "--holdout-by", default="answers", help="answers: the last of each cell (default); cells: whole cells"
    )
    parser.add_argument(
        "--acceptance", default="recorded", help="recorded (default): answer by answer; position; or one rate"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_calibrate)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Fit, write, predict. Raises PilotfishError."""
    share = _share(arguments.holdout)
    for name, value, known in (
        ("--holdout-by", arguments.holdout_by, BY),
        ("--acceptance", arguments.acceptance, ACCEPTANCES),
    ):
        if value not in known:
            raise InvalidParameter.of(name, value, f"one of {', '.join(known)}")
    if arguments.out is not None and (arguments.out.suffix not in (".yaml", ".yml") or arguments.out.is_dir()):
        raise InvalidParameter.of("--out", str(arguments.out), "a file whose name ends with .yaml")
    if arguments.out is not None and not arguments.out.absolute().parent.is_dir():
        raise InvalidParameter.of("--out", str(arguments.out), "a file in a folder that is there")
    traces = read_traces(arguments.traces)
    calibration = calibrate(traces, acceptance=arguments.acceptance)
    if arguments.out is not None:
        arguments.out.write_text(as_yaml(calibration, arguments.traces), encoding="utf-8")
    cells: list[Cell] = []
    if share:
        with ProgressBar(1000, "thousandths") as bar:
            cells = hold_out(
                traces,
                share,
                by=arguments.holdout_by,
                acceptance=arguments.acceptance,
                done=lambda count, total: bar.share(count / total),
            )
    if arguments.json:
        _print(json.dumps(as_dict(calibration, cells)))
        return 0
    lines = summary(calibration)
    if cells:
        lines += ["", *error_table(cells)]
    if arguments.out is not None:
        lines += ["", f"written: {arguments.out}"]
    _print("\n".join(lines))
    return 0


def as_yaml(calibration: Calibration, files: Sequence[Path]) -> str:
    """A scenario file with the fitted sections. Raises MissingExtra."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise MissingExtra.of("yaml", "sim", "a calibration") from None
    head = [f"# Made by pilotfish-sim calibrate from {', '.join(file.name for file in files)}."]
    head += [f"# {name}: {value:g}" for name, value in calibration.residuals.items()]
    head += [f"# {remark}" for remark in calibration.remarks]
    sections = {name: dict(values) for name, values in calibration.sections.items()}
    return "\n".join(head) + "\n" + yaml.safe_dump(sections, sort_keys=False, default_flow_style=None, width=110)


def as_dict(calibration: Calibration, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything, in plain values."""
    return {
        "sections": {name: dict(values) for name, values in calibration.sections.items()},
        "residuals": dict(calibration.residuals),
        "remarks": list(calibration.remarks),
        "cells": [dataclasses.asdict(cell) | {"errors": cell.errors, "halves": cell.halves} for cell in cells],
        "median_errors": medians([cell.errors for cell in cells]),
        "median_halves": medians([cell.halves for cell in cells if cell.halves is not None]),
        "aims": AIMS,
    }


def summary(calibration: Calibration) -> list[str]:
    """What was fitted, for people."""
    link, device, target = (calibration.sections[name] for name in ("link", "device", "target"))
    curve = ", ".join(f"{rows}: {milliseconds:.2f}" for rows, milliseconds in target["step_ms"].items())
    lines = [
        f"link: round trip {link['rtt_ms']:.2f} ms, jitter {link.get('jitter_ms', 0.0):.2f} ms (exponential)",
        f"device: {device['draft_ms']:.3f} ms a draft token, {device.get('prefill_ms', 0.0):.3f} ms a token taken in, "
        f"{device.get('task_ms', 0.0):.3f} ms a task, {device['frame_us']:.0f} us a frame",
        f"step ms by rows: {curve}; {target['sequence_us']:g} us a sequence, {target['context_us']:g} us for 1,000 "
        "KV tokens",
        f"service: {target['service_ms']:.3f} ms a frame each way, {target['open_ms']:.2f} ms to open",
    ]
    lines += [f"{name}: {value:g}" for name, value in calibration.residuals.items()]
    return lines + list(calibration.remarks)


def error_table(cells: Sequence[Cell]) -> list[str]:
    """Predicted against real, cell by cell, and the medians."""
    head = ["arm", "RTT", "streams", "answers", "tokens/s", *(f"{_TITLES[name]} err" for name in METRICS)]
    rows = [head]
    for cell in cells:
        errors = [f"{cell.errors[name]:+.0%}" for name in METRICS]
        real = f"{cell.real['tokens_per_s']:.1f}"
        rows.append([cell.arm, f"{cell.rtt_ms:g}", str(cell.concurrency), str(cell.answers), real, *errors])
    for title, values in (
        ("median of |err|", medians([cell.errors for cell in cells])),
        ("aim", AIMS),
        ("real halves apart", medians([cell.halves for cell in cells if cell.halves is not None])),
    ):
        rows.append([title, "", "", "", "", *(f"{values[name]:.1%}" if name in values else "-" for name in METRICS)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _share(given: str | None) -> float:
    if given is None:
        return 0.0
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0.0 < share < 1.0:
        raise InvalidParameter.of("--holdout", given, "a share between 0 and 1, such as 0.5")
    return share


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
