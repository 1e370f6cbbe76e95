"""What opens a stream and steers it, to protobuf and back. ``wire`` puts it into frames."""

from __future__ import annotations

from typing import Final

from pilotfish_core.errors import InvalidParameter, ProtocolViolation
from pilotfish_core.messages import GENERATION_ID_BYTES, MAX_ROUTES, PROTOCOL_VERSION, ROUTE_KEY, Open, Opened
from pilotfish_core.modes import Advice, CloudDraft, Hint, Mode, Pace, Pacing
from pilotfish_core.parameters import MAX_LOGIT_BIAS, SamplingParams
from pilotfish_core.prompts import PROMPT_BLOCK, PromptPrefix
from pilotfish_core.proto.v1 import verifier_pb2 as pb

DIGEST_BYTES: Final = 32
MAX_PREFIX: Final = 1 << 20  # tokens of a prompt's prefix
_PACINGS: Final = {Pacing.FREE: pb.Mode.FREE, Pacing.LOCKSTEP: pb.Mode.LOCKSTEP, Pacing.PAUSED: pb.Mode.PAUSED}
_PACINGS_BACK: Final[dict[int, Pacing]] = {int(wire): pacing for pacing, wire in _PACINGS.items()}
_CLOUD_DRAFTS: Final = {
    CloudDraft.NONE: pb.NONE,
    CloudDraft.NGRAM: pb.NGRAM,
    CloudDraft.MODEL: pb.MODEL,
}
_CLOUD_DRAFTS_BACK: Final[dict[int, CloudDraft]] = {int(wire): draft for draft, wire in _CLOUD_DRAFTS.items()}


def mode_to_wire(mode: Mode) -> pb.Mode:
    """See ``Mode``."""
    return pb.Mode(pacing=_PACINGS[mode.pacing], cloud_draft=_CLOUD_DRAFTS[mode.cloud_draft])


def mode_from_wire(message: pb.Mode) -> Mode:
    """Raises ProtocolViolation for a pacing that this version does not know; an unknown source is none."""
    pacing = _PACINGS_BACK.get(message.pacing)
    if pacing is None:
        raise ProtocolViolation(f"mode has pacing {message.pacing}; expected one of {sorted(_PACINGS_BACK)}")
    return Mode(pacing, _CLOUD_DRAFTS_BACK.get(message.cloud_draft, CloudDraft.NONE))


def pace_to_wire(pace: Pace) -> pb.Pace:
    """See ``Pace``; times in whole microseconds."""
    return pb.Pace(
        round_trip_us=_microseconds(pace.round_trip_s),
        draft_us=_microseconds(pace.draft_s),
        acceptance_permille=round(pace.acceptance * 1000),
    )


def pace_from_wire(message: pb.Pace) -> Pace:
    """Raises ProtocolViolation for an acceptance above 1."""
    if message.acceptance_permille > 1000:
        raise ProtocolViolation(f"pace has an acceptance of {message.acceptance_permille} permille")
    return Pace(message.round_trip_us / 1e6, message.draft_us / 1e6, message.acceptance_permille / 1000)


def _microseconds(seconds: float) -> int:
    return min(max(round(seconds * 1e6), 0), 2**32 - 1)


def hint_to_wire(hint: Hint) -> pb.Hint:
    """See ``Hint``."""
    return pb.Hint(battery_low=hint.battery_low, metered_network=hint.metered_network, prefer_fast=hint.prefer_fast)


def hint_from_wire(message: pb.Hint) -> Hint:
    """See ``Hint``."""
    return Hint(message.battery_low, message.metered_network, message.prefer_fast)


def advice_to_wire(advice: Advice) -> pb.Advice:
    """See ``Advice``; times in whole microseconds."""
    return pb.Advice(
        max_draft_tokens=advice.max_draft_tokens,
        reason=advice.reason,
        step_us=_microseconds(advice.step_s),
        cloud_draft=_CLOUD_DRAFTS[advice.cloud_draft],
        cloud_gain=advice.cloud_gain,
        cloud_cost=advice.cloud_cost,
    )


def advice_from_wire(message: pb.Advice) -> Advice:
    """Raises ProtocolViolation for numbers that no cloud can mean."""
    if not (-1.0 <= message.cloud_gain < 1e6 and 0.0 <= message.cloud_cost < 1e6):
        raise ProtocolViolation(f"advice has gain {message.cloud_gain} and cost {message.cloud_cost}")
    return Advice(
        step_s=message.step_us / 1e6,
        cloud_draft=_CLOUD_DRAFTS_BACK.get(message.cloud_draft, CloudDraft.NONE),
        cloud_gain=message.cloud_gain,
        cloud_cost=message.cloud_cost,
        max_draft_tokens=message.max_draft_tokens if message.HasField("max_draft_tokens") else None,
        reason=message.reason,
    )


def open_to_wire(message: Open) -> pb.Open:
    """See ``Open``."""
    opening = pb.Open(
        protocol_version=message.protocol_version,
        model=message.model,
        tokenizer_hash=bytes.fromhex(message.tokenizer_hash),
        generation_id=message.generation_id,
        attempt=message.attempt,
        prompt=_prompt_to_wire(message),
        params=params_to_wire(message.params),
        output=message.output,
        fingerprint=message.fingerprint,
        allow_other_fingerprint=message.allow_other_fingerprint,
        ticket=message.ticket,
    )
    if message.mode != Mode():
        opening.mode.CopyFrom(mode_to_wire(message.mode))
    if message.hint != Hint():
        opening.hint.CopyFrom(hint_to_wire(message.hint))
    if message.pace is not None:
        opening.pace.CopyFrom(pace_to_wire(message.pace))
    return opening


def _prompt_to_wire(message: Open) -> pb.Prompt:
    if message.prefix is None:
        return pb.Prompt(tokens=message.prompt)
    digest, length = message.prefix
    return pb.Prompt(prefix_hash=digest, prefix_length=length, tokens=message.prompt)


def _prefix_from_wire(message: pb.Prompt) -> PromptPrefix | None:
    digest, length = message.prefix_hash, message.prefix_length
    if not digest and not length:
        return None
    if len(digest) != DIGEST_BYTES or not 0 < length <= MAX_PREFIX or length % PROMPT_BLOCK:
        raise ProtocolViolation(
            f"the prompt's prefix has a hash of {len(digest)} bytes and a length of {length}; expected {DIGEST_BYTES} "
            f"bytes and a multiple of {PROMPT_BLOCK} up to {MAX_PREFIX}"
        )
    return PromptPrefix(digest, length)


def opened_to_wire(message: Opened) -> pb.Opened:
    """See ``Opened``."""
    return pb.Opened(
        protocol_version=message.protocol_version,
        model=message.model,
        fingerprint=message.fingerprint,
        other_fingerprint=message.other_fingerprint,
        max_model_len=message.max_model_len,
        max_draft_tokens=message.max_draft_tokens,
        max_unacknowledged=message.max_unacknowledged,
        cached_tokens=message.cached_tokens,
        drafts=message.drafts,
        cloud_draft=_CLOUD_DRAFTS[message.cloud_draft],
        routes=message.routes,
    )


def params_to_wire(params: SamplingParams) -> pb.SamplingParams:
    """See ``SamplingParams``."""
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


def params_from_wire(message: pb.SamplingParams) -> SamplingParams:
    """Raises InvalidParameter."""
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


def open_from_wire(message: pb.Open) -> Open:
    """Raises ProtocolViolation; InvalidParameter for bad sampling parameters."""
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
        prefix=_prefix_from_wire(message.prompt),
        params=params_from_wire(message.params),
        output=tuple(message.output),
        fingerprint=message.fingerprint,
        allow_other_fingerprint=message.allow_other_fingerprint,
        mode=mode_from_wire(message.mode),
        hint=hint_from_wire(message.hint),
        pace=pace_from_wire(message.pace) if message.HasField("pace") else None,
        ticket=message.ticket,
    )


def opened_from_wire(message: pb.Opened) -> Opened:
    """Raises ProtocolViolation for routes that cannot go into metadata."""
    if len(message.routes) > MAX_ROUTES or not all(map(ROUTE_KEY.fullmatch, message.routes)):
        raise ProtocolViolation(f"opened has {len(message.routes)} routes, or one that is no key")
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
        cloud_draft=_CLOUD_DRAFTS_BACK.get(message.cloud_draft, CloudDraft.NONE),
        routes=tuple(message.routes),
    )
