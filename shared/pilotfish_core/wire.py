"""Frames to messages and back. Stateful, one reader and one writer per direction and stream.

A stream is ordered, so a draft run that continues and a commit that follows need not say where they are. The cores
always say; the writers leave it out, the readers put it back. Readers validate: what does not parse or does not
follow raises ProtocolViolation.
"""

from __future__ import annotations

from typing import Final

from pilotfish_core.drafts import Commit, DraftRun, Finish, FinishReason, Origin, TokenLogprobs
from pilotfish_core.errors import ProtocolViolation
from pilotfish_core.messages import Acknowledged, Open, Opened, Ping, Pong, PrefixUnknown, Ticket
from pilotfish_core.modes import Advice, Hint, Mode
from pilotfish_core.padding import pad
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire_messages import (
    advice_from_wire,
    advice_to_wire,
    hint_from_wire,
    hint_to_wire,
    mode_from_wire,
    mode_to_wire,
    open_from_wire,
    open_to_wire,
    opened_from_wire,
    opened_to_wire,
)

MAX_FRAME_BYTES: Final = 1 << 20  # a prompt of 262,144 ids fits; gRPC's default is 4 MiB
MAX_POSITION: Final = 2**31 - 1

DeviceMessage = Open | DraftRun | Acknowledged | Ping | Mode | Hint
CloudMessage = Opened | Commit | Ticket | Pong | PrefixUnknown | Advice

_ORIGINS: Final = {Origin.RECOVERED: pb.RECOVERED, Origin.BONUS: pb.BONUS, Origin.CLOUD: pb.CLOUD}
_ORIGINS_BACK: Final[dict[int, Origin]] = {int(wire): origin for origin, wire in _ORIGINS.items()}
_FINISHES: Final = {FinishReason.STOP: pb.STOP, FinishReason.LENGTH: pb.LENGTH, FinishReason.ABORT: pb.ABORT}
_FINISHES_BACK: Final[dict[int, FinishReason]] = {int(wire): reason for reason, wire in _FINISHES.items()}


class DeviceFrameWriter:
    """Turns the device's messages into frames, for one stream; ``padded``: to size classes."""

    def __init__(self, *, padded: bool = False) -> None:
        self._padded = padded
        self._branch = -1
        self._end = -1
        self._base = -1  # start of the last branch; at first the length that open said

    def open(self, message: Open) -> pb.DeviceFrame:
        """The first frame; once more, with all ids, when the cloud does not know the prompt's prefix."""
        frame = pb.DeviceFrame(open=open_to_wire(message))
        self._base = message.prompt_length + len(message.output)
        return self._complete(frame)

    def draft(self, run: DraftRun, acknowledged: int | None = None) -> pb.DeviceFrame:
        """A run, with an acknowledgement riding along; that of a new branch's start is left out, the start says it."""
        frame = pb.DeviceFrame()
        if len(run.tokens) == 1:
            frame.token = run.tokens[0]
        else:
            frame.tokens.extend(run.tokens)
        opens = run.branch > self._branch
        if run.branch == self._branch + 1 and 0 <= self._base <= run.start:
            frame.advance = run.start - self._base
        elif run.branch != self._branch or run.start != self._end:
            frame.branch = run.branch
            frame.start = run.start
        if opens:
            self._base = run.start
        self._branch, self._end = run.branch, run.end
        if acknowledged is not None and not (opens and acknowledged == run.start):
            frame.acknowledged = acknowledged
        return self._complete(frame)

    def acknowledge(self, length: int) -> pb.DeviceFrame:
        """An acknowledgement alone."""
        return self._complete(pb.DeviceFrame(acknowledged=length))

    def ping(self, ping: Ping) -> pb.DeviceFrame:
        """A ping."""
        return self._complete(pb.DeviceFrame(ping=pb.Ping(nonce=ping.nonce)))

    def mode(self, mode: Mode) -> pb.DeviceFrame:
        """How the device drafts from here on."""
        return self._complete(pb.DeviceFrame(mode=mode_to_wire(mode)))

    def hint(self, hint: Hint) -> pb.DeviceFrame:
        """What the app knows about the device."""
        return self._complete(pb.DeviceFrame(hint=hint_to_wire(hint)))

    def _complete(self, frame: pb.DeviceFrame) -> pb.DeviceFrame:
        if self._padded:
            pad(frame)
        return frame


class DeviceFrameReader:
    """Reads the device's frames in the cloud, for one stream. ``padded``: the device pads, and wants the same.

    An open that named its prompt's prefix by hash may come once more, with the ids.
    """

    def __init__(self) -> None:
        self.padded = False
        self._opened: Open | None = None
        self._branch = -1
        self._end = -1
        self._base = -1  # as the writer's

    def read(self, frame: pb.DeviceFrame) -> list[DeviceMessage]:
        """The messages in one frame. Raises ProtocolViolation; InvalidParameter for bad sampling parameters."""
        messages: list[DeviceMessage] = []
        self.padded = self.padded or bool(frame.padding)
        control = frame.WhichOneof("control")
        if control == "open":
            messages.append(self._open(frame.open))
        elif self._opened is None:
            raise ProtocolViolation("the first frame must carry open")
        elif control == "ping":
            messages.append(Ping(frame.ping.nonce))
        elif control == "mode":
            messages.append(mode_from_wire(frame.mode))
        elif control == "hint":
            messages.append(hint_from_wire(frame.hint))
        if frame.HasField("acknowledged"):
            messages.append(Acknowledged(frame.acknowledged))
        tokens = _tokens_of(frame)
        if tokens or frame.HasField("advance") or frame.HasField("branch"):
            before = self._branch
            run = self._run(frame, tokens)
            if run.branch > before and not frame.HasField("acknowledged"):
                messages.append(Acknowledged(run.start))
            messages.append(run)
        return messages

    def _open(self, message: pb.Open) -> Open:
        if self._opened is not None and self._opened.prefix is None:
            raise ProtocolViolation("a second open")
        opening = open_from_wire(message)
        if self._opened is not None and opening.prefix is not None:
            raise ProtocolViolation("a second open by hash")
        if self._opened is not None and opening.prompt_length != self._opened.prompt_length:
            raise ProtocolViolation(
                f"the prompt had {self._opened.prompt_length} tokens by hash and has {opening.prompt_length} by ids"
            )
        self._opened = opening
        self._base = opening.prompt_length + len(opening.output)
        return opening

    def _run(self, frame: pb.DeviceFrame, tokens: tuple[int, ...]) -> DraftRun:
        if frame.HasField("branch") != frame.HasField("start"):
            raise ProtocolViolation("a draft run names both branch and start, or neither")
        if frame.HasField("advance"):
            if frame.HasField("branch"):
                raise ProtocolViolation("a draft run names branch and start, or advance, not both")
            self._branch, self._end = self._branch + 1, self._base + frame.advance
            self._base = self._end
        elif frame.HasField("branch"):
            if frame.branch > self._branch:
                self._base = frame.start
            self._branch, self._end = frame.branch, frame.start
        elif self._branch < 0:
            raise ProtocolViolation("the first draft run must name its branch and start")
        run = DraftRun(self._branch, self._end, tokens)
        if run.end > MAX_POSITION:
            raise ProtocolViolation(f"draft run ends at position {run.end}; positions end at {MAX_POSITION}")
        self._end = run.end
        return run


class CloudFrameWriter:
    """Turns the cloud's messages into frames, for one stream; ``padded``: to size classes."""

    def __init__(self, *, padded: bool = False) -> None:
        self._padded = padded
        self._end = -1

    def opened(self, message: Opened) -> pb.CloudFrame:
        """The first frame."""
        return self._complete(pb.CloudFrame(opened=opened_to_wire(message)))

    def commit(self, commit: Commit, ticket: bytes | None = None) -> pb.CloudFrame:
        """A commit, with a ticket for all output up to its end; the position is left out when it follows the last."""
        frame = pb.CloudFrame(ticket=ticket or b"")
        if commit.accepted != max(len(commit.tokens) - 1, 0):
            frame.accepted = commit.accepted
        if len(commit.tokens) == 1:
            frame.token = commit.tokens[0]
        else:
            frame.tokens.extend(commit.tokens)
        if commit.position != self._end:
            frame.position = commit.position
        self._end = commit.end
        if commit.accepted < len(commit.tokens):
            frame.origin = _ORIGINS[commit.origin]
        if commit.finish is not None:
            frame.finish.reason = _FINISHES[commit.finish.reason]
            if isinstance(commit.finish.stop, str):
                frame.finish.stop_string = commit.finish.stop
            elif commit.finish.stop is not None:
                frame.finish.stop_token_id = commit.finish.stop
        for entry in commit.logprobs or ():
            frame.logprobs.add(
                chosen=entry.chosen,
                top_tokens=[token for token, _ in entry.top],
                top_logprobs=[value for _, value in entry.top],
            )
        return self._complete(frame)

    def pong(self, ping: Ping) -> pb.CloudFrame:
        """The answer to a ping."""
        return self._complete(pb.CloudFrame(pong=pb.Pong(nonce=ping.nonce)))

    def advice(self, advice: Advice) -> pb.CloudFrame:
        """What the cloud knows and the device cannot."""
        return self._complete(pb.CloudFrame(advice=advice_to_wire(advice)))

    def prefix_unknown(self) -> pb.CloudFrame:
        """The prompt's prefix is not known."""
        return self._complete(pb.CloudFrame(prefix_unknown=pb.PrefixUnknown()))

    def _complete(self, frame: pb.CloudFrame) -> pb.CloudFrame:
        if self._padded:
            pad(frame)
        return frame


class CloudFrameReader:
    """Reads the cloud's frames on the device, for one stream."""

    def __init__(self) -> None:
        self._opened = False
        self._end = -1

    def read(self, frame: pb.CloudFrame) -> list[CloudMessage]:
        """The messages in one frame. Raises ProtocolViolation."""
        messages: list[CloudMessage] = []
        control = frame.WhichOneof("control")
        if control == "opened":
            if self._opened:
                raise ProtocolViolation("the verifier opened the stream twice")
            self._opened = True
            messages.append(opened_from_wire(frame.opened))
        elif control == "pong":
            messages.append(Pong(frame.pong.nonce))
        elif control == "advice":
            messages.append(advice_from_wire(frame.advice))
        elif control == "prefix_unknown":
            messages.append(PrefixUnknown())
        tokens = _tokens_of(frame)
        if tokens or frame.HasField("finish"):
            if not self._opened:
                raise ProtocolViolation("the verifier committed before it opened the stream")
            messages.append(self._commit(frame, tokens))
        if frame.ticket:
            if self._end < 0:
                raise ProtocolViolation("the verifier gave a ticket for nothing")
            messages.append(Ticket(frame.ticket, self._end))
        return messages

    def _commit(self, frame: pb.CloudFrame, tokens: tuple[int, ...]) -> Commit:
        if frame.HasField("position"):
            self._end = frame.position
        elif self._end < 0:
            raise ProtocolViolation("the first commit must name its position")
        accepted = frame.accepted if frame.HasField("accepted") else max(len(tokens) - 1, 0)
        if accepted > len(tokens):
            raise ProtocolViolation(f"{accepted} of {len(tokens)} tokens accepted")
        if frame.logprobs and len(frame.logprobs) != len(tokens):
            raise ProtocolViolation(f"{len(frame.logprobs)} logprobs for {len(tokens)} tokens")
        commit = Commit(
            position=self._end,
            tokens=tokens,
            accepted=accepted,
            origin=_ORIGINS_BACK.get(frame.origin, Origin.CLOUD),
            finish=_finish_from_wire(frame.finish) if frame.HasField("finish") else None,
            logprobs=tuple(
                TokenLogprobs(entry.chosen, tuple(zip(entry.top_tokens, entry.top_logprobs, strict=False)))
                for entry in frame.logprobs
            )
            or None,
        )
        self._end = commit.end
        return commit


def _tokens_of(frame: pb.DeviceFrame | pb.CloudFrame) -> tuple[int, ...]:
    if not frame.HasField("token"):
        return tuple(frame.tokens)
    if frame.tokens:
        raise ProtocolViolation("a frame carries token or tokens, not both")
    return (frame.token,)


def _finish_from_wire(message: pb.Finish) -> Finish:
    stop: int | str | None = None
    if message.WhichOneof("stop") == "stop_token_id":
        stop = message.stop_token_id
    elif message.WhichOneof("stop") == "stop_string":
        stop = message.stop_string
    return Finish(_FINISHES_BACK.get(message.reason, FinishReason.STOP), stop)
