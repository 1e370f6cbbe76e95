/** Makes pieces of what a core delivers: text in step with tokens, and what becomes of unverified text (`delivery.py`). */

import { ShownText } from "./answer_text.js";
import type { Deliver, ShowUnverified } from "./device_actions.js";
import type { Finish, Origin, TokenLogprobs } from "./drafts.js";
import type { Generation } from "./generation.js";
import { PieceQueue } from "./piece_queue.js";
import type { TextPiece } from "./result.js";
import type { Tokenizer } from "./tokenizer.js";

/** The app's end of one generation. */
export class Delivery {
  readonly pieces = new PieceQueue();
  readonly text: ShownText;
  private lastOrigin: Origin = "cloud";

  constructor(
    private readonly generation: Generation,
    tokenizer: Tokenizer,
  ) {
    this.text = new ShownText(generation.params, tokenizer, generation.output);
  }

  /** Committed tokens. `finish`: the answer ends with the last ones that are delivered now. */
  deliver(deliver: Deliver, finish: Finish | null): void {
    const { tokens, origins } = deliver;
    const withText = tokens.length - hidden(tokens, finish);
    const revised = deliver.withdrawn > 0;
    for (let begin = 0; begin < tokens.length; ) {
      const origin = origins[begin];
      const confirmed = begin < deliver.confirmed;
      let end = begin + 1;
      while (end < tokens.length && origins[end] === origin && end < deliver.confirmed === confirmed) end += 1;
      const text = this.text.answer.push(tokens.slice(begin, Math.min(end, withText)));
      const logprobs = deliver.logprobs === null ? null : deliver.logprobs.slice(begin, end);
      const piece = textPiece(text, tokens.slice(begin, end), origin, logprobs);
      this.lastOrigin = origin;
      if (confirmed) {
        this.pieces.put({ ...piece, kind: "confirmed", text: "", verifiedText: text, confirmedText: text });
      } else if (this.text.unsettled) {
        this.settle(piece, deliver.position + begin, revised);
      } else {
        this.pieces.put(piece);
      }
      begin = end;
    }
    if (this.text.unsettled && deliver.undecided === 0) {
      const rest = finish === null ? "" : this.text.end(finish);
      this.settle(textPiece(rest, [], this.lastOrigin), deliver.position + tokens.length, revised);
    }
  }

  /** Draft tokens, marked as unverified; `finish`: the answer may be complete with them. */
  show(shown: ShowUnverified, finish: Finish | null): void {
    const withText = shown.tokens.length - hidden(shown.tokens, finish);
    const text = this.text.show(this.generation.output, shown.tokens.slice(0, withText));
    this.pieces.put(textPiece(text, shown.tokens, "unverified"));
  }

  /** What was shown is a part of the answer from here on. To be called before it is in the output. */
  keep(tokens: readonly number[], finish: Finish | null): void {
    this.text.answer.push(tokens.slice(0, tokens.length - hidden(tokens, finish)));
    if (this.text.unsettled) this.text.settle();
    this.lastOrigin = "unverified";
  }

  /** What was held back of the text. */
  end(finish: Finish): void {
    // What was held back behind unverified text stays so: it is not known to be on the screen; a resume shows it again.
    if (this.text.unsettled && finish.reason === "abort") return;
    const rest = this.text.end(finish);
    if (rest !== "") this.pieces.put(textPiece(rest, [], this.lastOrigin));
  }

  /** `piece` is the last of what decides the unverified text; what it adds to the screen is to be found out. */
  private settle(piece: TextPiece, position: number, revised: boolean): void {
    const { offset, removed, added } = this.text.settle();
    if (revised || removed !== "") {
      const confirmedText = piece.text;
      const rest = { position, offset, removed, confirmedText, verifiedText: confirmedText };
      this.pieces.put({ ...piece, ...rest, kind: "revised", text: added });
    } else if (piece.tokenIds.length > 0 || added !== "") {
      this.pieces.put({ ...piece, text: added, verifiedText: piece.verified ? added : "" });
    }
  }
}

/** A piece of plain text. */
export function textPiece(
  text: string,
  tokenIds: readonly number[],
  origin: Origin,
  logprobs: readonly TokenLogprobs[] | null = null,
): TextPiece {
  const verified = origin !== "unverified";
  return { kind: "text", text, tokenIds, origin, logprobs, verified, verifiedText: verified ? text : "" };
}

/** 1 where the last one is the end token: it is in the tokens, not in the text. */
function hidden(tokens: readonly number[], finish: Finish | null): number {
  return finish !== null && tokens.length > 0 && tokens[tokens.length - 1] === finish.stop ? 1 : 0;
}
