"""The device's half of the protocol for one generation: draft ahead, commit, roll back, resume. No I/O, no clock.

The driver feeds events (each with ``now`` in seconds of any monotonic clock) and carries out the actions returned, in
order. Drafting is asked for: when ``draft_task`` returns a task the driver runs it in the drafter and brings the result
to ``drafted``; at most one task is out at a time.

::

    IDLE -start-> CONNECTING -opened-> STREAMING -finish-> FINISHED
                      ^  ^                 |
                      |  '-expired- WAITING <-lost-   (FAILED when it cannot be retried, CANCELLED by the caller)

A resume by a ticket claims what that covers, which may be less than the device holds: until the cloud has decided the
rest again the stream is REPEATING, between CONNECTING and STREAMING, and nothing is drafted.

With ``DeviceConfig.offline`` the device goes on alone once the link has been silent for a while: it drafts without a
window, and the app is shown that, unverified. When a stream is opened again, what was shown goes up as drafts (VERIFY),
becomes output (KEEP), or the app is asked while what the cloud commits is held back (ASKING).
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from pilotfish_core.device_actions import (
    Action,
    AskWhether,
    Connect,
    Deliver,
    DeviceConfig,
    DraftCounts,
    DraftTask,
    End,
    Keep,
    SendAcknowledge,
    SendDraft,
    SendHint,
    SendMode,
    SendPing,
    ShowUnverified,
)
from pilotfish_core.draft_policy import DraftPolicy, DraftPolicyConfig, PolicyMemory
from pilotfish_core.draft_tail import DraftTail
from pilotfish_core.drafts import Commit, Finish, FinishReason, Origin
from pilotfish_core.errors import PilotfishError, ProtocolViolation, Unavailable
from pilotfish_core.messages import Opened, Ping, Pong, Ticket
from pilotfish_core.modes import Advice, Hint, Mode, Pacing
from pilotfish_core.offline import OnReconnect, Unverified

if TYPE_CHECKING:
    from pilotfish_core.cloud_core import FinishRule

MAX_REPEATED: Final = 64  # tokens to have decided again; a ticket that is older than that is of another time
PREFILL: Final = 8  # tokens to take in before a draft from which on the time is not the draft's


class DeviceState(enum.Enum):
    """Life of a generation on the device."""

    IDLE = "idle"
    CONNECTING = "connecting"
    REPEATING = "repeating"  # what is known comes again
    ASKING = "asking"  # the app, what is to become of what it was shown
    STREAMING = "streaming"
    WAITING = "waiting"  # to try again
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


_CONNECTED = (DeviceState.CONNECTING, DeviceState.REPEATING, DeviceState.ASKING, DeviceState.STREAMING)
_ENDED = (DeviceState.FINISHED, DeviceState.FAILED, DeviceState.CANCELLED)


class DeviceCore:
    """One generation's protocol state on the device.

    ``output`` is the caller's list of committed output tokens (the generation holds it); it only ever grows.
    ``max_tokens`` bounds the whole output. ``memory`` is what earlier generations learned, and learns from this one.
    ``finish_rule`` makes the device's own judgement of where an answer ends, for what it writes while offline.
    """

    def __init__(
        self,
        *,
        prompt: Sequence[int],
        output: list[int],
        max_tokens: int,
        config: DeviceConfig,
        drafting: bool,
        attempt: int = 0,
        jitter: random.Random | None = None,
        memory: PolicyMemory | None = None,
        hint: Hint | None = None,
        ticket: Ticket | None = None,
        finish_rule: Callable[[], FinishRule] | None = None,
    ) -> None:
        self.state = DeviceState.IDLE
        self.counts = DraftCounts()
        self.attempt = attempt
        self.output = output
        self.ticket = ticket  # the last one, for all or nearly all of the output
        self._claimed = 0  # committed length that the cloud was told at the stream's begin
        self._opening: Opened | None = None  # while REPEATING
        self._prompt = tuple(prompt)
        self._max_tokens = max_tokens
        self._config = config
        self._jitter = jitter or random.Random()
        self._drafting = drafting
        self.policy = DraftPolicy(
            DraftPolicyConfig(
                window=config.window,
                adaptive=config.adaptive,
                arm=config.arm,
                objective=config.objective,
                tuning=config.tuning,
            ),
            memory,
            drafting=drafting,
            hint=hint,
        )
        self._said = Mode()  # the mode that the cloud knows
        self._turn = False  # in lockstep: whether a commit has come that was not answered yet
        self._granted = config.window  # draft tokens that the cloud takes
        self._max_length: int | None = None  # the target's context, known once opened
        self._tail = DraftTail(self.length)
        self._flush_at: float | None = None  # when the tokens not yet sent are, at the latest
        self._looking = False  # whether commits were taken since it looked ahead
        self._taken: list[tuple[int, int, bool, float]] = []  # of those, what the policy has not been told yet
        self._task: tuple[DraftTask, int, float] | None = None  # what is out, of which epoch, since when
        self._drafter_dry = False  # it had nothing to propose; asked again after the next commit
        self._acknowledged = 0
        self._acknowledge_every = config.acknowledge_every
        self._failures = 0
        self._ever_opened = False
        self._retry_at: float | None = None
        self._heard_at = 0.0
        self._ping: tuple[Ping, float] | None = None
        self._measured_at = 0.0  # when the last ping was sent
        self._nonce = 0
        self.away = False  # whether the device goes on alone
        self.unverified = Unverified(finish_rule)
        self._alive_at = 0.0  # when the link was last known to be there
        self._question = 0  # number of the last one asked
        self._settled = 0  # up to there it is settled that what was shown is verified
        self._held: list[Commit] = []  # while ASKING

    @property
    def length(self) -> int:
        """Committed length: prompt + output."""
        return len(self._prompt) + len(self.output)

    @property
    def tail(self) -> tuple[int, ...]:
        """The draft beyond the committed prefix."""
        return tuple(self._tail.tokens)

    @property
    def unshown(self) -> tuple[int, ...]:
        """The draft beyond what the app was shown."""
        return tuple(self._tail.tokens[len(self.unverified) :])

    @property
    def ended(self) -> bool:
        """Whether an End was returned."""
        return self.state in _ENDED

    def start(self, now: float) -> list[Action]:
        """Begin, or continue a loaded generation."""
        if self.state is not DeviceState.IDLE:
            raise ValueError(f"a generation was started that is {self.state.value}")
        self._alive_at = now
        return self._connect(now)

    def opened(self, message: Opened, now: float) -> list[Action]:
        """The cloud granted the stream: draft what is already drafted as its first branch."""
        if self.state is DeviceState.WAITING:
            return []  # it was given up, and goes on too late
        if self.state is not DeviceState.CONNECTING:
            return self._end(ProtocolViolation("the verifier opened a stream that was not asked for"))
        self.away, self._alive_at = False, now
        self._tail.cut(self._draft_limit())
        if self._config.offline is not None and self.unverified.tokens and self._shown_to > self._settled:
            match self._config.offline.on_reconnect:
                case OnReconnect.VERIFY:
                    self._settled = self._shown_to
                case OnReconnect.KEEP:
                    return [self._keep()]
                case OnReconnect.ASK:
                    return self._ask(message, now)
        return self._granted_by(message, now)

    def _granted_by(self, message: Opened, now: float) -> list[Action]:
        if self._claimed < self.length:
            self.state, self._opening = DeviceState.REPEATING, message
            self._ever_opened = True
            self._heard_at = now
            self._acknowledged = self._claimed
            return []
        return self._begin(message, now)

    def _begin(self, message: Opened, now: float) -> list[Action]:
        self.state, self._opening = DeviceState.STREAMING, None
        self._ever_opened = True
        self._heard_at = now
        self._granted = min(self._config.window, message.max_draft_tokens)
        self._max_length = message.max_model_len
        self._acknowledged = self.length
        self._tail.new_stream()
        self._judge()
        self._measured_at = now - self._config.measure_every_s
        self.policy.reconnected()
        self.policy.offered(message.cloud_draft)
        # An acknowledgement must come before the cloud pauses for the lack of it.
        self._acknowledge_every = max(1, min(self._config.acknowledge_every, message.max_unacknowledged // 2))
        self._refill()
        self._tail.cut(self._draft_limit())
        self._turn = False  # the first token comes from the prefill, without a draft
        return [*self._steer(), *self._flush()]

    def committed(self, commit: Commit, now: float) -> list[Action]:
        """The cloud committed tokens: ``take`` them and ``look_ahead``."""
        return [*self.take(commit, now), *self.look_ahead(now)]

    def take(self, commit: Commit, now: float) -> list[Action]:
        """The cloud committed tokens: what the app gets. To be followed by ``look_ahead``, apart from it because the
        app should have its text before anybody thinks about the next draft.

        What is known already is dropped; a gap loses the stream, which resumes.
        """
        if self.state is DeviceState.ASKING:
            return self._hold(commit, now)
        if self.state not in (DeviceState.REPEATING, DeviceState.STREAMING):
            return []
        self._heard_at = self._alive_at = now
        if commit.position > self.length:
            return self.lost(Unavailable(f"commits are missing: got {commit.position}, hold {self.length}"), now)
        known = min(self.length - commit.position, len(commit.tokens))
        begin = commit.position - len(self._prompt)
        if begin < 0 or list(commit.tokens[:known]) != self.output[begin : begin + known]:
            return self._end(ProtocolViolation("the verifier changed tokens that it had committed"))
        if commit.end > len(self._prompt) + self._max_tokens:
            return self._end(
                ProtocolViolation(f"the verifier committed more than the {self._max_tokens} tokens asked for")
            )
        actions: list[Action] = []
        if self._opening is not None:
            if commit.end < self.length:
                return self._repeated(commit)
            actions += [*self._begin(self._opening, now), SendAcknowledge(self.length)]
        fresh = commit.tokens[known:]
        confirmed, withdrawn = self.unverified.commit(fresh, last=commit.finish is not None)
        if fresh or withdrawn:
            self._failures = 0
            self._count(commit, known)
            self.counts.confirmed += confirmed
            self.counts.withdrawn += withdrawn
            self._advance(fresh, now)
            actions.append(
                Deliver(
                    fresh,
                    tuple(commit.origin_of(index) for index in range(known, len(commit.tokens))),
                    None if commit.logprobs is None else commit.logprobs[known:],
                    confirmed,
                    withdrawn,
                    len(self.unverified),
                    self.length - len(fresh),
                )
            )
        if commit.finish is not None:
            self.state = DeviceState.FINISHED
            self._forget_draft()
            return [*actions, End(commit.finish)]
        self._looking = True
        return actions

    def look_ahead(self, now: float) -> list[Action]:
        """What follows from the commits taken since the last time for the policy, and for the cloud to know."""
        self._judge()
        looking, self._looking = self._looking, False
        if self.state is not DeviceState.STREAMING or not looking:
            return []
        actions = self._steer()
        if self._said.pacing is Pacing.LOCKSTEP:
            self._turn = True
            if self._draft_limit() <= len(self._tail):
                actions += self._answer()  # there is nothing to draft: the cloud must not wait for it
        elif self._flush_at is None and self._tail.unsent and not self.policy.paused:
            actions += self._flush()  # drafted while paused
        if self.length - self._acknowledged >= self._acknowledge_every:
            self._acknowledged = self.length
            actions.append(SendAcknowledge(self.length))
        return actions

    def proved(self, ticket: Ticket) -> list[Action]:
        """The cloud gave a ticket; the newest one is kept."""
        if self.state is DeviceState.ASKING:
            return []  # for tokens that are held back
        if ticket.length > self.length:
            return self._end(ProtocolViolation("the verifier gave a ticket for tokens that it had not committed"))
        if self.ticket is None or ticket.length > self.ticket.length:
            self.ticket = ticket
        return []

    def draft_task(self, now: float) -> DraftTask | None:
        """What the drafter should do next; None when it should rest. The caller must bring the result."""
        if not self._drafting or self._task is not None or self._drafter_dry or self.ended:
            return None
        if self.state in (DeviceState.IDLE, DeviceState.ASKING) or (self.away and self.unverified.finish is not None):
            return None
        count = self._draft_limit() - max(len(self._tail), len(self.unverified))
        if self.away:
            count = min(self._config.draft_chunk, count)
        elif self._said.pacing is Pacing.LOCKSTEP:
            count = count if self._turn else 0
        else:
            in_flight = self._tail.in_flight + self._tail.unsent
            count = min(max(self._config.draft_chunk, self.policy.burst(in_flight)), count)
        if count <= 0:
            return None
        synced = self._tail.synced
        task = DraftTask(synced, self._context(synced), count)
        self._task = (task, self._tail.epoch, now)
        self._tail.synced = task.start
        return task

    def drafted(self, tokens: Sequence[int], now: float) -> list[Action]:
        """The drafter's result for the task that is out; none means that it has nothing to propose."""
        if self._task is None:
            raise ValueError("a draft was brought that was not asked for")
        (task, epoch, began), self._task = self._task, None
        self.counts.drafted += len(tokens)
        if len(task.extend) <= PREFILL:
            self.policy.drafted(len(tokens), now - began)
        if self.ended:
            return []
        fresh = tuple(tokens)
        if epoch != self._tail.epoch:
            fresh = self._salvage(task, fresh)
        else:
            self._tail.synced = task.start + len(fresh)
            self._drafter_dry = not fresh
        self._tail.tokens.extend(fresh)
        if self.away:
            return self._show()
        self._tail.cut(self._draft_limit())
        if self._said.pacing is Pacing.LOCKSTEP:
            return self._answer() if self.state is DeviceState.STREAMING and self._turn else []
        if self.state is not DeviceState.STREAMING or not self._tail.unsent or self.policy.paused:
            return []
        if self._drafter_dry or len(self._tail) >= self._draft_limit():
            return self._flush()
        if self._flush_at is None:
            self._flush_at = now + self.policy.gather_s(self._tail.in_flight)
        return self._flush() if now >= self._flush_at else []

    def drafter_failed(self) -> list[Action]:
        """The drafter cannot go on; the cloud decodes alone from here."""
        self._task = None
        self._drafting = False
        self._forget_draft()
        self.policy.drafter_failed()
        return self._steer()

    def advised(self, advice: Advice, now: float) -> list[Action]:
        """The cloud said what it knows and the device cannot."""
        self._heard_at = self._alive_at = now
        self.policy.advised(advice)
        return self._steer()

    def hinted(self, hint: Hint, now: float) -> list[Action]:
        """The app said how the device is."""
        if self.ended or hint == self.policy.hint:
            return []
        self.policy.hinted(hint)
        return [SendHint(hint), *self._steer()] if self.state is DeviceState.STREAMING else []

    def heard(self, message: Pong, now: float) -> list[Action]:
        """A pong arrived."""
        self._heard_at = self._alive_at = now
        if self._ping is not None and self._ping[0].nonce == message.nonce:
            self.policy.memory.round_trip.observe(now - self._ping[1], now)
            self._ping = None
        return []

    def lost(self, error: PilotfishError, now: float) -> list[Action]:
        """The stream ended without a finish. Waits and reconnects where that can help, else ends with the error."""
        if self.state not in _CONNECTED:
            return []
        if not error.retryable:
            return self._end(error)
        if self._all_held:
            return []  # the answer is here; only the app's word is missing
        self._failures += 1
        # Who says when to come again is there: the address is right, and only a replica or two are not.
        invited = isinstance(error, Unavailable) and error.retry_after_s is not None
        delay = self._config.retry.delay(
            self._failures, self._jitter, hint_s=error.retry_after_s, first=not (self._ever_opened or invited)
        )
        if delay is None:
            if self._config.offline is None:
                return self._end(error)
            delay = self._jitter.uniform(0.0, self._config.retry.cap_s)  # the app has its text, and the link may return
        self.state, self._opening = DeviceState.WAITING, None
        self._held.clear()
        self.counts.reconnects += 1
        self._retry_at = now + delay
        self._ping = None
        self._flush_at = None
        return []

    def cancel(self, now: float) -> list[Action]:
        """The caller ends the generation; what is committed stays."""
        if self.ended:
            return []
        self.state = DeviceState.CANCELLED
        self._forget_draft()
        return [End(Finish(FinishReason.ABORT))]

    def fail(self, error: PilotfishError, now: float) -> list[Action]:
        """The driver cannot go on (its deadline passed, the peer's frames make no sense)."""
        return [] if self.ended else self._end(error)

    def answered(self, number: int, choice: OnReconnect, now: float) -> list[Action]:
        """The app's answer to a question; of one that was not the last, or came too late, nothing follows."""
        if self.state is not DeviceState.ASKING or number != self._question or self._opening is None:
            return []
        if choice is OnReconnect.KEEP:
            return [self._keep()]
        self._settled = self._shown_to
        held, self._held = self._held, []
        self.state = DeviceState.CONNECTING
        actions = self._granted_by(self._opening, now)
        for commit in held:
            actions += self.take(commit, now)
        return actions

    def kept(self, now: float) -> list[Action]:
        """What was shown is to be output, and whose it is has been noted: the answer ends so, or goes on behind it."""
        tokens, finish = tuple(self.unverified.tokens), self.unverified.finish
        self.unverified.clear()
        self.counts.kept += len(tokens)
        self._refill_from(tokens)
        self._tail.commit(tokens)
        self.output.extend(tokens)
        self._held.clear()
        self._opening, self.ticket = None, None  # nobody can prove these
        self._settled = self.length
        if finish is not None:
            self.state = DeviceState.FINISHED
            self._forget_draft()
            return [End(finish)]
        return self._connect(now)

    def next_deadline(self) -> float | None:
        """When to call ``expired`` if nothing else happens before."""
        if self.ended or self.state is DeviceState.IDLE or self._all_held:
            return None
        deadlines = [self._away_at, self._flush_at]
        if self.state is DeviceState.WAITING:
            deadlines.append(self._retry_at)
        else:
            deadlines.append(self._ping_at if self._ping is None else self._silent_at(self._ping[1]))
        return min(deadline for deadline in deadlines if deadline is not None)

    def expired(self, now: float) -> list[Action]:
        """A deadline may have passed: try again, ask whether the link lives, or give the stream up."""
        deadline = self.next_deadline()
        if deadline is None or now < deadline:
            return []
        actions: list[Action] = []
        if self._away_at is not None and now >= self._away_at:
            actions += self._go_alone(now)
        if self.state is DeviceState.WAITING:
            return [*actions, *self._connect(now)] if self._retry_at is not None and now >= self._retry_at else actions
        if self._flush_at is not None and now >= self._flush_at:
            actions += self._flush()
        if self._ping is not None:
            if now >= self._silent_at(self._ping[1]):
                lost = Unavailable(f"nothing heard from the verifier for {now - self._heard_at:.0f} s")
                return [*actions, *self.lost(lost, now)]
        elif now >= self._ping_at:
            self._nonce += 1
            self._measured_at = now
            self._ping = (Ping(self._nonce), now)
            actions.append(SendPing(self._ping[0]))
        return actions

    def _silent_at(self, pinged_at: float) -> float:
        """When the stream is given up: whatever is heard after a ping is a sign of life, be it the pong or not."""
        return max(pinged_at, self._heard_at) + self._ping_timeout_s

    @property
    def _ping_at(self) -> float:
        """When to send the next ping: after a silence, and now and then to measure the round trip."""
        offline = self._config.offline
        silent = self._heard_at + (self._config.ping_after_s if offline is None else offline.after_s / 2)
        if self.state is not DeviceState.STREAMING or not self._drafting:
            return silent
        return min(silent, self._measured_at + self._config.measure_every_s)

    @property
    def _ping_timeout_s(self) -> float:
        offline = self._config.offline
        return self._config.ping_timeout_s if offline is None else min(self._config.ping_timeout_s, offline.after_s)

    # -- alone ------------------------------------------------------------------------------------------------------

    @property
    def _away_at(self) -> float | None:
        """When the link will have been silent for so long that the device goes on alone."""
        offline = self._config.offline
        return None if offline is None or self.away or not self._drafting else self._alive_at + offline.after_s

    @property
    def _shown_to(self) -> int:
        """Position up to which the app was shown anything."""
        return self.length + len(self.unverified)

    def _go_alone(self, now: float) -> list[Action]:
        """The link is silent: what was drafted is shown, and so is what follows."""
        error = Unavailable(f"nothing heard from the verifier for {now - self._alive_at:.0f} s")
        lost = [] if self.state is DeviceState.CONNECTING else self.lost(error, now)
        self.away = True
        self._flush_at = None
        self._drafter_dry = False
        self.unverified.begin(self.output)
        self._refill()
        return [*lost, *self._show()]

    def _show(self) -> list[Action]:
        """Show what is drafted and was not shown; what lies beyond the answer's end is dropped."""
        position = self._shown_to
        fresh = self.unverified.show(self._tail.tokens[len(self.unverified) :])
        self.counts.unverified += len(fresh)
        actions: list[Action] = [ShowUnverified(position, fresh)] if fresh else []
        if self.unverified.finish is not None:
            self._tail.cut(len(self.unverified))
            if self._config.offline is not None and self._config.offline.on_reconnect is OnReconnect.KEEP:
                actions.append(self._keep())
        return actions

    def _keep(self) -> Action:
        return Keep(tuple(self.unverified.tokens))

    def _ask(self, message: Opened, now: float) -> list[Action]:
        self.state, self._opening = DeviceState.ASKING, message
        self._ever_opened = True
        self._heard_at = now
        self._question += 1
        return [AskWhether(self._question, tuple(self.unverified.tokens))]

    def _hold(self, commit: Commit, now: float) -> list[Action]:
        """The cloud does not wait for the app's answer, but it pauses where nothing is acknowledged."""
        self._heard_at = self._alive_at = now
        self._held.append(commit)
        if len(self._held) > self._max_tokens + 1 or commit.end > len(self._prompt) + self._max_tokens:
            return self._end(
                ProtocolViolation(f"the verifier committed more than the {self._max_tokens} tokens asked for")
            )
        return []

    @property
    def _all_held(self) -> bool:
        """Whether the cloud has ended the answer while the app thinks."""
        return self.state is DeviceState.ASKING and bool(self._held) and self._held[-1].finish is not None

    def _refill(self) -> None:
        """What was shown is the draft, as far as it may be sent: nothing of it is drafted again."""
        if self._drafting:
            self._refill_from(self.unverified.tokens[: self._draft_limit()])

    def _refill_from(self, tokens: Sequence[int]) -> None:
        missing = tokens[len(self._tail) :]
        if missing:
            self._tail.refill(missing)

    def _connect(self, now: float) -> list[Action]:
        self.state = DeviceState.CONNECTING
        self._retry_at = None
        self._heard_at = now  # it may wait in the cloud's queue: only a missing pong says that nobody is there
        self.attempt += 1
        self._said, self._claimed = self.policy.mode, self.length
        ticket = self.ticket
        if ticket is None or not self.output or self.length - ticket.length > MAX_REPEATED:
            return [Connect(self.attempt, self._claimed, self._said)]
        if ticket.length < self.length:
            self._said, self._claimed = Mode(), ticket.length  # nothing is drafted before the cloud has caught up
        return [Connect(self.attempt, self._claimed, self._said, ticket.value)]

    def _repeated(self, commit: Commit) -> list[Action]:
        """The cloud has decided again what is known, and is not there yet."""
        if commit.finish is not None:
            return self._end(ProtocolViolation("the verifier ended before tokens that it had committed"))
        if self._opening is None or commit.end - self._acknowledged < self._opening.max_unacknowledged // 2:
            return []
        self._acknowledged = commit.end
        return [SendAcknowledge(commit.end)]

    def _steer(self) -> list[Action]:
        """Say so when the policy wants another mode than the cloud knows."""
        if self.state is not DeviceState.STREAMING or self.policy.mode == self._said:
            return []
        self._said = self.policy.mode
        self._turn = False
        return [SendMode(self._said)]

    def _answer(self) -> list[Action]:
        """In lockstep: the draft, or that there is none, so that the cloud goes on; which it does by itself while it
        has some of an earlier one.
        """
        self._turn = False
        return [] if self._tail and not self._tail.unsent else self._send_run()

    def _end(self, error: PilotfishError) -> list[Action]:
        self.state = DeviceState.FAILED
        self._forget_draft()
        return [End(None, error)]

    def _draft_limit(self) -> int:
        """How long the tail may be: the window, and no token that could not be committed before the last one."""
        room = self._max_tokens - len(self.output)
        if self._max_length is not None:
            room = min(room, self._max_length - self.length)
        if self.away:
            return max(room, 0)
        window = self._config.window if self.unverified.tokens else self.policy.window  # drafted already
        return max(min(window, self._granted, room - 1), 0)

    def _context(self, start: int) -> tuple[int, ...]:
        """Tokens of prompt + output + tail from position ``start`` on."""
        prompt_length = len(self._prompt)
        if start >= prompt_length:
            after = self.output[start - prompt_length :]
            skipped = max(start - self.length, 0)
            return (*after, *self._tail.tokens[skipped:])
        return (*self._prompt[start:], *self.output, *self._tail.tokens)

    def _advance(self, fresh: tuple[int, ...], now: float) -> None:
        """Move the committed prefix: keep the tail where it agrees, drop it where the target went elsewhere."""
        drafted = len(self._tail)
        agreed, refuted = self._tail.commit(fresh)
        self._taken.append((len(fresh), agreed, refuted, now))
        if agreed < len(fresh):
            self.counts.rollbacks += agreed < drafted
            self._flush_at = None
        self.output.extend(fresh)
        self._drafter_dry = False
        self._refill()

    def _judge(self) -> None:
        """Tell the policy what the commits taken say of its drafts."""
        taken, self._taken = self._taken, []
        for count, agreed, refuted, now in taken:
            self.policy.committed(count, agreed, refuted=refuted, now=now)

    def _forget_draft(self) -> None:
        self._tail.forget()
        self._flush_at = None

    def _salvage(self, task: DraftTask, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Of a stale result, what the target has since agreed with keeps the drafter's state, and what goes on from
        there is still a draft. Returns those tokens beyond the committed length.
        """
        if self._tail.synced != task.start or self._tail:
            return ()
        decided = self.output[task.start - len(self._prompt) :] if task.start >= len(self._prompt) else []
        agreed = 0
        while agreed < min(len(tokens), len(decided)) and tokens[agreed] == decided[agreed]:
            agreed += 1
        if agreed < len(decided):
            self._tail.synced = task.start + agreed
            return ()
        self._tail.synced = task.start + len(tokens)
        return tokens[agreed:]

    def _flush(self) -> list[Action]:
        """Send what has not been sent of the tail."""
        self._flush_at = None
        return [] if self.policy.paused or not self._tail.unsent else self._send_run()

    def _send_run(self) -> list[Action]:
        self._flush_at = None
        run, opens = self._tail.next_run()
        self.counts.sent += len(run.tokens)
        acknowledged = None
        if opens and self._acknowledged < self.length:
            acknowledged = self._acknowledged = self.length
        return [SendDraft(run, acknowledged)]

    def _count(self, commit: Commit, known: int) -> None:
        self.counts.commits += 1
        for index in range(known, len(commit.tokens)):
            match commit.origin_of(index):
                case Origin.ACCEPTED:
                    self.counts.accepted += 1
                case Origin.BONUS:
                    self.counts.bonus += 1
                case Origin.RECOVERED:
                    self.counts.recovered += 1
                case _:
                    self.counts.cloud += 1
