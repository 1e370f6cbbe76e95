"""Runs one generation: the device core between a stream, a drafter in a thread, and the app.

What happens is handled where it happens, in the loop's callbacks: through a queue each commit would wait a turn of the
loop, in which the drafting thread may take the interpreter, or the processor.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, Final

from pilotfish.asking import Asking
from pilotfish.attempt import Attempt, Lost, Received
from pilotfish.delivery import Delivery
from pilotfish.drafting import DraftDone, DraftWorker
from pilotfish.figures import Figures
from pilotfish.generation import ALONE, Generation
from pilotfish.offline import OfflineChoice, Unconfirmed
from pilotfish.result import Result
from pilotfish.routes import Routes
from pilotfish.transport import Transport, check_version
from pilotfish_core.device_actions import (
    Action,
    AskWhether,
    Connect,
    Deliver,
    DeviceConfig,
    End,
    Keep,
    SendAcknowledge,
    SendDraft,
    SendHint,
    SendMode,
    SendPing,
    ShowUnverified,
)
from pilotfish_core.device_core import DeviceCore, DeviceState
from pilotfish_core.draft_policy import PolicyMemory
from pilotfish_core.drafter import Drafter
from pilotfish_core.drafts import Commit, Finish, FinishReason
from pilotfish_core.errors import FingerprintMismatch, PilotfishError, ProtocolViolation, Unavailable
from pilotfish_core.messages import Open, Opened, Pong, PrefixUnknown, Ticket
from pilotfish_core.modes import Advice, Hint
from pilotfish_core.offline import OnReconnect
from pilotfish_core.prompts import SentPrompts
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.stops import StopChecker
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.trace import ClientTrace

log = logging.getLogger("pilotfish")
policy_log = logging.getLogger("pilotfish.policy")

DEADLINE_GRACE_S: Final = 1.0  # of the call beyond the answer's deadline, whose passing the client says better itself
CLOSE_TIMEOUT_S: Final = 1.0  # after the finish the verifier has nothing more to say than the status


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
        transport: Transport,
        tokenizer: Tokenizer,
        drafter: Drafter | None,
        executor: Executor,
        config: DeviceConfig,
        allow_other_fingerprint: bool = False,
        memory: PolicyMemory | None = None,
        hint: Hint | None = None,
        prompts: SentPrompts | None = None,
        routes: Routes | None = None,
        padded: bool = False,
        deadline: float | None = None,
        offline: OfflineChoice | None = None,
        trace: ClientTrace | None = None,
    ) -> None:
        """``prompts``: what the verifier was sent before, by earlier generations too; ``routes``: what it named as the
        way to a warm replica. ``deadline``: when the answer must be complete, on the event loop's clock; the verifier
        is told. ``offline``: what to do while the link is away. ``trace``: what happens is written there.
        """
        self.generation = generation
        self._prompts = SentPrompts() if prompts is None else prompts
        self._routes = Routes() if routes is None else routes
        self._failures = 0
        self._route: str | None = None  # that the verifier named with its last error
        self._delivery = Delivery(generation, tokenizer)
        self.pieces = self._delivery.pieces
        self.outcome: asyncio.Future[Result | PilotfishError] = asyncio.get_running_loop().create_future()
        self._transport = transport
        self._tokenizer = tokenizer
        self._allow_other_fingerprint = allow_other_fingerprint
        self._padded = padded
        self._deadline = deadline
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
        self._kept = False
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
            finish_rule=lambda: StopChecker(generation.params, tokenizer, eos_token_ids=tokenizer.eos_token_ids),
        )
        self._attempt: Attempt | None = None
        self._attempts = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._going_on: asyncio.Handle | None = None
        self._end: End | None = None

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
            if self._core.state is DeviceState.WAITING and self._attempt is not None:
                self._failures += 1  # a stream that broke, or one that was given up
                self._leave()  # what it may still say is too late
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
                return self._read(attempt, frame, now) if attempt is self._attempt else []
            case Lost(attempt, error):
                return self._lost(error, now) if attempt is self._attempt else []
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

    def _read(self, attempt: Attempt, frame: pb.CloudFrame, now: float) -> list[Action]:
        actions: list[Action] = []
        try:
            for message in attempt.reader.read(frame):
                match message:
                    case Opened():
                        self._opened(attempt, message)
                        actions += self._core.opened(message, now)
                    case Commit():
                        self._check_vocabulary(message)
                        if message.position <= self._core.length < message.end:
                            self.generation.decided_under(attempt.fingerprint)
                        if self._trace is not None:
                            core, size = self._core, frame.ByteSize()
                            self._trace.committed(now, message, length=core.length, tail=core.tail, size=size)
                        actions += self._core.take(message, now)
                    case Ticket():
                        actions += self._core.proved(message)
                        self.generation.ticket = self._core.ticket
                    case Pong():
                        if self._trace is not None:
                            self._trace.heard(now, message.nonce)
                        actions += self._core.heard(message, now)
                    case Advice():
                        actions += self._core.advised(message, now)
                    case PrefixUnknown():
                        self._send_prompt(attempt)
        except ProtocolViolation as error:
            return self._core.fail(error, now)
        return actions

    def _check_vocabulary(self, commit: Commit) -> None:
        """Raises ProtocolViolation for ids that have no text here: they can neither be shown nor given to a drafter."""
        largest = max(commit.tokens, default=0)
        if largest >= self._tokenizer.vocab_size:
            raise ProtocolViolation(
                f"the verifier committed token id {largest}, outside the vocabulary of {self._tokenizer.vocab_size}"
            )

    def _send_prompt(self, attempt: Attempt) -> None:
        """The verifier does not know what it was named: send the ids."""
        self._prompts.forget(self.generation.prompt)
        attempt.reopen(dataclasses.replace(attempt.opening, prompt=self.generation.prompt, prefix=None))

    def _opened(self, attempt: Attempt, message: Opened) -> None:
        check_version(message.protocol_version)
        self._prompts.sent(self.generation.prompt)
        self._routes.learn(self.generation.prompt, message.routes)
        attempt.fingerprint = message.fingerprint
        self.generation.model = message.model
        self._figures.cached_tokens = message.cached_tokens

    def _lost(self, error: PilotfishError, now: float) -> list[Action]:
        if isinstance(error, FingerprintMismatch) and len(self._transport.addresses) > 1:
            error = Unavailable(error.message)  # another address may compute as the first one did
        self._route = error.route
        return self._core.lost(error, now)

    # -- actions ----------------------------------------------------------------------------------------------------

    def _act(self, actions: list[Action]) -> None:
        finish = next((action.finish for action in actions if isinstance(action, End)), None)
        last = next((action for action in reversed(actions) if isinstance(action, Deliver)), None)
        for action in actions:
            match action:
                case Connect():
                    self._connect(action)
                case SendDraft(run, acknowledged):
                    if self._attempt is not None:
                        sent = self._attempt.writer.draft(run, acknowledged)
                        self._attempt.stream.send(sent)
                        if self._trace is not None:
                            size, now = sent.ByteSize(), self._loop.time()
                            self._trace.flushed(now, start=run.start, tokens=len(run.tokens), size=size)
                case SendAcknowledge(length):
                    if self._attempt is not None:
                        self._attempt.stream.send(self._attempt.writer.acknowledge(length))
                case SendPing(ping):
                    if self._trace is not None:
                        self._trace.pinged(self._loop.time(), ping.nonce)
                    if self._attempt is not None:
                        self._attempt.stream.send(self._attempt.writer.ping(ping))
                case SendMode(mode):
                    policy_log.info("policy: %s", json.dumps(self._core.policy.explain()))
                    if self._attempt is not None:
                        self._attempt.stream.send(self._attempt.writer.mode(mode))
                case SendHint(hint):
                    if self._attempt is not None:
                        self._attempt.stream.send(self._attempt.writer.hint(hint))
                case Deliver():
                    self._deliver(action, finish if action is last else None)
                case ShowUnverified():
                    self._delivery.show(action, self._core.unverified.finish)
                case AskWhether():
                    self._ask(action)
                case Keep():
                    self._act(self._keep(action))
                case End():
                    self._end = action

    def _connect(self, connect: Connect) -> None:
        self._leave()
        generation = self.generation
        generation.attempt = connect.attempt
        prefix = self._prompts.known(generation.prompt)
        message = Open(
            model=generation.model,
            tokenizer_hash=generation.tokenizer_hash,
            generation_id=generation.id,
            attempt=connect.attempt,
            prompt=generation.prompt if prefix is None else generation.prompt[prefix.length :],
            prefix=prefix,
            params=generation.params,
            output=tuple(generation.output[: connect.length - len(generation.prompt)]),
            fingerprint=self._decided_by,
            allow_other_fingerprint=self._allow_other_fingerprint,
            mode=connect.mode,
            hint=self._core.policy.hint,
            pace=self._core.policy.pace,
            ticket=connect.ticket,
        )
        timeout_s = None
        if self._deadline is not None:
            timeout_s = max(self._deadline - self._loop.time(), 0.0) + DEADLINE_GRACE_S
        self._attempt = Attempt(
            self._transport,
            next(self._attempts),
            message,
            self._happened,
            padded=self._padded,
            timeout_s=timeout_s,
            route=self._route or self._routes.of(generation.prompt, self._failures),
        )
        self._route = None
        if self._trace is not None:
            self._trace.opening(self._attempt.stream.bytes_up)

    def _leave(self) -> None:
        """Give up the current stream, if any; what still comes from it is ignored."""
        if self._attempt is None:
            return
        self._attempt.stream.cancel()
        self._figures.left(self._attempt.stream)
        self._attempt = None

    def _deliver(self, deliver: Deliver, finish: Finish | None) -> None:
        self._figures.delivered(len(deliver.tokens), self._loop.time())
        self._delivery.deliver(deliver, finish)

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
        self._kept = True
        self._delivery.keep(keep.tokens, self._core.unverified.finish)
        actions = self._core.kept(self._loop.time())
        self._figures.delivered(len(keep.tokens), self._loop.time())
        return actions

    @property
    def _decided_by(self) -> str:
        """The fingerprint that a resume asks for: until a token was decided, any replica may decide the first."""
        if not self.generation.output:
            return ""
        if not self._kept:
            return self.generation.fingerprint
        return next((name for name in self.generation.fingerprints if not name.startswith(ALONE)), "")

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
                None if self._attempt is None else self._attempt.stream,
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
                None if self._attempt is None else self._attempt.stream,
                error=item.kind if isinstance(item, PilotfishError) else "",
            )

    async def _clean_up(self) -> None:
        if self._going_on is not None:
            self._going_on.cancel()
        self._asking.cancel()
        if self._timer is not None:
            self._timer.cancel()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            if self.generation.finished:
                attempt.stream.close()
                await asyncio.wait([attempt.task], timeout=CLOSE_TIMEOUT_S)
            attempt.stream.cancel()
            await attempt.task
        if self._worker is not None:
            await self._worker.close()
