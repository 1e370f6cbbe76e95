"""Runs one generation: the device core between a stream, a drafter in a thread, and the app.

What happens is handled where it happens, in the loop's callbacks: through a queue each commit would wait a turn of the
loop, in which the drafting thread may take the interpreter, or the processor.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from pilotfish.asking import Asking
from pilotfish.attempt import Lost, Received
from pilotfish.attempts import Attempts, Calling, Send
from pilotfish.delivery import Delivery
from pilotfish.drafting import DraftDone, DraftWorker
from pilotfish.end_tokens import EndTokens
from pilotfish.figures import Figures
from pilotfish.generation import ALONE, Generation, Shown
from pilotfish.offline import OfflineChoice, Unconfirmed
from pilotfish.reading import Reading
from pilotfish.result import Result
from pilotfish_core.device_actions import (
    Action,
    AskWhether,
    Connect,
    Deliver,
    DeviceConfig,
    End,
    Keep,
    SendMode,
    ShowUnverified,
)
from pilotfish_core.device_core import DeviceCore, DeviceState
from pilotfish_core.draft_policy import PolicyMemory
from pilotfish_core.drafter import Drafter
from pilotfish_core.drafts import FinishReason
from pilotfish_core.errors import PilotfishError
from pilotfish_core.modes import Hint
from pilotfish_core.offline import OnReconnect
from pilotfish_core.stops import StopChecker
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.trace import ClientTrace

log = logging.getLogger("pilotfish")
policy_log = logging.getLogger("pilotfish.policy")


@dataclasses.dataclass(frozen=True, slots=True)
class _Stop:
    error: PilotfishError | None  # None: cancelled by the caller


@dataclasses.dataclass(frozen=True, slots=True)
class _Hinted:
    hint: Hint


@dataclasses.dataclass(frozen=True, slots=True)
class _Answered:
    """The app says what is to become of what it was shown."""

    number: int
    choice: OnReconnect


class _Wake:
    """A deadline passed."""


_Event = Received | Lost | DraftDone | _Stop | _Hinted | _Answered | _Wake


class GenerationDriver:
    """Drives one generation to its end on the current event loop.

    ``run`` is started once, as a task; pieces come out of ``pieces`` while it works, closed by a Result or an error.
    ``outcome`` becomes the same Result or error, for whoever does not want the pieces.
    """

    def __init__(
        self,
        generation: Generation,
        *,
        calling: Calling,
        tokenizer: Tokenizer,
        drafter: Drafter | None,
        executor: Executor,
        config: DeviceConfig,
        memory: PolicyMemory | None = None,
        hint: Hint | None = None,
        offline: OfflineChoice | None = None,
        end_tokens: EndTokens | None = None,
        trace: ClientTrace | None = None,
    ) -> None:
        """``offline``: what to do while the link is away; ``end_tokens``: of the verifier, for then. ``trace``: what
        happens is written there.
        """
        self.generation = generation
        self._delivery = Delivery(generation, tokenizer)
        self.pieces = self._delivery.pieces
        self.outcome: asyncio.Future[Result | PilotfishError] = asyncio.get_running_loop().create_future()
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._drafter_name = "none" if drafter is None else drafter.name
        self._figures = Figures(generation, self._drafter_name)
        self._trace = None if trace is None else trace.generation(generation.prompt)
        self._early: list[_Event] | None = []  # what happened before it runs; None from then on
        self._over = asyncio.get_running_loop().create_future()
        self._worker: DraftWorker | None = None
        if drafter is not None:
            self._worker = DraftWorker(drafter, generation, tokenizer.vocab_size, executor, self._happened)
        self._offline = offline or OfflineChoice()
        if drafter is not None:
            config = dataclasses.replace(config, offline=self._offline.config)
        self._asking = Asking(self._offline.ask, self._answered)
        self._core = DeviceCore(
            prompt=generation.prompt,
            output=generation.output,
            max_tokens=generation.params.max_tokens,
            config=config,
            drafting=drafter is not None,
            attempt=generation.attempt,
            memory=memory,
            hint=hint,
            ticket=generation.ticket,
            finish_rule=self._finish_rule,
            unverified=generation.unverified,
        )
        self._attempts = Attempts(generation, calling, self._core.policy, self._figures, self._trace, self._happened)
        self._reading = Reading(self._core, generation, self._attempts, self._trace, vocab_size=tokenizer.vocab_size)
        self._timer: asyncio.TimerHandle | None = None
        self._going_on: asyncio.Handle | None = None
        self._end: End | None = None

    def _finish_rule(self) -> StopChecker:
        """Where the device ends what it writes alone: as the verifier would, as far as that is known by now."""
        known = None if self._end_tokens is None else self._end_tokens.ids
        ends = set(self._tokenizer.eos_token_ids if known is None else known)
        while True:
            rule = StopChecker(self.generation.params, self._tokenizer, eos_token_ids=ends)
            finishes = (rule.push(token) for token in self.generation.output[:-1])
            refuted = next((finish.stop for finish in finishes if finish is not None), None)
            if not isinstance(refuted, int) or refuted not in ends:
                return StopChecker(self.generation.params, self._tokenizer, eos_token_ids=ends)
            ends.remove(refuted)  # the target has written on behind it

    @property
    def draft_text(self) -> str:
        """The draft beyond what was shown, as text; a character that it begins or ends within is left out."""
        return self._tokenizer.decode(self._core.unshown, continues=True).strip("\ufffd")

    @property
    def unverified_text(self) -> str:
        """What was shown while the link was away and is not decided."""
        return self._delivery.text.unverified

    @property
    def away(self) -> bool:
        """Whether the device goes on alone."""
        return self._core.away

    def explain(self) -> Mapping[str, Any]:
        """The numbers behind the policy's last choice."""
        return self._core.policy.explain()

    def cancel(self) -> None:
        """End the generation; what is committed stays, ``pieces`` closes with a Result (finish_reason abort)."""
        self._happened(_Stop(None))

    def hint(self, hint: Hint) -> None:
        """Tell the policy what the app knows about the device."""
        self._happened(_Hinted(hint))

    def fail(self, error: PilotfishError) -> None:
        """End the generation with an error."""
        self._happened(_Stop(error))

    async def run(self) -> None:
        """Drive to the end. Errors come out of ``pieces``, none is raised."""
        self._loop = asyncio.get_running_loop()
        started = self._loop.time()
        self._figures.start(started)
        early, self._early = self._early or [], None
        try:
            self._step(lambda: self._core.start(started))
            for event in early:
                self._happened(event)
            await asyncio.wait([self._over])
        finally:
            await self._clean_up()

    # -- events -----------------------------------------------------------------------------------------------------

    def _happened(self, event: _Event) -> None:
        if self._early is not None:
            self._early.append(event)
        else:
            self._step(lambda: self._handle(event, self._loop.time()))

    def _step(self, cause: Callable[[], list[Action]]) -> None:
        """Carry out what something comes to, and go on from there; what fails ends the generation."""
        if self._over.done():
            return
        try:
            actions = cause()
            self._act(actions)
            self._note_shown()
            if self._core.state is DeviceState.WAITING:
                self._attempts.give_up()
            if self._end is not None:
                self._core.look_ahead(self._loop.time())
                self._close(self._outcome_of(self._end))
            elif any(isinstance(action, Deliver) for action in actions):
                if self._going_on is None:  # once the app, which has been woken, has its piece
                    self._going_on = self._loop.call_soon(self._step, self._look_ahead)
            elif self._going_on is None:
                self._act(self._core.look_ahead(self._loop.time()))
                self._go_on()
        except PilotfishError as error:
            self._close(error)
        except Exception as error:
            log.exception("a generation failed unexpectedly")
            self._close(PilotfishError(f"the client failed unexpectedly: {error!r}"))

    def _look_ahead(self) -> list[Action]:
        self._going_on = None
        return self._core.look_ahead(self._loop.time())

    def _go_on(self) -> None:
        if self._worker is not None:
            self._worker.begin(self._core.draft_task(self._loop.time()))
        self._arm_timer()

    def _handle(self, event: _Event, now: float) -> list[Action]:
        match event:
            case Received(attempt, frame):
                return self._reading.read(attempt, frame, now) if attempt is self._attempts.current else []
            case Lost(attempt, error):
                return self._core.lost(self._attempts.lost(error), now) if attempt is self._attempts.current else []
            case DraftDone(tokens, None):
                if self._trace is not None and event.task is not None:
                    self._trace.drafted(
                        now,
                        tokens=len(tokens),
                        taken_in=len(event.task.extend),
                        took_s=event.took_s,
                        asked_s=now - event.asked_at,
                        opened=event.opened,
                    )
                return self._core.drafted(tokens, now)
            case DraftDone(_, error):
                self._figures.drafter_error = f"{type(error).__name__}: {error}"
                log.warning("the drafter failed, the cloud goes on alone: %s", self._figures.drafter_error)
                return self._core.drafter_failed()
            case _Answered(number, choice):
                return self._core.answered(number, choice, now)
            case _Hinted(hint):
                return self._core.hinted(hint, now)
            case _Stop(None):
                return self._core.cancel(now)
            case _Stop(error):
                return self._core.fail(error or PilotfishError("stopped"), now)
            case _:
                return self._core.expired(now)

    # -- actions ----------------------------------------------------------------------------------------------------

    def _act(self, actions: list[Action]) -> None:
        finish = next((action.finish for action in actions if isinstance(action, End)), None)
        last = next((action for action in reversed(actions) if isinstance(action, Deliver)), None)
        for action in actions:
            match action:
                case Connect():
                    self._attempts.open(action)
                case Deliver():
                    self._figures.delivered(len(action.tokens), self._loop.time())
                    self._delivery.deliver(action, finish if action is last else None)
                case ShowUnverified():
                    self._delivery.show(action, self._core.unverified.finish)
                case AskWhether():
                    self._ask(action)
                case Keep():
                    self._act(self._keep(action))
                case End():
                    self._end = action
                case _:
                    self._send(action)

    def _note_shown(self) -> None:
        """For who saves the generation, before the app has it."""
        tokens = tuple(self._core.unverified.tokens)
        self.generation.shown = Shown(self._core.length, tokens) if tokens else None

    def _send(self, action: Send) -> None:
        if isinstance(action, SendMode):
            policy_log.info("policy: %s", json.dumps(self._core.policy.explain()))
        self._attempts.send(action, self._loop.time())

    # -- what the app was shown while the link was away ---------------------------------------------------------------

    def _ask(self, question: AskWhether) -> None:
        text = self._delivery.text.unverified
        self._asking.put(question.number, Unconfirmed(text=text, token_ids=question.tokens, position=self._core.length))

    def _answered(self, number: int, answer: OnReconnect | PilotfishError) -> None:
        self._happened(_Stop(answer) if isinstance(answer, PilotfishError) else _Answered(number, answer))

    def _keep(self, keep: Keep) -> list[Action]:
        """Note whose tokens these are, before they are output."""
        self.generation.decided_under(ALONE + self._drafter_name)
        self.generation.ticket = None
        self._attempts.kept()
        self._delivery.keep(keep.tokens, self._core.unverified.finish)
        actions = self._core.kept(self._loop.time())
        self._figures.delivered(len(keep.tokens), self._loop.time())
        return actions

    # -- time and the end -------------------------------------------------------------------------------------------

    def _arm_timer(self) -> None:
        deadline = self._core.next_deadline()
        if self._timer is not None:
            if deadline == self._timer.when():
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._wake)

    def _wake(self) -> None:
        # A loop may call a little early, and then the same deadline must be armed again: this timer is over.
        self._timer = None
        self._happened(_Wake())

    def _outcome_of(self, end: End) -> Result | PilotfishError:
        if end.finish is None:
            return end.error or PilotfishError("ended without a reason")
        reason = end.finish.reason
        self._delivery.end(end.finish)
        self.generation.finish = None if reason is FinishReason.ABORT else end.finish  # a cancelled one can go on
        return Result(
            text=self._delivery.text.answer.whole,
            token_ids=tuple(self.generation.output),
            finish_reason=reason,
            stop=end.finish.stop,
            metrics=self._figures.metrics(
                self._core.counts,
                self._core.policy.explain(),
                self._attempts.stream,
            ),
            verified=self.generation.verified,
            unverified_text=self._delivery.text.unverified,
        )

    def _close(self, item: Result | PilotfishError) -> None:
        if not self._over.done():
            self._over.set_result(None)
        self.pieces.put_nowait(item)
        self.outcome.set_result(item)
        if self._trace is not None:
            self._figures.trace(
                self._trace,
                self._core.counts,
                self._core.policy,
                self._attempts.stream,
                error=item.kind if isinstance(item, PilotfishError) else "",
            )

    async def _clean_up(self) -> None:
        if self._going_on is not None:
            self._going_on.cancel()
        self._asking.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await self._attempts.close()
        if self._worker is not None:
            await self._worker.close()
