/** What `Client` hands out: one answer while it comes. */

import type { Driver } from "./driver.js";
import { DeadlineExceeded, PilotfishError } from "./errors.js";
import type { LiveFigures } from "./figures.js";
import type { Generation } from "./generation.js";
import type { Hint } from "./modes.js";
import { PieceQueue } from "./piece_queue.js";
import type { Piece, Result } from "./result.js";

/**
 * Iterate for pieces, then ask `result`. Leaving the iteration does not cancel. What goes wrong before the answer begins
 * comes out here, too.
 */
export class Stream implements AsyncIterable<Piece> {
  /** Resolves once prompt, seed and tokenizer are known and the answer begins; rejects when it cannot begin. */
  readonly started: Promise<Generation>;
  private readonly early = new PieceQueue(); // closed where the answer never began
  private driver: Driver | null = null;
  private cancelled = false;
  private timer: ReturnType<typeof setTimeout> | undefined;

  /** For `Client`. `begin` makes the driver, once all is there. */
  constructor(begin: Promise<Driver>, timeoutS: number | null, ended: (stream: Stream) => void) {
    let expired: ((error: PilotfishError) => void) | null = null;
    const deadline = new Promise<never>((_, reject) => {
      expired = reject;
    });
    if (timeoutS !== null) {
      this.timer = setTimeout(() => {
        const error = new DeadlineExceeded(`the answer was not complete after ${timeoutS} s`);
        expired?.(error);
        this.driver?.fail(error);
      }, timeoutS * 1000);
    }
    this.started = Promise.race([begin, deadline]).then((driver) => {
      this.driver = driver;
      if (this.cancelled) driver.cancel();
      else driver.run();
      return driver.generation;
    });
    const over = (): void => {
      clearTimeout(this.timer);
      ended(this);
    };
    this.started
      .then(
        () => this.driver?.pieces.outcome,
        (error: unknown) => {
          this.early.close(error instanceof PilotfishError ? error : new PilotfishError(String(error)));
        },
      )
      .then(over, over);
  }

  [Symbol.asyncIterator](): AsyncIterator<Piece, undefined> {
    return { next: () => this.next() };
  }

  private async next(): Promise<IteratorResult<Piece, undefined>> {
    await this.started.catch(() => undefined);
    return (this.driver?.pieces ?? this.early).next();
  }

  /** The whole answer; waits for it, and takes no pieces. Rejects with what ended it otherwise. */
  async result(): Promise<Result> {
    await this.started.catch(() => undefined);
    return (this.driver?.pieces ?? this.early).outcome;
  }

  /** End the generation; the result then has finishReason "abort" and what was committed. */
  cancel(): void {
    this.cancelled = true;
    this.driver?.cancel();
  }

  /** Whether the outcome is known, so that `result` does not wait. */
  get ended(): boolean {
    return this.early.ended || (this.driver?.pieces.ended ?? false);
  }

  /** Null before it begins. */
  get generation(): Generation | null {
    return this.driver?.generation ?? null;
  }

  /** What is drafted beyond the text that has come: nobody has verified it, and it may never come. */
  get draftText(): string {
    return this.driver?.draftText ?? "";
  }

  /** What was shown behind the verified text while the link was away, and is not decided yet. */
  get unverifiedText(): string {
    return this.driver?.unverifiedText ?? "";
  }

  /** Whether the device goes on alone at the moment. */
  get offline(): boolean {
    return this.driver?.away ?? false;
  }

  /** How it goes at the moment; null before it begins. */
  get figures(): LiveFigures | null {
    return this.driver?.figures() ?? null;
  }

  /** For `Client`. */
  hinted(hint: Hint): void {
    this.driver?.hint(hint);
  }

  /** For `Client`: the link is known to be gone. */
  cut(): void {
    this.driver?.cut();
  }
}
