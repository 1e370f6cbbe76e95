/**
 * A draft model of the browser's graph (`flat_graph.py`): past keys and values go in, new ones come out, and this side
 * keeps one array of them. Appending is a copy behind its end, a rollback a shorter view.
 */

import type { DraftContext } from "./drafter.js";
import type { Manifest } from "./manifest.js";
import { hasPenalties, type SamplingParams } from "./parameters.js";
import { coupledCandidates } from "./sampling.js";
import { TokenHistory } from "./token_history.js";

const CHUNK = 512; // rows of one forward at most, which bounds the memory of a long prompt
const FIRST_CAPACITY = 256; // positions; doubled as needed up to the context length

/** The graph in some runtime. `past` holds `[begin, layers, 2, heads, headSize]`; `fresh` as many positions as tokens. */
export interface FlatGraph {
  run(
    tokens: readonly number[],
    begin: number,
    past: Float32Array,
  ): Promise<{ readonly logits: Float32Array; readonly fresh: Float32Array }>;
}

/** One generation's tokens and their keys and values. */
export class FlatContext implements DraftContext {
  private readonly tokens: number[] = [];
  private readonly slot: number; // floats of a position
  private past: Float32Array;
  private computed = 0; // leading tokens whose keys and values are there
  private logitsOf = 0; // length whose last token's logits `row` holds; 0: none
  private row = new Float32Array();
  private history: TokenHistory | null = null;

  constructor(
    private readonly graph: FlatGraph,
    private readonly manifest: Manifest,
    private readonly params: SamplingParams,
    private readonly promptLength: number,
  ) {
    const { layers, heads, headSize } = manifest.kv;
    this.slot = layers * 2 * heads * headSize;
    this.past = new Float32Array();
  }

  async draft(keep: number, extend: readonly number[], count: number): Promise<readonly number[]> {
    this.rewind(keep);
    this.take(extend);
    const start = this.tokens.length;
    while (this.tokens.length < start + count) {
      if (this.tokens.length === 0 || this.tokens.length >= this.manifest.contextLength) break;
      const row = await this.forward();
      const [best] = coupledCandidates(row, this.params, this.tokens.length, 1, {
        history: this.penaltyHistory(),
        banned: this.banned(),
        vocabSize: this.manifest.vocabSize,
      });
      if (best === undefined) break;
      this.take([best]);
    }
    return this.tokens.slice(start);
  }

  close(): void {
    this.tokens.length = 0;
    this.computed = 0;
    this.logitsOf = 0;
    this.past = new Float32Array();
  }

  /** Forget all tokens from `length` on: their keys and values are overwritten later. */
  private rewind(length: number): void {
    if (length > this.tokens.length) throw new RangeError(`rewind to ${length} of ${this.tokens.length} tokens`);
    this.tokens.length = length;
    this.computed = Math.min(this.computed, length);
    if (this.logitsOf > length) this.logitsOf = 0;
    if (length < this.promptLength) this.history = null;
    else this.history?.rewind(length - this.promptLength);
  }

  private take(tokens: readonly number[]): void {
    this.tokens.push(...tokens);
    this.history?.extend(tokens);
  }

  /** The logits after the last token. */
  private async forward(): Promise<Float32Array> {
    const length = this.tokens.length;
    if (this.logitsOf === length) return this.row;
    // At least the last token, for its logits.
    for (let begin = Math.min(this.computed, length - 1); begin < length; begin = this.computed) {
      const end = Math.min(begin + CHUNK, length);
      this.reserve(end, begin);
      const past = this.past.subarray(0, begin * this.slot);
      const { logits, fresh } = await this.graph.run(this.tokens.slice(begin, end), begin, past);
      this.past.set(fresh, begin * this.slot);
      this.row = logits as Float32Array<ArrayBuffer>;
      this.computed = end;
    }
    this.logitsOf = length;
    return this.row;
  }

  private reserve(needed: number, used: number): void {
    if (needed * this.slot <= this.past.length) return;
    let capacity = Math.max(this.past.length / this.slot, FIRST_CAPACITY);
    while (capacity < needed) capacity *= 2;
    const grown = new Float32Array(Math.min(capacity, this.manifest.contextLength) * this.slot);
    grown.set(this.past.subarray(0, used * this.slot));
    this.past = grown;
  }

  /** End tokens, as long as the next output token is below number `minTokens` (from one). */
  private banned(): readonly number[] {
    const { params, manifest } = this;
    if (this.tokens.length - this.promptLength + 1 >= params.minTokens) return [];
    return [...params.stopTokenIds, ...(params.ignoreEos ? [] : manifest.eosTokenIds)];
  }

  private penaltyHistory(): TokenHistory | null {
    if (!hasPenalties(this.params)) return null;
    this.history ??= new TokenHistory(
      this.tokens.slice(0, this.promptLength),
      this.tokens.slice(this.promptLength),
    );
    return this.history;
  }
}
