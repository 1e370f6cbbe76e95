/** The live figures. Written a few times a second: more often nobody can read them. */

import type { PolicyState } from "../../sdk/src/index.js";
import { say } from "./page.js";
import { ARM_NAMES, reasonInWords, shortCount } from "./words.js";

/** What is known of the answer at the moment. Times in seconds, payload in bytes. */
export interface LiveFigures {
  readonly tokens: number;
  readonly elapsedS: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
  readonly policy: PolicyState | null;
}

const UNKNOWN = "–";

export function showFigures(live: LiveFigures): void {
  const { policy } = live;
  say("rate", live.elapsedS > 0.05 && live.tokens > 0 ? (live.tokens / live.elapsedS).toFixed(0) : UNKNOWN);
  say("bytes-up", shortCount(live.bytesUp));
  say("bytes-down", shortCount(live.bytesDown));
  if (policy === null) return;
  say("acceptance", policy.compared > 0 ? `${Math.round(policy.acceptance * 100)}%` : UNKNOWN);
  say("round-trip", policy.roundTripMs === null ? UNKNOWN : policy.roundTripMs.toFixed(policy.roundTripMs < 10 ? 1 : 0));
  say("draft-rate", policy.draftMs === null || policy.draftMs <= 0 ? UNKNOWN : (1000 / policy.draftMs).toFixed(0));
  say("arm-now", `${armInWords(policy.arm)}.`);
  say("reason", reasonInWords(policy.reason));
}

function armInWords(arm: string): string {
  return Object.entries(ARM_NAMES).find(([name]) => name === arm)?.[1] ?? arm;
}
