/** The protocol's words: draft runs and commits. Positions are indices into prompt + output (`drafts.py`). */

export const FINISH_REASONS = ["stop", "length", "abort"] as const;
/** Why an answer ended, in OpenAI's words; "abort": cancelled by the caller. */
export type FinishReason = (typeof FINISH_REASONS)[number];

/**
 * Where a token came from: drafted by the device and equal to the target's choice; the target's where the draft
 * differed; the target's after a fully accepted draft; the target's in a step without a draft; the draft model's alone.
 */
export type Origin = "accepted" | "recovered" | "bonus" | "cloud" | "unverified";

/** The end of an answer: why, and for "stop" which token id or string ended it. */
export interface Finish {
  readonly reason: FinishReason;
  readonly stop: number | string | null;
}

/** Consecutive draft tokens of one branch, the first at position `start`. */
export interface DraftRun {
  readonly branch: number;
  readonly start: number;
  readonly tokens: readonly number[];
}

/** Natural-log probabilities before filtering: of the chosen token, and of the best ones, best first. */
export interface TokenLogprobs {
  readonly chosen: number;
  readonly top: readonly (readonly [id: number, logprob: number])[];
}

/**
 * Tokens that the target has decided, the first at `position`. The first `accepted` were drafted; a token after them
 * has `origin`. An empty commit only carries a `finish`.
 */
export interface Commit {
  readonly position: number;
  readonly tokens: readonly number[];
  readonly accepted: number;
  readonly origin: Origin;
  readonly finish: Finish | null;
  readonly logprobs: readonly TokenLogprobs[] | null;
}

export function commitEnd(commit: Commit): number {
  return commit.position + commit.tokens.length;
}

/** Origin of the commit's token `index`. */
export function originOf(commit: Commit, index: number): Origin {
  return index < commit.accepted ? "accepted" : commit.origin;
}

/** How many of the first items of both are equal. */
export function agreeing(one: readonly number[], other: readonly number[]): number {
  const least = Math.min(one.length, other.length);
  let agreed = 0;
  while (agreed < least && one[agreed] === other[agreed]) agreed += 1;
  return agreed;
}
