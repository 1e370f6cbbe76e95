/** The live figures. Written a few times a second: more often nobody can read them. */

import type { LiveFigures } from "../../sdk/src/index.js";
import { say } from "./page.js";
import { ARM_NAMES, reasonInWords, shortCount } from "./words.js";

const UNKNOWN = "–";

/** `live`: as the SDK has it. `rate`: tokens a second, of late or of the whole. */
export function showFigures(live: LiveFigures, rate: number): void {
  const { policy } = live;
  say("rate", rate > 0 ? rate.toFixed(0) : UNKNOWN);
  say("bytes-up", shortCount(live.bytesUp));
  say("bytes-down", shortCount(live.bytesDown));
  say("acceptance", policy.compared > 0 ? `${Math.round(policy.acceptance * 100)}%` : UNKNOWN);
  say("round-trip", policy.roundTripMs === null ? UNKNOWN : policy.roundTripMs.toFixed(policy.roundTripMs < 10 ? 1 : 0));
  say("draft-rate", policy.draftMs === null || policy.draftMs <= 0 ? UNKNOWN : (1000 / policy.draftMs).toFixed(0));
  say("arm-now", `${armInWords(policy.arm)}.`);
  say("reason", reasonInWords(policy.reason));
}

function armInWords(arm: string): string {
  return Object.entries(ARM_NAMES).find(([name]) => name === arm)?.[1] ?? arm;
}
