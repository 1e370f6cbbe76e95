import assert from "node:assert/strict";
import { test } from "node:test";

import { NumericalFailure } from "../src/errors.js";
import { Noise } from "../src/noise.js";
import { samplingParams } from "../src/parameters.js";
import { coupledCandidates, keptTokens, tokenLogprobs } from "../src/sampling.js";
import { TokenHistory } from "../src/token_history.js";
import { projectFile, type PythonParams, samplingOptions, vectors } from "./vectors.js";

interface Case {
  params: PythonParams;
  seed: string;
  position: number;
  vocab_size: number;
  prompt: number[];
  output: number[];
  banned: number[];
  candidates: number[];
}
interface ManyCase extends Case {
  ticks: (number | null)[];
  kept_count: number;
  kept: number[] | null;
}
interface KeptCase extends Case {
  logits: (number | null)[];
  kept: number[];
  logprob: number;
  top_logprobs: [number, number][];
}

function contextOf(entry: Case): { history: TokenHistory; banned: number[]; vocabSize: number } {
  return {
    history: new TokenHistory(entry.prompt, entry.output),
    banned: entry.banned,
    vocabSize: entry.vocab_size,
  };
}

test("tokens, candidates and what the filters keep are those of Python", () => {
  const cases = vectors<ManyCase[]>("sampling");
  assert.ok(cases.length >= 3000);
  for (const [number, entry] of cases.entries()) {
    const logits = Float32Array.from(entry.ticks, (tick) => (tick === null ? -Infinity : tick / 256));
    const params = samplingParams(samplingOptions(entry.params, entry.seed));
    const context = contextOf(entry);
    const where = `case ${number}: ${JSON.stringify(entry.params)}`;
    const kept = keptTokens(logits, params, context);
    assert.equal(kept.length, entry.kept_count, where);
    if (entry.kept !== null) assert.deepEqual(kept, entry.kept, where);
    assert.deepEqual(coupledCandidates(logits, params, entry.position, 4, context), entry.candidates, where);
    assert.deepEqual(coupledCandidates(logits, params, entry.position, 1, context), entry.candidates.slice(0, 1), where);
  }
});

test("the vectors that are kept hold, log-probabilities among them", () => {
  const { sampling } = JSON.parse(projectFile("shared/pilotfish_core/vectors/sampling.json")) as { sampling: KeptCase[] };
  for (const entry of sampling) {
    const logits = Float32Array.from(entry.logits, (value) => value ?? -Infinity);
    const params = samplingParams(samplingOptions(entry.params, entry.seed));
    const context = contextOf(entry);
    assert.deepEqual(keptTokens(logits, params, context), entry.kept);
    assert.deepEqual(coupledCandidates(logits, params, entry.position, 4, context), entry.candidates);
    const [chosen, top] = tokenLogprobs(logits, entry.candidates.slice(0, 1), 3, entry.vocab_size);
    assert.ok(Math.abs(chosen[0] - entry.logprob) < 1e-9);
    assert.deepEqual(top.map(([id]) => id), entry.top_logprobs.map(([id]) => id));
  }
});

test("pruning never changes the winner, at the size of a real vocabulary", () => {
  const size = 151_936;
  for (let round = 0; round < 12; round += 1) {
    const source = new Noise(99n, round);
    const spread = [0.5, 2, 6][round % 3];
    const logits = Float32Array.from({ length: size }, (_, id) => source.gumbel(id) * spread);
    const params = samplingParams({ temperature: 0.8, seed: round, topP: round % 2 === 0 ? 1 : 0.95 });
    const kept = new Set(params.topP < 1 ? keptTokens(logits, params) : []);
    const top = logits.reduce((best, value) => Math.max(best, value), -Infinity);
    const noise = new Noise(params.seed, 5);
    let best = -1;
    let bestScore = -Infinity;
    logits.forEach((value, id) => {
      if (kept.size > 0 && !kept.has(id)) return;
      const score = (value - top) / params.temperature + noise.gumbel(id);
      if (score > bestScore) {
        best = id;
        bestScore = score;
      }
    });
    assert.deepEqual(coupledCandidates(logits, params, 5, 1), [best]);
  }
});

test("logits that are no numbers are refused", () => {
  const params = samplingParams({ seed: 1 });
  for (const value of [NaN, Infinity]) {
    assert.throws(() => coupledCandidates(Float32Array.of(0, value, 1), params, 0, 1), NumericalFailure);
  }
  assert.throws(() => coupledCandidates(Float32Array.of(-Infinity, -Infinity), params, 0, 1), NumericalFailure);
});

test("a history follows a draft forwards and back", () => {
  const history = new TokenHistory([1, 2], [2, 3]);
  history.extend([3, 4]);
  history.rewind(1);
  assert.deepEqual([...history.seen()].sort(), [[1, 0], [2, 1]]);
  assert.equal(history.length, 1);
});
