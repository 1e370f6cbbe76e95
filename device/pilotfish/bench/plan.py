"""What is measured: the arms, the cells, and in which order the arms take turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

from pilotfish.bench.values import integer, number, several
from pilotfish_core.errors import InvalidParameter
from pilotfish_core.modes import Arm

ARMS: Final = tuple(arm for arm in Arm if arm is not Arm.DEVICE_ONLY)  # whose text no verifier decides
DEVICE_ARMS: Final = tuple(arm for arm in ARMS if arm.device_drafts)
NEEDING_CLOUD_MODEL: Final = (Arm.CO_LOCATED, Arm.CO_LOCATED_MODEL)
MAX_RTT_MS: Final = 60_000.0
MAX_CONCURRENCY: Final = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One setting in which all arms are compared: a round trip in milliseconds and a number of streams at once."""

    rtt_ms: float
    concurrency: int

    def __str__(self) -> str:
        return f"RTT {self.rtt_ms:g} ms, {self.concurrency} stream{'s' * (self.concurrency != 1)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One prompt (its index) of one repeat, answered by every arm in this order."""

    repeat: int
    prompt: int
    arms: tuple[Arm, ...]


def arms_of(text: str) -> tuple[Arm, ...]:
    """The arms between commas. Raises InvalidParameter."""
    return several("--arms", text, _arm, "arms between commas")


def cells_of(rtts: str, concurrencies: str) -> tuple[Cell, ...]:
    """Every round trip with every concurrency. Raises InvalidParameter."""
    times = several("--rtt", rtts, _rtt, "milliseconds between commas, such as 0,20,100")
    numbers = several("--concurrency", concurrencies, _concurrency, "numbers of streams between commas, such as 1,4")
    return tuple(Cell(rtt, concurrency) for rtt in times for concurrency in numbers)


def reference_of(arms: Sequence[Arm]) -> Arm:
    """Whose answers all others must be equal to: the cloud alone where it is measured, else the first arm."""
    return Arm.CLOUD if Arm.CLOUD in arms else arms[0]


def turns(arms: Sequence[Arm], prompts: int, repeats: int) -> Iterator[Turn]:
    """Every prompt of every repeat. The first arm changes from turn to turn, so that none is always the one after."""
    for repeat in range(repeats):
        for prompt in range(prompts):
            yield Turn(repeat, prompt, rotated(arms, repeat * prompts + prompt))


def rotated(arms: Sequence[Arm], by: int) -> tuple[Arm, ...]:
    """The arms, begun ``by`` places later."""
    begin = by % len(arms)
    return (*arms[begin:], *arms[:begin])


def _arm(name: str, text: str) -> Arm:
    try:
        arm = Arm(text)
    except ValueError:
        arm = Arm.DEVICE_ONLY
    if arm not in ARMS:
        raise InvalidParameter.of(name, text, f"one of {', '.join(ARMS)}")
    return arm


def _rtt(name: str, text: str) -> float:
    return number(name, text, 0, MAX_RTT_MS, "milliseconds")


def _concurrency(name: str, text: str) -> int:
    return integer(name, text, 1, MAX_CONCURRENCY)
