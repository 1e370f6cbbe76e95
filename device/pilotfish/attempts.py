"""The streams of one generation, one after the other: opened, written to, left, and what is learned of the verifier."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Final

from pilotfish.attempt import Attempt, Lost, Received
from pilotfish.figures import Figures
from pilotfish.generation import ALONE, Generation
from pilotfish.routes import Routes
from pilotfish.transport import DeviceStream, Transport, check_version
from pilotfish_core.device_actions import (
    Connect,
    SendAcknowledge,
    SendDraft,
    SendHint,
    SendMode,
    SendPing,
)
from pilotfish_core.draft_policy import DraftPolicy
from pilotfish_core.errors import FingerprintMismatch, PilotfishError, Unavailable
from pilotfish_core.messages import Open, Opened
from pilotfish_core.prompts import SentPrompts
from pilotfish_core.trace import GenerationTrace

DEADLINE_GRACE_S: Final = 1.0  # of the call beyond the answer's deadline, whose passing the client says better itself
CLOSE_TIMEOUT_S: Final = 1.0  # after the finish the verifier has nothing more to say than the status
ALLOWING: Final = (
    "allow_other_fingerprint=True (--allow-other-fingerprint) lets it go on all the same, and the answer is marked"
)
Send = SendDraft | SendAcknowledge | SendPing | SendMode | SendHint


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """How a client calls its verifier. ``prompts``: what that was sent before, by earlier generations too; ``routes``:
    what it named as the way to a warm replica. ``deadline``: when the answer must be complete, on the event loop's
    clock; the verifier is told.
    """

    transport: Transport
    prompts: SentPrompts = dataclasses.field(default_factory=SentPrompts)
    routes: Routes = dataclasses.field(default_factory=Routes)
    allow_other_fingerprint: bool = False
    padded: bool = False
    deadline: float | None = None


class Attempts:
    """At most one stream is ``current``; what still comes from an earlier one is ignored. ``post`` is called with what
    comes.
    """

    def __init__(
        self,
        generation: Generation,
        calling: Calling,
        policy: DraftPolicy,
        figures: Figures,
        trace: GenerationTrace | None,
        post: Callable[[Received | Lost], None],
    ) -> None:
        self.current: Attempt | None = None
        self._generation, self._calling, self._policy = generation, calling, policy
        self._figures, self._trace, self._post = figures, trace, post
        self._number = -1  # of the current one, which is one of an address
        self._refusals = set[int]()  # addresses that compute otherwise, since one did not
        self._failures = 0
        self._route: str | None = None  # that the verifier named with its last error
        self._kept = False

    @property
    def stream(self) -> DeviceStream | None:
        """The current attempt's."""
        return None if self.current is None else self.current.stream

    def open(self, connect: Connect) -> None:
        """Open the next one. Raises InvalidRequest and PromptTooLong for what cannot be sent."""
        self.leave()
        generation, calling = self._generation, self._calling
        generation.attempt = connect.attempt
        prefix = calling.prompts.known(generation.prompt)
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
            allow_other_fingerprint=calling.allow_other_fingerprint,
            mode=connect.mode,
            hint=self._policy.hint,
            pace=self._policy.pace,
            ticket=connect.ticket,
        )
        timeout_s = None
        if calling.deadline is not None:
            now = asyncio.get_running_loop().time()
            timeout_s = max(calling.deadline - now, 0.0) + DEADLINE_GRACE_S
        self._number += 1
        self.current = Attempt(
            calling.transport,
            self._number,
            message,
            self._post,
            padded=calling.padded,
            timeout_s=timeout_s,
            route=self._route or calling.routes.of(generation.prompt, self._failures),
        )
        self._route = None
        if self._trace is not None:
            self._trace.opening(self.current.stream.bytes_up)

    def send(self, action: Send, now: float) -> None:
        """Carry out what the core wants to be said; without a stream there is nobody to say it to."""
        if self._trace is not None and isinstance(action, SendPing):
            self._trace.pinged(now, action.ping.nonce)
        if self.current is None:
            return
        writer = self.current.writer
        match action:
            case SendDraft(run, acknowledged):
                frame = writer.draft(run, acknowledged)
                if self._trace is not None:
                    self._trace.flushed(now, start=run.start, tokens=len(run.tokens), size=frame.ByteSize())
            case SendAcknowledge(length):
                frame = writer.acknowledge(length)
            case SendPing(ping):
                frame = writer.ping(ping)
            case SendMode(mode):
                frame = writer.mode(mode)
            case SendHint(hint):
                frame = writer.hint(hint)
        self.current.stream.send(frame)

    def opened(self, attempt: Attempt, message: Opened) -> None:
        """The verifier took it. Raises ProtocolViolation for another version of the protocol."""
        check_version(message.protocol_version)
        self._calling.prompts.sent(self._generation.prompt)
        self._calling.routes.learn(self._generation.prompt, message.routes)
        attempt.fingerprint = message.fingerprint
        self._refusals.clear()
        self._generation.model = message.model
        self._figures.cached_tokens = message.cached_tokens

    def send_prompt(self, attempt: Attempt) -> None:
        """The verifier does not know what it was named: send the ids. Raises ProtocolViolation where it had them."""
        self._calling.prompts.forget(self._generation.prompt)
        attempt.reopen(dataclasses.replace(attempt.opening, prompt=self._generation.prompt, prefix=None))

    def lost(self, error: PilotfishError) -> PilotfishError:
        """The current one ended without a finish. Returns what that is for the generation."""
        if isinstance(error, FingerprintMismatch):
            error = self._refused(error)
        self._route = error.route
        return error

    def _refused(self, error: FingerprintMismatch) -> PilotfishError:
        """Another address may compute as the first one did; once each has refused, to go on trying is in vain."""
        addresses = len(self._calling.transport.addresses)
        self._refusals.add(self._number % addresses)
        if len(self._refusals) < addresses:
            return Unavailable(error.message)
        return FingerprintMismatch(f"{error.message}; {ALLOWING}")

    def give_up(self) -> None:
        """The current one broke, or is given up: what it may still say is too late."""
        if self.current is not None:
            self._failures += 1
            self.leave()

    def leave(self) -> None:
        """Leave the current one, if any."""
        if self.current is None:
            return
        self.current.stream.cancel()
        self._figures.left(self.current.stream)
        self.current = None

    def kept(self) -> None:
        """Tokens that the device wrote alone stand: a resume asks for the fingerprint of the verifier's own."""
        self._kept = True

    async def close(self) -> None:
        """The generation is over; a stream that brought its finish is ended in an orderly way."""
        attempt, self.current = self.current, None
        if attempt is None:
            return
        if self._generation.finished:
            attempt.stream.close()
            await asyncio.wait([attempt.task], timeout=CLOSE_TIMEOUT_S)
        attempt.stream.cancel()
        await attempt.task

    @property
    def _decided_by(self) -> str:
        """The fingerprint that a resume asks for: until a token was decided, any replica may decide the first."""
        if not self._generation.output:
            return ""
        alone = "" if self._kept else self._generation.fingerprint
        return next((name for name in self._generation.fingerprints if not name.startswith(ALONE)), alone)
