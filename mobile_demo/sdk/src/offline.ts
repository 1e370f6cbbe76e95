/** What the device does alone while the link is away, and what the app was shown of a draft meanwhile (`offline.py`). */

import { agreeing, type Finish } from "./drafts.js";

/** What becomes of unverified text once the link is back; "ask": the app says which of the two, each time. */
export type OnReconnect = "verify" | "keep" | "ask";

export interface OfflineConfig {
  readonly onReconnect: OnReconnect;
  /** Of silence, after which the link counts as gone and the device's own text is shown. */
  readonly afterS: number;
}

/** Decides after each output token whether the answer ends there. */
export interface FinishRule {
  push(token: number): Finish | null;
}

/** Draft tokens that the app was shown, at the positions from the committed length on. */
export class Unverified {
  readonly tokens: number[] = [];
  /** The device's own judgement that the answer is complete with them. */
  finish: Finish | null = null;
  private rule: FinishRule | null = null;

  constructor(private readonly finishRule: (() => FinishRule) | null) {}

  /** The link went away with so much output committed; what was shown the last time is still shown. */
  begin(output: readonly number[]): void {
    this.rule = this.finishRule === null ? null : this.finishRule();
    this.finish = null;
    for (const token of output) {
      if (this.finish !== null) this.finish = this.rule = null; // the cloud has not ended it there
      this.push(token);
    }
    for (const token of this.tokens) this.push(token);
  }

  /** Show what is drafted beyond: returns those tokens that are within the answer. */
  show(tokens: readonly number[]): number[] {
    const fresh: number[] = [];
    for (const token of tokens) {
      if (this.finish !== null) break;
      fresh.push(token);
      this.push(token);
    }
    this.tokens.push(...fresh);
    return fresh;
  }

  /** `fresh` tokens were committed; `last`: the answer ended with them. How many shown ones stand, how many do not. */
  commit(fresh: readonly number[], last: boolean): { confirmed: number; withdrawn: number } {
    const confirmed = agreeing(fresh, this.tokens);
    if (confirmed === fresh.length && !last) {
      this.tokens.splice(0, confirmed);
      return { confirmed, withdrawn: 0 };
    }
    const withdrawn = this.tokens.length - confirmed;
    this.clear();
    return { confirmed, withdrawn };
  }

  /** Nothing is shown any more. */
  clear(): void {
    this.tokens.length = 0;
    this.finish = null;
    this.rule = null;
  }

  private push(token: number): void {
    if (this.rule !== null && this.finish === null) this.finish = this.rule.push(token);
  }
}
