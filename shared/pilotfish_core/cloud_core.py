"""The cloud's half of the protocol for one generation: verify, finish, commit. No I/O, no clock.

Events go in (each with ``now`` in seconds of any monotonic clock), values come out. The scheduler asks ``draft`` for
what to verify, the engine hands ``step`` the target's tokens, and the commit goes to the device.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Final, Protocol

from pilotfish_core.drafts import Commit, DraftBuffer, DraftRun, Finish, Origin, RunFate, TokenLogprobs
from pilotfish_core.errors import PilotfishError, ProtocolViolation, ResumeRefused, Unavailable
from pilotfish_core.estimators import Acceptance, Response
from pilotfish_core.modes import Advice, Hint, Mode, Pace, Pacing
from pilotfish_core.own_draft import OwnDraft

CLAIM_WEIGHT: Final = 6.0  # comparisons that what a device says of its drafts stands for


class FinishRule(Protocol):
    """Decides where an answer ends; keeps its own state over the tokens pushed so far."""

    def push(self, token: int) -> Finish | None:
        """Take in the next output token; returns the finish that it completes, if any."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CloudLimits:
    """What the cloud grants one generation."""

    max_draft_tokens: int = 64  # held beyond the commit, and thereby the device's largest window
    max_unacknowledged: int = 512  # committed tokens beyond the device's last acknowledgement
    acknowledge_timeout_s: float = 120.0  # paused for that long: the device is gone
    lockstep_timeout_s: float = 2.0  # in lockstep, for a run; then the target goes on alone


@dataclasses.dataclass(slots=True)
class VerifyCounts:
    """Counters of one generation, or of all. ``accepted_at[i]`` counts accepted tokens at draft position i of a step.
    What the cloud drafted itself is counted apart.
    """

    steps: int = 0
    drafted_steps: int = 0  # steps that had at least one draft token of the device
    draft_tokens: int = 0  # verified rows beyond the plain decode row
    accepted_tokens: int = 0
    stale_runs: int = 0
    own_draft_tokens: int = 0
    own_accepted_tokens: int = 0
    drafted_at: list[int] = dataclasses.field(default_factory=list)
    accepted_at: list[int] = dataclasses.field(default_factory=list)

    def record(self, drafted: int, accepted: int, *, own: bool) -> None:
        """Count one step; ``own``: its draft was the cloud's."""
        self.steps += 1
        if own:
            self.own_draft_tokens += drafted
            self.own_accepted_tokens += accepted
            return
        self.drafted_steps += drafted > 0
        self.draft_tokens += drafted
        self.accepted_tokens += accepted
        while len(self.drafted_at) < drafted:
            self.drafted_at.append(0)
            self.accepted_at.append(0)
        for index in range(drafted):
            self.drafted_at[index] += 1
            self.accepted_at[index] += index < accepted


class CloudState(enum.Enum):
    """Life of a generation on one replica."""

    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class CloudCore:
    """One generation's protocol state in the cloud.

    ``output`` starts as what the device claims to hold (empty at first, its committed tokens on a resume) and grows
    with each commit; committed tokens are never changed.

    Between ``draft`` and ``step`` (a step of the engine in flight) runs and acknowledgements may arrive; they touch
    the buffer only, and the next ``draft`` sees them.
    """

    def __init__(
        self,
        *,
        prompt_length: int,
        output: Sequence[int],
        finish_rule: FinishRule,
        vocabulary_size: int,
        max_output: int,
        limits: CloudLimits,
        now: float,
        mode: Mode | None = None,
        hint: Hint | None = None,
        pace: Pace | None = None,
        totals: VerifyCounts | None = None,
    ) -> None:
        """``totals``: counters of all generations, which this one adds to."""
        self.prompt_length = prompt_length
        self.output: list[int] = list(output)
        self.limits = limits
        self.counts = VerifyCounts()
        self._totals = totals or VerifyCounts()
        self.finish: Finish | None = None
        self.state = CloudState.RUNNING
        self._finish_rule = finish_rule
        self._max_output = max_output
        self._buffer = DraftBuffer(
            prompt_length,
            self.output,
            max_ahead=limits.max_draft_tokens,
            vocabulary_size=vocabulary_size,
        )
        self._acknowledged = self.length
        self._paused_since: float | None = None
        self._verifying: tuple[int, ...] | None = None
        self._verifying_own = False
        self.mode = mode or Mode()
        self.hint = hint or Hint()
        self.own: OwnDraft | None = None  # what the cloud drafts itself; the scheduler's to set
        self.advised: tuple[Advice, int] | None = None  # what was last said, and the length when last thought of
        self.acceptance = Acceptance() if pace is None else Acceptance(prior=pace.acceptance, weight=CLAIM_WEIGHT)
        self.response = Response()
        if pace is not None:
            self.response.delay.observe(pace.round_trip_s + pace.draft_s)
            self.response.gap.observe(pace.draft_s)
        self._hold: tuple[float, int] | None = None  # until when, or for how many draft tokens
        self._turn_until: float | None = None  # in lockstep: it is the device's turn, at the latest until then
        self._absent = False  # in lockstep: it let its turn pass, and is not waited for until it is heard of again

    @property
    def length(self) -> int:
        """Committed length: prompt + output."""
        return self.prompt_length + len(self.output)

    @property
    def runnable(self) -> bool:
        """Whether a step may be scheduled: running, not paused, none in flight. A hold is a matter of choice."""
        return self.state is CloudState.RUNNING and self._paused_since is None and self._verifying is None

    @property
    def refuted(self) -> bool:
        """Whether the device has to begin a new branch: the last one, if any, is not the target's text."""
        return not self._buffer.alive

    def steer(self, mode: Mode, now: float) -> None:
        """The device drafts otherwise from here on."""
        self.mode = mode
        self._hold = self._turn_until = None
        self._absent = False

    def hold(self, until: float, tokens: int) -> None:
        """Wait with the next step until ``tokens`` draft tokens are there, at the latest ``until``."""
        self._hold = (until, tokens)

    def held(self, now: float) -> bool:
        """Whether it still waits for a draft."""
        if self._turn_until is not None:
            if now < self._turn_until:
                return True
            self._turn_until = None
            self._absent = True
        if self._hold is not None and (now >= self._hold[0] or self.buffered >= self._hold[1]):
            self._hold = None
        return self._hold is not None

    @property
    def paused(self) -> bool:
        """Whether it waits for the device to acknowledge."""
        return self._paused_since is not None

    @property
    def buffered(self) -> int:
        """Valid draft tokens of the device waiting."""
        return len(self._buffer)

    @property
    def draftable(self) -> int:
        """Draft tokens that the next step could verify: the device's, or else the cloud's own."""
        return self.buffered or (0 if self.own is None else len(self.own.tokens))

    @property
    def draft_rate(self) -> float:
        """Acceptance to expect of those."""
        own = None if self.buffered else self.own
        return self.acceptance.rate if own is None or not own.tokens else own.acceptance.rate

    def open(self, now: float) -> Commit | None:
        """Evaluate the finish over a resumed output first: a lost last commit must not generate past the end.

        Returns an empty commit with the finish when the output is complete already. Raises ResumeRefused when the
        output goes on after its own end.
        """
        for index, token in enumerate(self.output):
            finish = self._finish_rule.push(token)
            if finish is None:
                continue
            if index != len(self.output) - 1:
                raise ResumeRefused(
                    f"the resumed output has {len(self.output)} tokens but ends after {index + 1} "
                    f"({finish.reason}); it cannot be continued"
                )
            return self._finished(finish)
        return None

    def receive(self, run: DraftRun, now: float) -> RunFate:
        """A draft run arrived. Raises ProtocolViolation (see DraftBuffer.receive)."""
        if self.state is not CloudState.RUNNING:
            return RunFate.STALE
        opens = run.branch > self._buffer.branch
        fate = self._buffer.receive(run)
        for counts in (self.counts, self._totals):
            counts.stale_runs += fate is not RunFate.KEPT
        if opens:
            self.response.opened(run.start, len(run.tokens), now)
        elif fate is RunFate.KEPT:
            self.response.continued(len(run.tokens), now)
        if opens or fate is RunFate.KEPT:  # stale runs say nothing of a device that can take its turn
            self._absent = False
        if fate is RunFate.KEPT:
            self._turn_until = None
        return fate

    def acknowledge(self, length: int, now: float) -> None:
        """The device holds the committed tokens up to ``length``. Raises ProtocolViolation beyond what was sent."""
        if length > self.length:
            raise ProtocolViolation(f"length {length} acknowledged, but only {self.length} is committed")
        self._acknowledged = max(self._acknowledged, length)
        if self._paused_since is not None and self._unacknowledged < self.limits.max_unacknowledged:
            self._paused_since = None

    def cancel(self, now: float) -> None:
        """The caller, or a newer attempt, ended it. A step in flight is thrown away by ``step``."""
        if self.state is CloudState.RUNNING:
            self.state = CloudState.CANCELLED
            self._buffer.clear()

    def fail(self, now: float) -> None:
        """The engine could not go on."""
        if self.state is CloudState.RUNNING:
            self.state = CloudState.FAILED
            self._buffer.clear()

    def draft(self, limit: int, now: float) -> tuple[int, ...]:
        """Begin a step: the draft tokens to verify, at most ``limit``, the first at the committed length.

        Never more than can still be committed: the last row always yields one more token.
        """
        if not self.runnable:
            raise ValueError(f"a step was begun on a generation that is {self.state.value}, paused or in a step")
        limit = max(min(limit, self._max_output - len(self.output) - 1), 0)
        self._verifying = self._buffer.peek(limit)
        self._verifying_own = not self._buffer and self.own is not None
        if self._verifying_own and self.own is not None:
            self._verifying = self.own.tokens[:limit]
        return self._verifying

    def abandon_step(self) -> None:
        """The step begun by ``draft`` will not be computed (preempted); the drafts stay."""
        self._verifying = None

    def step(
        self, targets: Sequence[int], now: float, logprobs: Sequence[TokenLogprobs] | None = None
    ) -> Commit | None:
        """End a step: ``targets[j]`` is the target's token after the committed prefix and j draft tokens.

        ``len(targets)`` is the number of draft tokens + 1. Returns the commit, or None when the generation was
        cancelled meanwhile.
        """
        drafted, self._verifying = self._verifying, None
        if self.state is not CloudState.RUNNING:
            return None
        if drafted is None or len(targets) != len(drafted) + 1:
            raise ValueError(f"{len(targets)} target tokens for draft {drafted}")
        accepted = 0
        while accepted < len(drafted) and drafted[accepted] == targets[accepted]:
            accepted += 1
        position, tokens, finish = self.length, list[int](), None
        for token in targets[: accepted + 1]:
            tokens.append(token)
            finish = self._finish_rule.push(token)
            if finish is not None:
                break
        accepted = min(accepted, len(tokens))
        own = self._verifying_own and bool(drafted)
        for counts in (self.counts, self._totals):
            counts.record(len(drafted), accepted, own=own)
        self._observe(() if own else drafted, tokens, accepted)
        if self.own is not None:
            self.own.committed(tokens)
        if own:  # to the device these are the cloud's tokens
            drafted, accepted = (), 0
        self.output.extend(tokens)
        self._buffer.committed()
        self.response.committed(self.length, now)
        origin = Origin.CLOUD
        if drafted:
            origin = Origin.BONUS if accepted == len(drafted) else Origin.RECOVERED
        commit = Commit(
            position=position,
            tokens=tuple(tokens),
            accepted=accepted,
            origin=origin,
            logprobs=None if logprobs is None else tuple(logprobs[: len(tokens)]),
        )
        if finish is not None:
            return dataclasses.replace(commit, finish=self._finished(finish).finish)
        if self.mode.pacing is Pacing.LOCKSTEP and not self._buffer and not self._absent:
            self._turn_until = now + self.limits.lockstep_timeout_s
        if self._unacknowledged >= self.limits.max_unacknowledged:
            self._paused_since = now
        return commit

    def next_deadline(self) -> float | None:
        """When to look at it again if nothing happens: the end of a hold, or ``expired``. None: nothing is pending."""
        if self.state is not CloudState.RUNNING:
            return None
        if self._paused_since is not None:
            return self._paused_since + self.limits.acknowledge_timeout_s
        if self._turn_until is not None:
            return self._turn_until
        return None if self._hold is None else self._hold[0]

    def expired(self, now: float) -> PilotfishError | None:
        """The deadline passed: fails a generation whose device stopped acknowledging, and says so."""
        if self.state is not CloudState.RUNNING or self._paused_since is None:
            return None
        if now < self._paused_since + self.limits.acknowledge_timeout_s:
            return None
        self.fail(now)
        return Unavailable(
            f"the device acknowledged nothing for {self.limits.acknowledge_timeout_s:g} s; resume to go on"
        )

    def _observe(self, drafted: tuple[int, ...], tokens: Sequence[int], accepted: int) -> None:
        """Learn from a step that committed ``tokens``, of which ``drafted`` (the device's) were verified: also from
        what the device drafted at their places and was not verified, but can be compared.
        """
        if accepted < len(drafted):
            self.acceptance.observe(accepted, refuted=accepted < len(tokens))
            return
        ahead = self._buffer.peek(len(tokens))
        agreed = 0
        while agreed < len(ahead) and ahead[agreed] == tokens[agreed]:
            agreed += 1
        self.acceptance.observe(agreed, refuted=agreed < len(ahead))

    @property
    def _unacknowledged(self) -> int:
        return self.length - self._acknowledged

    def _finished(self, finish: Finish) -> Commit:
        self.finish = finish
        self.state = CloudState.FINISHED
        self._buffer.clear()
        return Commit(position=self.length, tokens=(), finish=finish)
