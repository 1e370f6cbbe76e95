/** The best of (logit + noise) among many tokens, exactly, while making noise for few (`race.py`). */

import { GUMBEL_MAX, gumbelOfWord, leastWord, Noise } from "./noise.js";

/** A row of logits `[vocabulary]`, as the model gives it, or after bias and penalties. */
export type Logits = Float32Array | Float64Array;

const SMALL = 1024; // sets up to this size are scored outright
const ROUNDING = 1e-9; // covers the rounding of scores where bounds are compared; never decides a result
const SAMPLE = 2048;

/** The `count` best so far, best first; equal scores by ascending id. */
class Podium {
  readonly tokens: number[] = [];
  private readonly scores: number[] = [];

  constructor(private readonly count: number) {}

  /** What a score must reach to matter; -Infinity while there is room. */
  get bound(): number {
    return this.scores.length < this.count ? -Infinity : this.scores[this.count - 1];
  }

  offer(token: number, score: number): void {
    if (!(score > -Infinity) || score < this.bound) return;
    let place = this.scores.length;
    while (place > 0 && (this.scores[place - 1] < score || (this.scores[place - 1] === score && this.tokens[place - 1] > token))) {
      place -= 1;
    }
    if (place >= this.count) return;
    this.scores.splice(place, 0, score);
    this.tokens.splice(place, 0, token);
    if (this.scores.length > this.count) {
      this.scores.pop();
      this.tokens.pop();
    }
  }
}

/**
 * Finds the best of `scaled + G`. A few likely tokens run first. Their best score bounds the rest twice: a token whose
 * logit could not win even with the greatest variate needs no word, and a word too small for the best remaining logit
 * needs no logarithm.
 */
export class Race {
  constructor(
    private readonly temperature: number,
    private readonly top: number,
    private readonly seed: bigint,
    private readonly position: number,
  ) {}

  /** Ids of the `count` best, best first. `ids` (null: all) ascend; `values` are their adjusted logits. */
  best(ids: readonly number[] | null, values: Logits | readonly number[], count: number): number[] {
    const noise = new Noise(this.seed, this.position);
    const podium = new Podium(count);
    const size = values.length;
    if (size <= SMALL) {
      for (let index = 0; index < size; index += 1) {
        const token = ids === null ? index : ids[index];
        podium.offer(token, this.scaled(values[index]) + noise.gumbel(token));
      }
      return podium.tokens;
    }
    const level = levelOf(values, Math.max(SMALL / 4, 2 * count), 0);
    for (let index = 0; index < size; index += 1) {
      if (!(values[index] >= level)) continue;
      const token = ids === null ? index : ids[index];
      podium.offer(token, this.scaled(values[index]) + noise.gumbel(token));
    }
    const highest = this.scaled(level); // of all that are left
    let bound = -Infinity;
    let floor = -Infinity;
    let least = 0;
    for (let index = 0; index < size; index += 1) {
      const value = values[index];
      if (value >= level) continue;
      if (podium.bound !== bound) {
        bound = podium.bound;
        const margin = bound - ROUNDING * (1 + Math.abs(bound));
        floor = margin - GUMBEL_MAX;
        least = leastWord(margin - highest);
      }
      const scaled = this.scaled(value);
      if (!(scaled >= floor)) continue;
      const token = ids === null ? index : ids[index];
      const word = noise.word(token);
      if (word >= least) podium.offer(token, scaled + gumbelOfWord(word));
    }
    return podium.tokens;
  }

  /** Scaled logit of an adjusted one. */
  scaled(value: number): number {
    return (value - this.top) / this.temperature;
  }
}

/** A finite value that probably `count` reach, guessed from a sample; `spare` sampled ones make it surer. */
export function levelOf(values: Logits | readonly number[], count: number, spare = 8): number {
  const stride = Math.max(1, Math.floor(values.length / SAMPLE));
  const sample = new Float64Array(Math.ceil(values.length / stride));
  for (let index = 0; index < sample.length; index += 1) sample[index] = values[index * stride];
  sample.sort();
  const rank = Math.min(sample.length, Math.floor((2 * count) / stride) + 1 + spare);
  return Math.max(sample[sample.length - rank], -Number.MAX_VALUE);
}

/** Indices of all values that reach `level`, by value descending, equal ones by index. */
export function ranked(values: Logits | readonly number[], level: number): number[] {
  const pool: number[] = [];
  for (let index = 0; index < values.length; index += 1) if (values[index] >= level) pool.push(index);
  return pool.sort((one, other) => values[other] - values[one] || one - other);
}

/** Indices of at least the `count` largest, by value descending, equal ones by index; all finite ones if fewer. */
export function largest(values: Logits | readonly number[], count: number): number[] {
  if (count < values.length) {
    const pool = ranked(values, levelOf(values, count));
    if (pool.length >= count) return pool;
  }
  return ranked(values, -Number.MAX_VALUE);
}
