/** The n-gram drafter: what followed the last time these tokens stood here follows again (`ngram.py`). */

import type { DraftContext, Drafter } from "./drafter.js";

const NONE = -1;

/** Proposes the continuation of the most recent earlier occurrence of the longest matching suffix. */
export class NgramDrafter implements Drafter {
  readonly name = "ngram";
  readonly tokenizerHash = null;
  readonly maxLength = null;
  readonly writes = false;

  constructor(
    private readonly maxNgram = 4,
    private readonly minNgram = 2,
  ) {}

  open(): NgramContext {
    const sizes = Array.from({ length: this.maxNgram - this.minNgram + 1 }, (_, index) => this.maxNgram - index);
    return new NgramContext(sizes);
  }

  close(): void {
    // it holds nothing
  }
}

/** The tokens, and for each position where each n-gram that ends there ended before. */
export class NgramContext implements DraftContext {
  private readonly tokens: number[] = [];
  private readonly indexes: readonly Index[];

  constructor(sizes: readonly number[]) {
    this.indexes = sizes.map((size) => new Index(size));
  }

  draft(keep: number, extend: readonly number[], count: number): Promise<readonly number[]> {
    return Promise.resolve(this.propose(keep, extend, count));
  }

  /** `draft` at once. */
  propose(keep: number, extend: readonly number[], count: number): readonly number[] {
    while (this.tokens.length > keep) {
      for (const index of this.indexes) index.pop(this.tokens);
      this.tokens.pop();
    }
    for (const token of extend) this.push(token);
    const start = this.tokens.length;
    while (this.tokens.length < start + count) {
      const end = this.match();
      if (end === NONE) break;
      this.push(this.tokens[end]);
    }
    return this.tokens.slice(start);
  }

  close(): void {
    this.tokens.length = 0;
  }

  private push(token: number): void {
    this.tokens.push(token);
    for (const index of this.indexes) index.push(this.tokens);
  }

  private match(): number {
    if (this.tokens.length > 0) {
      for (const index of this.indexes) {
        const before = index.before[index.before.length - 1];
        if (before !== NONE) return before;
      }
    }
    return NONE;
  }
}

/** For n-grams of one size: the last length at which each ended, and what that was before. */
class Index {
  readonly before: number[] = [];
  private readonly last = new Map<string, number>();

  constructor(private readonly size: number) {}

  push(tokens: readonly number[]): void {
    if (tokens.length < this.size) {
      this.before.push(NONE);
      return;
    }
    const key = tokens.slice(-this.size).join();
    this.before.push(this.last.get(key) ?? NONE);
    this.last.set(key, tokens.length);
  }

  pop(tokens: readonly number[]): void {
    const before = this.before.pop() ?? NONE;
    if (tokens.length < this.size) return;
    const key = tokens.slice(-this.size).join();
    if (before === NONE) this.last.delete(key);
    else this.last.set(key, before);
  }
}
