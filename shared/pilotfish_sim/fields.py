"""Fields of a scenario that check themselves, so that a mistake in a file or a flag is one line that names it."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, Self

from pilotfish_core.errors import InvalidParameter

_CHECK: Final = "check"  # of a field's metadata: takes a value, returns what is kept, raises Wrong


class Wrong(ValueError):
    """A value is not what was expected; the message says what was."""


def number(default: float | None, low: float, high: float, unit: str = "", *, above: bool = False) -> Any:
    """A number in [low, high], or (low, high] with ``above``. A default of None allows None: none, or not given."""
    what = f"a number{' of ' + unit if unit else ''}"
    inside = f"{what} {'above' if above else 'from'} {low:g} to {high:g}"

    def check(value: Any) -> Any:
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Wrong(inside)
        if not low <= value <= high or (above and value == low):
            raise Wrong(inside)
        return float(value)

    return dataclasses.field(default=default, metadata={_CHECK: check})


def integer(default: int | None, low: int, high: int, unit: str = "") -> Any:
    """A whole number in [low, high]."""
    expected = f"a whole number{' of ' + unit if unit else ''} from {low} to {high}"

    def check(value: Any) -> Any:
        if value is None and default is None:
            return None
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not low <= value <= high:
            raise Wrong(expected)
        return int(value)

    return dataclasses.field(default=default, metadata={_CHECK: check})


def numbers(low: float, high: float) -> Any:
    """A list of numbers in [low, high], empty by default."""

    def check(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise Wrong(f"a list of numbers from {low:g} to {high:g}")
        for one in value:
            if isinstance(one, bool) or not isinstance(one, int | float) or not low <= one <= high:
                raise Wrong(f"a list of numbers from {low:g} to {high:g}")
        return tuple(float(one) for one in value)

    return dataclasses.field(default=(), metadata={_CHECK: check})


def flag(default: bool) -> Any:
    """true or false."""

    def check(value: Any) -> Any:
        if not isinstance(value, bool):
            raise Wrong("true or false")
        return value

    return dataclasses.field(default=default, metadata={_CHECK: check})


def text(default: str) -> Any:
    """Text."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise Wrong("text")
        return value

    return dataclasses.field(default=default, metadata={_CHECK: check})


def choice(default: Any, kind: type[enum.Enum]) -> Any:
    """One of an enumeration's values."""
    values = [str(one.value) for one in kind]

    def check(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise Wrong(f"one of {', '.join(values)}{meant(value, values)}") from None

    return dataclasses.field(default=default, metadata={_CHECK: check})


def constants(kind: type[Any]) -> Any:
    """A frozen dataclass of numbers above 0, or some of its fields by their names; its defaults by default."""
    defaults = kind()

    def check(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        names = [field.name for field in dataclasses.fields(kind)]
        if not isinstance(value, Mapping) or not set(value) <= set(names):
            raise Wrong(f"keys and values, of {', '.join(names)}")
        for name, one in value.items():
            whole = isinstance(getattr(defaults, name), int)
            if isinstance(one, bool) or not isinstance(one, int if whole else int | float) or not 0 < one <= 1e6:
                raise Wrong(f"{'a whole number' if whole else 'a number'} above 0 for {name}")
        return dataclasses.replace(defaults, **value)

    return dataclasses.field(default=defaults, metadata={_CHECK: check})


def checked(default: Any, check: Callable[[Any], Any]) -> Any:
    """Whatever ``check`` lets pass; it returns what is kept, and raises Wrong."""
    return dataclasses.field(default=default, metadata={_CHECK: check})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A group of fields under one key of a scenario. Raises InvalidParameter, by key, value and what was expected."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check = field.metadata.get(_CHECK)
            if check is None:
                continue
            value = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, check(value))
            except Wrong as wrong:
                raise self.wrong(field.name, value, str(wrong)) from None

    @classmethod
    def key(cls, name: str) -> str:
        """The whole name of a field."""
        return f"{cls.section}.{name}" if cls.section else name

    @classmethod
    def wrong(cls, name: str, value: object, expected: str) -> InvalidParameter:
        """The error about a field."""
        return InvalidParameter.of(cls.key(name), value.value if isinstance(value, enum.Enum) else value, expected)

    @classmethod
    def read(cls, given: Any) -> dict[str, Any]:
        """What was given under the section's key, as fields. Raises InvalidParameter for a name that is none."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(given, Mapping):
            raise InvalidParameter.of(cls.section, given, f"keys and values, of {', '.join(names)}")
        for name in given:
            if name not in names:
                raise unknown(cls.key(str(name)), [cls.key(known) for known in names])
        return dict(given)

    @classmethod
    def of(cls, given: Any) -> Self:
        """From what stands under the section's key in a file. Raises InvalidParameter."""
        return cls(**cls.read(given))


def unknown(name: str, known: Iterable[str]) -> InvalidParameter:
    """The error about a key that does not exist."""
    known = list(known)
    guess = meant(name, known)
    return InvalidParameter(f"{name} is not a key of a scenario{guess or '; known are ' + ', '.join(known)}")


def meant(value: object, known: Iterable[str]) -> str:
    """A guess at what was meant, to be put at a message's end; empty without one."""
    close = difflib.get_close_matches(str(value), list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
