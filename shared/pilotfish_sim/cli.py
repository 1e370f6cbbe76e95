"""``pilotfish-sim``: the engineer's command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pilotfish_core.errors import PilotfishError
from pilotfish_sim.link_command import add_link_parser
from pilotfish_sim.run_command import add_run_parsers, list_presets


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 our own clear error, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="pilotfish-sim", description="What a network or a device would do.")
    parser.add_argument("--list-presets", action="store_true", help="links, devices, targets and prices by name")
    commands = parser.add_subparsers(dest="command")
    add_run_parsers(commands)
    add_link_parser(commands)
    arguments = parser.parse_args(argv)
    if arguments.list_presets:
        list_presets()
        return 0
    if arguments.command is None:
        parser.error("the following arguments are required: command")
    try:
        code: int = arguments.run(arguments)
    except PilotfishError as error:
        print(f"pilotfish-sim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code
