/** Pieces on their way to the app: each goes to one of those that wait, the end to all. */

import { PilotfishError } from "./errors.js";
import type { Piece, Result } from "./result.js";

type Waiting = { resolve: (item: IteratorResult<Piece, undefined>) => void; reject: (error: PilotfishError) => void };

export class PieceQueue {
  /** The whole answer, or what ended it otherwise. */
  readonly outcome: Promise<Result>;
  ended = false;
  private readonly pieces: Piece[] = [];
  private readonly waiting: Waiting[] = [];
  private end: Result | PilotfishError | null = null;
  private resolve!: (result: Result) => void;
  private reject!: (error: PilotfishError) => void;

  constructor() {
    this.outcome = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.outcome.catch(() => undefined); // whoever iterates gets it, too
  }

  put(piece: Piece): void {
    const first = this.waiting.shift();
    if (first === undefined) this.pieces.push(piece);
    else first.resolve({ done: false, value: piece });
  }

  close(end: Result | PilotfishError): void {
    if (this.ended) return;
    this.ended = true;
    this.end = end;
    if (end instanceof PilotfishError) this.reject(end);
    else this.resolve(end);
    for (const { resolve, reject } of this.waiting.splice(0)) {
      if (end instanceof PilotfishError) reject(end);
      else resolve({ done: true, value: undefined });
    }
  }

  next(): Promise<IteratorResult<Piece, undefined>> {
    const piece = this.pieces.shift();
    if (piece !== undefined) return Promise.resolve({ done: false, value: piece });
    if (this.end instanceof PilotfishError) return Promise.reject(this.end);
    if (this.end !== null) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }
}
