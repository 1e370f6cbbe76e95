"""A scenario: everything that decides a run. Frozen, checked at construction, comparable."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm, Objective
from pilotfish_sim.acceptance import Acceptance
from pilotfish_sim.fields import Section, choice, integer, meant, text, unknown
from pilotfish_sim.presets import PRESETS
from pilotfish_sim.target_model import Target
from pilotfish_sim.workload import Workload
from pilotfish_sim.world import Device, Link, Prices
from pilotfish_sim.yaml_file import read_file

ARMS: Final = tuple(arm for arm in Arm if arm is not Arm.DEVICE_ONLY)  # which needs no verifier: nothing to simulate
_PRESET: Final = "preset"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario(Section):
    """A run. Raises InvalidParameter, for what contradicts itself too."""

    section: ClassVar[str] = ""

    name: str = text("")
    seed: int = integer(0, 0, 2**63 - 1)
    arm: Arm = choice(Arm.AUTO, Arm)
    objective: Objective = choice(Objective.LATENCY, Objective)
    link: Link = dataclasses.field(default_factory=Link)
    device: Device = dataclasses.field(default_factory=Device)
    acceptance: Acceptance = dataclasses.field(default_factory=Acceptance)
    target: Target = dataclasses.field(default_factory=lambda: Target.of(PRESETS["target"]["plain-30ms"]))
    workload: Workload = dataclasses.field(default_factory=Workload)
    prices: Prices = dataclasses.field(default_factory=Prices)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arm not in ARMS:
            raise self.wrong("arm", self.arm, f"one of {', '.join(ARMS)}")
        if self.arm is Arm.CO_LOCATED_MODEL and self.target.draft_step_ms is None:
            raise self.wrong("arm", self.arm, "target.draft_step_ms to be given with it: the cloud's draft model")
        longest = self.workload.longest
        if longest > self.target.max_model_len:
            raise InvalidParameter.of(
                "target.max_model_len", self.target.max_model_len, f"at least {longest}, the longest prompt and output"
            )

    @classmethod
    def of(cls, given: Any) -> Self:
        """From nested mappings, as a file has them. Raises InvalidParameter."""
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            raise InvalidParameter.of("the scenario", given, f"keys and values, of {', '.join(_names(cls))}")
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in _names(cls):
                raise unknown(str(name), _names(cls))
            values[name] = _SECTIONS[name].of(_expanded(name, value)) if name in _SECTIONS else value
        return cls(**values)


_SECTIONS: Final[dict[str, type[Section]]] = {
    "link": Link,
    "device": Device,
    "acceptance": Acceptance,
    "target": Target,
    "workload": Workload,
    "prices": Prices,
}


def _names(cls: type[Section]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _expanded(section: str, given: Any) -> Any:
    """With its preset's keys, where it names one: ``lte``, or ``{preset: lte, rtt_ms: 90}``. A name such as
    ``calibration.yaml`` is that of a file with the section in it.
    """
    if isinstance(given, str):
        given = {_PRESET: given}
    if not isinstance(given, Mapping) or _PRESET not in given:
        return given
    known = PRESETS.get(section, {})
    name = given[_PRESET]
    if isinstance(name, str) and Path(name).suffix in (".yaml", ".yml"):
        known = {name: _section_of(Path(name), section)}
    if name not in known:
        key = f"{section}.{_PRESET}"
        raise InvalidParameter.of(key, name, f"one of {', '.join(known)}{meant(name, known)}")
    return {**known[name], **{key: value for key, value in given.items() if key != _PRESET}}


def _section_of(file: Path, section: str) -> Mapping[str, Any]:
    found = read_file(file).get(section)
    if not isinstance(found, Mapping):
        raise InvalidParameter.of(f"{section}.{_PRESET}", str(file), f"a file with keys and values under {section}")
    return found
