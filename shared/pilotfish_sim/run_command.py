"""``pilotfish-sim run`` and ``sweep``: scenarios to figures."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter
from pilotfish_sim.details import Detail, detail_of, timeline_of
from pilotfish_sim.html_report import page, shown_rows
from pilotfish_sim.presets import PRESETS
from pilotfish_sim.progress import ProgressBar
from pilotfish_sim.report import LEGEND, as_csv, table
from pilotfish_sim.rows import Row, row_of
from pilotfish_sim.run import simulate
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.scenario_file import Grid, combinations, read_file, read_sets, scenario_of
from pilotfish_sim.sweep import sweep

MAX_RUNS: Final = 100_000  # of a sweep


def add_run_parsers(commands: Any) -> None:
    """Add ``run`` and ``sweep`` to the subcommands."""
    one = commands.add_parser(
        "run",
        help="simulate a scenario",
        description="Run one scenario through the real policy and protocol cores on a virtual clock.",
    )
    _add_scenario(one, "KEY=VALUE")
    one.add_argument("--show", action="store_true", help="print the whole scenario, with all defaults, and stop")
    one.set_defaults(run=run_one)
    many = commands.add_parser(
        "sweep",
        help="simulate a grid of scenarios",
        description="Run every combination of the values of --set, over the machine's processors.",
        epilog="Example: pilotfish-sim sweep --set link.rtt_ms=0,20,100 --set arm=cloud,device-lockstep,device-async",
    )
    _add_scenario(many, "KEY=VALUE,...")
    many.add_argument("--csv", action="store_true", help="print the rows as CSV")
    many.add_argument("--processes", type=int, metavar="N", help="at a time (default: as many as processors)")
    many.set_defaults(run=run_sweep)


def _add_scenario(parser: argparse.ArgumentParser, values: str) -> None:
    parser.add_argument("scenario", nargs="?", type=Path, metavar="SCENARIO.yaml", help="default: a plain target")
    parser.add_argument("--set", action="append", default=[], metavar=values, help="such as link.rtt_ms=50, link=lte")
    parser.add_argument(
        "--policy",
        metavar="MODULE:CLASS",
        help="a DraftPolicy under study, for the device (as --set device.policy=...)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a report with charts there")


def run_one(arguments: argparse.Namespace) -> int:
    """One scenario."""
    grid = _grid(arguments)
    for key, values in grid:
        if len(values) > 1:
            shown = ",".join(str(value) for value in values)
            raise InvalidParameter.of(f"--set {key}", shown, "one value; pilotfish-sim sweep takes several")
    sets = {key: values[0] for key, values in grid}
    scenario = scenario_of({} if arguments.scenario is None else read_file(arguments.scenario), sets)
    if arguments.show:
        _print(json.dumps(plain(scenario), indent=1))
        return 0
    _check_html(arguments.html)
    with ProgressBar(100, "hundredths") as bar:
        run = simulate(scenario, bar.share)
    row = {"set": sets} | row_of(run)
    if arguments.html is not None:
        _write_html(arguments, [row], [detail_of(run)], [scenario], list(sets))
    if arguments.json:
        _print(json.dumps(row | {"scenario": plain(scenario)}))
        return 0
    _print("\n".join([*table([row], list(sets)), *_remarks([row]), LEGEND]))
    return 0


def run_sweep(arguments: argparse.Namespace) -> int:
    """Every combination."""
    if arguments.json and arguments.csv:
        raise InvalidParameter.of("--csv", "given", "either --json or --csv")
    if arguments.processes is not None and not 1 <= arguments.processes <= 1024:
        raise InvalidParameter.of("--processes", arguments.processes, "a number from 1 to 1024")
    _check_html(arguments.html)
    values = {} if arguments.scenario is None else read_file(arguments.scenario)
    grid = _grid(arguments)
    count = 1
    for _, several in grid:
        count *= len(several)
    if count > MAX_RUNS:
        raise InvalidParameter.of("--set", f"{count} combinations", f"at most {MAX_RUNS}")
    settings = list(combinations(grid))
    scenarios = [scenario_of(values, sets) for sets in settings]  # all are checked before any runs
    details: list[Detail] = []
    with ProgressBar(len(scenarios), "runs") as bar:
        rows = sweep(scenarios, settings, processes=arguments.processes, done=bar.show, details=details)
    if arguments.html is not None:
        _write_html(arguments, rows, details, scenarios, [key for key, _ in grid])
    if arguments.json:
        _print(json.dumps({"rows": rows, "simulated": True}))
    elif arguments.csv:
        sys.stdout.write(as_csv(rows))
        sys.stdout.flush()
    else:
        _print("\n".join([*table(rows, [key for key, _ in grid]), *_remarks(rows), LEGEND]))
    return 0


def _grid(arguments: argparse.Namespace) -> Grid:
    """What --set and --policy give."""
    return read_sets(arguments.set + ([] if arguments.policy is None else [f"device.policy={arguments.policy}"]))


def _check_html(path: Path | None) -> None:
    """Raises InvalidParameter for a file that could not be written, before any run."""
    if path is None:
        return
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidParameter.of("--html", str(path), "a file whose name ends with .html, in a folder that is there")


def _write_html(
    arguments: argparse.Namespace,
    rows: Sequence[Row],
    details: Sequence[Detail],
    scenarios: Sequence[Scenario],
    keys: Sequence[str],
) -> None:
    shown = shown_rows(rows)
    timelines = {str(scenarios[place].arm): timeline_of(scenarios[place]) for place in shown}
    name = scenarios[0].name or ("" if arguments.scenario is None else arguments.scenario.stem)
    title = f"pilotfish-sim {arguments.command}{': ' if name else ''}{name}"
    arguments.html.write_text(page(rows, details, timelines, title=title, keys=keys, shown=shown), encoding="utf-8")


def list_presets() -> None:
    """Print what may stand for a section's keys."""
    lines = []
    for section, presets in PRESETS.items():
        lines.append(f"{section}:")
        width = max(map(len, presets))
        for name, values in presets.items():
            lines.append(f"  {name:{width}}  {', '.join(f'{key} {value}' for key, value in values.items())}")
    _print("\n".join(lines))


def plain(value: Any) -> Any:
    """A scenario as values that JSON knows."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value


def _remarks(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row["failures"]:
            lines.append(f"  {row['arm']}: {row['failures']} of {row['answers']} answers failed")
        if row["reconnects"]:
            lines.append(f"  {row['arm']}: had to connect again {row['reconnects']} times")
    return lines


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
