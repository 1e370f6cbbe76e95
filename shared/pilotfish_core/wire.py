"""Frames to messages and back. Stateful, one reader and one writer per direction and stream.

A stream is ordered, so a draft run that continues and a commit that follows need not say where they are. The cores
always say; the writers leave it out, the readers put it back. Readers validate: what does not parse or does not
follow raises ProtocolViolation.
"""

from __future__ import annotations

from typing import Final

from pilotfish_core.drafts import Commit, DraftRun, Finish, FinishReason, Origin, TokenLogprobs
from pilotfish_core.errors import InvalidParameter, ProtocolViolation
from pilotfish_core.messages import (
    GENERATION_ID_BYTES,
    PROTOCOL_VERSION,
    Acknowledged,
    Open,
    Opened,
    Ping,
    Pong,
    PrefixUnknown,
)
from pilotfish_core.parameters import MAX_LOGIT_BIAS, SamplingParams
from pilotfish_core.proto.v1 import verifier_pb2 as pb

MAX_FRAME_BYTES: Final = 1 << 20  # a prompt of 262,144 ids fits; gRPC's default is 4 MiB
MAX_POSITION: Final = 2**31 - 1

DeviceMessage = Open | DraftRun | Acknowledged | Ping
CloudMessage = Opened | Commit | Pong | PrefixUnknown

_ORIGINS: Final = {Origin.RECOVERED: pb.RECOVERED, Origin.BONUS: pb.BONUS, Origin.CLOUD: pb.CLOUD}
_ORIGINS_BACK: Final[dict[int, Origin]] = {int(wire): origin for origin, wire in _ORIGINS.items()}
_FINISHES: Final = {FinishReason.STOP: pb.STOP, FinishReason.LENGTH: pb.LENGTH, FinishReason.ABORT: pb.ABORT}
_FINISHES_BACK: Final[dict[int, FinishReason]] = {int(wire): reason for reason, wire in _FINISHES.items()}


class DeviceFrameWriter:
    """Turns the device's messages into frames, for one stream."""

    def __init__(self) -> None:
        self._branch = -1
        self._end = -1
        self._base = -1  # start of the last branch; at first the length that open said

    def open(self, message: Open) -> pb.DeviceFrame:
        """The first frame."""
        frame = pb.DeviceFrame()
        opening = frame.open
        opening.protocol_version = message.protocol_version
        opening.model = message.model
        opening.tokenizer_hash = bytes.fromhex(message.tokenizer_hash)
        opening.generation_id = message.generation_id
        opening.attempt = message.attempt
        opening.prompt.tokens.extend(message.prompt)
        opening.params.CopyFrom(_params_to_wire(message.params))
        opening.output.extend(message.output)
        opening.fingerprint = message.fingerprint
        opening.allow_other_fingerprint = message.allow_other_fingerprint
        self._base = len(message.prompt) + len(message.output)
        return frame

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
        return frame

    def acknowledge(self, length: int) -> pb.DeviceFrame:
        """An acknowledgement alone."""
        return pb.DeviceFrame(acknowledged=length)

    def ping(self, ping: Ping) -> pb.DeviceFrame:
        """A ping."""
        return pb.DeviceFrame(ping=pb.Ping(nonce=ping.nonce))


class DeviceFrameReader:
    """Reads the device's frames in the cloud, for one stream."""

    def __init__(self) -> None:
        self._opened = False
        self._branch = -1
        self._end = -1
        self._base = -1  # as the writer's

    def read(self, frame: pb.DeviceFrame) -> list[DeviceMessage]:
        """The messages in one frame. Raises ProtocolViolation; InvalidParameter for bad sampling parameters."""
        messages: list[DeviceMessage] = []
        control = frame.WhichOneof("control")
        if (control == "open") == self._opened:
            raise ProtocolViolation("a second open" if self._opened else "the first frame must carry open")
        if control == "open":
            self._opened = True
            opening = _open_from_wire(frame.open)
            self._base = len(opening.prompt) + len(opening.output)
            messages.append(opening)
        elif control == "ping":
            messages.append(Ping(frame.ping.nonce))
        if frame.HasField("acknowledged"):
            messages.append(Acknowledged(frame.acknowledged))
        tokens = _tokens_of(frame)
        if tokens:
            before = self._branch
            run = self._run(frame, tokens)
            if run.branch > before and not frame.HasField("acknowledged"):
                messages.append(Acknowledged(run.start))
            messages.append(run)
        return messages

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
    """Turns the cloud's messages into frames, for one stream."""

    def __init__(self) -> None:
        self._end = -1

    def opened(self, message: Opened) -> pb.CloudFrame:
        """The first frame."""
        return pb.CloudFrame(
            opened=pb.Opened(
                protocol_version=message.protocol_version,
                model=message.model,
                fingerprint=message.fingerprint,
                other_fingerprint=message.other_fingerprint,
                max_model_len=message.max_model_len,
                max_draft_tokens=message.max_draft_tokens,
                max_unacknowledged=message.max_unacknowledged,
                cached_tokens=message.cached_tokens,
                drafts=message.drafts,
            )
        )

    def commit(self, commit: Commit) -> pb.CloudFrame:
        """A commit; the position is left out when it follows the last one."""
        frame = pb.CloudFrame()
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
        return frame

    def pong(self, ping: Ping) -> pb.CloudFrame:
        """The answer to a ping."""
        return pb.CloudFrame(pong=pb.Pong(nonce=ping.nonce))

    def prefix_unknown(self) -> pb.CloudFrame:
        """The prompt's prefix is not known."""
        return pb.CloudFrame(prefix_unknown=pb.PrefixUnknown())


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
            messages.append(_opened_from_wire(frame.opened))
        elif control == "pong":
            messages.append(Pong(frame.pong.nonce))
        elif control == "prefix_unknown":
            messages.append(PrefixUnknown())
        tokens = _tokens_of(frame)
        if tokens or frame.HasField("finish"):
            if not self._opened:
                raise ProtocolViolation("the verifier committed before it opened the stream")
            messages.append(self._commit(frame, tokens))
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


def _params_to_wire(params: SamplingParams) -> pb.SamplingParams:
    message = pb.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=dict(params.logit_bias),
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        ignore_eos=params.ignore_eos,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
    )
    if params.logprobs is not None:
        message.logprobs = params.logprobs
    return message


def _params_from_wire(message: pb.SamplingParams) -> SamplingParams:
    if len(message.logit_bias) > MAX_LOGIT_BIAS:
        raise InvalidParameter.of("logit_bias", f"{len(message.logit_bias)} entries", f"at most {MAX_LOGIT_BIAS}")
    return SamplingParams(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        seed=message.seed,
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        ignore_eos=message.ignore_eos,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def _open_from_wire(message: pb.Open) -> Open:
    if message.protocol_version != PROTOCOL_VERSION:
        raise ProtocolViolation(
            f"the device speaks protocol version {message.protocol_version}, this verifier {PROTOCOL_VERSION}"
        )
    if len(message.generation_id) != GENERATION_ID_BYTES:
        raise ProtocolViolation(f"generation_id has {len(message.generation_id)} bytes; expected {GENERATION_ID_BYTES}")
    return Open(
        protocol_version=message.protocol_version,
        model=message.model,
        tokenizer_hash=message.tokenizer_hash.hex(),
        generation_id=message.generation_id,
        attempt=message.attempt,
        prompt=tuple(message.prompt.tokens),
        params=_params_from_wire(message.params),
        output=tuple(message.output),
        fingerprint=message.fingerprint,
        allow_other_fingerprint=message.allow_other_fingerprint,
    )


def _opened_from_wire(message: pb.Opened) -> Opened:
    return Opened(
        protocol_version=message.protocol_version,
        model=message.model,
        fingerprint=message.fingerprint,
        other_fingerprint=message.other_fingerprint,
        max_model_len=message.max_model_len,
        max_draft_tokens=message.max_draft_tokens,
        max_unacknowledged=message.max_unacknowledged,
        cached_tokens=message.cached_tokens,
        drafts=tuple(message.drafts),
    )


def _finish_from_wire(message: pb.Finish) -> Finish:
    stop: int | str | None = None
    if message.WhichOneof("stop") == "stop_token_id":
        stop = message.stop_token_id
    elif message.WhichOneof("stop") == "stop_string":
        stop = message.stop_string
    return Finish(_FINISHES_BACK.get(message.reason, FinishReason.STOP), stop)
