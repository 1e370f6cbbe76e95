"""The unit: its commands are ours, and it waits for the drain."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

from pilotfish_cloud.cli import _parser
from pilotfish_cloud.config import ServerConfig
from tests.deploy.files import DEPLOY, ROOT

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


def test_what_is_checked_is_what_is_served() -> None:
    checked, served = (shlex.split(service()[key]) for key in ("ExecStartPre", "ExecStart"))
    assert (checked[1], served[1]) == ("check", "serve")
    assert checked[2:] == served[2:]


def test_the_documented_configuration_is_taken(tmp_path: Path) -> None:
    """As it is, for one verifier; and with the lines that several need."""
    text = (ROOT / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"```toml\n# pilotfish\.toml\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "pilotfish.toml"
    flags = _parser().parse_args(shlex.split(service()["ExecStart"])[1:])
    file.write_text(block)
    assert ServerConfig.of(file=file, environment={}, flags=flags)[0].usage_journal is None
    file.write_text(re.sub(r"^# ", "", block, flags=re.MULTILINE))
    config = ServerConfig.of(file=file, environment={}, flags=flags)[0]
    assert config.redis_url is not None
    state = service()["StateDirectory"]
    assert str(config.usage_journal).startswith(f"/var/lib/{state}/")


def test_it_waits_for_the_drain() -> None:
    parsed = _parser().parse_args(shlex.split(service()["ExecStart"])[1:])
    assert float(service()["TimeoutStopSec"]) >= parsed.shutdown_timeout_s + 10
    assert service()["KillMode"] == "mixed"  # SIGTERM for the server, which ends its engine's process by itself
    assert "-HUP $MAINPID" in service()["ExecReload"]
    assert service()["ProtectSystem"] == "strict"
