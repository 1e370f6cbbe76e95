"""Runs one generation: the device core between a stream, a drafter in a thread, and the app."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from concurrent.futures import Executor
from typing import Final

from pilotfish.drafting import DraftDone, DraftWorker
from pilotfish.generation import Generation
from pilotfish.result import Metrics, Piece, Result
from pilotfish.transport import DeviceStream, Transport
from pilotfish_core.device_core import (
    Action,
    Connect,
    Deliver,
    DeviceConfig,
    DeviceCore,
    End,
    SendAcknowledge,
    SendDraft,
    SendPing,
)
from pilotfish_core.drafter import Drafter
from pilotfish_core.drafts import Commit, FinishReason, Origin
from pilotfish_core.errors import FingerprintMismatch, PilotfishError, ProtocolViolation, Unavailable
from pilotfish_core.messages import Open, Opened, Pong
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.stops import StopTextFilter
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.wire import CloudFrameReader, DeviceFrameWriter

log = logging.getLogger("pilotfish")

CLOSE_TIMEOUT_S: Final = 1.0  # after the finish the verifier has nothing more to say than the status


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    stream: _Attempt
    frame: pb.CloudFrame


@dataclasses.dataclass(frozen=True, slots=True)
class _Lost:
    stream: _Attempt
    error: PilotfishError


@dataclasses.dataclass(frozen=True, slots=True)
class _Stop:
    error: PilotfishError | None  # None: cancelled by the caller


class _Wake:
    """A deadline passed."""


_Event = _Frame | _Lost | DraftDone | _Stop | _Wake


@dataclasses.dataclass(eq=False, slots=True)
class _Attempt:
    """One stream and its state: frames on the wire leave out what an ordered stream implies."""

    stream: DeviceStream
    writer: DeviceFrameWriter
    reader: CloudFrameReader
    task: asyncio.Task[None] | None = None


class GenerationDriver:
    """Drives one generation to its end on the current event loop.

    ``run`` is started once, as a task; pieces come out of ``pieces`` while it works, closed by a Result or an error.
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
    ) -> None:
        self.generation = generation
        self.pieces: asyncio.Queue[Piece | Result | PilotfishError] = asyncio.Queue()
        self._transport = transport
        self._tokenizer = tokenizer
        self._allow_other_fingerprint = allow_other_fingerprint
        self._drafter_name = "none" if drafter is None else drafter.name
        self._drafter_error: str | None = None
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._worker: DraftWorker | None = None
        if drafter is not None:
            self._worker = DraftWorker(drafter, generation, executor, self._events.put_nowait)
        self._core = DeviceCore(
            prompt=generation.prompt,
            output=generation.output,
            max_tokens=generation.params.max_tokens,
            config=config,
            drafting=drafter is not None,
            attempt=generation.attempt,
        )
        self._text = StopTextFilter(generation.params, tokenizer, eos_token_ids=tokenizer.eos_token_ids)
        self._shown = [self._text.push(token) for token in generation.output]
        self._held_before = len(generation.output)
        self._last_origin = Origin.CLOUD
        self._attempt: _Attempt | None = None
        self._attempts = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._bytes_up = self._bytes_down = 0
        self._cached_tokens = 0
        self._fingerprints: list[str] = []
        self._end: End | None = None

    def cancel(self) -> None:
        """End the generation; what is committed stays, ``pieces`` closes with a Result (finish_reason abort)."""
        self._events.put_nowait(_Stop(None))

    def fail(self, error: PilotfishError) -> None:
        """End the generation with an error."""
        self._events.put_nowait(_Stop(error))

    async def run(self) -> None:
        """Drive to the end. Errors come out of ``pieces``, none is raised."""
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._first_at = self._last_at = self._started
        try:
            self._act(self._core.start(self._started))
            while self._end is None:
                if self._worker is not None:
                    self._worker.begin(self._core.draft_task(self._loop.time()))
                self._arm_timer()
                event = await self._events.get()
                self._act(self._handle(event, self._loop.time()))
            self._close_pieces(self._end)
        except Exception as error:
            log.exception("a generation failed unexpectedly")
            self.pieces.put_nowait(PilotfishError(f"the client failed unexpectedly: {error!r}"))
        finally:
            await self._clean_up()

    # -- events -----------------------------------------------------------------------------------------------------

    def _handle(self, event: _Event, now: float) -> list[Action]:
        match event:
            case _Frame(attempt, frame):
                return self._read(attempt, frame, now) if attempt is self._attempt else []
            case _Lost(attempt, error):
                return self._lost(error, now) if attempt is self._attempt else []
            case DraftDone(tokens, None):
                return self._core.drafted(tokens, now)
            case DraftDone(_, error):
                self._drafter_error = f"{type(error).__name__}: {error}"
                log.warning("the drafter failed, the cloud goes on alone: %s", self._drafter_error)
                self._core.drafter_failed()
                return []
            case _Stop(None):
                return self._core.cancel(now)
            case _Stop(error):
                return self._core.fail(error or PilotfishError("stopped"), now)
            case _:
                return self._core.expired(now)

    def _read(self, attempt: _Attempt, frame: pb.CloudFrame, now: float) -> list[Action]:
        actions: list[Action] = []
        try:
            for message in attempt.reader.read(frame):
                match message:
                    case Opened():
                        self._opened(message)
                        actions += self._core.opened(message, now)
                    case Commit():
                        actions += self._core.committed(message, now)
                    case Pong():
                        actions += self._core.heard(message, now)
                    case _:
                        raise ProtocolViolation("the verifier asked for a prompt prefix that was sent as ids")
        except ProtocolViolation as error:
            return self._core.fail(error, now)
        return actions

    def _opened(self, message: Opened) -> None:
        generation = self.generation
        generation.fingerprint = generation.fingerprint or message.fingerprint
        generation.model = message.model
        self._cached_tokens = message.cached_tokens
        if message.fingerprint not in self._fingerprints:
            self._fingerprints.append(message.fingerprint)

    def _lost(self, error: PilotfishError, now: float) -> list[Action]:
        if isinstance(error, FingerprintMismatch) and len(self._transport.addresses) > 1:
            error = Unavailable(error.message)  # another address may compute as the first one did
        return self._core.lost(error, now)

    # -- actions ----------------------------------------------------------------------------------------------------

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect(number):
                    self._connect(number)
                case SendDraft(run, acknowledged):
                    if self._attempt is not None:
                        self._attempt.stream.send(self._attempt.writer.draft(run, acknowledged))
                case SendAcknowledge(length):
                    if self._attempt is not None:
                        self._attempt.stream.send(self._attempt.writer.acknowledge(length))
                case SendPing(ping):
                    if self._attempt is not None:
                        self._attempt.stream.send(self._attempt.writer.ping(ping))
                case Deliver():
                    self._deliver(action)
                case End():
                    self._end = action

    def _connect(self, number: int) -> None:
        self._leave()
        generation = self.generation
        generation.attempt = number
        attempt = _Attempt(self._transport.open(next(self._attempts)), DeviceFrameWriter(), CloudFrameReader())
        attempt.stream.send(
            attempt.writer.open(
                Open(
                    model=generation.model,
                    tokenizer_hash=generation.tokenizer_hash,
                    generation_id=generation.id,
                    attempt=number,
                    prompt=generation.prompt,
                    params=generation.params,
                    output=tuple(generation.output),
                    fingerprint=generation.fingerprint,
                    allow_other_fingerprint=self._allow_other_fingerprint,
                )
            )
        )
        attempt.task = self._loop.create_task(self._listen(attempt))
        self._attempt = attempt

    async def _listen(self, attempt: _Attempt) -> None:
        try:
            async for frame in attempt.stream.frames():
                self._events.put_nowait(_Frame(attempt, frame))
        except PilotfishError as error:
            self._events.put_nowait(_Lost(attempt, error))
        else:
            self._events.put_nowait(_Lost(attempt, Unavailable("the verifier ended the stream without a finish")))

    def _leave(self) -> None:
        """Give up the current stream, if any; what still comes from it is ignored."""
        if self._attempt is None:
            return
        self._attempt.stream.cancel()
        self._bytes_up += self._attempt.stream.bytes_up
        self._bytes_down += self._attempt.stream.bytes_down
        self._attempt = None

    def _deliver(self, deliver: Deliver) -> None:
        now = self._loop.time()
        if len(self.generation.output) - self._held_before == len(deliver.tokens):
            self._first_at = now
        self._last_at = now
        begin = 0
        for origin, group in itertools.groupby(deliver.origins):
            end = begin + len(list(group))
            tokens = deliver.tokens[begin:end]
            text = "".join(self._text.push(token) for token in tokens)
            self._shown.append(text)
            self._last_origin = origin
            logprobs = None if deliver.logprobs is None else deliver.logprobs[begin:end]
            self.pieces.put_nowait(Piece(text, tokens, origin, logprobs))
            begin = end

    # -- time and the end -------------------------------------------------------------------------------------------

    def _arm_timer(self) -> None:
        deadline = self._core.next_deadline()
        if self._timer is not None:
            if deadline == self._timer.when():
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._events.put_nowait, _Wake())

    def _close_pieces(self, end: End) -> None:
        rest = self._text.flush()
        self._shown.append(rest)
        if rest and end.finish is not None:
            self.pieces.put_nowait(Piece(rest, (), self._last_origin))
        if end.finish is None:
            self.pieces.put_nowait(end.error or PilotfishError("ended without a reason"))
            return
        self.generation.finish = end.finish
        reason, stop = end.finish.reason, end.finish.stop
        if reason is FinishReason.ABORT:
            self.generation.finish = None  # it can be continued
        self.pieces.put_nowait(
            Result(
                text="".join(self._shown),
                token_ids=tuple(self.generation.output),
                finish_reason=reason,
                stop=stop,
                metrics=self._metrics(),
            )
        )

    async def _clean_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        attempt, self._attempt = self._attempt, None
        if attempt is not None and attempt.task is not None:
            if self.generation.finished:
                attempt.stream.close()
                await asyncio.wait([attempt.task], timeout=CLOSE_TIMEOUT_S)
            attempt.stream.cancel()
            await attempt.task
        if self._worker is not None:
            await self._worker.close()

    def _metrics(self) -> Metrics:
        counts, stream = self._core.counts, self._attempt.stream if self._attempt is not None else None
        tokens = len(self.generation.output) - self._held_before
        elapsed = self._last_at - self._started
        return Metrics(
            model=self.generation.model,
            drafter=self._drafter_name,
            drafter_error=self._drafter_error,
            seed=self.generation.params.seed,
            fingerprints=tuple(self._fingerprints),
            prompt_tokens=len(self.generation.prompt),
            completion_tokens=len(self.generation.output),
            cached_tokens=self._cached_tokens,
            elapsed_s=elapsed,
            ttft_s=self._first_at - self._started,
            tpot_s=(self._last_at - self._first_at) / max(tokens - 1, 1),
            tokens_per_s=tokens / elapsed if elapsed > 0 else 0.0,
            steps=counts.commits,
            steps_per_token=counts.commits / max(tokens, 1),
            mean_acceptance_length=tokens / max(counts.commits, 1),
            draft_tokens=counts.drafted,
            sent_draft_tokens=counts.sent,
            accepted_draft_tokens=counts.accepted,
            recovered_tokens=counts.recovered,
            bonus_tokens=counts.bonus,
            cloud_tokens=counts.cloud,
            rollbacks=counts.rollbacks,
            reconnects=counts.reconnects,
            bytes_up=self._bytes_up + (stream.bytes_up if stream else 0),
            bytes_down=self._bytes_down + (stream.bytes_down if stream else 0),
        )
