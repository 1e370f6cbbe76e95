/**
 * The device's half of the policy: which arm, how far to draft ahead, when to send (`draft_policy.py`, docs/policy.md).
 * No clock, no I/O. What is known between generations is in a `PolicyMemory`.
 */

import { Average } from "./averages.js";
import { Acceptance, RoundTrip } from "./estimators.js";
import { bestHold, bestLockstep, type Pipeline } from "./goodput.js";
import {
  type Advice,
  type Arm,
  CloudDraft,
  deviceDrafts,
  type Hint,
  hintedObjective,
  type Mode,
  NO_HINT,
  type Objective,
  type Pace,
} from "./modes.js";
import type { PolicyState } from "./result.js";
import type { DraftTuning } from "./tuning.js";

const FIRST_WINDOW = 2;
const FIRST_COMPARISONS = 4;
const FIRST_TRIES = 8;
const REMEMBERED = 8;
const FLUSH_S: readonly [low: number, high: number] = [0.001, 0.008];
const HOLD_CAP_S = 0.05;
const PROBE_EVERY: readonly [first: number, most: number] = [8, 64];
const STRIDE = 4;
const JUDGEMENTS = 6;
const SPAN = 24;
const FADE = 0.1;
const TRUTH: readonly [low: number, high: number] = [0.1, 1.5];
const SLACK = 0.03;
const CO_LOCATED_TROUBLE = 0.02;

/** Why the device drafts, or does not. */
export type DraftReason =
  | "fixed"
  | "ramp"
  | "useful"
  | "useless"
  | "slow"
  | "cloud-drafts"
  | "load"
  | "battery"
  | "bytes"
  | "no-drafter";

type Choice = "cloud" | "co-located" | "device-async"; // what "auto" chooses among
type Shares = Map<Choice, number>;

const MODES: Readonly<Record<string, Mode>> = {
  cloud: { pacing: "paused", cloudDraft: CloudDraft.NONE },
  "co-located": { pacing: "paused", cloudDraft: CloudDraft.MODEL },
  "co-located-model": { pacing: "paused", cloudDraft: CloudDraft.MODEL },
  "co-located-ngram": { pacing: "paused", cloudDraft: CloudDraft.NGRAM },
  "device-lockstep": { pacing: "lockstep", cloudDraft: CloudDraft.NONE },
  "device-async": { pacing: "free", cloudDraft: CloudDraft.NONE },
};
const FREE_WITH_NGRAM: Mode = { pacing: "free", cloudDraft: CloudDraft.NGRAM };

export interface DraftPolicyConfig {
  readonly window: number;
  readonly adaptive: boolean;
  readonly arm: Arm;
  readonly objective: Objective;
  readonly tuning: DraftTuning;
}

/** What one generation learned that the next may begin with: of the link, the drafter, and the cloud. */
export class PolicyMemory {
  readonly acceptance = new Acceptance({ halfLife: 256 });
  readonly roundTrip = new RoundTrip();
  readonly draftTime = new Average(0.1);
  advice: Advice | null = null;
  cloudDraft: CloudDraft = CloudDraft.NONE;
  /** What the speed turned out to be over what was expected of an arm. */
  readonly truth: ReadonlyMap<Choice, Average> = new Map<Choice, Average>([
    ["co-located", new Average(0.15)],
    ["device-async", new Average(0.15)],
  ]);
}

/** One generation's choices. Feed it with what is observed; ask `arm`, `mode`, `window` and `flushS`. */
export class DraftPolicy {
  arm: Arm;
  reason: DraftReason;
  pauses = 0;
  hint: Hint;
  readonly acceptance: Acceptance;
  readonly stepTime = new Average(0.1);
  private readonly trouble: Readonly<Record<Choice, number>>;
  private readonly remembered: number;
  private drafting: boolean;
  private expectation: { gain: number; busy: number } | null = null;
  private stale = true;
  private lastCommit: number | null = null;
  private probeEvery = PROBE_EVERY[0];
  private sinceProbe = 0;
  private tried = 0;
  private elsewhere = 0;
  private spanTokens = 0;
  private spanSeconds = 0;
  private sinceChange: number;

  constructor(
    readonly config: DraftPolicyConfig,
    readonly memory: PolicyMemory,
    drafting: boolean,
    hint: Hint | null = null,
  ) {
    this.trouble = { cloud: 0, "co-located": CO_LOCATED_TROUBLE, "device-async": config.tuning.trouble };
    this.hint = hint ?? NO_HINT;
    this.acceptance = new Acceptance({
      prior: memory.acceptance.rate,
      weight: Math.min(2 + memory.acceptance.compared, REMEMBERED),
    });
    this.remembered = Math.min(memory.acceptance.compared, FIRST_COMPARISONS);
    this.drafting = drafting;
    this.sinceChange = config.tuning.settled;
    this.arm = this.firstArm();
    this.reason = this.reasonOf(this.arm);
    this.decide();
    this.sinceChange = config.tuning.settled; // the first choice is nothing that must settle
  }

  // -- choices --------------------------------------------------------------------------------------------------------

  /** What the cloud is to know of the arm. */
  get mode(): Mode {
    if (this.config.arm === "auto" && this.config.adaptive && this.arm === "device-async") return FREE_WITH_NGRAM;
    return MODES[this.arm];
  }

  /** Whether the device sends no drafts. */
  get paused(): boolean {
    return !deviceDrafts(this.arm);
  }

  /** Draft tokens ahead of the last known commit; while paused those of a probe, which is not sent. */
  get window(): number {
    if (!this.drafting) return 0;
    if (this.arm === "device-lockstep") return this.lockstepWindow();
    if (!this.config.adaptive) return this.paused ? 0 : this.config.window;
    if (this.paused) return this.probes && this.sinceProbe >= this.probeEvery ? 1 : 0;
    if (!this.experienced) return Math.min(this.config.window, FIRST_WINDOW);
    return Math.min(this.config.window, depth(this.acceptance.rate, this.config.tuning.worth));
  }

  /** How long a draft token may wait for others to be sent with. */
  get flushS(): number {
    const [low, high] = FLUSH_S;
    return Math.min(high, Math.max(low, this.config.tuning.flushShare * this.stepTime.orElse(low)));
  }

  /** How long what was just drafted may wait. */
  gatherS(inFlight: number): number {
    if (!this.config.adaptive || this.burst(inFlight) > 1) return 0;
    return inFlight < this.config.tuning.enough ? FLUSH_S[0] : this.flushS;
  }

  /** How many tokens to draft at a time. */
  burst(inFlight: number): number {
    const step = this.plainStep();
    const draft = this.memory.draftTime.value;
    if (!this.config.adaptive || inFlight >= this.config.tuning.enough || !step || !draft) return 1;
    const most = Math.min(this.config.tuning.burst, (this.config.tuning.burstShare * step) / draft);
    return Math.max(1, Math.trunc(most));
  }

  get objective(): Objective {
    return hintedObjective(this.hint, this.config.objective);
  }

  /** What the cloud may begin with; null while nothing is known, or nothing will be drafted. */
  get pace(): Pace | null {
    const trip = this.memory.roundTrip.now;
    const draft = this.memory.draftTime.value;
    const known = this.memory.acceptance.compared >= FIRST_COMPARISONS;
    if (!this.drafting || trip === null || draft === null || !known) return null;
    return { roundTripS: trip, draftS: draft, acceptance: this.acceptance.rate };
  }

  /** Expected speed with the device's drafts over that of the cloud alone, minus 1; null while unknown. */
  get gain(): number | null {
    return this.gains().get("device-async") ?? null;
  }

  // -- observations ---------------------------------------------------------------------------------------------------

  /** The drafter took `seconds` for `tokens`. */
  drafted(tokens: number, seconds: number): void {
    if (tokens === 0) return;
    this.memory.draftTime.observe(seconds / tokens);
    this.tried += 1;
    this.stale = true;
    if (this.paused) {
      this.sinceProbe = 0;
      this.probeEvery = Math.min(2 * this.probeEvery, PROBE_EVERY[1]);
    }
  }

  /** `count` tokens were committed; the first `agreed` were drafted so, the next was not if `refuted`. */
  committed(count: number, agreed: number, refuted: boolean, now: number): void {
    if (this.lastCommit !== null) {
      this.stepTime.observe(now - this.lastCommit);
      this.judge(count, now - this.lastCommit);
    }
    this.lastCommit = now;
    this.stale = true;
    this.sinceProbe += count;
    this.sinceChange += 1;
    if (agreed > 0 || refuted) {
      this.acceptance.observe(agreed, refuted);
      this.memory.acceptance.observe(agreed, refuted);
      if (this.paused && agreed > 0) this.probeEvery = PROBE_EVERY[0];
    }
    this.decide();
  }

  /** The cloud opened the stream and can draft with this. */
  offered(cloudDraft: CloudDraft): void {
    this.memory.cloudDraft = cloudDraft;
  }

  advised(advice: Advice): void {
    this.memory.advice = advice;
    this.stale = true;
    this.decide();
  }

  hinted(hint: Hint): void {
    this.hint = hint;
    this.sinceChange = this.config.tuning.settled;
    this.decide();
  }

  /** A new stream: the time since the last commit says nothing about steps. */
  reconnected(): void {
    this.lastCommit = null;
    this.forgetSpan();
  }

  /** The device cannot draft any more. */
  drafterFailed(): void {
    this.drafting = false;
    if (deviceDrafts(this.arm)) this.change(this.firstArm());
  }

  /** The numbers behind the current choice. */
  explain(): PolicyState {
    const gains = Object.fromEntries([...this.gains()].map(([arm, gain]) => [arm, rounded(gain, 3)]));
    const { roundTrip, advice, draftTime, cloudDraft } = this.memory;
    return {
      arm: this.arm,
      reason: this.reason,
      objective: this.objective,
      paused: this.paused,
      window: this.window,
      flushMs: rounded(this.flushS * 1e3, 3),
      acceptance: rounded(this.acceptance.rate, 3),
      compared: this.acceptance.compared,
      gains,
      gain: gains["device-async"] ?? null,
      roundTripMs: milliseconds(roundTrip.now),
      jitterMs: milliseconds(roundTrip.deviation),
      draftMs: milliseconds(draftTime.value),
      stepMs: milliseconds(this.plainStep()),
      cloudDraft: (["none", "ngram", "model"] as const)[cloudDraft],
      advice: advice === null ? null : advice.reason || "go on",
    };
  }

  // -- how ------------------------------------------------------------------------------------------------------------

  private get experienced(): boolean {
    return this.acceptance.compared + this.remembered >= FIRST_COMPARISONS || this.tried >= FIRST_TRIES;
  }

  private get probes(): boolean {
    return !["fixed", "battery", "bytes", "no-drafter"].includes(this.reason);
  }

  /** The acceptance that arms are chosen by: what all answers showed, as far as this one does not contradict it. */
  private get lasting(): number {
    return Math.min(Math.max(this.memory.acceptance.rate, this.acceptance.lower), this.acceptance.upper);
  }

  private firstArm(): Arm {
    let wanted: Arm = this.config.arm;
    if (wanted === "auto") {
      wanted = this.objective === "latency" || this.objective === "cloud-cost" ? "device-async" : "co-located";
    }
    if (deviceDrafts(wanted) && !this.drafting) return this.config.arm === "auto" ? "co-located" : "cloud";
    return wanted;
  }

  private plainStep(): number | null {
    const advice = this.memory.advice;
    return advice !== null && advice.stepS > 0 ? advice.stepS : this.stepTime.value;
  }

  private pipeline(): [Pipeline, number] | null {
    const step = this.plainStep();
    const draft = this.memory.draftTime.value;
    if (step === null || step <= 0 || draft === null || !this.experienced) return null;
    const lasting = this.lasting;
    const pipeline: Pipeline = {
      acceptance: lasting,
      response: (this.memory.roundTrip.now ?? 0) + draft,
      gap: draft,
      window: Math.min(this.config.window, depth(lasting, this.config.tuning.worth)),
    };
    return [pipeline, step];
  }

  /** Gain of drafting freely, and the target's time for a token then, plain decoding being 1. */
  private expected(): { gain: number; busy: number } | null {
    if (this.stale) {
      const known = this.pipeline();
      this.expectation = null;
      if (known !== null) {
        const [pipeline, step] = known;
        const best = bestHold(pipeline, step, HOLD_CAP_S);
        this.expectation = { gain: best.rate * step - 1, busy: best.busy / step };
      }
      this.stale = false;
    }
    return this.expectation;
  }

  private lockstepWindow(): number {
    const known = this.config.adaptive ? this.pipeline() : null;
    if (known !== null) return bestLockstep(...known);
    return this.config.adaptive ? Math.min(this.config.window, 2 * FIRST_WINDOW) : this.config.window;
  }

  /** Of each arm that AUTO could take and of which enough is known, corrected by what came of it before. */
  private gains(): Shares {
    const gains: Shares = new Map();
    for (const [arm, gain] of this.rawGains()) gains.set(arm, (1 + gain) * this.truthOf(arm) - 1);
    return gains;
  }

  private truthOf(arm: Choice): number {
    const truth = this.memory.truth.get(arm);
    if (truth === undefined) return 1;
    return 1 + Math.min(truth.count / JUDGEMENTS, 1) * (truth.orElse(1) - 1);
  }

  private rawGains(): Shares {
    const gains: Shares = new Map([["cloud", 0]]);
    const advice = this.memory.advice;
    if (advice !== null && advice.cloudDraft !== CloudDraft.NONE && this.memory.cloudDraft !== CloudDraft.NONE) {
      gains.set("co-located", advice.cloudGain);
    }
    const expected = this.drafting ? this.expected() : null;
    if (expected !== null) gains.set("device-async", expected.gain);
    return gains;
  }

  /** Compare what the arm was expected to bring with what it brings, once it is in its stride. */
  private judge(tokens: number, seconds: number): void {
    this.elsewhere += tokens;
    if (this.elsewhere >= SPAN) {
      this.elsewhere = 0;
      for (const [arm, truth] of this.memory.truth) if (arm !== this.arm) truth.fade(1, FADE);
    }
    const truth = this.memory.truth.get(this.arm as Choice);
    if (truth === undefined || this.sinceChange < STRIDE) {
      this.forgetSpan();
      return;
    }
    this.spanTokens += tokens;
    this.spanSeconds += seconds;
    const step = this.plainStep();
    const expected = this.rawGains().get(this.arm as Choice);
    if (this.spanTokens < SPAN || this.spanSeconds <= 0 || step === null || expected === undefined) return;
    const speed = (this.spanTokens / this.spanSeconds) * step;
    truth.observe(Math.min(Math.max(speed / (1 + expected), TRUTH[0]), TRUTH[1]));
    this.forgetSpan();
  }

  private forgetSpan(): void {
    this.spanTokens = 0;
    this.spanSeconds = 0;
  }

  /** By the objective: in shares of the cloud alone, which has 0. */
  private scores(): Shares {
    let gains = this.gains();
    const objective = this.objective;
    const advice = this.memory.advice;
    if (objective === "battery" || objective === "bytes") gains.delete("device-async");
    if (objective === "cloud-cost") {
      const saved: Shares = new Map([["cloud", 0]]);
      if (gains.has("co-located") && advice !== null) saved.set("co-located", 1 - advice.cloudCost);
      const gain = gains.get("device-async");
      const expected = gain === undefined ? null : this.expected();
      if (expected !== null && gain !== undefined && gain >= -SLACK) saved.set("device-async", 1 - expected.busy);
      gains = saved;
    }
    if (advice !== null && advice.maxDraftTokens === 0) gains.delete("device-async");
    const scores: Shares = new Map();
    for (const [arm, gain] of gains) scores.set(arm, gain - this.trouble[arm]);
    return scores;
  }

  private decide(): void {
    if (!this.config.adaptive || (this.config.arm !== "auto" && this.config.arm !== "device-async")) return;
    const scores = this.scores();
    if (this.config.arm === "device-async") scores.delete("co-located");
    // Nothing is known yet: go on and find out.
    if (this.arm === "device-async" && this.drafting && this.expected() === null && this.mayDraft) return;
    let best: Choice = "cloud";
    let bestScore = -Infinity;
    for (const [arm, score] of scores) {
      if (score > bestScore) {
        best = arm;
        bestScore = score;
      }
    }
    const current = scores.get(this.arm as Choice) ?? -Infinity;
    const draftsOrNot = best === "cloud" || this.arm === "cloud";
    const margin = draftsOrNot ? this.config.tuning.hysteresis : this.config.tuning.rivalry * (1 + bestScore);
    const settled = this.sinceChange >= this.config.tuning.settled || current === -Infinity;
    if (best !== this.arm && settled && bestScore > current + margin) this.change(best);
    else if (this.reason === "ramp" && this.arm === "device-async") this.reason = "useful";
  }

  private get mayDraft(): boolean {
    const asked = this.memory.advice?.maxDraftTokens !== 0;
    return asked && (this.objective === "latency" || this.objective === "cloud-cost");
  }

  private change(arm: Arm): void {
    if (deviceDrafts(this.arm) && !deviceDrafts(arm)) {
      this.pauses += 1;
      this.sinceProbe = 0;
      this.probeEvery = PROBE_EVERY[0];
    }
    this.arm = arm;
    this.sinceChange = 0;
    this.reason = this.reasonOf(arm);
  }

  private reasonOf(arm: Arm): DraftReason {
    if (!this.drafting) return "no-drafter";
    if ((this.config.arm !== "auto" && this.config.arm !== "device-async") || !this.config.adaptive) return "fixed";
    if (deviceDrafts(arm)) return this.expected() === null ? "ramp" : "useful";
    if (this.objective === "battery") return "battery";
    if (this.objective === "bytes") return "bytes";
    if (!this.mayDraft) return "load";
    const gain = this.gain;
    if (arm === "co-located" && gain !== null && gain > this.config.tuning.trouble) return "cloud-drafts";
    return this.acceptance.rate < 0.3 ? "useless" : "slow";
  }
}

/** How far ahead a draft token still is the target's with a probability of at least `worth`. */
export function depth(acceptance: number, worth: number): number {
  if (acceptance >= 0.99) return 300;
  return Math.max(1, Math.floor(Math.log(worth) / Math.log(Math.max(acceptance, 1e-6))));
}

function rounded(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}

function milliseconds(seconds: number | null): number | null {
  return seconds === null ? null : rounded(seconds * 1e3, 2);
}
