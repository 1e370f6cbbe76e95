"""What the cloud does with drafts: how many of whose are verified in a step, and when a step waits for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq
from typing import Final, Protocol

from pilotfish_core.estimators import StepTime
from pilotfish_core.goodput import Pipeline, best_hold, best_own_draft, best_rows, best_wait
from pilotfish_core.modes import Advice, CloudDraft, Pacing
from pilotfish_core.own_draft import OwnDraft
from pilotfish_core.scheduling.sequence import Sequence

EXPLORE: Final = 16  # comparisons that show how good a source of the cloud's own is
FIRST_OWN: Final = 4  # draft tokens of it a step until then
PROBE_OWN_EVERY: Final = 32  # steps between looks at a source that did not pay
USEFUL: Final = 0.1  # acceptance below which no step waits for a draft
ADVISE_EVERY: Final = 16  # committed tokens between pieces of advice, at least


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

    def own_rows(self, own: OwnDraft, others: int, draft_seconds: float) -> int:
        """How many tokens the cloud should draft itself, at ``draft_seconds`` each, beside ``others``."""

    def advise(self, sequence: Sequence, own: OwnDraft | None, others: int, draft_seconds: float) -> Advice | None:
        """What the device should know; ``own``: the cloud's best source."""

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

    def own_rows(self, own: OwnDraft, others: int, draft_seconds: float) -> int:
        """Always all."""
        return self.cap

    def advise(self, sequence: Sequence, own: OwnDraft | None, others: int, draft_seconds: float) -> Advice | None:
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

    def __init__(self, cap: int, *, hold_cap: float = 0.05, margin: float = 0.0) -> None:
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
            rate = sequence.core.draft_rate
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
        """A hold, when waiting for what the device drafts now is expected to pay."""
        core = sequence.core
        response, gap = core.response.delay.value, core.response.gap.value
        if core.mode.pacing is not Pacing.FREE:
            return None
        if response is None or not self.step_time.known:
            return None
        if core.acceptance.rate < USEFUL or not core.acceptance.believed:
            return None
        pipeline = Pipeline(
            acceptance=core.acceptance.rate,
            response=response,
            gap=response if gap is None else gap,
            window=min(self._cap, core.limits.max_draft_tokens),
        )

        def step_time(rows: int) -> float:
            return self.step_time.of(rows + others)

        if core.buffered:
            best = best_wait(pipeline, core.buffered, step_time, cap=self._hold_cap, margin=self._margin)
        else:
            best = best_hold(pipeline, step_time, cap=self._hold_cap, margin=self._margin)
        if not best.tokens:
            return None
        return Hold(best.seconds + 2 * core.response.spread.or_else(0.0), best.tokens)

    def own_rows(self, own: OwnDraft, others: int, draft_seconds: float) -> int:
        """As many as give this sequence the most tokens a second; prompt lookup costs nothing, so all that it has."""
        if own.source is CloudDraft.NGRAM or not self.step_time.known:
            return self._cap
        if own.compared < EXPLORE:
            return min(self._cap, FIRST_OWN)
        best = best_own_draft(
            own.acceptance.rate, 1.0, self._cap, lambda rows: self.step_time.of(rows + others), draft_seconds
        ).tokens
        return best or int(own.idle() % PROBE_OWN_EVERY == 0)

    def advise(self, sequence: Sequence, own: OwnDraft | None, others: int, draft_seconds: float) -> Advice | None:
        """Now and then: a step's time, what the cloud's own drafts would gain, whether rows are scarce."""
        core = sequence.core
        if not self.step_time.known:
            return None
        if core.advised is not None and sequence.committed_len - core.advised[1] < ADVISE_EVERY:
            return None

        def step_time(rows: int) -> float:
            return self.step_time.of(rows + others)

        # Bad drafts are the device's own affair: it hears only of rows that the others take from it.
        hope = core.acceptance.upper
        rows = best_rows(hope, self._cap, self.step_time.of, others=others)
        scarce = rows < best_rows(hope, self._cap, self.step_time.of)
        advice = Advice(step_s=step_time(1), max_draft_tokens=rows if scarce else None, reason="load" if scarce else "")
        if own is None:
            return advice
        best = best_own_draft(own.acceptance.rate, own.presence.or_else(1.0), self._cap, step_time, draft_seconds)
        return dataclasses.replace(advice, cloud_draft=own.source, cloud_gain=best.gain, cloud_cost=best.cost)


def worth_saying(advice: Advice, sequence: Sequence) -> bool:
    """Whether it differs enough from what the device was last told."""
    if sequence.core.advised is None:
        return True
    last, _ = sequence.core.advised
    return (
        abs(advice.step_s - last.step_s) > 0.25 * last.step_s
        or abs(advice.cloud_gain - last.cloud_gain) > 0.1 * (1.0 + last.cloud_gain)
        or advice.cloud_draft is not last.cloud_draft
        or (advice.max_draft_tokens == 0) != (last.max_draft_tokens == 0)
    )


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
