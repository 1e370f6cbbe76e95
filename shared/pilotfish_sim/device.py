"""Devices: the real DeviceCore between a modelled link, a modelled drafter and an app that reads at once.

What ``pilotfish.driver.GenerationDriver`` does on an event loop, here happens on the virtual clock, in the same order.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Protocol

from pilotfish_core.device_actions import (
    Action,
    Connect,
    Deliver,
    DeviceConfig,
    End,
    SendAcknowledge,
    SendDraft,
    SendHint,
    SendMode,
    SendPing,
)
from pilotfish_core.device_core import DeviceCore
from pilotfish_core.draft_policy import PolicyMemory
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import PilotfishError, Unavailable
from pilotfish_core.messages import Open, Opened, Pong, PrefixUnknown
from pilotfish_core.modes import Advice, Mode
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prompts import SentPrompts
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.trace import ClientTrace, GenerationTrace
from pilotfish_core.wire import CloudFrameReader, DeviceFrameWriter
from pilotfish_sim.answers import Answer
from pilotfish_sim.clock import Alarm, Clock
from pilotfish_sim.path import Path, Stream
from pilotfish_sim.study import DraftPolicyClass
from pilotfish_sim.text import Text
from pilotfish_sim.workload import Request
from pilotfish_sim.world import Device

MODEL = "simulated"
TOKENIZER_HASH = "00" * 32


class Cloud(Protocol):
    """Where streams lead."""

    def connect(self, stream: Stream, text: Text) -> None:
        """A device opened ``stream`` for an answer whose text will be ``text``."""

    def disconnect(self, stream: Stream) -> None:
        """It is gone."""


class DrafterThread:
    """A drafter with one thread: tasks one after the other, in the order in which they come."""

    def __init__(self, costs: Device, number: int) -> None:
        self._draft_s, self._prefill_s, self._first_s, self._task_s = (
            milliseconds / 1e3 for milliseconds in (costs.draft_ms, costs.prefill_ms, costs.first_ms, costs.task_ms)
        )
        self._spread, self._random = costs.spread, random.Random(f"drafter {number}")
        self._free_at = 0.0
        self.busy_s = 0.0

    def take(self, now: float, count: int, taken_in: int, *, first: bool) -> tuple[float, float]:
        """When a task that comes now is done, and the seconds that it computes: ``count`` draft tokens after
        ``taken_in`` tokens decided elsewhere; ``first``: of a new answer.
        """
        seconds = self._task_s + count * self._draft_s + taken_in * self._prefill_s + first * self._first_s
        if self._spread:
            seconds *= self._random.choice(self._spread)
        self._free_at = max(self._free_at, now) + seconds
        self.busy_s += seconds
        return self._free_at, seconds


class Client:
    """What a client keeps between its answers: the policy's memory, the drafter, the prompts that were sent."""

    def __init__(self, costs: Device, number: int = 0, trace: ClientTrace | None = None) -> None:
        self.trace = trace
        self.memory = PolicyMemory()
        self.drafter = DrafterThread(costs, number)
        self.prompts = SentPrompts()


class Generation:
    """One answer on a device, from the question to its end; then ``done`` is called with what was measured.

    Raises ValueError from the clock's calls when the cores break their own rules.
    """

    def __init__(
        self,
        clock: Clock,
        request: Request,
        text: Text,
        *,
        seed: int,
        config: DeviceConfig,
        drafting: bool,
        client: Client,
        path: Path,
        cloud: Cloud,
        done: Callable[[Generation], None],
        policy: DraftPolicyClass | None = None,
    ) -> None:
        self.request = request
        self.output: list[int] = []
        self.answer: Answer | None = None
        self._clock, self._text, self._client = clock, text, client
        self._path, self._cloud, self._done = path, cloud, done
        self._params = SamplingParams(max_tokens=len(text.output), seed=seed, ignore_eos=True)
        self._id = seed.to_bytes(8, "little") + request.number.to_bytes(8, "little")
        self._core = DeviceCore(
            prompt=text.prompt,
            output=self.output,
            max_tokens=len(text.output),
            config=config,
            drafting=drafting,
            jitter=random.Random(seed),
            memory=client.memory,
        )
        if policy is not None:
            self._core.policy = policy(self._core.policy.config, client.memory, drafting=drafting)
        self._alarm = Alarm(clock, self._expired)
        self._stream: Stream | None = None
        self._writer, self._reader = DeviceFrameWriter(), CloudFrameReader()
        self._opening: Open | None = None
        self._drafter_open = False
        self._began = self._first_at = self._last_at = clock.now
        self._cached = self._bytes_up = self._bytes_down = 0
        self._drafting_s = 0.0
        self._trace: GenerationTrace | None = None if client.trace is None else client.trace.generation(text.prompt)

    def start(self) -> None:
        """The app asks."""
        self._act(self._core.start(self._clock.now))

    def cut(self) -> None:
        """The connection broke."""
        if self._stream is not None:
            self._leave()
            self._act(self._core.lost(Unavailable("the link was cut"), self._clock.now))

    # -- events -----------------------------------------------------------------------------------------------------

    def _received(self, frame: pb.CloudFrame) -> None:
        core, now = self._core, self._clock.now
        actions: list[Action] = []
        for message in self._reader.read(frame):
            match message:
                case Commit():
                    if self._trace is not None:
                        size = frame.ByteSize()
                        self._trace.committed(now, message, length=core.length, tail=core.tail, size=size)
                    actions += core.committed(message, now)
                case Pong():
                    if self._trace is not None:
                        self._trace.heard(now, message.nonce)
                    actions += core.heard(message, now)
                case Advice():
                    actions += core.advised(message, now)
                case Opened():
                    self._client.prompts.sent(self._text.prompt)
                    self._cached = message.cached_tokens
                    actions += core.opened(message, now)
                case PrefixUnknown():
                    self._send_prompt()
        self._act(actions)

    def _drafted(self, tokens: list[int]) -> None:
        self._act(self._core.drafted(tokens, self._clock.now))

    def _expired(self, _: None) -> None:
        self._act(self._core.expired(self._clock.now))

    def _failed(self, error: PilotfishError) -> None:
        """The replica ended the stream with an error."""
        self._leave()
        self._act(self._core.lost(error, self._clock.now))

    # -- actions ----------------------------------------------------------------------------------------------------

    def _act(self, actions: list[Action]) -> None:
        ended: End | None = None
        for action in actions:
            match action:
                case SendDraft(run, acknowledged):
                    sent = self._writer.draft(run, acknowledged)
                    self._send(sent)
                    if self._trace is not None:
                        now, size = self._clock.now, sent.ByteSize()
                        self._trace.flushed(now, start=run.start, tokens=len(run.tokens), size=size)
                case Deliver(tokens):
                    if len(self.output) == len(tokens):
                        self._first_at = self._clock.now
                    self._last_at = self._clock.now
                case SendAcknowledge(length):
                    self._send(self._writer.acknowledge(length))
                case SendPing(ping):
                    if self._trace is not None:
                        self._trace.pinged(self._clock.now, ping.nonce)
                    self._send(self._writer.ping(ping))
                case SendMode(mode):
                    self._send(self._writer.mode(mode))
                case SendHint(hint):
                    self._send(self._writer.hint(hint))
                case Connect(attempt=attempt, mode=mode):
                    self._connect(attempt, mode)
                case End():
                    ended = action
        if ended is not None:
            self._end(ended)
            return
        self._begin_draft()
        self._alarm.set(self._core.next_deadline())

    def _send(self, frame: pb.DeviceFrame) -> None:
        if self._stream is not None:
            self._stream.up(frame)

    def _connect(self, attempt: int, mode: Mode) -> None:
        self._leave()
        prompt = self._text.prompt
        prefix = self._client.prompts.known(prompt)
        self._opening = Open(
            model=MODEL,
            tokenizer_hash=TOKENIZER_HASH,
            generation_id=self._id,
            attempt=attempt,
            prompt=prompt if prefix is None else prompt[prefix.length :],
            prefix=prefix,
            params=self._params,
            output=tuple(self.output),
            mode=mode,
            hint=self._core.policy.hint,
            pace=self._core.policy.pace,
        )
        self._writer, self._reader = DeviceFrameWriter(), CloudFrameReader()
        self._stream = Stream(self._clock, self._path)
        self._stream.device_end(self._received, self._failed)
        self._cloud.connect(self._stream, self._text)
        self._send(self._writer.open(self._opening))
        if self._trace is not None:
            self._trace.opening(self._stream.bytes_up)

    def _send_prompt(self) -> None:
        """The replica does not know the prefix that it was named."""
        if self._opening is not None:
            self._client.prompts.forget(self._text.prompt)
            self._opening = dataclasses.replace(self._opening, prompt=self._text.prompt, prefix=None)
            self._send(self._writer.open(self._opening))

    def _leave(self) -> None:
        if self._stream is not None:
            self._bytes_up += self._stream.bytes_up
            self._bytes_down += self._stream.bytes_down
            self._stream.cut()
            self._cloud.disconnect(self._stream)
            self._stream = None

    def _begin_draft(self) -> None:
        now = self._clock.now
        task = self._core.draft_task(now)
        if task is None:
            return
        opens = not self._drafter_open
        done_at, seconds = self._client.drafter.take(now, task.count, len(task.extend), first=opens)
        self._drafter_open = True
        self._drafting_s += seconds
        tokens = self._text.drafted(task.start - len(self._text.prompt), task.count, task.start - self._core.length)
        if self._trace is not None:
            taken_in = len(task.extend)
            self._trace.drafted(
                done_at, tokens=len(tokens), taken_in=taken_in, took_s=seconds, asked_s=done_at - now, opened=opens
            )
        self._clock.at(done_at, self._drafted, tokens)

    def _end(self, end: End) -> None:
        self._alarm.set(None)
        self._leave()
        policy = self._core.policy
        self.answer = Answer(
            number=self.request.number,
            device=self.request.device,
            measured=self.request.measured,
            began=self._began,
            first_at=self._first_at,
            last_at=self._last_at,
            prompt_tokens=len(self._text.prompt),
            tokens=len(self.output),
            cached_tokens=self._cached,
            identical=self.output == self._text.output,
            error="" if end.error is None else str(end.error),
            counts=self._core.counts,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            drafting_s=self._drafting_s,
            arm=str(policy.arm),
            reason=str(policy.reason),
        )
        if self._trace is not None:
            self._trace.ended(
                began=self._began,
                first=self._first_at,
                last=self._last_at,
                cached_tokens=self._cached,
                tokens=len(self.output),
                bytes_up=self._bytes_up,
                bytes_down=self._bytes_down,
                sent=self._core.counts.sent,
                accepted=self._core.counts.accepted,
                reconnects=self._core.counts.reconnects,
                arm=self.answer.arm,
                reason=self.answer.reason,
                error="" if end.error is None else end.error.kind,
            )
        self._done(self)
