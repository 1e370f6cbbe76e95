"""The policy that gives the most tokens a second, by what was observed of devices and steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence as Seq
from typing import Final

import numpy as np

from pilotfish_core.estimators import Load, StepTime
from pilotfish_core.goodput import (
    HoldChoice,
    OwnDraftChoice,
    Pipeline,
    StepTimeOf,
    best_hold,
    best_own_draft,
    best_rows,
    best_wait,
    rate,
)
from pilotfish_core.modes import Advice, CloudDraft, Pacing
from pilotfish_core.own_draft import OwnDraft
from pilotfish_core.scheduling.row_policy import Hold, advice_due, fair_shares
from pilotfish_core.scheduling.sequence import Sequence
from pilotfish_core.tuning import RowTuning

EXPLORE: Final = 16  # comparisons that show how good a source of the cloud's own is
FIRST_OWN: Final = 4  # draft tokens of it a step until then
PROBE_OWN_EVERY: Final = 32  # steps between looks at a source that did not pay
REMEMBERED_STEPS: Final = 64  # that a result is used for at most: contexts grow


class Goodput:
    """Rows and holds that give the most tokens a second.

    **Rows.** The j-th draft token of a sequence with acceptance a is worth a^j; rows are given to the most valuable
    ones first, as long as the step's tokens a second grow: all that take part wait for each row, so under load the
    tails go first, and where a step's time goes with its rows nothing is drafted at all. Finding out costs little:
    drafts that are not verified are compared with what is committed all the same, a step is at most half as large
    again as any before, a gain within the noise of what steps take is none, and now and then a step does without.

    **Holds.** While others go on, who sits out misses a whole step and gains nothing by it: a token decided at once
    costs one draft token and leaves the rest of the branch alive if it was the drafted one. So a step waits only when
    everybody who could take part expects to gain by waiting until the last one's draft has arrived; at most
    ``hold_cap`` seconds (a late draft is waited for a little longer), and not for a device whose drafts have not been
    useful yet.
    """

    def __init__(
        self,
        cap: int,
        *,
        hold_cap: float = 0.05,
        margin: float = 0.0,
        row_sizes: Seq[int] = (),
        tuning: RowTuning | None = None,
    ) -> None:
        """``row_sizes``: to which the engine pads its steps: rows up to the next one cost nothing more."""
        self.step_time = StepTime(row_sizes=row_sizes)
        self._cap, self._hold_cap, self._margin = cap, hold_cap, margin
        self._tuning = tuning or RowTuning()
        self._load = Load()  # of the last step
        self._exponents = np.arange(1.0, cap + 1.0)
        # Results by what they were computed from, with the curve of that version.
        self._holds: dict[tuple[Pipeline, int, int], HoldChoice] = {}
        self._own_drafts: dict[tuple[float, float, int, float], OwnDraftChoice] = {}
        self._hopes: dict[tuple[float, int], int] = {}
        self._version, self._age = -1, 0

    def observe(self, rows: int, seconds: float, load: Load | None = None) -> None:
        """A step of ``rows`` decode and verify rows took ``seconds``."""
        self._load = load or Load()
        self._age += 1
        self.step_time.observe(rows, seconds, load)

    def draft_rows(self, candidates: Seq[Sequence], available: Seq[int], budget: int, now: float) -> list[int]:
        """The most valuable draft tokens, while they raise the step's goodput."""
        limits = [min(count, self._cap) for count in available]
        if not self.step_time.known:
            return fair_shares(limits, budget)
        plain, most = len(candidates), max(limits, default=0)
        if not most or self.step_time.unseen(plain) >= self._tuning.plain_every:
            return [0] * plain
        rates = np.array([sequence.core.draft_rate for sequence in candidates])
        lengths = np.array([sequence.committed_len for sequence in candidates], dtype=np.float64)
        worth = rates[:, None] ** self._exponents[:most]
        whose, place = np.nonzero(self._exponents[:most] <= np.array(limits)[:, None])
        values = worth[whose, place]
        budget = min(budget, math.floor(self._tuning.farther * self.step_time.most) - plain)
        order = np.argsort(-values, kind="stable")[: max(budget, 0)]
        times = self.step_time.base(plain + len(order))[plain : plain + len(order) + 1].copy()
        context = float(lengths.sum())
        times[1:] += (self._tuning.dearer - 1.0) * (times[1:] - times[0])
        times += (self.step_time.per_context + self.step_time.per_pair) * context
        times[1:] += self.step_time.per_pair * np.cumsum(lengths[whose[order]])
        tokens = np.full(len(order) + 1, float(plain))
        tokens[1:] += np.cumsum(values[order])
        goodput = tokens / times
        best = int(goodput.argmax())
        doubt = self.step_time.doubt(plain) + self.step_time.doubt(plain + best)
        if goodput[best] < goodput[0] * (1.0 + self._tuning.worthwhile + doubt):
            return [0] * plain
        rows: list[int] = np.bincount(whose[order[:best]], minlength=plain).tolist()
        return rows

    def holds(self, sequences: Seq[Sequence], others: int, busy: bool, now: float) -> list[Hold | None]:
        """All of them, or none: see the class."""
        none: list[Hold | None] = [None] * len(sequences)
        if busy or not 0 < len(sequences) <= self._tuning.together:
            return none
        beside = len(sequences) - 1
        chosen: list[tuple[Pipeline, HoldChoice, float]] = []
        for sequence in sequences:
            pipeline = self._pipeline(sequence)
            choice = None if pipeline is None else self._best_hold(pipeline, sequence.core.buffered, beside)
            if pipeline is None or choice is None or not choice.tokens:
                return none
            chosen.append((pipeline, choice, 2 * sequence.core.response.spread.or_else(0.0)))
        longest = max(choice.seconds for _, choice, _ in chosen)
        step_time = self._beside(beside)
        for pipeline, choice, _ in chosen:
            if choice.seconds < longest and rate(pipeline, step_time, longest) < rate(pipeline, step_time):
                return none
        return [Hold(longest + patience, choice.tokens) for _, choice, patience in chosen]

    def hold(self, sequence: Sequence, others: int, now: float) -> Hold | None:
        """What is best for one alone beside ``others`` that wait for it."""
        pipeline = self._pipeline(sequence)
        if pipeline is None:
            return None
        best = self._best_hold(pipeline, sequence.core.buffered, others)
        return Hold(best.seconds + 2 * sequence.core.response.spread.or_else(0.0), best.tokens) if best.tokens else None

    def own_rows(self, own: OwnDraft, others: int, draft_seconds: float) -> int:
        """As many as give this sequence the most tokens a second; prompt lookup costs nothing, so all that it has."""
        if own.source is CloudDraft.NGRAM or not self.step_time.known:
            return self._cap
        if own.compared < EXPLORE:
            return min(self._cap, FIRST_OWN)
        best = self._own_draft(own.acceptance.rate, 1.0, others, draft_seconds).tokens
        return best or int(own.idle() % PROBE_OWN_EVERY == 0)

    def advise(self, sequence: Sequence, own: OwnDraft | None, others: int, draft_seconds: float) -> Advice | None:
        """Now and then: a step's time, what the cloud's own drafts would gain, whether rows are scarce."""
        if not self.step_time.known or not advice_due(sequence):
            return None
        # Bad drafts are the device's own affair: it hears only of rows that the others take from it.
        hope = sequence.core.acceptance.upper
        rows, alone = self._hopeful_rows(hope, others), self._hopeful_rows(hope, 0)
        scarce = rows < alone
        advice = Advice(
            step_s=self._beside(others)(1), max_draft_tokens=rows if scarce else None, reason="load" if scarce else ""
        )
        if own is None:
            return advice
        best = self._own_draft(own.acceptance.rate, own.presence.or_else(1.0), others, draft_seconds)
        return dataclasses.replace(advice, cloud_draft=own.source, cloud_gain=best.gain, cloud_cost=best.cost)

    def _pipeline(self, sequence: Sequence) -> Pipeline | None:
        """What is known of a device, if its drafts may be worth waiting for; rounded, so that results can be kept."""
        core = sequence.core
        response, gap = core.response.delay.value, core.response.gap.value
        if core.mode.pacing is not Pacing.FREE or response is None or not self.step_time.known:
            return None
        if core.acceptance.rate < self._tuning.useful or not core.acceptance.believed:
            return None
        return Pipeline(
            acceptance=round(core.acceptance.rate, 2),
            response=_rounded(response),
            gap=_rounded(response if gap is None else gap),
            window=min(self._cap, core.limits.max_draft_tokens),
        )

    def _beside(self, others: int) -> StepTimeOf:
        """Times of a step that has ``others`` rows more."""
        load = self._load

        def step_time(rows: int) -> float:
            return self.step_time.of(rows + others, load)

        return step_time

    def _best_hold(self, pipeline: Pipeline, buffered: int, others: int) -> HoldChoice:
        self._forget_results()
        known = self._holds.get((pipeline, buffered, others))
        if known is None:
            step_time = self._beside(others)
            if buffered:
                known = best_wait(pipeline, buffered, step_time, cap=self._hold_cap, margin=self._margin)
            else:
                known = best_hold(pipeline, step_time, cap=self._hold_cap, margin=self._margin)
            self._holds[pipeline, buffered, others] = known
        return known

    def _own_draft(self, acceptance: float, presence: float, others: int, draft_seconds: float) -> OwnDraftChoice:
        self._forget_results()
        key = (round(acceptance, 2), round(presence, 2), others, _rounded(draft_seconds))
        known = self._own_drafts.get(key)
        if known is None:
            known = best_own_draft(key[0], key[1], self._cap, self._beside(others), draft_seconds)
            self._own_drafts[key] = known
        return known

    def _hopeful_rows(self, acceptance: float, others: int) -> int:
        self._forget_results()
        key = (round(acceptance, 2), others)
        known = self._hopes.get(key)
        if known is None:
            known = self._hopes[key] = best_rows(key[0], self._cap, self._alone, others=others)
        return known

    def _alone(self, rows: int) -> float:
        return self.step_time.of(rows, self._load)

    def _forget_results(self) -> None:
        """What was computed counts until the curve changes."""
        if self._version != self.step_time.version or self._age >= REMEMBERED_STEPS:
            self._version, self._age = self.step_time.version, 0
            self._holds.clear()
            self._own_drafts.clear()
            self._hopes.clear()


def _rounded(seconds: float) -> float:
    """Up, to two digits: devices that are much alike share results, and a hold is rather too long than too short."""
    if seconds <= 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return math.ceil(seconds / unit - 1e-9) * unit
