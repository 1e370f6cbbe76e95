/** What the device has drafted beyond the committed prefix, and what of it was sent on which branch (`draft_tail.py`). */

import { agreeing, type DraftRun } from "./drafts.js";

/**
 * Tokens at positions [length, length + tokens.length), of which those below `sent` went up on the current branch.
 * `synced` counts the drafter's first tokens that equal prompt + output + tail. A tail that is dropped bumps `epoch`,
 * so that the result of a task begun before is seen to be stale.
 */
export class DraftTail {
  readonly tokens: number[] = [];
  synced = 0;
  epoch = 0;
  private sent = 0;
  private branch = -1;
  private open = false; // whether the current branch has been sent on this stream

  constructor(public length: number) {}

  /** How many of the tokens have not been sent on the current branch. */
  get unsent(): number {
    const end = this.length + this.tokens.length;
    return end - (this.open ? Math.max(this.sent, this.length) : this.length);
  }

  /** How many were sent and not decided yet. */
  get inFlight(): number {
    return Math.max(this.sent - this.length, 0);
  }

  /** Branches count anew, and nothing of the tail has been sent. */
  newStream(): void {
    this.branch = -1;
    this.open = false;
    this.sent = 0;
  }

  /** Drop what is beyond `limit` tokens, but for what was sent. */
  cut(limit: number): void {
    const kept = Math.max(limit, this.inFlight);
    if (this.tokens.length > kept) {
      this.tokens.length = kept;
      this.synced = Math.min(this.synced, this.length + kept);
      this.epoch += 1;
    }
  }

  /** Put tokens behind the tail that were drafted before and cut off; what is being drafted is then stale. */
  refill(tokens: readonly number[]): void {
    this.tokens.push(...tokens);
    this.epoch += 1;
  }

  /** `fresh` tokens were committed: keep the tail where it agrees, drop it where the target went elsewhere. */
  commit(fresh: readonly number[]): { agreed: number; refuted: boolean } {
    const agreed = agreeing(fresh, this.tokens);
    const refuted = agreed < Math.min(fresh.length, this.tokens.length);
    if (agreed === fresh.length) {
      this.tokens.splice(0, agreed);
      // Past what was sent, a continuation would be taken for stale.
      if (this.length + agreed > this.sent) this.open = false;
    } else {
      this.synced = Math.min(this.synced, this.length + agreed);
      this.forget();
    }
    this.length += fresh.length;
    return { agreed, refuted };
  }

  /** Drop it all; what comes next is a new branch. */
  forget(): void {
    this.tokens.length = 0;
    this.open = false;
    this.epoch += 1;
  }

  /** A run of what has not been sent, which then counts as sent, and whether it opens a branch. */
  nextRun(): { run: DraftRun; opens: boolean } {
    const count = this.unsent;
    const opens = !this.open || count === 0;
    if (opens) {
      this.branch += 1;
      this.open = true;
    }
    const start = this.length + this.tokens.length - count;
    this.sent = start + count;
    return { run: { branch: this.branch, start, tokens: this.tokens.slice(this.tokens.length - count) }, opens };
  }
}
