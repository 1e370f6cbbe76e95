/** What proposes tokens: the interface of every drafter. Implement it to bring a runtime of your own. */

import type { SamplingParams } from "./parameters.js";

/**
 * One generation's state inside a drafter: the tokens it has taken in, and what it computed of them.
 * One call at a time; the driver sees to that.
 */
export interface DraftContext {
  /**
   * Forget all tokens from length `keep` on, take in `extend`, then propose up to `count` next tokens and take those in.
   * The token at position t (index in prompt + output) is chosen by coupled sampling with the generation's seed.
   * Fewer or none where there is nothing to propose.
   */
  draft(keep: number, extend: readonly number[], count: number): Promise<readonly number[]>;
  /** Free what the context holds; it is not used afterwards. */
  close(): void;
}

/** A source of draft tokens, loaded once and shared by generations. */
export interface Drafter {
  /** For figures: "onnx-web-int8", "ngram", ... */
  readonly name: string;
  /** Hex, of the vocabulary it was built for; null: works on any ids. */
  readonly tokenizerHash: string | null;
  /** Positions it can hold; null: any. */
  readonly maxLength: number | null;
  /** Whether it can write an answer alone. Prompt lookup copies, it does not write. */
  readonly writes: boolean;
  /** A fresh context. `promptLength` separates prompt from output for the penalties. */
  open(params: SamplingParams, promptLength: number): DraftContext;
  /** Free the weights. */
  close(): void;
}
