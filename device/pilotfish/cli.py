"""``pilotfish``: the device's command. What takes long to import is imported in ``main``, where Ctrl-C is minded."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pilotfish import signals

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 our own clear error, 2 wrong usage, 128 + n ended by signal n."""
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would log comes back as our own error
    with signals.ending_at_once():
        return _run(_parser().parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    from pilotfish.output import abandon, note
    from pilotfish_core.errors import PilotfishError

    try:
        with signals.raising():
            code: int = arguments.run(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
    except PilotfishError as error:
        abandon()
        note(f"pilotfish: {error}")
        return 1
    except BrokenPipeError:  # nobody reads any more
        abandon()
        return 1
    except OSError as error:  # of the machine: a disk that is full, a folder that went away
        abandon()
        note(f"pilotfish: {error}")
        return 1
    except KeyboardInterrupt as stop:
        abandon()
        return stop.exit_code if isinstance(stop, signals.Stopped) else 130
    return code


def _parser() -> argparse.ArgumentParser:
    import argparse

    from pilotfish.bench.command import add_bench_parser
    from pilotfish.chat_command import add_chat_parser
    from pilotfish.demo.command import add_demo_parser
    from pilotfish.export.command import add_export_parser
    from pilotfish.generate_command import add_generate_parser
    from pilotfish.runtimes_command import add_runtimes_parser
    from pilotfish.serve_command import add_serve_parser

    parser = argparse.ArgumentParser(
        prog="pilotfish", description="Speculative decoding between this device and a cloud verifier."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_demo_parser(commands)
    add_generate_parser(commands)
    add_export_parser(commands)
    add_runtimes_parser(commands)
    add_bench_parser(commands)
    add_chat_parser(commands)
    add_serve_parser(commands)
    return parser
