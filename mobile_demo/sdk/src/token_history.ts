/** Tokens so far, counted as the penalties need them; follows a draft forwards and back (`token_history.py`). */

export class TokenHistory {
  private readonly counts = new Map<number, number>(); // in the output; the prompt's have 0
  private readonly output: number[] = [];
  private readonly inPrompt: ReadonlySet<number>;

  constructor(prompt: readonly number[] = [], output: readonly number[] = []) {
    this.inPrompt = new Set(prompt);
    for (const token of this.inPrompt) this.counts.set(token, 0);
    this.extend(output);
  }

  /** Output tokens held. */
  get length(): number {
    return this.output.length;
  }

  extend(tokens: readonly number[]): void {
    for (const token of tokens) {
      this.counts.set(token, (this.counts.get(token) ?? 0) + 1);
      this.output.push(token);
    }
  }

  /** Forget output tokens from `length` on. */
  rewind(length: number): void {
    for (const token of this.output.splice(length)) {
      const left = (this.counts.get(token) ?? 1) - 1;
      if (left === 0 && !this.inPrompt.has(token)) this.counts.delete(token);
      else this.counts.set(token, left);
    }
  }

  /** Each id in prompt or output, with how often it occurs in the output. */
  seen(): Iterable<[id: number, count: number]> {
    return this.counts;
  }
}
