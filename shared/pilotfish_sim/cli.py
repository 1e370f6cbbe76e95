"""``pilotfish-sim``: the engineer's command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pilotfish_core.errors import PilotfishError
from pilotfish_sim.link_command import add_link_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 our own clear error, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="pilotfish-sim", description="What a network or a device would do.")
    add_link_parser(parser.add_subparsers(dest="command", required=True))
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except PilotfishError as error:
        print(f"pilotfish-sim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code
