"""What an exported draft model is worth: measured after the export, against the checkpoint in float32."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pilotfish.drafters.model import ModelDrafter
from pilotfish.export.checkpoint import Checkpoint
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.sampling import coupled_token
from pilotfish_core.tokenizer import Tokenizer

TEMPERATURE: Final = 0.8
WINDOW: Final = 128  # tokens of one sequence
WINDOWS: Final = 3
_SECONDS: Final = 120.0  # then no further positions: large models in an interpreter take long
_FEWEST: Final = 16  # positions of a sequence, however long they take
_WARM_UP: Final = 8
_TIMED: Final = 64
_PARAMS: Final = SamplingParams(temperature=TEMPERATURE, seed=7)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Figures over ``positions`` positions of text that both models were given.

    ``relative_rms`` is the root mean square of the difference of logits over that of the reference's, each
    row centred (a constant added to a row changes nothing). The matches are shares of positions where both
    choose the same token: by arg-max, and by coupled sampling at temperature 0.8. They compare the export
    with its own checkpoint, not with a target. ``tokens_per_s`` is sequential drafting on one thread,
    sampling included; None where it would say nothing about the runtime.
    """

    positions: int
    relative_rms: float
    greedy_match: float
    coupled_match: float
    tokens_per_s: float | None

    def figures(self) -> dict[str, float]:
        """Those that were measured, by name."""
        return {name: figure for name, figure in dataclasses.asdict(self).items() if figure is not None}


def measure(
    checkpoint: Checkpoint,
    drafter: ModelDrafter,
    tokenizer: Tokenizer,
    text: str | None,
    *,
    timed: bool = True,
    progress: Callable[[float], None] = lambda done: None,
) -> Match:
    """Run ``text`` (None: a module of the standard library) through both, token by token as in drafting.

    ``progress`` is told the share that is done. After two minutes the rest of the text is left out.
    """
    sequences = _sequences(tokenizer, text, min(WINDOW, drafter.max_length))
    steps, taken = sum(len(ids) for ids in sequences), 0
    deadline = time.monotonic() + _SECONDS

    def step() -> None:
        nonlocal taken
        taken += 1
        progress(taken / steps)

    difference = reference_power = 0.0
    greedy = coupled = positions = 0
    for ids in sequences:
        reference = checkpoint.logits(ids)[:, : tokenizer.vocab_size]
        drafted = _drafted_logits(drafter, ids, deadline, step)[:, : tokenizer.vocab_size]
        reference = reference[: len(drafted)]
        positions += len(drafted)
        difference += float(np.square(_centred(drafted) - _centred(reference)).sum())
        reference_power += float(np.square(_centred(reference)).sum())
        for index, (row, other) in enumerate(zip(reference, drafted, strict=True)):
            greedy += int(row.argmax() == other.argmax())
            coupled += coupled_token(row, _PARAMS, index + 1) == coupled_token(other, _PARAMS, index + 1)
        if time.monotonic() > deadline:
            break
    progress(1.0)
    return Match(
        positions=positions,
        relative_rms=(difference / reference_power) ** 0.5 if reference_power else float(difference > 0),
        greedy_match=greedy / positions,
        coupled_match=coupled / positions,
        tokens_per_s=_speed(drafter, sequences[0]) if timed else None,
    )


def _drafted_logits(
    drafter: ModelDrafter, ids: Sequence[int], deadline: float, step: Callable[[], None]
) -> NDArray[np.float32]:
    context = drafter.open(_PARAMS, 0)
    rows: list[NDArray[np.float32]] = []
    for token in ids:
        if len(rows) >= _FEWEST and time.monotonic() > deadline:
            break
        context.extend([token])
        rows.append(context.logits())
        step()
    context.close()
    return np.stack(rows)


def _sequences(tokenizer: Tokenizer, text: str | None, length: int) -> list[list[int]]:
    if text is None:
        text = inspect.getsource(textwrap)  # real text, English and code, on every machine
    ids = tokenizer.encode(text, add_special_tokens=False)[: length * WINDOWS] or [0]
    return [ids[begin : begin + length] for begin in range(0, len(ids), length)]


def _centred(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    result: NDArray[np.float64] = wide - wide.mean(axis=1, keepdims=True)
    return result


def _speed(drafter: ModelDrafter, prompt: Sequence[int]) -> float:
    context = drafter.open(_PARAMS, len(prompt))
    context.extend(prompt[: max(1, drafter.max_length - _WARM_UP - _TIMED)])
    context.draft(_WARM_UP)
    begin = time.perf_counter()
    drafted = len(context.draft(_TIMED))
    seconds = time.perf_counter() - begin
    context.close()
    return drafted / seconds
