"""What the device drafts beyond the committed prefix, how far, and when the cloud is sent it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pilotfish_core.alone import Alone
from pilotfish_core.attempts import Acknowledgements
from pilotfish_core.committed_prefix import CommittedPrefix
from pilotfish_core.device_actions import Action, DeviceConfig, DraftCounts, DraftTask, SendDraft, SendMode
from pilotfish_core.draft_policy import DraftPolicy
from pilotfish_core.draft_tail import DraftTail
from pilotfish_core.messages import Opened
from pilotfish_core.modes import Mode, Pacing

PREFILL: Final = 8  # tokens to take in before a draft from which on the time is not the draft's


class DraftingAhead:
    """One generation's drafting. Its core says when the stream is there, and carries on what is returned.

    ``active``: whether there is a drafter that works. ``said``: the mode that the cloud knows. ``tail``: what is
    drafted. ``flush_at``: when its tokens that are not sent yet are, at the latest.
    """

    def __init__(
        self,
        prefix: CommittedPrefix,
        config: DeviceConfig,
        policy: DraftPolicy,
        alone: Alone,
        acknowledgements: Acknowledgements,
        counts: DraftCounts,
        *,
        active: bool,
    ) -> None:
        self.active = active
        self.said = Mode()
        self.tail = DraftTail(prefix.length)
        self.flush_at: float | None = None
        self._prefix, self._config, self.policy, self._alone = prefix, config, policy, alone
        self._acknowledgements, self._counts = acknowledgements, counts
        self._turn = False  # in lockstep: whether a commit has come that was not answered yet
        self._granted = config.window  # draft tokens that the cloud takes
        self._max_length: int | None = None  # the target's context, known once opened
        self._task: tuple[DraftTask, int, float] | None = None  # what is out, of which epoch, since when
        self._dry = False  # the drafter had nothing to propose; asked again after the next commit

    # -- the stream -------------------------------------------------------------------------------------------------

    def granted(self, message: Opened) -> list[Action]:
        """A stream is there: what is drafted already is its first branch."""
        self._granted = min(self._config.window, message.max_draft_tokens)
        self._max_length = message.max_model_len
        self.tail.new_stream()
        self.policy.reconnected()
        self.policy.offered(message.cloud_draft)
        self.refill()
        self.cut()
        self._turn = False  # the first token comes from the prefill, without a draft
        return [*self.steer(), *self.flush()]

    def left(self) -> None:
        """The stream is not used any more."""
        self.flush_at = None

    def steer(self) -> list[Action]:
        """Say so when the policy wants another mode than the cloud knows. For an open stream only."""
        if self.policy.mode == self.said:
            return []
        self.said = self.policy.mode
        self._turn = False
        return [SendMode(self.said)]

    def look_ahead(self) -> list[Action]:
        """Commits were taken, and the policy has judged them: what follows for the cloud. For an open stream only."""
        actions = self.steer()
        if self.said.pacing is Pacing.LOCKSTEP:
            self._turn = True
            if self.limit <= len(self.tail):
                actions += self._answer()  # there is nothing to draft: the cloud must not wait for it
        elif self.flush_at is None and self.tail.unsent and not self.policy.paused:
            actions += self.flush()  # drafted while paused
        return actions

    # -- the committed prefix ---------------------------------------------------------------------------------------

    def committed(self, fresh: Sequence[int]) -> tuple[int, bool]:
        """``fresh`` tokens were put into the output: keep the tail where it agrees, drop it where the target went
        elsewhere. Returns how many of them were drafted so, and whether the next one was drafted otherwise.
        """
        drafted = len(self.tail)
        agreed, refuted = self.tail.commit(fresh)
        if agreed < len(fresh):
            self._counts.rollbacks += agreed < drafted
            self.flush_at = None
        self._dry = False
        self.refill()
        return agreed, refuted

    def kept(self, tokens: Sequence[int]) -> None:
        """What was shown unverified becomes output."""
        self._refill_from(tokens)
        self.tail.commit(tokens)

    def refill(self) -> None:
        """What was shown is the draft, as far as it may be sent: nothing of it is drafted again."""
        if self.active:
            self._refill_from(self._alone.unverified.tokens[: self.limit])

    def cut(self) -> None:
        """Drop what is drafted beyond the limit."""
        self.tail.cut(self.limit)

    def forget(self) -> None:
        """Drop all that is drafted."""
        self.tail.forget()
        self.flush_at = None

    # -- the drafter ------------------------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """How long the tail may be: the window, and no token that could not be committed before the last one."""
        room = self._prefix.room
        if self._max_length is not None:
            room = min(room, self._max_length - self._prefix.length)
        if self._alone.away:
            return max(room, 0)
        window = self._config.window if self._alone.unverified.tokens else self.policy.window  # drafted already
        return max(min(window, self._granted, room - 1), 0)

    def task(self, now: float) -> DraftTask | None:
        """What the drafter should do next; None when it should rest, or is at work."""
        if not self.active or self._task is not None or self._dry:
            return None
        count = self.limit - max(len(self.tail), len(self._alone.unverified))
        if self._alone.away:
            count = min(self._config.draft_chunk, count)
        elif self.said.pacing is Pacing.LOCKSTEP:
            count = count if self._turn else 0
        else:
            in_flight = self.tail.in_flight + self.tail.unsent
            count = min(max(self._config.draft_chunk, self.policy.burst(in_flight)), count)
        if count <= 0:
            return None
        synced = self.tail.synced
        task = DraftTask(synced, self._prefix.since(synced, self.tail.tokens), count)
        self._task = (task, self.tail.epoch, now)
        self.tail.synced = task.start
        return task

    def drafted(self, tokens: Sequence[int], now: float, *, wanted: bool) -> None:
        """The result of the task that is out; none means that the drafter has nothing to propose. What is still
        ``wanted`` of it goes behind the tail. Raises ValueError when no task is out.
        """
        if self._task is None:
            raise ValueError("a draft was brought that was not asked for")
        (task, epoch, began), self._task = self._task, None
        self._counts.drafted += len(tokens)
        if len(task.extend) <= PREFILL:
            self.policy.drafted(len(tokens), now - began)
        if not wanted:
            return
        fresh = tuple(tokens)
        if epoch != self.tail.epoch:
            fresh = self._salvage(task, fresh)
        else:
            self.tail.synced = task.start + len(fresh)
            self._dry = not fresh
        self.tail.tokens.extend(fresh)

    def failed(self) -> None:
        """The drafter cannot go on."""
        self._task = None
        self.active = False
        self.forget()
        self.policy.drafter_failed()

    def ask_again(self) -> None:
        """A drafter that had nothing to propose may have something now."""
        self._dry = False

    def _salvage(self, task: DraftTask, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Of a stale result, what the target has since agreed with keeps the drafter's state, and what goes on from
        there is still a draft. Returns those tokens beyond the committed length.
        """
        if self.tail.synced != task.start or self.tail:
            return ()
        begin = task.start - len(self._prefix.prompt)
        decided = self._prefix.output[begin:] if begin >= 0 else []
        agreed = 0
        while agreed < min(len(tokens), len(decided)) and tokens[agreed] == decided[agreed]:
            agreed += 1
        if agreed < len(decided):
            self.tail.synced = task.start + agreed
            return ()
        self.tail.synced = task.start + len(tokens)
        return tokens[agreed:]

    def _refill_from(self, tokens: Sequence[int]) -> None:
        missing = tokens[len(self.tail) :]
        if missing:
            self.tail.refill(missing)

    # -- sending ----------------------------------------------------------------------------------------------------

    def sendable(self, now: float, *, streaming: bool) -> list[Action]:
        """Something was drafted: send it, now or together with what comes next; nothing unless ``streaming``."""
        self.cut()
        if self.said.pacing is Pacing.LOCKSTEP:
            return self._answer() if streaming and self._turn else []
        if not streaming or not self.tail.unsent or self.policy.paused:
            return []
        if self._dry or len(self.tail) >= self.limit:
            return self.flush()
        if self.flush_at is None:
            self.flush_at = now + self.policy.gather_s(self.tail.in_flight)
        return self.flush() if now >= self.flush_at else []

    def flush(self) -> list[Action]:
        """Send what has not been sent of the tail."""
        self.flush_at = None
        return [] if self.policy.paused or not self.tail.unsent else self._send_run()

    def _answer(self) -> list[Action]:
        """In lockstep: the draft, or that there is none, so that the cloud goes on; which it does by itself while it
        has some of an earlier one.
        """
        self._turn = False
        return [] if self.tail and not self.tail.unsent else self._send_run()

    def _send_run(self) -> list[Action]:
        self.flush_at = None
        run, opens = self.tail.next_run()
        self._counts.sent += len(run.tokens)
        return [SendDraft(run, self._acknowledgements.riding(self._prefix.length) if opens else None)]
