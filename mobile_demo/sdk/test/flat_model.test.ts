import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { before, test } from "node:test";

import { FlatContext } from "../src/flat_model.js";
import { type Manifest, parseManifest } from "../src/manifest.js";
import { OnnxGraph } from "../src/onnx_graph.js";
import { type SamplingOptions, samplingParams } from "../src/parameters.js";
import { PYTHON, ROOT } from "./verifier.js";

const FOLDER = fileURLToPath(new URL("../../draft/", import.meta.url));
const PROMPT = [17, 300, 511, 42, 1000, 77];
let graph: OnnxGraph;
let manifest: Manifest;

before(async () => {
  const files = new Map(readdirSync(FOLDER).map((name) => [name, new Uint8Array(readFileSync(FOLDER + name))]));
  manifest = parseManifest(new TextDecoder().decode(files.get("manifest.json")), "draft");
  graph = await OnnxGraph.load(files, manifest);
});

function context(options: SamplingOptions): FlatContext {
  return new FlatContext(graph, manifest, samplingParams({ seed: 5, maxTokens: 500, ...options }), PROMPT.length);
}

const PYTHON_DRAFT = `
import json, sys
from pilotfish.drafters.flat import FlatOnnxDrafter
from pilotfish_core.parameters import SamplingParams
values, prompt = json.loads(sys.argv[2]), json.loads(sys.argv[3])
context = FlatOnnxDrafter(sys.argv[1]).open(SamplingParams.from_mapping(values), len(prompt))
context.extend(prompt)
print(json.dumps(context.draft(40)))
`;

test("it drafts what Python's drafter of the same graph drafts", async () => {
  for (const [values, options] of [
    [{ temperature: 0 }, { temperature: 0 }],
    [{ temperature: 0.8, top_p: 0.95 }, { temperature: 0.8, topP: 0.95 }],
    [{ repetition_penalty: 1.3, min_tokens: 60 }, { repetitionPenalty: 1.3, minTokens: 60 }],
  ]) {
    const given = JSON.stringify({ seed: 5, max_tokens: 500, ...values });
    const printed = execFileSync(PYTHON, ["-c", PYTHON_DRAFT, FOLDER, given, JSON.stringify(PROMPT)], { cwd: ROOT });
    const expected = JSON.parse(printed.toString()) as number[];
    assert.equal(expected.length, 40);
    const ours = context(options as SamplingOptions);
    let [next] = await ours.draft(0, PROMPT, 1);
    let equal = 0;
    for (const [index, token] of expected.entries()) {
      if (next === token) equal += 1;
      [next] = await ours.draft(PROMPT.length + index, [token], 1);
    }
    assert.ok(equal >= 37, `${equal} of 40 with ${given}`); // 8 bits round otherwise in WebAssembly
  }
});

test("a rollback costs nothing and changes nothing", async () => {
  const ours = context({ temperature: 0.8 });
  const whole = await ours.draft(0, PROMPT, 24);
  assert.equal(whole.length, 24);
  for (const keep of [20, 3, 11, 1]) { // not 0: one row alone is rounded otherwise than the prompt's together
    assert.deepEqual(await ours.draft(PROMPT.length + keep, [], 24 - keep), whole.slice(keep));
  }
  await assert.rejects(ours.draft(1000, [], 1), RangeError);
});

test("a context that grows beyond its first buffer keeps what it holds, and ends with the model's", async () => {
  const long = Array.from({ length: 700 }, (_, index) => (index * 37) % 4000);
  const [one] = [await context({ temperature: 0 }).draft(0, long, 4)];
  const grown = context({ temperature: 0 });
  for (let at = 0; at < long.length; at += 100) await grown.draft(at, long.slice(at, at + 100), 1);
  assert.deepEqual(await grown.draft(long.length, [], 4), one);
  const full = Array.from({ length: manifest.contextLength - 2 }, (_, index) => index % 4000);
  assert.equal((await context({ temperature: 0 }).draft(0, full, 9)).length, 2);
});
