/** Online estimates that the policy decides by (`estimators.py`). No clock: observations carry their times, in seconds. */

const RTT_GAIN = 1 / 8; // RFC 6298
const RTT_SPREAD_GAIN = 1 / 4;
const RTT_RECENT = 3; // round trips, of at most so many seconds
const RTT_RECENT_S = 3;
const WEAK = 2; // comparisons that a prior stands for of which nobody knows
const Z = 1.645;

/** Round-trip time: what it is now, its average and its mean deviation (the jitter). */
export class RoundTrip {
  smoothed: number | null = null;
  deviation = 0;
  private recent: (readonly [at: number, roundTrip: number])[] = [];

  observe(roundTrip: number, now: number): void {
    if (this.smoothed === null) {
      this.smoothed = roundTrip;
      this.deviation = roundTrip / 2;
    } else {
      this.deviation += RTT_SPREAD_GAIN * (Math.abs(roundTrip - this.smoothed) - this.deviation);
      this.smoothed += RTT_GAIN * (roundTrip - this.smoothed);
    }
    this.recent.push([now, roundTrip]);
    if (this.recent.length > RTT_RECENT) this.recent.shift();
    while (now - this.recent[0][0] > RTT_RECENT_S) this.recent.shift();
  }

  /** The median of the last few: follows a link that changed, and is not misled by a single one. */
  get now(): number | null {
    const sorted = this.recent.map(([, roundTrip]) => roundTrip).sort((one, other) => one - other);
    if (sorted.length === 0) return null;
    const middle = sorted.length >> 1;
    return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }
}

/** How likely the next draft token is the target's, given that those before it were. */
export class Acceptance {
  compared = 0; // in all
  private readonly keep: number;
  private readonly prior: number;
  private readonly weight: number;
  private acceptedSum = 0;
  private comparedSum = 0;

  constructor({ prior = 0.5, weight = WEAK, halfLife = 64 } = {}) {
    this.keep = 0.5 ** (1 / halfLife);
    this.prior = prior;
    this.weight = weight;
  }

  /** `accepted` tokens in a row were the target's; `refuted`: the one after them was not. */
  observe(accepted: number, refuted: boolean): void {
    for (let index = 0; index < accepted; index += 1) this.take(1);
    if (refuted) this.take(0);
    this.compared += accepted + (refuted ? 1 : 0);
  }

  private take(match: number): void {
    this.acceptedSum = this.acceptedSum * this.keep + match;
    this.comparedSum = this.comparedSum * this.keep + 1;
  }

  /** The estimate, within (0, 1). */
  get rate(): number {
    return (this.acceptedSum + this.prior * this.weight) / (this.comparedSum + this.weight);
  }

  /** Bounds at about 95%, Wilson's: what the rate could still be. */
  get upper(): number {
    return this.bound(1);
  }

  get lower(): number {
    return this.bound(-1);
  }

  private bound(sign: number): number {
    const n = this.comparedSum;
    if (n <= 0) return sign > 0 ? 1 : 0;
    const p = this.acceptedSum / n;
    const middle = p + (Z * Z) / (2 * n);
    const spread = Z * Math.sqrt((p * (1 - p)) / n + (Z * Z) / (4 * n * n));
    return Math.min(1, Math.max(0, (middle + sign * spread) / (1 + (Z * Z) / n)));
  }
}
