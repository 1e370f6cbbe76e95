/** Measures one run of a generation (`figures.py`). */

import type { DraftCounts } from "./device_actions.js";
import type { Generation } from "./generation.js";
import type { Metrics, PolicyState } from "./result.js";

/** How an answer goes at the moment. Times in milliseconds, sizes in bytes of protobuf. */
export interface LiveFigures {
  /** idle, connecting, repeating, asking, streaming, waiting, finished, failed, cancelled; or "alone" without a cloud. */
  readonly state: string;
  readonly tokens: number;
  /** Committed tokens a second: since the first one, over the last two seconds where it is that long ago. */
  readonly tokensPerS: number;
  /** Share of the sent draft tokens that were accepted, of this answer. */
  readonly acceptedShare: number | null;
  readonly draftTokens: number;
  readonly sentDraftTokens: number;
  readonly acceptedDraftTokens: number;
  readonly inFlight: number;
  readonly drafted: number;
  readonly rollbacks: number;
  readonly reconnects: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
  readonly drafter: string;
  readonly drafterError: string | null;
  /** Seconds until it tries to connect again, while waiting. */
  readonly retryInS: number | null;
  readonly policy: PolicyState;
}

export interface StreamBytes {
  readonly bytesUp: number;
  readonly bytesDown: number;
}

const RECENT_S = 2;

/** Times and bytes of one run. */
export class Figures {
  drafterError: string | null = null;
  cachedTokens = 0;
  private readonly heldBefore: number;
  private readonly recent: { at: number; count: number }[] = [];
  private deliveredCount = 0;
  private started = 0;
  private firstAt = 0;
  private lastAt = 0;
  private bytesUp = 0;
  private bytesDown = 0;

  constructor(
    private readonly generation: Generation,
    readonly drafterName: string,
  ) {
    this.heldBefore = generation.output.length;
  }

  start(now: number): void {
    this.started = this.firstAt = this.lastAt = now;
  }

  /** `count` tokens were just put at the end of the output. */
  delivered(count: number, now: number): void {
    if (this.deliveredCount === 0) this.firstAt = now;
    this.deliveredCount += count;
    this.lastAt = now;
    this.recent.push({ at: now, count });
    while (this.recent.length > 1 && now - this.recent[0].at > RECENT_S) this.recent.shift();
  }

  /** A stream is not used any more. */
  left(stream: StreamBytes): void {
    this.bytesUp += stream.bytesUp;
    this.bytesDown += stream.bytesDown;
  }

  bytes(stream: StreamBytes | null): StreamBytes {
    return {
      bytesUp: this.bytesUp + (stream?.bytesUp ?? 0),
      bytesDown: this.bytesDown + (stream?.bytesDown ?? 0),
    };
  }

  /** Tokens a second of late. */
  rate(now: number): number {
    const [first, ...rest] = this.recent;
    if (first === undefined || rest.length === 0) return 0;
    const tokens = rest.reduce((sum, { count }) => sum + count, 0);
    return tokens / Math.max(now - first.at, 1e-3);
  }

  metrics(counts: DraftCounts, policy: PolicyState, stream: StreamBytes | null): Metrics {
    const tokens = this.generation.output.length - this.heldBefore;
    const elapsedS = this.lastAt - this.started;
    return {
      model: this.generation.model,
      drafter: this.drafterName,
      drafterError: this.drafterError,
      seed: this.generation.params.seed,
      fingerprints: this.generation.fingerprints,
      promptTokens: this.generation.prompt.length,
      completionTokens: this.generation.output.length,
      cachedTokens: this.cachedTokens,
      elapsedS,
      ttftS: this.firstAt - this.started,
      tpotS: (this.lastAt - this.firstAt) / Math.max(tokens - 1, 1),
      tokensPerS: elapsedS > 0 ? tokens / elapsedS : 0,
      steps: counts.commits,
      stepsPerToken: counts.commits / Math.max(tokens, 1),
      meanAcceptanceLength: counts.commits > 0 ? tokens / counts.commits : 0,
      draftTokens: counts.drafted,
      sentDraftTokens: counts.sent,
      acceptedDraftTokens: counts.accepted,
      recoveredTokens: counts.recovered,
      bonusTokens: counts.bonus,
      cloudTokens: counts.cloud,
      rollbacks: counts.rollbacks,
      reconnects: counts.reconnects,
      ...this.bytes(stream),
      unverifiedTokens: counts.unverified,
      confirmedTokens: counts.confirmed,
      withdrawnTokens: counts.withdrawn,
      keptTokens: counts.kept,
      policy,
    };
  }
}
