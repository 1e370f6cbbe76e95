"""The device's half of the protocol for one generation: draft ahead, commit, roll back, resume. No I/O, no clock.

The driver feeds events (each with ``now`` in seconds of any monotonic clock) and carries out the actions returned, in
order. Drafting is asked for: when ``draft_task`` returns a task the driver runs it in the drafter and brings the result
to ``drafted``; at most one task is out at a time. ``DeviceState`` has the states and what leads from one to another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pilotfish_core.alone import Alone
from pilotfish_core.attempts import Acknowledgements, Attempts
from pilotfish_core.committed_prefix import CommittedPrefix
from pilotfish_core.device_actions import (
    Action,
    Deliver,
    DeviceConfig,
    DraftCounts,
    DraftTask,
    End,
    SendAcknowledge,
    SendHint,
)
from pilotfish_core.device_state import CONNECTED, ENDED, DeviceState
from pilotfish_core.draft_policy import DraftPolicy, PolicyMemory
from pilotfish_core.drafting_ahead import DraftingAhead
from pilotfish_core.drafts import Commit, Finish, FinishReason
from pilotfish_core.errors import PilotfishError, ProtocolViolation, Unavailable
from pilotfish_core.link_watch import LinkWatch
from pilotfish_core.messages import Opened, Pong, Ticket
from pilotfish_core.modes import Advice, Hint
from pilotfish_core.offline import OnReconnect

if TYPE_CHECKING:
    from pilotfish_core.cloud_core import FinishRule


__all__ = ["DeviceCore", "DeviceState"]


class DeviceCore:
    """One generation's protocol state on the device.

    ``output`` is the caller's list of committed output tokens (the generation holds it); it only ever grows.
    ``max_tokens`` bounds the whole output. ``memory`` is what earlier generations learned, and learns from this one.
    ``finish_rule`` makes the device's own judgement of where an answer ends, for what it writes while offline;
    ``unverified`` is what the app was shown so the last time, behind the output, before it was started anew.

    This class says in which state the generation is and what follows from an event; its parts hold the rest: streams
    (``Attempts``), signs of life (``LinkWatch``), drafting (``DraftingAhead``), what is done offline (``Alone``).
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
        unverified: Sequence[int] = (),
    ) -> None:
        self.state = DeviceState.IDLE
        self.counts = DraftCounts()
        self.output = output
        policy = DraftPolicy(config.policy, memory, drafting=drafting, hint=hint)
        self._config = config
        self._prefix = CommittedPrefix(prompt, output, max_tokens)
        self._attempts = Attempts(config.retry, attempt, ticket, jitter or random.Random())
        self._link = LinkWatch(config)
        self._acknowledgements = Acknowledgements(config.acknowledge_every)
        self._alone = Alone(config.offline, self._prefix, self.counts, finish_rule)
        self.unverified = self._alone.unverified  # what the app was shown while the link was away, and is not decided
        self._ahead = DraftingAhead(
            self._prefix, config, policy, self._alone, self._acknowledgements, self.counts, active=drafting
        )
        self._restored = tuple(unverified)
        self._opening: Opened | None = None  # of the stream, while REPEATING or ASKING
        self._looking = False  # whether commits were taken since it looked ahead
        self._taken: list[tuple[int, int, bool, float]] = []  # of those, what the policy has not been told yet

    @property
    def policy(self) -> DraftPolicy:
        """Who decides how far to draft; another one may take its place before the start."""
        return self._ahead.policy

    @policy.setter
    def policy(self, policy: DraftPolicy) -> None:
        self._ahead.policy = policy

    @property
    def length(self) -> int:
        """Committed length: prompt + output."""
        return self._prefix.length

    @property
    def attempt(self) -> int:
        """Number of the last stream that was asked for."""
        return self._attempts.number

    @property
    def ticket(self) -> Ticket | None:
        """The last one, for all or nearly all of the output."""
        return self._attempts.ticket

    @property
    def away(self) -> bool:
        """Whether the device goes on alone."""
        return self._alone.away

    @property
    def tail(self) -> tuple[int, ...]:
        """The draft beyond the committed prefix."""
        return tuple(self._ahead.tail.tokens)

    @property
    def unshown(self) -> tuple[int, ...]:
        """The draft beyond what the app was shown."""
        return tuple(self._ahead.tail.tokens[len(self.unverified) :])

    @property
    def ended(self) -> bool:
        """Whether an End was returned."""
        return self.state in ENDED

    # -- streams ----------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Begin, or continue a loaded generation."""
        if self.state is not DeviceState.IDLE:
            raise ValueError(f"a generation was started that is {self.state.value}")
        self._link.alive_at = now
        return [*self._alone.restore(self._restored), *self._connect(now)]

    def opened(self, message: Opened, now: float) -> list[Action]:
        """The cloud granted the stream: draft what is already drafted as its first branch."""
        if self.state is DeviceState.WAITING:
            return []  # it was given up, and goes on too late
        if self.state is not DeviceState.CONNECTING:
            return self._end(ProtocolViolation("the verifier opened a stream that was not asked for"))
        self._link.heard(now)
        self._attempts.opened()
        what = self._alone.back()
        self._ahead.cut()
        match what:
            case OnReconnect.KEEP:
                return [self._alone.keep()]
            case OnReconnect.ASK:
                self.state, self._opening = DeviceState.ASKING, message
                return [self._alone.ask()]
            case OnReconnect.VERIFY:
                self._alone.settle()
        return self._granted_by(message, now)

    def lost(self, error: PilotfishError, now: float) -> list[Action]:
        """The stream ended without a finish. Waits and reconnects where that can help, else ends with the error."""
        if self.state not in CONNECTED:
            return []
        if not error.retryable:
            return self._end(error)
        if self._alone.all_held:
            return []  # the answer is here; only the app's word is missing
        if not self._attempts.failed(error, now, for_ever=self._config.offline is not None):
            return self._end(error)
        self.state, self._opening = DeviceState.WAITING, None
        self.counts.reconnects += 1
        self._alone.release()
        self._link.left()
        self._ahead.left()
        return []

    def proved(self, ticket: Ticket) -> list[Action]:
        """The cloud gave a ticket; the newest one is kept."""
        if self.state is DeviceState.ASKING:
            return []  # for tokens that are held back
        if ticket.length > self.length:
            return self._end(ProtocolViolation("the verifier gave a ticket for tokens that it had not committed"))
        self._attempts.proved(ticket)
        return []

    def _connect(self, now: float) -> list[Action]:
        self.state = DeviceState.CONNECTING
        self._link.connecting(now)
        connect = self._attempts.next(self._prefix, self.policy.mode)
        self._ahead.said = connect.mode
        return [connect]

    def _granted_by(self, message: Opened, now: float) -> list[Action]:
        if self._attempts.claimed < self.length:
            self.state, self._opening = DeviceState.REPEATING, message
            self._link.opened(now)
            self._acknowledgements.repeat(self._attempts.claimed)
            return []
        return self._begin(message, now)

    def _begin(self, message: Opened, now: float) -> list[Action]:
        self.state, self._opening = DeviceState.STREAMING, None
        self._link.opened(now)
        self._acknowledgements.begin(self.length, message)
        self._judge()
        return self._ahead.granted(message)

    # -- commits ----------------------------------------------------------------------------------------------------

    def committed(self, commit: Commit, now: float) -> list[Action]:
        """The cloud committed tokens: ``take`` them and ``look_ahead``."""
        return [*self.take(commit, now), *self.look_ahead(now)]

    def take(self, commit: Commit, now: float) -> list[Action]:
        """The cloud committed tokens: what the app gets. To be followed by ``look_ahead``, apart from it because the
        app should have its text before anybody thinks about the next draft.

        What is known already is dropped; a gap loses the stream, which resumes.
        """
        if self.state not in (DeviceState.ASKING, DeviceState.REPEATING, DeviceState.STREAMING):
            return []
        self._link.heard(now)
        try:
            if self.state is DeviceState.ASKING:
                self._alone.hold(commit)
                return []
            if commit.position > self.length:
                return self.lost(Unavailable(f"commits are missing: got {commit.position}, hold {self.length}"), now)
            known = self._prefix.known(commit)
            if self._opening is not None and commit.end < self.length:
                return [*self._acknowledgements.repeated(commit, self._opening)]
        except ProtocolViolation as error:
            return self._end(error)
        actions: list[Action] = []
        if self._opening is not None:
            actions += [*self._begin(self._opening, now), SendAcknowledge(self.length)]
        fresh = commit.tokens[known:]
        confirmed, withdrawn = self.unverified.commit(fresh, last=commit.finish is not None)
        if fresh or withdrawn:
            self._attempts.progressed()
            self.counts.count(commit, known, confirmed=confirmed, withdrawn=withdrawn)
            position = self.length
            self.output.extend(fresh)
            agreed, refuted = self._ahead.committed(fresh)
            self._taken.append((len(fresh), agreed, refuted, now))
            actions.append(Deliver.of(commit, known, position, confirmed, withdrawn, undecided=len(self.unverified)))
        if commit.finish is not None:
            return [*actions, self._finish(commit.finish)]
        self._looking = True
        return actions

    def look_ahead(self, now: float) -> list[Action]:
        """What follows from the commits taken since the last time for the policy, and for the cloud to know."""
        self._judge()
        looking, self._looking = self._looking, False
        if self.state is not DeviceState.STREAMING or not looking:
            return []
        return [*self._ahead.look_ahead(), *self._acknowledgements.due(self.length)]

    def _judge(self) -> None:
        """Tell the policy what the commits taken say of its drafts."""
        taken, self._taken = self._taken, []
        for count, agreed, refuted, now in taken:
            self.policy.committed(count, agreed, refuted=refuted, now=now)

    # -- the drafter and the policy ---------------------------------------------------------------------------------

    def draft_task(self, now: float) -> DraftTask | None:
        """What the drafter should do next; None when it should rest. The caller must bring the result."""
        if self.ended or self.state in (DeviceState.IDLE, DeviceState.ASKING) or self._alone.complete:
            return None
        return self._ahead.task(now)

    def drafted(self, tokens: Sequence[int], now: float) -> list[Action]:
        """The drafter's result for the task that is out; none means that it has nothing to propose."""
        self._ahead.drafted(tokens, now, wanted=not self.ended)
        if self.ended:
            return []
        if self.away:
            return self._alone.show(self._ahead.tail)
        return self._ahead.sendable(now, streaming=self.state is DeviceState.STREAMING)

    def drafter_failed(self) -> list[Action]:
        """The drafter cannot go on; the cloud decodes alone from here."""
        self._ahead.failed()
        return self._steer()

    def advised(self, advice: Advice, now: float) -> list[Action]:
        """The cloud said what it knows and the device cannot."""
        self._link.heard(now)
        self.policy.advised(advice)
        return self._steer()

    def hinted(self, hint: Hint, now: float) -> list[Action]:
        """The app said how the device is."""
        if self.ended or hint == self.policy.hint:
            return []
        self.policy.hinted(hint)
        return [SendHint(hint), *self._steer()] if self.state is DeviceState.STREAMING else []

    def _steer(self) -> list[Action]:
        return self._ahead.steer() if self.state is DeviceState.STREAMING else []

    # -- time -------------------------------------------------------------------------------------------------------

    def heard(self, message: Pong, now: float) -> list[Action]:
        """A pong arrived."""
        round_trip = self._link.answered(message, now)
        if round_trip is not None:
            self.policy.memory.round_trip.observe(round_trip, now)
        return []

    def next_deadline(self) -> float | None:
        """When to call ``expired`` if nothing else happens before."""
        if self.ended or self.state is DeviceState.IDLE or self._alone.all_held:
            return None
        waiting = self.state is DeviceState.WAITING
        stream = self._attempts.retry_at if waiting else self._link.deadline(measuring=self._measuring)
        deadlines = (self._away_at, self._ahead.flush_at, stream)
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
            retry_at = self._attempts.retry_at
            return [*actions, *self._connect(now)] if retry_at is not None and now >= retry_at else actions
        if self._ahead.flush_at is not None and now >= self._ahead.flush_at:
            actions += self._ahead.flush()
        match self._link.due(now, measuring=self._measuring):
            case Unavailable() as silence:
                actions += self.lost(silence, now)
            case ping if ping is not None:
                actions.append(ping)
        return actions

    @property
    def _measuring(self) -> bool:
        return self.state is DeviceState.STREAMING and self._ahead.active

    # -- alone ------------------------------------------------------------------------------------------------------

    @property
    def _away_at(self) -> float | None:
        return self._alone.begins_at(self._link.alive_at) if self._ahead.active else None

    def _go_alone(self, now: float) -> list[Action]:
        """The link is silent: what was drafted is shown, and so is what follows."""
        silence = self._link.silence(now, self._link.alive_at)
        lost = [] if self.state is DeviceState.CONNECTING else self.lost(silence, now)
        self._alone.begin()
        self._ahead.left()
        self._ahead.ask_again()
        self._ahead.refill()
        return [*lost, *self._alone.show(self._ahead.tail)]

    def answered(self, number: int, choice: OnReconnect, now: float) -> list[Action]:
        """The app's answer to a question; of one that was not the last, or came too late, nothing follows."""
        if self.state is not DeviceState.ASKING or not self._alone.is_last(number) or self._opening is None:
            return []
        if choice is OnReconnect.KEEP:
            return [self._alone.keep()]
        self._alone.settle()
        self.state = DeviceState.CONNECTING
        actions = self._granted_by(self._opening, now)
        for commit in self._alone.release():
            actions += self.take(commit, now)
        return actions

    def kept(self, now: float) -> list[Action]:
        """What was shown is to be output, and whose it is has been noted: the answer ends so, or goes on behind it."""
        tokens, finish = self._alone.kept()
        self._ahead.kept(tokens)
        self.output.extend(tokens)
        self._opening, self._attempts.ticket = None, None  # nobody can prove these
        return self._connect(now) if finish is None else [self._finish(finish)]

    # -- the end ----------------------------------------------------------------------------------------------------

    def cancel(self, now: float) -> list[Action]:
        """The caller ends the generation; what is committed stays."""
        if self.ended:
            return []
        self.state = DeviceState.CANCELLED
        self._ahead.forget()
        return [End(Finish(FinishReason.ABORT))]

    def fail(self, error: PilotfishError, now: float) -> list[Action]:
        """The driver cannot go on (its deadline passed, the peer's frames make no sense)."""
        return [] if self.ended else self._end(error)

    def _finish(self, finish: Finish) -> Action:
        self.state = DeviceState.FINISHED
        self._ahead.forget()
        return End(finish)

    def _end(self, error: PilotfishError) -> list[Action]:
        self.state = DeviceState.FAILED
        self._ahead.forget()
        return [End(None, error)]
