/** What opens a stream and steers it, to protobuf and back (`wire_messages.py`). */

import { create } from "@bufbuild/protobuf";

import { ProtocolViolation } from "./errors.js";
import { MAX_ROUTES, type Open, type Opened, PROTOCOL_VERSION, ROUTE_KEY } from "./messages.js";
import { type Advice, CloudDraft, type Hint, type Mode, NO_HINT, type Pace, PLAIN_MODE, sameHint, sameMode } from "./modes.js";
import type { SamplingParams } from "./parameters.js";
import * as pb from "./proto/verifier_pb.js";
import { fromHex } from "./sha256.js";

const PACINGS = { free: pb.Mode_Pacing.FREE, lockstep: pb.Mode_Pacing.LOCKSTEP, paused: pb.Mode_Pacing.PAUSED } as const;
const MAX_UINT32 = 2 ** 32 - 1;

export function modeToWire(mode: Mode): pb.Mode {
  return create(pb.ModeSchema, { pacing: PACINGS[mode.pacing], cloudDraft: mode.cloudDraft });
}

export function hintToWire(hint: Hint): pb.Hint {
  return create(pb.HintSchema, { ...hint });
}

function paceToWire(pace: Pace): pb.Pace {
  return create(pb.PaceSchema, {
    roundTripUs: microseconds(pace.roundTripS),
    draftUs: microseconds(pace.draftS),
    acceptancePermille: nearestEven(pace.acceptance * 1000),
  });
}

function microseconds(seconds: number): number {
  return Math.min(Math.max(nearestEven(seconds * 1e6), 0), MAX_UINT32);
}

/** The nearest integer, the even one of two: as Python rounds. */
function nearestEven(value: number): number {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 === 0 ? low : low + 1;
}

export function paramsToWire(params: SamplingParams): pb.SamplingParams {
  const message = create(pb.SamplingParamsSchema, {
    temperature: params.temperature,
    topK: params.topK,
    topP: params.topP,
    minP: params.minP,
    repetitionPenalty: params.repetitionPenalty,
    presencePenalty: params.presencePenalty,
    frequencyPenalty: params.frequencyPenalty,
    logitBias: Object.fromEntries(params.logitBias),
    seed: params.seed,
    maxTokens: params.maxTokens,
    minTokens: params.minTokens,
    ignoreEos: params.ignoreEos,
    stop: [...params.stop],
    stopTokenIds: [...params.stopTokenIds],
  });
  if (params.logprobs !== null) message.logprobs = params.logprobs;
  return message;
}

export function openToWire(message: Open): pb.Open {
  const prompt = create(pb.PromptSchema, { tokens: [...message.prompt] });
  if (message.prefix !== null) {
    prompt.prefixHash = message.prefix.digest;
    prompt.prefixLength = message.prefix.length;
  }
  const opening = create(pb.OpenSchema, {
    protocolVersion: PROTOCOL_VERSION,
    model: message.model,
    tokenizerHash: fromHex(message.tokenizerHash),
    generationId: message.generationId,
    attempt: message.attempt,
    prompt,
    params: paramsToWire(message.params),
    output: [...message.output],
    fingerprint: message.fingerprint,
    allowOtherFingerprint: message.allowOtherFingerprint,
    ticket: message.ticket,
  });
  if (!sameMode(message.mode, PLAIN_MODE)) opening.mode = modeToWire(message.mode);
  if (!sameHint(message.hint, NO_HINT)) opening.hint = hintToWire(message.hint);
  if (message.pace !== null) opening.pace = paceToWire(message.pace);
  return opening;
}

/** Throws ProtocolViolation for routes that cannot be told on. */
export function openedFromWire(message: pb.Opened): Opened {
  if (message.routes.length > MAX_ROUTES || !message.routes.every((route) => ROUTE_KEY.test(route))) {
    throw new ProtocolViolation(`opened has ${message.routes.length} routes, or one that is no key`);
  }
  return {
    protocolVersion: message.protocolVersion,
    model: message.model,
    fingerprint: message.fingerprint,
    otherFingerprint: message.otherFingerprint,
    maxModelLen: message.maxModelLen,
    maxDraftTokens: message.maxDraftTokens,
    maxUnacknowledged: message.maxUnacknowledged,
    cachedTokens: message.cachedTokens,
    drafts: message.drafts,
    cloudDraft: cloudDraftFromWire(message.cloudDraft),
    routes: message.routes,
  };
}

/** Throws ProtocolViolation for numbers that no cloud can mean. */
export function adviceFromWire(message: pb.Advice): Advice {
  const proper =
    message.cloudGain >= -1 && message.cloudGain < 1e6 && message.cloudCost >= 0 && message.cloudCost < 1e6;
  if (!proper) {
    throw new ProtocolViolation(`advice has gain ${message.cloudGain} and cost ${message.cloudCost}`);
  }
  return {
    stepS: message.stepUs / 1e6,
    cloudDraft: cloudDraftFromWire(message.cloudDraft),
    cloudGain: message.cloudGain,
    cloudCost: message.cloudCost,
    maxDraftTokens: message.maxDraftTokens ?? null,
    reason: message.reason,
  };
}

/** A source that this version does not know is none. */
function cloudDraftFromWire(value: pb.CloudDraft): CloudDraft {
  return value === pb.CloudDraft.NGRAM || value === pb.CloudDraft.MODEL ? value : CloudDraft.NONE;
}
