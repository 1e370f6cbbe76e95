"""What a verifier's frames come to: each message goes to the core, checked as far as the core cannot."""

from __future__ import annotations

from pilotfish.attempt import Attempt
from pilotfish.attempts import Attempts
from pilotfish.generation import Generation
from pilotfish_core.device_actions import Action
from pilotfish_core.device_core import DeviceCore
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import ProtocolViolation
from pilotfish_core.messages import Opened, Pong, PrefixUnknown, Ticket
from pilotfish_core.modes import Advice
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.trace import GenerationTrace


class Reading:
    """One generation's frames. ``vocab_size``: ids from there on have no text here."""

    def __init__(
        self,
        core: DeviceCore,
        generation: Generation,
        attempts: Attempts,
        trace: GenerationTrace | None,
        *,
        vocab_size: int,
    ) -> None:
        self._core, self._generation, self._attempts, self._trace = core, generation, attempts, trace
        self._vocab_size = vocab_size

    def read(self, attempt: Attempt, frame: pb.CloudFrame, now: float) -> list[Action]:
        """What follows from a frame of the current attempt; one that makes no sense ends the generation."""
        actions: list[Action] = []
        try:
            for message in attempt.reader.read(frame):
                match message:
                    case Opened():
                        self._attempts.opened(attempt, message)
                        actions += self._core.opened(message, now)
                    case Commit():
                        self._check_vocabulary(message)
                        if message.position <= self._core.length < message.end:
                            self._generation.decided_under(attempt.fingerprint)
                        if self._trace is not None:
                            core, size = self._core, frame.ByteSize()
                            self._trace.committed(now, message, length=core.length, tail=core.tail, size=size)
                        actions += self._core.take(message, now)
                    case Ticket():
                        actions += self._core.proved(message)
                        self._generation.ticket = self._core.ticket
                    case Pong():
                        if self._trace is not None:
                            self._trace.heard(now, message.nonce)
                        actions += self._core.heard(message, now)
                    case Advice():
                        actions += self._core.advised(message, now)
                    case PrefixUnknown():
                        self._attempts.send_prompt(attempt)
        except ProtocolViolation as error:
            return self._core.fail(error, now)
        return actions

    def _check_vocabulary(self, commit: Commit) -> None:
        """Raises ProtocolViolation for ids that have no text here: they can neither be shown nor given to a drafter."""
        largest = max(commit.tokens, default=0)
        if largest >= self._vocab_size:
            raise ProtocolViolation(
                f"the verifier committed token id {largest}, outside the vocabulary of {self._vocab_size}"
            )
