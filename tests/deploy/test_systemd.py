"""The unit: its commands are ours, and it waits for the drain."""

from __future__ import annotations

import configparser
import shlex

from pilotfish_cloud.cli import _parser
from tests.deploy.files import DEPLOY

UNIT = DEPLOY / "systemd" / "pilotfish-verifier.service"


def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]
    return parser["Service"]


def test_the_commands_are_ours() -> None:
    for key, command in (("ExecStartPre", "check"), ("ExecStart", "serve")):
        program, *arguments = shlex.split(service()[key])
        assert program.endswith("/pilotfish-cloud")
        parsed = _parser().parse_args(arguments)
        assert parsed.command == command
        assert parsed.config == "/etc/pilotfish/pilotfish.toml"


def test_it_waits_for_the_drain() -> None:
    parsed = _parser().parse_args(shlex.split(service()["ExecStart"])[1:])
    assert float(service()["TimeoutStopSec"]) >= parsed.shutdown_timeout_s + 10
    assert service()["KillMode"] == "mixed"  # SIGTERM for the server, which ends its engine's process by itself
    assert "-HUP $MAINPID" in service()["ExecReload"]
    state = service()["StateDirectory"]
    assert str(parsed.usage_journal).startswith(f"/var/lib/{state}/")
    assert service()["ProtectSystem"] == "strict"
