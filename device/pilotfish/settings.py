"""What can be set once for all commands that talk to a verifier: flags before environment before a file."""

from __future__ import annotations

import argparse
import dataclasses
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pilotfish_core.errors import FileFormatError, InvalidParameter
from pilotfish_core.modes import Arm, Objective

FILE_VARIABLE: Final = "PILOTFISH_DEVICE_CONFIG"
MAX_BYTES: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One of them. ``name`` in the file and of the argument; ``variable`` of the environment, if it has one."""

    name: str
    kind: type
    default: Any = None
    variable: str = ""
    choices: tuple[str, ...] = ()
    path: bool = False  # what the file names lies beside it
    secret: bool = False


SETTINGS: Final[dict[str, Setting]] = {
    setting.name: setting
    for setting in (
        Setting("server", str, variable="PILOTFISH_VERIFIER"),
        Setting("api_key", str, secret=True),  # Credentials looks into the environment itself
        Setting("draft", str, "auto", variable="PILOTFISH_DRAFT"),
        Setting("draft_cache_bytes", int),
        Setting("tokenizer", str, path=True),
        Setting("model", str, ""),
        Setting("arm", str, "auto", choices=tuple(Arm)),
        Setting("objective", str, "latency", choices=tuple(Objective)),
        Setting("window", int, 16),
        Setting("offline", str, "wait", choices=("wait", "draft")),
        Setting("on_reconnect", str, "verify", choices=("verify", "keep")),
        Setting("ca", str, path=True),
        Setting("cert", str, path=True),
        Setting("key", str, path=True),
        Setting("pad", bool, False),
        Setting("insecure", bool, False),
        Setting("listen", str, "127.0.0.1:8080"),
        Setting("serve_key", str, variable="PILOTFISH_SERVE_KEY", secret=True),
    )
}
_ALIASES: Final = {"verifier": "server"}  # the word of the file and of --verifier
_EXPECTED: Final = {str: "text", int: "an integer", bool: "true or false"}


def settle(arguments: argparse.Namespace) -> None:
    """Fill in what no flag gave (an argument that is None), for the settings that the namespace has.

    ``arguments.config`` names the file; without it, $PILOTFISH_DEVICE_CONFIG or the usual one, which need not exist.
    Raises FileFormatError, InvalidParameter, which never show a key.
    """
    found = _read(arguments.config)
    for name, setting in SETTINGS.items():
        if getattr(arguments, name, setting) is not None:  # given, or not a setting of this command
            continue
        value = os.environ.get(setting.variable) if setting.variable else None
        if value is None:
            value = found.get(name, setting.default)
            if name == "api_key" and "PILOTFISH_API_KEY" in os.environ:
                value = None
        setattr(arguments, name, value)


def usual_file() -> Path:
    """``$XDG_CONFIG_HOME/pilotfish/config.toml``, else ``~/.config/pilotfish/config.toml``."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "pilotfish" / "config.toml"


def _read(named: str | None) -> Mapping[str, Any]:
    named = named or os.environ.get(FILE_VARIABLE) or None
    file = usual_file() if named is None else Path(named).expanduser()
    try:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())  # of what was opened, not of what the name means a moment later
            if not stat.S_ISREG(status.st_mode):
                raise FileFormatError(f"{file} is not a regular file")
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise FileFormatError(f"{file} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"{file} has more than {MAX_BYTES} bytes")
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        # The reason names a line and a column, never what stands there.
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise FileFormatError(f"{file} is not TOML: {reason}") from None
    values = {}
    for key, value in table.items():
        setting = SETTINGS.get(_ALIASES.get(key, key))
        if setting is None or key == "server":
            known = ", ".join(sorted({*SETTINGS, *_ALIASES} - {"server"}))
            raise FileFormatError(f"{file}: {key} is not known; known are {known}")
        values[setting.name] = _checked(setting, value, f"{file}: {key}", file)
    if os.name == "posix" and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        secrets = [name for name in values if SETTINGS[name].secret]
        if secrets:
            raise FileFormatError(
                f"{file} holds {secrets[0]} and can be read or changed by others (mode "
                f"{stat.S_IMODE(status.st_mode):04o}); say: chmod 600 {file}"
            )
    return values


def _checked(setting: Setting, value: Any, where: str, file: Path) -> Any:
    if type(value) is not setting.kind:
        expected = _EXPECTED[setting.kind]
        if setting.secret:
            raise InvalidParameter(f"{where} is not what it should be; expected {expected}")
        raise InvalidParameter.of(where, value, expected)
    if setting.choices and value not in setting.choices:
        raise InvalidParameter.of(where, value, f"one of {', '.join(setting.choices)}")
    if isinstance(value, str) and (setting.path or setting.name == "draft"):
        beside = file.absolute().parent / Path(value).expanduser()
        return str(beside) if setting.path or beside.exists() else value  # a draft may be no file: "ngram"
    return value
