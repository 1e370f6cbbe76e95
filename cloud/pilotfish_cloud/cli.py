"""``pilotfish-cloud``: the operator's command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pilotfish_cloud import logs
from pilotfish_cloud.check_command import run_check
from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.keys_command import add_keys_parser, run_keys
from pilotfish_cloud.options import PREFIX, Layered, add_flags, options_of
from pilotfish_cloud.serve_command import end_with_stdin, run_serve
from pilotfish_cloud.usage_command import add_usage_parser, run_usage
from pilotfish_core.errors import PilotfishError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 our own clear error, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s: %(message)s")
    try:
        return _run(arguments)
    except PilotfishError as error:
        print(f"pilotfish-cloud: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "keys":
        return run_keys(arguments)
    if arguments.command == "usage":
        return run_usage(arguments)
    config, origins = _configuration(arguments)
    logs.set_up(config.log_level, config.log_format)
    if arguments.command == "check":
        return run_check(config, origins, as_json=arguments.json)
    if arguments.until_stdin_closes:
        end_with_stdin()
    return run_serve(config, as_json=arguments.json)


def _configuration(arguments: argparse.Namespace) -> tuple[ServerConfig, Layered]:
    name = arguments.config or os.environ.get(f"{PREFIX}CONFIG")
    return ServerConfig.of(file=Path(name) if name else None, environment=os.environ, flags=arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pilotfish-cloud", description="The cloud verifier of Pilotfish.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve a target model",
        description="Serve a target model: verify drafts from devices, decode alone where there are none. Each option "
        "can stand in the file of --config (max_num_seqs = 8) and in the environment (PILOTFISH_MAX_NUM_SEQS=8); flags "
        "go before the environment, the environment before the file.",
    )
    check = commands.add_parser(
        "check",
        help="check a configuration without loading a model",
        description="Print the configuration as `serve` would use it, where each value comes from, and what is wrong "
        "with it; no weights are loaded, no port is kept.",
    )
    for command, what in ((serve, "print the ready line as JSON"), (check, "print JSON")):
        command.add_argument("--config", metavar="FILE", help="TOML file of options")
        command.add_argument("--json", action="store_true", help=what)
        add_flags(command, options_of(ServerConfig))
    serve.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)
    add_keys_parser(commands)
    add_usage_parser(commands)
    return parser
