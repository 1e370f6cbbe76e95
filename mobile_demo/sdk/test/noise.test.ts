import assert from "node:assert/strict";
import { test } from "node:test";

import { deriveSeed, gumbelOfWord, GUMBEL_MAX, GUMBEL_MIN, leastWord, Noise, philox } from "../src/noise.js";
import { projectFile, vectors } from "./vectors.js";

interface NoiseCase {
  seed: string;
  position: number;
  ids: number[];
  words: number[];
  gumbel: number[];
  index: number;
  derived: string;
}

interface KeptVectors {
  philox: { counter: number[]; key: number[]; words: number[] }[];
  noise: { seed: string; position: string; words: number[]; gumbel: number[] }[];
  gumbel_of_words: { word: number; gumbel: number }[];
}

const kept = JSON.parse(projectFile("shared/pilotfish_core/vectors/sampling.json")) as KeptVectors;

test("Philox gives the published answers", () => {
  for (const { counter, key, words } of kept.philox) {
    const block = new Uint32Array(4);
    philox(block, counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
    assert.deepEqual([...block], words);
  }
});

test("words are those of Python, variates to the last bits", () => {
  const cases = vectors<NoiseCase[]>("noise");
  assert.ok(cases.length >= 9000);
  for (const { seed, position, ids, words, gumbel, index, derived } of cases) {
    const noise = new Noise(BigInt(seed), position);
    assert.deepEqual(ids.map((id) => noise.word(id)), words);
    ids.forEach((id, place) => close(noise.gumbel(id), gumbel[place]));
    assert.equal(deriveSeed(BigInt(seed), index), BigInt(derived));
  }
  for (const { seed, position, words } of kept.noise) {
    const noise = new Noise(BigInt(seed), Number(position));
    assert.deepEqual(words.map((_, id) => noise.word(id)), words);
  }
  for (const { word, gumbel } of kept.gumbel_of_words) close(gumbelOfWord(word), gumbel);
});

test("no word below the least one reaches a variate", () => {
  for (let step = 0; step <= 1000; step += 1) {
    const gumbel = GUMBEL_MIN + ((GUMBEL_MAX - GUMBEL_MIN) * step) / 1000;
    const word = leastWord(gumbel);
    if (word > 0) assert.ok(gumbelOfWord(word - 1) < gumbel);
  }
});

function close(value: number, expected: number): void {
  assert.ok(Math.abs(value - expected) <= 1e-12 * Math.max(1, Math.abs(expected)), `${value} for ${expected}`);
}
