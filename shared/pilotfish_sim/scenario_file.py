"""Scenarios as people write them: a YAML file, and ``--set link.rtt_ms=0,20,100``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter
from pilotfish_sim.scenario import Scenario
from pilotfish_sim.yaml_file import Values, read_file, read_yaml

__all__ = ["Grid", "Values", "combinations", "read_file", "read_sets", "scenario_of"]

Grid = list[tuple[str, list[Any]]]  # keys and their values, as --set has them
_SET: Final = "key=value, such as link.rtt_ms=50, or key=value,value,... in a sweep"


def read_sets(sets: Sequence[str]) -> Grid:
    """Keys and values of ``--set``. Raises InvalidParameter."""
    grid: Grid = []
    for given in sets:
        key, equals, value = given.partition("=")
        if not equals or not all(key.split(".")):
            raise InvalidParameter.of("--set", given, _SET)
        if key in dict(grid):
            raise InvalidParameter.of("--set", given, f"{key} once; several values go between commas")
        parts = _split(value)
        if not all(parts):
            raise InvalidParameter.of("--set", given, _SET)
        grid.append((key, [read_yaml(part, f"--set {key}") for part in parts]))
    for (one, _), (other, _) in itertools.permutations(grid, 2):
        if other.startswith(f"{one}.") and "." not in one and not _names_presets(grid, one):
            raise InvalidParameter.of("--set", one, f"not together with {other}")
    return grid


def combinations(grid: Grid) -> Iterator[dict[str, Any]]:
    """Every combination of the values, the last key changing fastest."""
    keys = [key for key, _ in grid]
    for values in itertools.product(*(values for _, values in grid)):
        yield dict(zip(keys, values, strict=True))


def scenario_of(values: Values, sets: dict[str, Any]) -> Scenario:
    """The file's values with those of ``--set`` over them. Raises InvalidParameter."""
    whole: Values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for key in sorted(sets, key=lambda key: key.count(".")):  # a preset before what changes it
        _put(whole, key.split("."), sets[key], key)
    return Scenario.of(whole)


def _put(values: Values, path: Sequence[str], value: Any, key: str) -> None:
    *above, last = path
    for name in above:
        inner = values.get(name)
        if inner is None:
            inner = values[name] = {}
        elif isinstance(inner, str):  # a preset by its name alone
            inner = values[name] = {"preset": inner}
        elif isinstance(inner, int | float | list) and name == "acceptance":
            inner = values[name] = {}
        if not isinstance(inner, dict):
            raise InvalidParameter.of("--set", key, f"a key; {name} is a value of its own, {inner!r}")
        values = inner
    values[last] = value


def _names_presets(grid: Grid, key: str) -> bool:
    return all(isinstance(value, str) for value in dict(grid)[key])


def _split(value: str) -> list[str]:
    """At commas outside of brackets and braces."""
    parts, depth, begin = [], 0, 0
    for place, character in enumerate(value):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(value[begin:place].strip())
            begin = place + 1
    return [*parts, value[begin:].strip()]
