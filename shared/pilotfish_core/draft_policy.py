"""The device's half of the policy: which arm, how far to draft ahead, when to send. No clock, no I/O.

It knows what commits told: whether the drafted tokens were the target's, and how long the cloud takes between them;
what the drafter takes for a token; the round trip; and what the cloud says that its own drafts would gain. From these
``goodput`` says how much faster the answer comes in each arm than from the cloud alone.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any, Final

from pilotfish_core.estimators import Acceptance, Average, RoundTrip
from pilotfish_core.goodput import FlatStep, Pipeline, best_hold, best_lockstep
from pilotfish_core.modes import Advice, Arm, CloudDraft, Hint, Mode, Objective, Pace, Pacing
from pilotfish_core.tuning import DraftTuning

FIRST_WINDOW: Final = 2  # draft tokens ahead until the first comparisons are in
FIRST_COMPARISONS: Final = 4
FIRST_TRIES: Final = 8
REMEMBERED: Final = 8.0  # comparisons that what earlier generations showed stands for
FLUSH_S: Final = (0.001, 0.008)  # bounds of how long a draft token may wait to be sent with others
HOLD_CAP_S: Final = 0.05  # what a cloud holds at the most, by default
PROBE_EVERY: Final = (8, 64)  # committed tokens between probes while paused: at first, at most
STRIDE: Final = 4  # commits after a change of the arm that do not count
JUDGEMENTS: Final = 6  # after which they are believed
SPAN: Final = 24  # tokens over which an arm is judged
FADE: Final = 0.1  # of what is known of the other arms, for as many tokens
TRUTH: Final = (0.1, 1.5)  # bounds of one judgement
SLACK: Final = 0.03  # how much slower than the cloud alone an arm may be that saves something else
CO_LOCATED_TROUBLE: Final = 0.02  # share of the plain speed that drafts of the cloud's own must gain

_MODES: Final = {
    Arm.CLOUD: Mode(Pacing.PAUSED),
    Arm.CO_LOCATED: Mode(Pacing.PAUSED, CloudDraft.MODEL),
    Arm.CO_LOCATED_MODEL: Mode(Pacing.PAUSED, CloudDraft.MODEL),
    Arm.CO_LOCATED_NGRAM: Mode(Pacing.PAUSED, CloudDraft.NGRAM),
    Arm.LOCKSTEP: Mode(Pacing.LOCKSTEP),
    Arm.ASYNC: Mode(Pacing.FREE),
}


class DraftReason(enum.StrEnum):
    """Why the device drafts, or does not."""

    FIXED = "fixed"  # the caller named the arm
    RAMP = "ramp"  # too little is known yet
    USEFUL = "useful"  # drafts are expected to pay
    USELESS = "useless"  # the target does not agree with them
    SLOW = "slow"  # they would come too late
    CLOUD_DRAFTS = "cloud-drafts"  # the cloud's own are expected to pay more
    LOAD = "load"  # the cloud asked for none
    BATTERY = "battery"
    BYTES = "bytes"
    NO_DRAFTER = "no-drafter"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DraftPolicyConfig:
    """``window``: the most draft tokens ahead. ``adaptive``: False drafts that far always, for comparisons.

    ``arm``: the one to stay in, or AUTO. A fixed ASYNC still pauses while drafts do not pay, unless not adaptive.
    """

    window: int = 16
    adaptive: bool = True
    arm: Arm = Arm.AUTO
    objective: Objective = Objective.LATENCY
    flush_s: tuple[float, float] = FLUSH_S
    tuning: DraftTuning = dataclasses.field(default_factory=DraftTuning)


class PolicyMemory:
    """What one generation learned that the next may begin with: of the link, the drafter, and the cloud."""

    def __init__(self) -> None:
        self.acceptance = Acceptance(half_life=256.0)
        self.round_trip = RoundTrip()
        self.draft_time = Average(0.1)  # seconds a token
        self.advice: Advice | None = None
        self.cloud_draft = CloudDraft.NONE  # the best on offer
        # What the speed turned out to be over what was expected of an arm: the arithmetic takes acceptance to be the
        # same everywhere in a text and a device to answer at once, and both flatter.
        self.truth = {arm: Average(0.15) for arm in (Arm.CO_LOCATED, Arm.ASYNC)}


class DraftPolicy:
    """One generation's choices. Feed it with what is observed; ask ``arm``, ``mode``, ``window`` and ``flush_s``."""

    def __init__(
        self,
        config: DraftPolicyConfig,
        memory: PolicyMemory | None = None,
        *,
        drafting: bool = True,
        hint: Hint | None = None,
    ) -> None:
        self.config, self._tuning = config, config.tuning
        # So the device begins to draft from a gain of 5% and stops below 2%.
        self._trouble = {Arm.CLOUD: 0.0, Arm.CO_LOCATED: CO_LOCATED_TROUBLE, Arm.ASYNC: config.tuning.trouble}
        self.memory = memory or PolicyMemory()
        self.hint = hint or Hint()
        self.acceptance = Acceptance(
            prior=self.memory.acceptance.rate, weight=min(2.0 + self.memory.acceptance.compared, REMEMBERED)
        )
        self._remembered = min(self.memory.acceptance.compared, FIRST_COMPARISONS)
        self.step_time = Average(0.1)  # seconds between commits
        self.pauses = 0
        self._drafting = drafting
        self._expectation: tuple[float, float] | None = None
        self._stale = True  # something was observed since
        self._last_commit: float | None = None
        self._probe_every = PROBE_EVERY[0]
        self._since_probe = 0
        self._tried = 0  # results of the drafter
        self._elsewhere = 0
        self._span = (0, 0.0)  # tokens and seconds since the arm was last judged
        self._since_change = self._tuning.settled
        self.arm = self._first_arm()
        self.reason = self._reason(self.arm)
        self._decide()
        self._since_change = self._tuning.settled  # the first choice is nothing that must settle

    # -- choices ----------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """What the cloud is to know of the arm. Where AUTO lets the device draft, the cloud fills in by prompt lookup,
        which costs it next to nothing.
        """
        mode = _MODES[self.arm]
        if self.config.arm is Arm.AUTO and self.config.adaptive and self.arm is Arm.ASYNC:
            return dataclasses.replace(mode, cloud_draft=CloudDraft.NGRAM)
        return mode

    @property
    def paused(self) -> bool:
        """Whether the device sends no drafts."""
        return not self.arm.device_drafts

    @property
    def window(self) -> int:
        """Draft tokens ahead of the last known commit; while paused those of a probe, which is not sent."""
        if not self._drafting:
            return 0
        if self.arm is Arm.LOCKSTEP:
            return self._lockstep_window()
        if not self.config.adaptive:
            return 0 if self.paused else self.config.window
        if self.paused:
            return 1 if self._probes and self._since_probe >= self._probe_every else 0
        if not self._experienced:
            return min(self.config.window, FIRST_WINDOW)
        return min(self.config.window, self._depth)

    @property
    def flush_s(self) -> float:
        """How long a draft token may wait for others to be sent with, when the next step has enough to verify."""
        low, high = self.config.flush_s
        return min(high, max(low, self._tuning.flush_share * self.step_time.or_else(low)))

    def gather_s(self, in_flight: int) -> float:
        """How long what was just drafted may wait: only a moment while fewer than a step's worth are with the cloud,
        which may be holding a step for them, and not at all when it was several tokens.
        """
        if not self.config.adaptive or self.burst(in_flight) > 1:
            return 0.0
        return self.config.flush_s[0] if in_flight < self._tuning.enough else self.flush_s

    def burst(self, in_flight: int) -> int:
        """How many tokens to draft at a time. One, so that a commit is noticed soon; several while a step's worth is
        not with the cloud and no commit can come, as far as they are drafted in a small part of a step.
        """
        step, draft = self._plain_step(), self.memory.draft_time.value
        if not self.config.adaptive or in_flight >= self._tuning.enough or not step or not draft:
            return 1
        most = min(self._tuning.burst, self._tuning.burst_share * step / draft)  # a draft of no time at all: infinity
        return max(1, int(most))

    @property
    def objective(self) -> Objective:
        """What it strives for: the app's hints change it."""
        return self.hint.objective(self.config.objective)

    @property
    def pace(self) -> Pace | None:
        """What the cloud may begin with; None while nothing is known, or nothing will be drafted."""
        trip, draft = self.memory.round_trip.now, self.memory.draft_time.value
        if not self._drafting or trip is None or draft is None or self.memory.acceptance.compared < FIRST_COMPARISONS:
            return None
        return Pace(trip, draft, self.acceptance.rate)

    @property
    def gain(self) -> float | None:
        """Expected speed with the device's drafts over that of the cloud alone, minus 1; None while too little is
        known.
        """
        return self._gains().get(Arm.ASYNC)

    # -- observations -----------------------------------------------------------------------------------------------

    def drafted(self, tokens: int, seconds: float) -> None:
        """The drafter took ``seconds`` for ``tokens``."""
        if tokens:
            self.memory.draft_time.observe(seconds / tokens)
            self._tried += 1
            self._stale = True
            if self.paused:  # that was a probe, whether it comes in time to be compared or not
                self._since_probe, self._probe_every = 0, min(2 * self._probe_every, PROBE_EVERY[1])

    def committed(self, count: int, agreed: int, *, refuted: bool, now: float) -> None:
        """``count`` tokens were committed at ``now``; the first ``agreed`` were drafted so, the next was not if
        ``refuted``.
        """
        if self._last_commit is not None:
            self.step_time.observe(now - self._last_commit)
            self._judge(count, now - self._last_commit)
        self._last_commit = now
        self._stale = True
        self._since_probe += count
        self._since_change += 1
        if agreed or refuted:
            for acceptance in (self.acceptance, self.memory.acceptance):
                acceptance.observe(agreed, refuted=refuted)
            if self.paused and agreed:
                self._probe_every = PROBE_EVERY[0]
        self._decide()

    def offered(self, cloud_draft: CloudDraft) -> None:
        """The cloud opened the stream and can draft with this."""
        self.memory.cloud_draft = cloud_draft

    def advised(self, advice: Advice) -> None:
        """The cloud said what the device cannot know."""
        self.memory.advice = advice
        self._stale = True
        self._decide()

    def hinted(self, hint: Hint) -> None:
        """The app said how the device is."""
        self.hint = hint
        self._since_change = self._tuning.settled
        self._decide()

    def reconnected(self) -> None:
        """A new stream: the time since the last commit says nothing about steps."""
        self._last_commit = None
        self._span = (0, 0.0)

    def drafter_failed(self) -> None:
        """The device cannot draft any more."""
        self._drafting = False
        if self.arm.device_drafts:
            self._change(self._first_arm())

    def explain(self) -> dict[str, Any]:
        """The numbers behind the current choice. Times in milliseconds; gains over the cloud alone."""
        gains = {arm.value: round(value, 3) for arm, value in self._gains().items()}
        trip, advice = self.memory.round_trip, self.memory.advice
        return {
            "arm": self.arm.value,
            "reason": self.reason.value,
            "objective": self.objective.value,
            "paused": self.paused,
            "window": self.window,
            "flush_ms": round(self.flush_s * 1e3, 3),
            "acceptance": round(self.acceptance.rate, 3),
            "compared": self.acceptance.compared,
            "gains": gains,
            "gain": gains.get(Arm.ASYNC.value),
            "round_trip_ms": _ms(trip.now),
            "jitter_ms": _ms(trip.deviation),
            "draft_ms": _ms(self.memory.draft_time.value),
            "step_ms": _ms(self._plain_step()),
            "cloud_draft": self.memory.cloud_draft.name.lower(),
            "advice": None if advice is None else advice.reason or "go on",
        }

    # -- how --------------------------------------------------------------------------------------------------------

    @property
    def _experienced(self) -> bool:
        """Whether the acceptance rate means anything yet. When nothing ever comes in time to be compared, what the
        drafter takes says enough.
        """
        return self.acceptance.compared + self._remembered >= FIRST_COMPARISONS or self._tried >= FIRST_TRIES

    @property
    def _probes(self) -> bool:
        """Whether it is worth to look now and then whether drafts would do better by now."""
        return self.reason not in (DraftReason.FIXED, DraftReason.BATTERY, DraftReason.BYTES, DraftReason.NO_DRAFTER)

    @property
    def _lasting(self) -> float:
        """The acceptance that arms are chosen by: what all answers showed, as far as this one does not contradict it.
        What a few comparisons say changes with the luck of the draft, and so would the arm.
        """
        lower, upper = self.acceptance.bounds
        return min(max(self.memory.acceptance.rate, lower), upper)

    @property
    def _depth(self) -> int:
        return depth(self.acceptance.rate, self._tuning.worth)

    def _first_arm(self) -> Arm:
        if self.config.arm is not Arm.AUTO:
            wanted = self.config.arm
        else:
            wanted = Arm.ASYNC if self.objective in (Objective.LATENCY, Objective.CLOUD_COST) else Arm.CO_LOCATED
        if wanted.device_drafts and not self._drafting:
            return Arm.CO_LOCATED if self.config.arm is Arm.AUTO else Arm.CLOUD
        return wanted

    def _plain_step(self) -> float | None:
        """Seconds of a plain decode step: the cloud knows; else the time between commits has to do."""
        advice = self.memory.advice
        return advice.step_s if advice is not None and advice.step_s > 0 else self.step_time.value

    def _pipeline(self) -> tuple[Pipeline, float] | None:
        step, draft = self._plain_step(), self.memory.draft_time.value
        if step is None or step <= 0 or draft is None or not self._experienced:
            return None
        lasting = self._lasting
        pipeline = Pipeline(
            acceptance=lasting,
            response=(self.memory.round_trip.now or 0.0) + draft,
            gap=draft,
            window=min(self.config.window, depth(lasting, self._tuning.worth)),
        )
        return pipeline, step

    def _expected(self) -> tuple[float, float] | None:
        """Gain of drafting freely, and the target's time for a token then, plain decoding being 1."""
        if self._stale:
            self._expectation, self._stale = self._expect(), False
        return self._expectation

    def _expect(self) -> tuple[float, float] | None:
        known = self._pipeline()
        if known is None:
            return None
        pipeline, step = known
        best = best_hold(pipeline, FlatStep(step), cap=HOLD_CAP_S)
        return best.rate * step - 1.0, best.busy / step

    def _lockstep_window(self) -> int:
        known = self._pipeline() if self.config.adaptive else None
        if known is None:
            return min(self.config.window, 2 * FIRST_WINDOW) if self.config.adaptive else self.config.window
        pipeline, step = known
        return best_lockstep(pipeline, FlatStep(step))

    def _gains(self) -> dict[Arm, float]:
        """Of each arm that AUTO could take and of which enough is known, corrected by what came of it before."""
        return {arm: (1.0 + gain) * self._truth(arm) - 1.0 for arm, gain in self._raw_gains().items()}

    def _truth(self, arm: Arm) -> float:
        """How much of an arm's expected speed comes true; a few judgements, which the text sways, say little."""
        truth = self.memory.truth.get(arm)
        if truth is None:
            return 1.0
        return 1.0 + min(truth.count / JUDGEMENTS, 1.0) * (truth.or_else(1.0) - 1.0)

    def _raw_gains(self) -> dict[Arm, float]:
        gains = {Arm.CLOUD: 0.0}
        advice = self.memory.advice
        if advice is not None and advice.cloud_draft and self.memory.cloud_draft:
            gains[Arm.CO_LOCATED] = advice.cloud_gain
        expected = self._expected() if self._drafting else None
        if expected is not None:
            gains[Arm.ASYNC] = expected[0]
        return gains

    def _judge(self, tokens: int, seconds: float) -> None:
        """Compare what the arm was expected to bring with what it brings, once it is in its stride. What the others
        brought is slowly forgotten, or one that once disappointed would never be tried again.
        """
        self._elsewhere += tokens
        if self._elsewhere >= SPAN:
            self._elsewhere = 0
            for arm, truth in self.memory.truth.items():
                if arm is not self.arm:
                    truth.fade(1.0, FADE)
        if self.arm not in self.memory.truth or self._since_change < STRIDE:
            self._span = (0, 0.0)
            return
        self._span = (self._span[0] + tokens, self._span[1] + seconds)
        step, expected = self._plain_step(), self._raw_gains().get(self.arm)
        if self._span[0] < SPAN or self._span[1] <= 0.0 or step is None or expected is None:
            return  # commits that the app's answer released come all at once
        speed = self._span[0] / self._span[1] * step
        self.memory.truth[self.arm].observe(min(max(speed / (1.0 + expected), TRUTH[0]), TRUTH[1]))
        self._span = (0, 0.0)

    def _scores(self) -> dict[Arm, float]:
        """By the objective: in shares of the cloud alone, which has 0."""
        gains, objective = self._gains(), self.objective
        if objective in (Objective.BATTERY, Objective.BYTES):
            gains.pop(Arm.ASYNC, None)
        if objective is Objective.CLOUD_COST:
            saved = {Arm.CLOUD: 0.0}
            if Arm.CO_LOCATED in gains and self.memory.advice is not None:
                saved[Arm.CO_LOCATED] = 1.0 - self.memory.advice.cloud_cost
            expected = self._expected() if Arm.ASYNC in gains else None
            if expected is not None and gains[Arm.ASYNC] >= -SLACK:
                saved[Arm.ASYNC] = 1.0 - expected[1]
            gains = saved
        advice = self.memory.advice
        if advice is not None and advice.max_draft_tokens == 0:
            gains.pop(Arm.ASYNC, None)
        return {arm: gain - self._trouble[arm] for arm, gain in gains.items()}

    def _decide(self) -> None:
        if not self.config.adaptive or self.config.arm not in (Arm.AUTO, Arm.ASYNC):
            return
        scores = self._scores()
        if self.config.arm is Arm.ASYNC:
            scores.pop(Arm.CO_LOCATED, None)
        if self.arm is Arm.ASYNC and self._drafting and self._expected() is None and self._may_draft:
            return  # nothing is known yet: go on and find out
        best = max(scores, key=lambda arm: scores[arm])
        current = scores.get(self.arm, -math.inf)
        drafts_or_not = Arm.CLOUD in (best, self.arm)
        margin = self._tuning.hysteresis if drafts_or_not else self._tuning.rivalry * (1.0 + scores[best])
        settled = self._since_change >= self._tuning.settled or current == -math.inf
        if best is not self.arm and settled and scores[best] > current + margin:
            self._change(best)
        elif self.reason is DraftReason.RAMP and self.arm is Arm.ASYNC:
            self.reason = DraftReason.USEFUL

    @property
    def _may_draft(self) -> bool:
        advice = self.memory.advice
        asked = advice is None or advice.max_draft_tokens != 0
        return asked and self.objective in (Objective.LATENCY, Objective.CLOUD_COST)

    def _change(self, arm: Arm) -> None:
        if self.arm.device_drafts and not arm.device_drafts:
            self.pauses += 1
            self._since_probe, self._probe_every = 0, PROBE_EVERY[0]
        self.arm, self._since_change = arm, 0
        self.reason = self._reason(arm)

    def _reason(self, arm: Arm) -> DraftReason:
        if not self._drafting:
            return DraftReason.NO_DRAFTER
        if self.config.arm not in (Arm.AUTO, Arm.ASYNC) or not self.config.adaptive:
            return DraftReason.FIXED
        if arm.device_drafts:
            return DraftReason.RAMP if self._expected() is None else DraftReason.USEFUL
        if self.objective is Objective.BATTERY:
            return DraftReason.BATTERY
        if self.objective is Objective.BYTES:
            return DraftReason.BYTES
        if not self._may_draft:
            return DraftReason.LOAD
        gain = self.gain
        if arm is Arm.CO_LOCATED and gain is not None and gain > self._tuning.trouble:
            return DraftReason.CLOUD_DRAFTS
        return DraftReason.USELESS if self.acceptance.rate < 0.3 else DraftReason.SLOW


def depth(acceptance: float, worth: float) -> int:
    """How far ahead a draft token still is the target's with a probability of at least ``worth``."""
    if acceptance >= 0.99:
        return 300
    return max(1, math.floor(math.log(worth) / math.log(max(acceptance, 1e-6))))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
