"""What the cloud does with drafts: how many of whose are verified in a step, and when a step waits for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq
from typing import Protocol

from pilotfish_core.estimators import StepTime
from pilotfish_core.goodput import Pipeline, best_hold
from pilotfish_core.scheduling.sequence import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Hold:
    """Wait for ``tokens`` draft tokens, at most ``seconds``."""

    seconds: float
    tokens: int


class SpeculationPolicy(Protocol):
    """Chooses the rows of drafts, and holds."""

    def draft_rows(self, candidates: Seq[Sequence], available: Seq[int], budget: int, now: float) -> list[int]:
        """Rows for each candidate, at most ``available`` of it (buffered drafts that fit), ``budget`` in all."""

    def hold(self, sequence: Sequence, others: int, now: float) -> Hold | None:
        """Whether ``sequence``, which has just committed, should wait for a draft; ``others`` run beside it."""

    def observe(self, rows: int, seconds: float) -> None:
        """A step of ``rows`` decode and verify rows took ``seconds``."""


@dataclasses.dataclass(frozen=True, slots=True)
class FixedRows:
    """Everyone gets up to ``cap`` rows; when the budget is short, the longest drafts lose their tails first."""

    cap: int

    def draft_rows(self, candidates: Seq[Sequence], available: Seq[int], budget: int, now: float) -> list[int]:
        """Water-filling: raise all shares evenly until the budget or the drafts are used up."""
        return fair_shares([min(count, self.cap) for count in available], budget)

    def hold(self, sequence: Sequence, others: int, now: float) -> Hold | None:
        """Never."""
        return None

    def observe(self, rows: int, seconds: float) -> None:
        """Times do not matter here."""


class Goodput:
    """Rows and holds that give the most tokens a second, by what was observed of devices and steps.

    The j-th draft token of a sequence with acceptance a is worth a^j; rows are given to the most valuable ones first,
    as long as the step's tokens a second grow. A hold is taken when the pipeline is expected to be faster with it by at
    least ``margin``; of at most ``hold_cap`` seconds (a late draft is waited for a little longer), and not for a device
    whose drafts have not been useful yet.
    """

    def __init__(self, cap: int, *, hold_cap: float = 0.05, margin: float = 0.02) -> None:
        self.step_time = StepTime()
        self._cap, self._hold_cap, self._margin = cap, hold_cap, margin

    def observe(self, rows: int, seconds: float) -> None:
        """A step of ``rows`` decode and verify rows took ``seconds``."""
        self.step_time.observe(rows, seconds)

    def draft_rows(self, candidates: Seq[Sequence], available: Seq[int], budget: int, now: float) -> list[int]:
        """The most valuable draft tokens, while they raise the step's goodput."""
        limits = [min(count, self._cap) for count in available]
        if not self.step_time.known:
            return fair_shares(limits, budget)
        values: list[tuple[float, int]] = []
        for index, (sequence, limit) in enumerate(zip(candidates, limits, strict=True)):
            rate = sequence.core.acceptance.rate
            values.extend((rate**place, index) for place in range(1, limit + 1))
        values.sort(key=lambda value: (-value[0], value[1]))
        tokens = float(len(candidates))
        best, best_rate = 0, tokens / self.step_time.of(len(candidates))
        for count, (value, _) in enumerate(values[:budget], start=1):
            tokens += value
            rate = tokens / self.step_time.of(len(candidates) + count)
            if rate > best_rate:
                best, best_rate = count, rate
        rows = [0] * len(candidates)
        for _, index in values[:best]:
            rows[index] += 1
        return rows

    def hold(self, sequence: Sequence, others: int, now: float) -> Hold | None:
        """A hold, when the device has to answer this commit with a new branch and waiting for it is expected to pay."""
        core = sequence.core
        response, gap = core.response.delay.value, core.response.gap.value
        if not core.refuted or core.buffered or response is None or not self.step_time.known:
            return None
        if core.acceptance.lower <= 0.05:
            return None
        pipeline = Pipeline(
            acceptance=core.acceptance.rate,
            response=response,
            gap=response if gap is None else gap,
            window=min(self._cap, core.limits.max_draft_tokens),
        )

        def step_time(rows: int) -> float:
            return self.step_time.of(rows + others)

        best = best_hold(pipeline, step_time, cap=self._hold_cap, margin=self._margin)
        if not best.tokens:
            return None
        return Hold(best.seconds + 2 * core.response.spread.or_else(0.0), best.tokens)


def fair_shares(wanted: Seq[int], budget: int) -> list[int]:
    """Divide ``budget`` as evenly as the demands allow; what does not divide goes to the earlier ones."""
    shares = [0] * len(wanted)
    left, open_count = budget, sum(count > 0 for count in wanted)
    for index in sorted(range(len(wanted)), key=lambda index: (wanted[index], -index)):
        if wanted[index] == 0:
            continue
        shares[index] = min(wanted[index], left // open_count)
        left -= shares[index]
        open_count -= 1
    for index, count in enumerate(wanted):
        extra = min(count - shares[index], left)
        shares[index] += extra
        left -= extra
    return shares
