/** What the device's core is told to do and asks for (`device_actions.py`). */

import type { DraftRun, Finish, Origin, TokenLogprobs } from "./drafts.js";
import type { PilotfishError } from "./errors.js";
import type { Arm, Hint, Mode, Objective } from "./modes.js";
import type { OfflineConfig } from "./offline.js";
import { RETRY, type RetryPolicy } from "./retry.js";
import { DRAFT_TUNING, type DraftTuning } from "./tuning.js";

/** Who drafts, how far and how, and when the device worries about the link. */
export interface DeviceConfig {
  readonly window: number; // at most so many draft tokens beyond the last commit that the device knows
  readonly adaptive: boolean; // false: always `window`, for comparisons
  readonly arm: Arm;
  readonly objective: Objective; // of "auto"
  readonly tuning: DraftTuning;
  readonly draftChunk: number; // tokens per draft task
  readonly acknowledgeEvery: number; // committed tokens
  readonly retry: RetryPolicy;
  readonly pingAfterS: number; // of silence
  readonly pingTimeoutS: number; // in which nothing at all is heard
  readonly measureEveryS: number; // between pings that measure the round trip, while drafting
  readonly offline: OfflineConfig | null; // null: while the link is away nothing is shown, and tries are counted
}

export const DEVICE_CONFIG: DeviceConfig = {
  window: 16,
  adaptive: true,
  arm: "auto",
  objective: "latency",
  tuning: DRAFT_TUNING,
  draftChunk: 1,
  acknowledgeEvery: 32,
  retry: RETRY,
  pingAfterS: 5,
  pingTimeoutS: 5,
  measureEveryS: 0.5,
  offline: null,
};

/** Open a new stream and send Open with this attempt number and mode, and of the committed tokens those below `length`. */
export interface Connect {
  readonly kind: "connect";
  readonly attempt: number;
  readonly length: number;
  readonly mode: Mode;
  readonly ticket: Uint8Array | null;
}

/** Send a draft run, with an acknowledgement riding along. */
export interface SendDraft {
  readonly kind: "send-draft";
  readonly run: DraftRun;
  readonly acknowledged: number | null;
}

/**
 * Hand committed tokens, the first at `position`, to the app. Of those that it was shown unverified the first
 * `confirmed` are the same; `withdrawn` do not stand and are replaced by the rest; `undecided` are left.
 */
export interface Deliver {
  readonly kind: "deliver";
  readonly tokens: readonly number[];
  readonly origins: readonly Origin[];
  readonly logprobs: readonly TokenLogprobs[] | null;
  readonly confirmed: number;
  readonly withdrawn: number;
  readonly undecided: number;
  readonly position: number;
}

export interface SendAcknowledge {
  readonly kind: "send-acknowledge";
  readonly length: number;
}

export interface SendPing {
  readonly kind: "send-ping";
  readonly nonce: number;
}

export interface SendMode {
  readonly kind: "send-mode";
  readonly mode: Mode;
}

export interface SendHint {
  readonly kind: "send-hint";
  readonly hint: Hint;
}

/** Hand draft tokens to the app, marked as what they are: the link is away. */
export interface ShowUnverified {
  readonly kind: "show-unverified";
  readonly position: number;
  readonly tokens: readonly number[];
}

/** Ask the app whether the tokens that it was shown are to be verified or kept; bring the answer to `answered`. */
export interface AskWhether {
  readonly kind: "ask-whether";
  readonly number: number;
  readonly tokens: readonly number[];
}

/** Unverified tokens are about to become output: note whose they are, then call `kept`. */
export interface Keep {
  readonly kind: "keep";
  readonly tokens: readonly number[];
}

/** The generation is over: finished, or failed with an error. */
export interface End {
  readonly kind: "end";
  readonly finish: Finish | null;
  readonly error: PilotfishError | null;
}

export type Action =
  | Connect
  | SendDraft
  | SendAcknowledge
  | SendPing
  | SendMode
  | SendHint
  | Deliver
  | ShowUnverified
  | AskWhether
  | Keep
  | End;

/** Rewind the drafter to `keep` tokens, extend it by `extend`, draft up to `count`. */
export interface DraftTask {
  readonly keep: number;
  readonly extend: readonly number[];
  readonly count: number;
}

/** Counters of one generation on the device. */
export class DraftCounts {
  drafted = 0;
  sent = 0;
  accepted = 0;
  commits = 0;
  bonus = 0;
  recovered = 0;
  cloud = 0;
  rollbacks = 0;
  reconnects = 0;
  unverified = 0; // shown while the link was away
  confirmed = 0; // of those, by the target
  withdrawn = 0;
  kept = 0;
}
