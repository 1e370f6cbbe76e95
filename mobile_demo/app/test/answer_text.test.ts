/** What pieces do to the text on the screen. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { AnswerText } from "../src/answer_text.js";
import type { Confirmed, Origin, Revised, TextPiece } from "../../sdk/src/index.js";

const common = { tokenIds: [], logprobs: null };

function text(value: string, origin: Origin): TextPiece {
  const verified = origin !== "unverified";
  return { ...common, kind: "text", text: value, origin, verified, verifiedText: verified ? value : "" };
}

function confirmed(value: string): Confirmed {
  return { ...common, kind: "confirmed", text: "", origin: "accepted", verified: true, confirmedText: value, verifiedText: value };
}

function revised(offset: number, removed: string, value: string): Revised {
  return {
    ...common, kind: "revised", text: value, origin: "recovered", verified: true, confirmedText: value,
    verifiedText: value, position: 0, offset, removed,
  };
}

function shown(answer: AnswerText): string[] {
  return answer.runs.map((run) => `${run.origin}:${run.text}`);
}

test("runs of one origin grow, corrections stay apart", () => {
  const answer = new AnswerText();
  for (const piece of [text("a", "accepted"), text("b", "accepted"), text("c", "recovered"), text("d", "recovered")]) {
    answer.apply(piece);
  }
  assert.deepEqual(shown(answer), ["accepted:ab", "recovered:c", "recovered:d"]);
  assert.equal(answer.verifiedLength, 4);
});

test("unverified text is confirmed from its front, in the middle of a run too", () => {
  const answer = new AnswerText();
  for (const piece of [text("one ", "cloud"), text("two three", "unverified"), confirmed("two ")]) answer.apply(piece);
  assert.deepEqual(shown(answer), ["cloud:one ", "accepted:two ", "unverified:three"]);
  answer.apply(confirmed("three"));
  assert.deepEqual(shown(answer), ["cloud:one ", "accepted:two ", "accepted:three"]);
  assert.equal(answer.verifiedLength, answer.length);
});

test("a revision takes back from its offset, and what stands before it is verified", () => {
  const answer = new AnswerText();
  for (const piece of [text("x = ", "cloud"), text("12345", "unverified"), confirmed("1"), revised(6, "345", "99")]) {
    answer.apply(piece);
  }
  assert.deepEqual(shown(answer), ["cloud:x = ", "accepted:1", "accepted:2", "recovered:99"]);
  assert.equal(answer.runs[3]?.revised, true);
  assert.equal(answer.text, "x = 1299");
  answer.apply(text("!", "bonus"));
  assert.equal(answer.verifiedLength, 9);
});

test("only what changed is to be drawn again", () => {
  const answer = new AnswerText();
  answer.apply(text("a", "cloud"));
  answer.apply(text("b", "recovered"));
  assert.equal(answer.takeDirty(), 0);
  answer.apply(text("c", "cloud"));
  assert.equal(answer.takeDirty(), 2);
  answer.apply(text("d", "cloud"));
  assert.equal(answer.takeDirty(), 2);
  answer.apply(revised(0, "abcd", "z"));
  assert.equal(answer.takeDirty(), 0);
});

test("at the end the text is the result's, whatever was held back", () => {
  const answer = new AnswerText();
  answer.apply(text("same", "cloud"));
  answer.apply(text(" alone", "unverified"));
  answer.settle("same text", " more");
  assert.equal(answer.text, "same text more");
  assert.equal(answer.verifiedLength, 9);
  assert.equal(answer.runs.at(-1)?.origin, "unverified");
});
