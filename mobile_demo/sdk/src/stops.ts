/**
 * Where an answer ends, and the text of it that may be shown (`stops.py`). Stop strings are defined on the text: the
 * answer ends at the first character that completes one; of several that end there, the longest counts.
 */

import type { Finish } from "./drafts.js";
import type { FinishRule } from "./offline.js";
import type { SamplingParams } from "./parameters.js";
import type { IncrementalDecoder, Tokenizer } from "./tokenizer.js";

/** Decides after each output token whether the answer ends there. */
export class StopChecker implements FinishRule {
  private readonly rule: EndRule;
  private readonly limit: number;
  private readonly decoder: IncrementalDecoder | null;
  private readonly matcher: StopMatcher;

  /** `maxOutput`: the room left in the context where that is less than `maxTokens`. */
  constructor(
    params: SamplingParams,
    tokenizer: Tokenizer,
    eosTokenIds: readonly number[],
    maxOutput: number = params.maxTokens,
  ) {
    this.rule = new EndRule(params, eosTokenIds);
    this.limit = Math.min(params.maxTokens, maxOutput);
    this.decoder = params.stop.length > 0 ? tokenizer.decoder({ continues: true }) : null;
    this.matcher = new StopMatcher(params.stop);
  }

  push(token: number): Finish | null {
    const allowed = this.rule.count();
    if (this.rule.ends(token)) return { reason: "stop", stop: token };
    if (this.decoder !== null) {
      const text = this.decoder.push(token);
      for (let index = 0; index < text.length; index += 1) {
        const stop = this.matcher.push(text[index]);
        if (stop !== null && allowed) return { reason: "stop", stop };
      }
    }
    return this.rule.tokens >= this.limit ? { reason: "length", stop: null } : null;
  }
}

/** The text of an answer that may be shown while it streams: a suffix that may become a stop string is held back. */
export class StopTextFilter {
  private readonly rule: EndRule;
  private readonly decoder: IncrementalDecoder;
  private readonly matcher: StopMatcher;
  private held = "";
  private ended = false;

  constructor(params: SamplingParams, tokenizer: Tokenizer, eosTokenIds: readonly number[] = []) {
    this.rule = new EndRule(params, eosTokenIds);
    this.decoder = tokenizer.decoder({ continues: true });
    this.matcher = new StopMatcher(params.stop);
  }

  /** Take in the next output token; returns the text that is safe to show now, perhaps none. */
  push(token: number): string {
    if (this.ended) return "";
    const allowed = this.rule.count();
    if (this.rule.ends(token)) return this.flush();
    const text = this.decoder.push(token);
    for (let index = 0; index < text.length; index += 1) {
      const stop = this.matcher.push(text[index]);
      if (stop !== null && allowed) {
        const whole = this.held + text.slice(0, index + 1);
        this.held = "";
        this.ended = true;
        return whole.slice(0, whole.length - stop.length);
      }
    }
    this.held += text;
    const ready = this.held.length - this.matcher.pending;
    const shown = this.held.slice(0, ready);
    this.held = this.held.slice(ready);
    return shown;
  }

  /** The answer ended: what was held back and did not become a stop string. */
  flush(): string {
    if (this.ended) return "";
    const rest = this.held + this.decoder.flush();
    this.held = "";
    this.ended = true;
    return rest;
  }
}

/** Counts output tokens and knows which of them end the answer by themselves. */
class EndRule {
  tokens = 0;
  private readonly minTokens: number;
  private readonly endIds: ReadonlySet<number>;

  constructor(params: SamplingParams, eosTokenIds: readonly number[]) {
    this.minTokens = params.minTokens;
    this.endIds = new Set([...params.stopTokenIds, ...(params.ignoreEos ? [] : eosTokenIds)]);
  }

  /** One more token; whether the answer may end with it. */
  count(): boolean {
    this.tokens += 1;
    return this.tokens >= this.minTokens;
  }

  ends(token: number): boolean {
    return this.endIds.has(token) && this.tokens >= this.minTokens;
  }
}

/**
 * Knuth-Morris-Pratt over all stop strings at once. It goes by UTF-16 code units: halves of a pair never match anything
 * but themselves, so what it finds are whole characters.
 */
class StopMatcher {
  private readonly stops: readonly string[];
  private readonly failures: readonly (readonly number[])[];
  private readonly matched: number[];

  constructor(stops: readonly string[]) {
    const longestFirst = [...new Set(stops)].map((stop) => ({ stop, length: [...stop].length }));
    longestFirst.sort((one, other) => other.length - one.length || (one.stop < other.stop ? -1 : 1));
    this.stops = longestFirst.map(({ stop }) => stop);
    this.failures = this.stops.map(failure);
    this.matched = this.stops.map(() => 0);
  }

  /** Length of the longest suffix seen that is a proper prefix of a stop string. */
  get pending(): number {
    let longest = 0;
    this.stops.forEach((stop, index) => {
      const matched = this.matched[index];
      longest = Math.max(longest, matched < stop.length ? matched : this.failures[index][matched - 1]);
    });
    return longest;
  }

  /** Take in a code unit; returns the longest stop string that it completes. */
  push(unit: string): string | null {
    let completed: string | null = null;
    this.stops.forEach((stop, index) => {
      const table = this.failures[index];
      let matched = this.matched[index];
      if (matched === stop.length) matched = table[matched - 1];
      while (matched > 0 && stop[matched] !== unit) matched = table[matched - 1];
      if (stop[matched] === unit) matched += 1;
      this.matched[index] = matched;
      if (matched === stop.length && completed === null) completed = stop;
    });
    return completed;
  }
}

/** failure[i]: length of the longest proper prefix of `pattern` that ends at i. */
function failure(pattern: string): number[] {
  const table = new Array<number>(pattern.length).fill(0);
  let matched = 0;
  for (let index = 1; index < pattern.length; index += 1) {
    while (matched > 0 && pattern[matched] !== pattern[index]) matched = table[matched - 1];
    if (pattern[matched] === pattern[index]) matched += 1;
    table[index] = matched;
  }
  return table;
}
