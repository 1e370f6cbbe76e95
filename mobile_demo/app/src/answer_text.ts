/** The answer as runs of text by where they came from; what pieces do to it. Offsets are in UTF-16 code units. */

import type { Origin, Piece } from "../../sdk/src/index.js";

/** Text of one origin. `revised`: it took the place of unverified text. */
export interface Run {
  text: string;
  readonly origin: Origin;
  readonly revised: boolean;
}

/** Grows by `apply`. All unverified text lies behind all verified text. */
export class AnswerText {
  readonly runs: Run[] = [];
  /** Length of the text that the target has decided. */
  verifiedLength = 0;
  #length = 0;
  #dirtyFrom = 0;

  /** Of all that is shown. */
  get length(): number {
    return this.#length;
  }

  get text(): string {
    return this.runs.map((run) => run.text).join("");
  }

  /** The first run that has changed since this was last asked. */
  takeDirty(): number {
    const from = this.#dirtyFrom;
    this.#dirtyFrom = this.runs.length;
    return from;
  }

  apply(piece: Piece): void {
    switch (piece.kind) {
      case "text":
        this.#push(piece.text, piece.origin, false);
        if (piece.verified) this.verifiedLength = this.#length;
        break;
      case "confirmed":
        this.#confirm(piece.confirmedText.length, piece.origin);
        break;
      case "revised":
        this.#cut(piece.offset);
        // What stands in front of the difference is the target's as well.
        this.#confirm(this.#length - this.verifiedLength, "accepted");
        this.#push(piece.text, piece.origin, true);
        this.verifiedLength = this.#length;
        break;
    }
  }

  /** The whole is known: make what is shown that, where a piece was held back. */
  settle(verified: string, unverified: string): void {
    const shown = this.text;
    if (shown !== verified + unverified) {
      let same = 0;
      while (same < Math.min(shown.length, verified.length) && shown[same] === verified[same]) same += 1;
      this.#cut(same);
      this.#push(verified.slice(same), "cloud", false);
      this.#push(unverified, "unverified", false);
    }
    this.#confirm(verified.length - this.verifiedLength, "accepted");
  }

  /** The next `count` units behind the verified text are verified, too. */
  #confirm(count: number, origin: Origin): void {
    const end = Math.min(this.verifiedLength + count, this.#length);
    let begin = 0;
    for (let index = 0; index < this.runs.length && begin < end; index += 1) {
      const run = this.runs[index] as Run;
      const next = begin + run.text.length;
      if (run.origin === "unverified") {
        const inside = run.text.slice(0, end - begin);
        const rest = run.text.slice(end - begin);
        const parts: Run[] = [{ text: inside, origin, revised: false }];
        if (rest !== "") parts.push({ ...run, text: rest });
        this.runs.splice(index, 1, ...parts);
        this.#dirtyFrom = Math.min(this.#dirtyFrom, index);
      }
      begin = next;
    }
    this.verifiedLength = Math.max(this.verifiedLength, end);
  }

  #cut(length: number): void {
    while (this.#length > length) {
      const index = this.runs.length - 1;
      const last = this.runs[index] as Run;
      const excess = this.#length - length;
      if (excess >= last.text.length) {
        this.runs.pop();
        this.#length -= last.text.length;
      } else {
        last.text = last.text.slice(0, last.text.length - excess);
        this.#length = length;
      }
      this.#dirtyFrom = Math.min(this.#dirtyFrom, index);
    }
    this.verifiedLength = Math.min(this.verifiedLength, this.#length);
  }

  #push(text: string, origin: Origin, revised: boolean): void {
    if (text === "") return;
    const index = this.runs.length - 1;
    const last = this.runs[index];
    if (last !== undefined && last.origin === origin && !revised && !last.revised && origin !== "recovered") {
      last.text += text; // each correction is a run of its own: each is shown as one
      this.#dirtyFrom = Math.min(this.#dirtyFrom, index);
    } else {
      this.runs.push({ text, origin, revised });
    }
    this.#length += text.length;
  }
}
