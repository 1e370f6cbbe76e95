"""What speculation is worth: expected tokens and times of a pipeline of drafts, from few estimates. Pure arithmetic.

The model is the asynchronous scheme seen from the cloud. At time 0 a commit leaves that refuted the draft (a
*renewal*). The device's new branch begins to arrive ``response`` seconds later, a token every ``gap`` seconds, up to
``window`` beyond what the device knows to be committed. The cloud may *hold* its next step for a while; else it steps
at once, without a draft, and the branch stays alive as long as each token it decides so is the drafted one. Each draft
token is the target's with probability ``acceptance``, given those before it. Between renewals the expected tokens
divided by the expected time are the rate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final

MAX_PLAIN_STEPS: Final = 64  # without a draft, after which a branch does not matter any more
MIN_GAP_S: Final = 1e-5

StepTimeOf = Callable[[int], float]  # rows -> seconds


@dataclasses.dataclass(frozen=True, slots=True)
class FlatStep:
    """A step that takes the same time whatever its rows: all that a device knows of the target."""

    seconds: float

    def __call__(self, rows: int) -> float:
        """``seconds``."""
        return self.seconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What is known of one generation: see the module. Times in seconds."""

    acceptance: float
    response: float
    gap: float
    window: int


def expected_accepted(acceptance: float, drafts: int) -> float:
    """Mean number of accepted tokens of ``drafts``: a + a^2 + ... + a^drafts."""
    if acceptance >= 1.0:
        return float(drafts)
    return acceptance * (1.0 - acceptance**drafts) / (1.0 - acceptance)


def best_rows(acceptance: float, available: int, step_time: StepTimeOf, *, others: int = 0) -> int:
    """How many of ``available`` draft tokens one generation should verify in a step that has ``others`` more rows, each
    of which yields a token and waits for the step.
    """
    if isinstance(step_time, FlatStep):
        return available
    best, best_rate = 0, (1.0 + others) / step_time(1 + others)
    for drafts in range(1, available + 1):
        rate = (1.0 + others + expected_accepted(acceptance, drafts)) / step_time(1 + drafts + others)
        if rate > best_rate:
            best, best_rate = drafts, rate
    return best


@dataclasses.dataclass(frozen=True, slots=True)
class OwnDraftChoice:
    """How many tokens a source beside the target should draft a step (0: none); the expected speed over that without
    any draft, minus 1; and the time spent for a token, that of plain decoding being 1.
    """

    tokens: int
    gain: float
    cost: float


def best_own_draft(
    acceptance: float, presence: float, cap: int, step_time: StepTimeOf, draft_seconds: float
) -> OwnDraftChoice:
    """The best number of tokens to draft in turn with the target, each of them costing ``draft_seconds``.

    ``presence``: the share of steps for which the source has anything.
    """
    plain = step_time(1)
    best = OwnDraftChoice(0, 0.0, 1.0)
    for drafts in range(1, cap + 1):
        tokens = 1.0 + presence * expected_accepted(acceptance, drafts)
        time = presence * (step_time(1 + drafts) + drafts * draft_seconds) + (1.0 - presence) * plain
        cost = time / tokens / plain
        if 1.0 / cost - 1.0 > best.gain:
            best = OwnDraftChoice(drafts, 1.0 / cost - 1.0, cost)
    return best


def plain_rate(step_time: StepTimeOf) -> float:
    """Tokens a second without speculation."""
    return 1.0 / step_time(1)


@dataclasses.dataclass(frozen=True, slots=True)
class Expectation:
    """Tokens a second, and the seconds that the target computes for a token."""

    rate: float
    busy: float


def rate(pipeline: Pipeline, step_time: StepTimeOf, hold: float = 0.0) -> float:
    """Tokens a second when the cloud holds each step after a renewal for up to ``hold`` seconds."""
    return expect(pipeline, step_time, hold).rate


def expect(pipeline: Pipeline, step_time: StepTimeOf, hold: float = 0.0) -> Expectation:
    """What to expect when the cloud holds each step after a renewal for up to ``hold`` seconds."""
    a, gap, response = pipeline.acceptance, max(pipeline.gap, MIN_GAP_S), pipeline.response
    plain = step_time(1)
    tokens = time = 0.0
    alive, at = 1.0, hold
    time += hold
    for decided in range(MAX_PLAIN_STEPS):
        drafts = 0
        if at >= response:
            drafts = min(1 + math.floor((at - response) / gap + 1e-9) - decided, pipeline.window)
            drafts = best_rows(a, drafts, step_time) if drafts > 0 else 0
        if drafts > 0:
            step = step_time(1 + drafts)
            tokens += alive * (1.0 + expected_accepted(a, drafts))
            time += alive * step
            going_on = alive * a ** (drafts + 1)  # all accepted, and the bonus token is the next one drafted
            tokens_on, time_on = _streak(a, gap, pipeline.window, step_time)
            tokens += going_on * tokens_on
            time += going_on * time_on
            break
        tokens += alive
        time += alive * plain
        alive *= a
        at += plain
    return Expectation(tokens / time, (time - hold) / tokens)


def _streak(a: float, gap: float, window: int, step_time: StepTimeOf) -> tuple[float, float]:
    """Expected tokens and time of steps in a row that all have drafts, until one is refuted."""
    drafts = max(1, min(window, math.floor(step_time(1) / gap + 1e-9)))
    drafts = best_rows(a, drafts, step_time) or 1
    steps = 1.0 / (1.0 - min(a ** (drafts + 1), 0.999))
    return steps * (1.0 + expected_accepted(a, drafts)), steps * step_time(1 + drafts)


@dataclasses.dataclass(frozen=True, slots=True)
class HoldChoice:
    """To hold for ``tokens`` draft tokens, expected after ``seconds`` (both 0: not to hold), and the rate with it.

    ``busy``: of ``best_hold``, the seconds that the target then computes for a token.
    """

    seconds: float
    tokens: int
    rate: float
    busy: float = 0.0


def best_hold(pipeline: Pipeline, step_time: StepTimeOf, *, cap: float, margin: float = 0.0) -> HoldChoice:
    """The hold that gives the highest rate, at most ``cap`` seconds; none unless it is better by ``margin`` (a share).

    Only times at which a draft token arrives are worth waiting for.
    """
    plain = expect(pipeline, step_time)
    best = HoldChoice(0.0, 0, plain.rate, plain.busy)
    needed = best.rate * (1.0 + margin)
    for tokens in range(1, pipeline.window + 1):
        seconds = pipeline.response + (tokens - 1) * pipeline.gap
        if seconds > cap:
            break
        held = expect(pipeline, step_time, seconds)
        if held.rate > max(best.rate, needed):
            best = HoldChoice(seconds, tokens, held.rate, held.busy)
    return best


def best_wait(
    pipeline: Pipeline, buffered: int, step_time: StepTimeOf, *, cap: float, margin: float = 0.0
) -> HoldChoice:
    """Whether a step that has ``buffered`` draft tokens should wait for more of the branch, which the device goes on
    with when it hears of the commit. The rate is that of the one step; none unless it is better by ``margin``.
    """
    a = pipeline.acceptance
    now = (1.0 + expected_accepted(a, buffered)) / step_time(1 + buffered)
    best = HoldChoice(0.0, 0, now)
    needed = now * (1.0 + margin)
    for tokens in range(buffered + 1, pipeline.window + 1):
        seconds = pipeline.response + (tokens - buffered - 1) * pipeline.gap
        if seconds > cap:
            break
        waited = (1.0 + expected_accepted(a, tokens)) / (step_time(1 + tokens) + seconds)
        if waited > max(best.rate, needed):
            best = HoldChoice(seconds, tokens, waited)
    return best


def lockstep_rate(pipeline: Pipeline, step_time: StepTimeOf, drafts: int) -> float:
    """Tokens a second of stop-and-wait at a fixed draft length: the cloud waits for all of them, the device for the
    commit.
    """
    step = step_time(1 + drafts) + pipeline.response + (drafts - 1) * pipeline.gap
    return (1.0 + expected_accepted(pipeline.acceptance, drafts)) / step


def best_lockstep(pipeline: Pipeline, step_time: StepTimeOf) -> int:
    """The draft length at which stop-and-wait is fastest, at least 1."""
    lengths = range(1, max(pipeline.window, 1) + 1)
    return max(lengths, key=lambda drafts: lockstep_rate(pipeline, step_time, drafts))
