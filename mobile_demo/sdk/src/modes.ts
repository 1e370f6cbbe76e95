/** Who drafts and at what pace: the arms of the policy, and what device and cloud tell each other (`modes.py`). */

/** How device and cloud wait for each other. */
export type Pacing = "free" | "lockstep" | "paused";

/** What the cloud itself drafts with, where the device has nothing; in order of what it costs. */
export const CloudDraft = { NONE: 0, NGRAM: 1, MODEL: 2 } as const;
export type CloudDraft = (typeof CloudDraft)[keyof typeof CloudDraft];

export const ARMS = [
  "auto",
  "cloud",
  "co-located",
  "co-located-ngram",
  "co-located-model",
  "device-lockstep",
  "device-async",
  "device-only",
] as const;
/** The named arms; "auto" lets the policy choose among the others that need a verifier. */
export type Arm = (typeof ARMS)[number];

export const OBJECTIVES = ["latency", "cloud-cost", "bytes", "battery"] as const;
/** What "auto" is to make the best of. */
export type Objective = (typeof OBJECTIVES)[number];

/** Whether the device's drafter works in an arm. */
export function deviceDrafts(arm: Arm): boolean {
  return arm === "device-lockstep" || arm === "device-async" || arm === "device-only";
}

/** How the device drafts from here on, and what the cloud may draft with where the device has nothing. */
export interface Mode {
  readonly pacing: Pacing;
  readonly cloudDraft: CloudDraft;
}

export const PLAIN_MODE: Mode = { pacing: "free", cloudDraft: CloudDraft.NONE };

export function sameMode(one: Mode, other: Mode): boolean {
  return one.pacing === other.pacing && one.cloudDraft === other.cloudDraft;
}

/** What the app knows about the device. */
export interface Hint {
  readonly batteryLow: boolean;
  readonly meteredNetwork: boolean;
  readonly preferFast: boolean;
}

export const NO_HINT: Hint = { batteryLow: false, meteredNetwork: false, preferFast: false };

export function sameHint(one: Hint, other: Hint): boolean {
  return (
    one.batteryLow === other.batteryLow &&
    one.meteredNetwork === other.meteredNetwork &&
    one.preferFast === other.preferFast
  );
}

/** What to strive for; speed is asked for by name, so it wins, then the battery. */
export function hintedObjective(hint: Hint, otherwise: Objective): Objective {
  if (hint.preferFast) return "latency";
  if (hint.batteryLow) return "battery";
  return hint.meteredNetwork ? "bytes" : otherwise;
}

/** How fast and how well a device drafts, as it has seen in earlier generations. */
export interface Pace {
  readonly roundTripS: number;
  readonly draftS: number;
  readonly acceptance: number;
}

/**
 * What the cloud knows and the device cannot. `stepS`: of a decode step without a draft. `cloudGain`: expected speed
 * when the cloud drafts with `cloudDraft` over that without any draft, minus 1; `cloudCost`: the target's time for a
 * token then, plain decoding being 1. `maxDraftTokens` 0 asks the device not to draft.
 */
export interface Advice {
  readonly stepS: number;
  readonly cloudDraft: CloudDraft;
  readonly cloudGain: number;
  readonly cloudCost: number;
  readonly maxDraftTokens: number | null;
  readonly reason: string;
}
