import assert from "node:assert/strict";
import { test } from "node:test";

import { NgramDrafter } from "../src/ngram.js";
import { samplingParams } from "../src/parameters.js";
import { prefixes } from "../src/prompts.js";
import { hex } from "../src/sha256.js";
import { StopChecker, StopTextFilter } from "../src/stops.js";
import { Tokenizer } from "../src/tokenizer.js";
import { projectFile, vectors } from "./vectors.js";

interface Texts {
  hash: string;
  vocab_size: number;
  encode: { text: string; ids: number[] }[];
  decode: { ids: number[]; text: string; continues: string }[];
  stops: {
    ids: number[];
    stop: string[];
    max_tokens: number;
    min_tokens: number;
    stop_token_ids: number[];
    end: [number, string, number | string | null] | null;
    shown: string[];
  }[];
  ngram: { keep: number; extend: number[]; count: number; tokens: number[] }[][];
  prefixes: { tokens: number[]; prefixes: [string, number][] }[];
}

const texts = vectors<Texts>("texts");
const tokenizer = new Tokenizer(projectFile("reference/target/tokenizer.json"));

test("the tokenizer means what Python's does", () => {
  assert.equal(tokenizer.hash, texts.hash);
  assert.equal(tokenizer.vocabSize, texts.vocab_size);
});

test("text becomes the same ids", () => {
  for (const { text, ids } of texts.encode) assert.deepEqual(tokenizer.encode(text), ids, JSON.stringify(text));
});

test("ids become the same text, however broken", () => {
  for (const { ids, text, continues } of texts.decode) {
    assert.equal(tokenizer.decode(ids), text);
    assert.equal(tokenizer.decode(ids, { continues: true }), continues);
  }
});

test("answers end at the same place, and the same text may be shown at every token", () => {
  for (const entry of texts.stops) {
    const params = samplingParams({
      stop: entry.stop,
      maxTokens: entry.max_tokens,
      minTokens: entry.min_tokens,
      stopTokenIds: entry.stop_token_ids,
      seed: 1,
    });
    const checker = new StopChecker(params, tokenizer, [0]);
    let end: unknown = null;
    for (const [index, token] of entry.ids.entries()) {
      const finish = checker.push(token);
      if (finish !== null) {
        end = [index, finish.reason, finish.stop];
        break;
      }
    }
    assert.deepEqual(end, entry.end);
    const filter = new StopTextFilter(params, tokenizer);
    assert.deepEqual([...entry.ids.map((token) => filter.push(token)), filter.flush()], entry.shown);
  }
});

test("prompt lookup proposes the same", () => {
  for (const tasks of texts.ngram) {
    const context = new NgramDrafter().open();
    for (const { keep, extend, count, tokens } of tasks) {
      assert.deepEqual(context.propose(keep, extend, count), tokens);
    }
  }
});

test("prompts have the same names", () => {
  for (const { tokens, prefixes: expected } of texts.prefixes) {
    assert.deepEqual(prefixes(tokens).map(({ digest, length }) => [hex(digest), length]), expected);
  }
});
