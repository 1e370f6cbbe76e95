"""One table of options, read from a file, the environment and flags, in that order of precedence.

A dataclass declares its fields with ``option``; the names in a file (``hold_cap``), in the environment
(``PILOTFISH_HOLD_CAP``) and on the command line (``--hold-cap``) all follow from the declaration.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pilotfish_cloud.engine.model_source import is_model_id
from pilotfish_cloud.tables import read_table, unknown
from pilotfish_core.errors import InvalidParameter

PREFIX: Final = "PILOTFISH_"
_YES: Final = ("1", "true", "yes", "on")
_NO: Final = ("0", "false", "no", "off")
_METADATA: Final = "option"


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One option, complete: ``field`` of the dataclass, ``key`` in files; ``kind`` is int, float, bool, str, Path or,
    for several texts, tuple.
    """

    field: str
    key: str
    kind: type
    default: Any
    help: str
    metavar: str | None
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    positional: bool
    model: bool  # a path that may be a Hugging Face id instead
    bare: Path | None  # what the flag means without a value, and "true" elsewhere

    @property
    def flag(self) -> str:
        """As on the command line."""
        return f"--{self.key.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """As in the environment."""
        return f"{PREFIX}{self.key.upper()}"

    def check(self, value: Any) -> None:
        """Raises InvalidParameter for what is not among the choices or out of range."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise InvalidParameter.of(self.flag, value, " or ".join(self.choices))
        if self.low is not None and not self.low <= value <= (self.high or self.low):  # NaN neither
            kind = "an integer" if self.kind is int else "a number"
            raise InvalidParameter.of(self.flag, value, f"{kind} in [{self.low:g}, {self.high:.12g}]")


def option(
    default: Any,
    help: str,
    *,
    key: str | None = None,
    metavar: str | None = None,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    positional: bool = False,
    model: bool = False,
    bare: Path | None = None,
) -> Any:
    """A dataclass field that is an option; ``default`` may be dataclasses.MISSING."""
    metadata = {"key": key, "help": help, "metavar": metavar, "choices": tuple(choices), "low": low, "high": high}
    return dataclasses.field(
        default=default, metadata={_METADATA: metadata | {"positional": positional, "model": model, "bare": bare}}
    )


def options_of(kind: type) -> dict[str, Option]:
    """The options that a dataclass declares, by key."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        declared = field.metadata.get(_METADATA)
        if declared is None:
            continue
        rest = dict(declared)
        key = rest.pop("key") or field.name
        found[key] = Option(field=field.name, key=key, kind=_plain(hints[field.name]), default=field.default, **rest)
    return found


def add_flags(parser: argparse.ArgumentParser, options: Mapping[str, Option]) -> None:
    """Flags for all of them; one that was not given is not in the namespace."""
    for entry in options.values():
        shown = {} if entry.default in (None, "", (), dataclasses.MISSING) else {"(default: %s)": entry.default}
        text = " ".join([entry.help, *(form % value for form, value in shown.items())]).replace("%", "%%")
        extra: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if entry.positional:
            extra["default"] = None  # argparse would make a value of SUPPRESS
            parser.add_argument(entry.field, nargs="?", metavar=entry.metavar, type=entry.kind, **extra)
        elif entry.kind is bool:
            parser.add_argument(entry.flag, dest=entry.field, action=argparse.BooleanOptionalAction, **extra)
        else:
            if entry.choices:
                extra["choices"] = entry.choices
            if entry.bare is not None:
                extra |= {"nargs": "?", "const": entry.bare}
            if entry.kind is tuple:
                extra |= {"action": "append"}
            metavar = entry.metavar or ("N" if entry.kind in (int, float) else None)
            parser.add_argument(entry.flag, dest=entry.field, metavar=metavar, type=_read_as(entry), **extra)


def _read_as(entry: Option) -> type:
    """Of one value on the command line."""
    return str if entry.kind is tuple else entry.kind


@dataclasses.dataclass(frozen=True, slots=True)
class Layered:
    """Values by field, and where each came from: "default", a file's name, a variable or a flag."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]


def layered(
    options: Mapping[str, Option],
    *,
    file: Path | None,
    environment: Mapping[str, str],
    flags: argparse.Namespace,
) -> Layered:
    """Flags over environment over file. Raises FileFormatError, InvalidParameter, naming where the value stands."""
    values: dict[str, Any] = {}
    origins = {entry.field: "default" for entry in options.values()}
    if file is not None:
        for name, value in read_table(file, "the configuration file").items():
            entry = options.get(name.replace("-", "_"))
            if entry is None:
                raise unknown(file, name, options)
            values[entry.field] = _from_file(entry, value, file, name)
            origins[entry.field] = str(file)
    for entry in options.values():
        text = environment.get(entry.variable)
        if text is not None:
            values[entry.field] = _from_text(entry, text)
            origins[entry.field] = entry.variable
        if getattr(flags, entry.field, None) is not None:
            given = getattr(flags, entry.field)
            values[entry.field] = tuple(given) if entry.kind is tuple else given
            origins[entry.field] = entry.metavar or entry.field if entry.positional else entry.flag
    return Layered(values, origins)


def _plain(hint: Any) -> type:
    """int of ``int | None``, tuple of ``tuple[str, ...]``."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.cast("type", typing.get_origin(hint) or hint)


def _from_file(entry: Option, value: Any, file: Path, name: str) -> Any:
    if entry.bare is not None and isinstance(value, bool):
        return entry.bare if value else None
    if entry.kind is tuple:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return tuple(texts)
    if entry.kind is Path and isinstance(value, str):
        path = file.absolute().parent / Path(value).expanduser()  # what the file names lies beside it
        return Path(value) if entry.model and not path.exists() and is_model_id(value) else path
    if entry.kind is float and type(value) is int:
        return float(value)
    if type(value) is not entry.kind:
        raise InvalidParameter.of(f"{file}: {name}", value, _EXPECTED[entry.kind])
    return value


def _from_text(entry: Option, text: str) -> Any:
    try:
        if entry.kind is bool:
            return _truth(text)
        if entry.bare is not None and text.lower() in (*_YES, *_NO):
            return entry.bare if _truth(text) else None
        if entry.kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return entry.kind(text)
    except ValueError:
        raise InvalidParameter.of(entry.variable, text, _EXPECTED[entry.kind]) from None


def _truth(text: str) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise ValueError
    return text.lower() in _YES


_EXPECTED: Final[dict[type, str]] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "text, a path",
    tuple: "text, or a list of texts",
}
