/** The text of one answer, as its tokens come, and what is on the screen beyond it (`answer_text.py`, `shown_text.py`). */

import type { Finish } from "./drafts.js";
import type { SamplingParams } from "./parameters.js";
import { StopTextFilter } from "./stops.js";
import type { Tokenizer } from "./tokenizer.js";

/** Text of an answer that begins with the `output` held already, which counts as shown. The cloud says where it ends. */
export class AnswerText {
  /** All that was shown so far. */
  whole = "";
  private readonly filter: StopTextFilter;
  // A resume may be told that what it holds was complete: only then is the last token known to be the end token.
  private lastHeld: readonly number[];

  constructor(params: SamplingParams, tokenizer: Tokenizer, output: readonly number[]) {
    this.filter = new StopTextFilter(params, tokenizer);
    for (const token of output.slice(0, -1)) this.show(this.filter.push(token));
    this.lastHeld = output.slice(-1);
  }

  /** Take in the next tokens; returns the text that is safe to show now, perhaps none. */
  push(tokens: readonly number[]): string {
    this.takeHeld();
    return this.show(tokens.map((token) => this.filter.push(token)).join(""));
  }

  /** The answer ended: what was held back and may be shown after all. */
  end(finish: Finish): string {
    if (this.lastHeld.length > 0 && this.lastHeld[0] !== finish.stop) this.takeHeld();
    return this.show(this.filter.flush());
  }

  private takeHeld(): void {
    const held = this.lastHeld;
    this.lastHeld = [];
    for (const token of held) this.show(this.filter.push(token));
  }

  private show(text: string): string {
    this.whole += text;
    return text;
  }
}

/** `answer` is the text of the output; `show` adds what is unverified, `settle` says how the screen becomes the answer. */
export class ShownText {
  readonly answer: AnswerText;
  private ahead: AnswerText | null = null;
  private screen = ""; // all of it, while something is unverified

  constructor(
    private readonly params: SamplingParams,
    private readonly tokenizer: Tokenizer,
    output: readonly number[],
  ) {
    this.answer = new AnswerText(params, tokenizer, output);
  }

  /** What is on the screen behind the answer's text. */
  get unverified(): string {
    return this.ahead === null ? "" : this.screen.slice(this.answer.whole.length);
  }

  /** Whether anything unverified was shown since the last `settle`. */
  get unsettled(): boolean {
    return this.ahead !== null;
  }

  /** Unverified `tokens` behind all those shown before, which are behind `output`: the text that they add. */
  show(output: readonly number[], tokens: readonly number[]): string {
    if (this.ahead === null) {
      this.ahead = new AnswerText(this.params, this.tokenizer, output);
      this.ahead.push([]); // of a resumed answer all of the output is on the screen
      this.screen = this.ahead.whole;
    }
    this.ahead.push(tokens);
    const text = this.ahead.whole.slice(this.screen.length);
    this.screen += text;
    return text;
  }

  /** Nothing is unverified any more: where screen and answer differ, what is to be removed there, and what comes. */
  settle(): { offset: number; removed: string; added: string } {
    const before = this.screen;
    const after = this.answer.whole;
    this.ahead = null;
    this.screen = "";
    const least = Math.min(before.length, after.length);
    let offset = 0;
    while (offset < least && before[offset] === after[offset]) offset += 1;
    const within = offset > 0 && /[\ud800-\udbff]/.test(before[offset - 1]); // not between the halves of a character
    if (within) offset -= 1;
    return { offset, removed: before.slice(offset), added: after.slice(offset) };
  }

  end(finish: Finish): string {
    return this.answer.end(finish);
  }
}
