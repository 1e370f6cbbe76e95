"""``pilotfish runtimes``: what of the device's runtimes works here, and why not where it does not."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from pilotfish.output import show
from pilotfish.runtimes import availability, table

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_runtimes_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add ``runtimes`` to a command's subparsers; its ``run`` default is ``run_runtimes``."""
    parser = subparsers.add_parser(
        "runtimes",
        help="what can run and export draft models on this machine",
        description="Say which runtimes of draft models work on this machine, and why the others do not.",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run_runtimes)
    return parser


def run_runtimes(arguments: argparse.Namespace) -> int:
    """Print them and return the exit status, 0."""
    if arguments.json:
        found = {name: dataclasses.asdict(runtime) for name, runtime in availability().items()}
        show(json.dumps(found, indent=2) + "\n")
    else:
        show(table() + "\n")
    return 0
