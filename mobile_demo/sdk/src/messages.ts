/** What opens a stream, as core and driver see it (`messages.py`); `wire` turns it into frames. */

import type { CloudDraft, Hint, Mode, Pace } from "./modes.js";
import type { SamplingParams } from "./parameters.js";
import type { PromptPrefix } from "./prompts.js";

export const PROTOCOL_VERSION = 1;
export const GENERATION_ID_BYTES = 16;
export const MAX_ROUTES = 8;
/** What a route key may be. */
export const ROUTE_KEY = /^[0-9A-Za-z._~-]{1,64}$/;

/** The device begins a generation, or continues one with the committed tokens that it holds. */
export interface Open {
  readonly model: string;
  /** Hex. */
  readonly tokenizerHash: string;
  readonly generationId: Uint8Array<ArrayBuffer>;
  readonly attempt: number;
  /** The ids after `prefix`. */
  readonly prompt: readonly number[];
  readonly params: SamplingParams;
  readonly output: readonly number[];
  readonly fingerprint: string;
  readonly allowOtherFingerprint: boolean;
  readonly mode: Mode;
  readonly hint: Hint;
  readonly pace: Pace | null;
  readonly prefix: PromptPrefix | null;
  readonly ticket: Uint8Array;
}

/** The cloud's answer: what it grants. */
export interface Opened {
  readonly protocolVersion: number;
  readonly model: string;
  readonly fingerprint: string;
  readonly maxModelLen: number;
  readonly maxDraftTokens: number;
  readonly maxUnacknowledged: number;
  readonly cachedTokens: number;
  readonly otherFingerprint: boolean;
  readonly drafts: readonly string[];
  readonly cloudDraft: CloudDraft;
  readonly routes: readonly string[];
}

/** The cloud's proof that it committed the tokens below position `length`. */
export interface Ticket {
  readonly value: Uint8Array;
  readonly length: number;
}
