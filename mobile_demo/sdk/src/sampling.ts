/**
 * Coupled sampling of one row of logits (`sampling.py` is the specification), in float64 from the logits on:
 *
 *     adjusted = logits + bias, then repetition, presence and frequency penalties; banned ids and those from vocabSize
 *                on masked
 *     scaled   = (adjusted - max adjusted) / temperature
 *     kept     = the longest common prefix of the order by adjusted logit (equal ones by id) under minP, topK, topP
 *     token    = argmax over kept of scaled + G(seed, position, id); equal scores: the lowest id
 *
 * Temperature 0 is the first of the order; filters and noise play no part.
 */

import { NumericalFailure } from "./errors.js";
import { hasPenalties, type SamplingParams } from "./parameters.js";
import { largest, levelOf, type Logits, Race, ranked } from "./race.js";
import type { TokenHistory } from "./token_history.js";

const SLACK = 1e-10;
const FIRST_POOL = 256; // most nuclei are smaller

export interface RowContext {
  /** For penalties; none: nothing seen. */
  readonly history?: TokenHistory | null;
  /** Ids that may not come. */
  readonly banned?: readonly number[];
  /** Ids from there on are padding. */
  readonly vocabSize?: number;
}

/**
 * The `count` best tokens at `position` (index in prompt + output) by `scaled + G`, best first; fewer when the filters
 * keep fewer. The first is the coupled token. Throws NumericalFailure for logits that are NaN or +inf, or all masked.
 */
export function coupledCandidates(
  logits: Logits,
  params: SamplingParams,
  position: number,
  count: number,
  context: RowContext = {},
): number[] {
  const [row, top] = adjusted(logits, params, context);
  if (params.temperature === 0) {
    if (count === 1) return [argMax(row, top)];
    return largest(row, count).slice(0, count);
  }
  const race = new Race(params.temperature, top, params.seed, position);
  const kept = keptIds(row, race, params);
  if (kept === null) return race.best(null, row, count);
  kept.sort((one, other) => one - other);
  return race.best(kept, kept.map((id) => row[id]), count);
}

/** Ids that the filters keep, ascending; for tests, and for who shows them. */
export function keptTokens(logits: Logits, params: SamplingParams, context: RowContext = {}): number[] {
  const [row, top] = adjusted(logits, params, context);
  if (params.temperature === 0) return [argMax(row, top)];
  const race = new Race(params.temperature, top, params.seed, 0);
  const kept = keptIds(row, race, params) ?? ranked(row, -Number.MAX_VALUE);
  return kept.sort((one, other) => one - other);
}

/** Natural log-probabilities under the raw logits: of `tokens`, and of the `best` most likely, best first. */
export function tokenLogprobs(
  logits: Logits,
  tokens: readonly number[],
  best: number,
  vocabSize: number = logits.length,
): [chosen: number[], top: [id: number, logprob: number][]] {
  const [row, top] = checked(logits, vocabSize);
  let total = 0;
  for (const value of row) total += Math.exp(value - top);
  const logTotal = Math.log(total);
  const ids = best > 0 ? largest(row, best).slice(0, best) : [];
  return [tokens.map((id) => row[id] - top - logTotal), ids.map((id) => [id, row[id] - top - logTotal])];
}

function checked(logits: Logits, vocabSize: number): [Logits, number] {
  const row = vocabSize < logits.length ? logits.subarray(0, vocabSize) : logits;
  return [row, topOf(row)];
}

function topOf(row: Logits): number {
  let top = -Infinity;
  let proper = true;
  for (let index = 0; index < row.length; index += 1) {
    const value = row[index];
    if (value > top) top = value;
    else if (value !== value) proper = false;
  }
  if (!proper || top === Infinity) throw new NumericalFailure("the logits are not finite numbers");
  if (top === -Infinity) throw new NumericalFailure("no token is left to choose from");
  return top;
}

/** Logits after bias, penalties and bans, and the largest. Not copied when none applies. */
function adjusted(logits: Logits, params: SamplingParams, context: RowContext): [Logits, number] {
  const [row, top] = checked(logits, context.vocabSize ?? logits.length);
  const banned = context.banned ?? [];
  const history = hasPenalties(params) ? (context.history ?? null) : null;
  if (history === null && params.logitBias.length === 0 && banned.length === 0) return [row, top];
  const copy = Float64Array.from(row);
  for (const [id, bias] of biasById(params)) if (id < copy.length) copy[id] += bias;
  if (history !== null) {
    for (const [id, count] of history.seen()) if (id < copy.length) copy[id] = penalised(copy[id], count, params);
  }
  for (const id of banned) if (id < copy.length) copy[id] = -Infinity;
  return [copy, topOf(copy)];
}

function biasById(params: SamplingParams): Map<number, number> {
  const total = new Map<number, number>();
  for (const [id, bias] of params.logitBias) total.set(id, (total.get(id) ?? 0) + bias);
  return total;
}

function penalised(value: number, count: number, params: SamplingParams): number {
  const repeated = value > 0 ? value / params.repetitionPenalty : value * params.repetitionPenalty;
  const present = repeated - (count > 0 ? params.presencePenalty : 0);
  return present - params.frequencyPenalty * count;
}

/** The first of the largest. */
function argMax(row: Logits, top: number): number {
  let index = 0;
  while (row[index] !== top) index += 1;
  return index;
}

/** Ids that minP, topK and topP keep, likeliest first; null when none of them applies. */
function keptIds(row: Logits, race: Race, params: SamplingParams): number[] | null {
  const filtered = params.minP > 0 || (params.topK > 0 && params.topK < row.length) || params.topP < 1;
  if (!filtered) return null;
  let pool: number[] | null = null; // of all, by rank
  if (params.topK > 0 && params.topK < row.length) pool = largest(row, params.topK).slice(0, params.topK);
  if (params.minP > 0) {
    const limit = Math.log(params.minP) - SLACK;
    if (pool === null) {
      const ids: number[] = [];
      for (let index = 0; index < row.length; index += 1) if (race.scaled(row[index]) >= limit) ids.push(index);
      pool = ids.sort((one, other) => row[other] - row[one] || one - other);
    } else {
      pool = pool.filter((id) => race.scaled(row[id]) >= limit);
    }
  }
  if (params.topP >= 1) return pool;
  return pool === null ? nucleus(row, race, params.topP) : nucleusOf(pool, row, race, params.topP);
}

/** The nucleus of a whole row: ranked pools of growing size, until one has the mass. */
function nucleus(row: Logits, race: Race, topP: number): number[] {
  let total = 0;
  for (let index = 0; index < row.length; index += 1) total += Math.exp(race.scaled(row[index]));
  const wanted = topP * (1 - SLACK) * total;
  for (let size = FIRST_POOL; size < row.length; size *= 8) {
    const pool = ranked(row, levelOf(row, size));
    const kept = reaching(pool, row, race, wanted);
    if (kept !== null) return kept;
  }
  return nucleusOf(ranked(row, -Number.MAX_VALUE), row, race, topP);
}

function nucleusOf(pool: number[], row: Logits, race: Race, topP: number): number[] {
  let total = 0;
  for (const id of pool) total += Math.exp(race.scaled(row[id]));
  return reaching(pool, row, race, topP * (1 - SLACK) * total) ?? pool;
}

/** The first of `pool` whose mass reaches `wanted`, the crossing one included; null when all of it does not. */
function reaching(pool: readonly number[], row: Logits, race: Race, wanted: number): number[] | null {
  let mass = 0;
  for (let index = 0; index < pool.length; index += 1) {
    mass += Math.exp(race.scaled(row[pool[index]]));
    if (mass >= wanted) return pool.slice(0, index + 1);
  }
  return null;
}
