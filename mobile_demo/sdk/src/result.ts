/** What an app gets: pieces of text while they come, and the whole with its figures at the end (`result.py`). */

import type { FinishReason, Origin, TokenLogprobs } from "./drafts.js";

interface PieceBase {
  /** What it adds to the screen; may be empty where a token ends inside a character, or may become a stop string. */
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly origin: Origin;
  readonly logprobs: readonly TokenLogprobs[] | null;
  /** Whether the target decided these tokens. */
  readonly verified: boolean;
  /** The text of verified tokens, as it comes when the link is never away. */
  readonly verifiedText: string;
}

/** Text with the tokens it came from, all of one `origin`. */
export interface TextPiece extends PieceBase {
  readonly kind: "text";
}

/** The link is back, and these tokens, whose text was shown unverified, are the target's: `text` is empty. */
export interface Confirmed extends PieceBase {
  readonly kind: "confirmed";
  readonly confirmedText: string;
}

/**
 * The link is back, and the target went elsewhere than the unverified text: all shown from `offset` of the answer on
 * (in UTF-16 code units, as strings count here), which is `removed`, gives way to `text`. `position`: of the first
 * token that differs, in prompt and output.
 */
export interface Revised extends PieceBase {
  readonly kind: "revised";
  readonly position: number;
  readonly offset: number;
  readonly removed: string;
  readonly confirmedText: string;
}

/** What an app iterates. */
export type Piece = TextPiece | Confirmed | Revised;

/** The numbers behind the policy's last choice. Times in milliseconds; gains over the cloud alone. */
export interface PolicyState {
  readonly arm: string;
  readonly reason: string;
  readonly objective: string;
  readonly paused: boolean;
  readonly window: number;
  readonly flushMs: number;
  readonly acceptance: number;
  readonly compared: number;
  readonly gains: Readonly<Record<string, number>>;
  readonly gain: number | null;
  readonly roundTripMs: number | null;
  readonly jitterMs: number | null;
  readonly draftMs: number | null;
  readonly stepMs: number | null;
  readonly cloudDraft: "none" | "ngram" | "model";
  readonly advice: string | null;
}

/** Figures of one answer, from this device's point of view. Times in seconds, payload in bytes of protobuf. */
export interface Metrics {
  readonly model: string;
  readonly drafter: string;
  readonly drafterError: string | null;
  readonly seed: bigint;
  readonly fingerprints: readonly string[];
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly cachedTokens: number;
  readonly elapsedS: number;
  readonly ttftS: number;
  readonly tpotS: number;
  readonly tokensPerS: number;
  readonly steps: number;
  readonly stepsPerToken: number;
  readonly meanAcceptanceLength: number;
  readonly draftTokens: number;
  readonly sentDraftTokens: number;
  readonly acceptedDraftTokens: number;
  readonly recoveredTokens: number;
  readonly bonusTokens: number;
  readonly cloudTokens: number;
  readonly rollbacks: number;
  readonly reconnects: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
  readonly unverifiedTokens: number;
  readonly confirmedTokens: number;
  readonly withdrawnTokens: number;
  readonly keptTokens: number;
  readonly policy: PolicyState;
}

/** A whole answer. `tokenIds` keep an end token, `text` does not. */
export interface Result {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly finishReason: FinishReason;
  readonly stop: number | string | null;
  readonly metrics: Metrics;
  /** Whether the target decided all of it. */
  readonly verified: boolean;
  /** Shown behind `text` and undecided: the answer was cancelled while the link was away. */
  readonly unverifiedText: string;
}

/** What happened, for who draws it. `at` in seconds of `performance.now() / 1000`. */
export type TimelineEvent =
  | { readonly kind: "connecting"; readonly at: number; readonly attempt: number; readonly length: number }
  | { readonly kind: "opened"; readonly at: number; readonly fingerprint: string; readonly cachedTokens: number }
  | { readonly kind: "lost"; readonly at: number; readonly message: string; readonly retryInS: number | null }
  | { readonly kind: "drafted"; readonly at: number; readonly tokens: number; readonly tookS: number }
  | { readonly kind: "sent"; readonly at: number; readonly start: number; readonly tokens: number; readonly bytes: number }
  | {
      readonly kind: "committed";
      readonly at: number;
      readonly position: number;
      readonly tokens: number;
      readonly accepted: number;
      readonly rolledBack: number;
      readonly bytes: number;
    }
  | { readonly kind: "policy"; readonly at: number; readonly arm: string; readonly reason: string }
  | { readonly kind: "round-trip"; readonly at: number; readonly seconds: number }
  | { readonly kind: "away"; readonly at: number }
  | { readonly kind: "ended"; readonly at: number; readonly reason: string };
