"""``pilotfish-sim``: the engineer's command. Imports that take long are in ``main``, where Ctrl-C is minded."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence

_NEGATIVE = re.compile(r"-\.?[0-9].*")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 our own clear error, 2 wrong usage, 130 ended by Ctrl-C."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:  # nobody reads any more
        _abandon()
        return 1
    except OSError as error:  # of the machine: a disk that is full
        _abandon()
        print(f"pilotfish-sim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _abandon()
        return 130


def _run(argv: Sequence[str]) -> int:
    import argparse

    from pilotfish_core.errors import PilotfishError
    from pilotfish_sim.calibrate_command import add_calibrate_parser
    from pilotfish_sim.capacity_command import add_capacity_parser
    from pilotfish_sim.link_command import add_link_parser
    from pilotfish_sim.run_command import add_run_parsers, list_presets

    parser = argparse.ArgumentParser(prog="pilotfish-sim", description="What a network or a device would do.")
    parser.add_argument("--list-presets", action="store_true", help="links, devices, targets and prices by name")
    commands = parser.add_subparsers(dest="command")
    add_run_parsers(commands)
    add_capacity_parser(commands)
    add_calibrate_parser(commands)
    add_link_parser(commands)
    arguments = parser.parse_args(_joined(argv))
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
    return code


def _joined(argv: Sequence[str]) -> list[str]:
    """``--rtt -5ms`` as ``--rtt=-5ms``: the parser would take the value for a flag, and say that there is none."""
    joined: list[str] = []
    for part in argv:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and _NEGATIVE.fullmatch(part):
            joined[-1] += f"={part}"
        else:
            joined.append(part)
    return joined


def _abandon() -> None:
    """What cannot be written is dropped: Python would try again at its exit, and complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
