import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import {
  Client,
  DeadlineExceeded,
  FileFormatError,
  Generation,
  type Piece,
  type Stream,
  UnsupportedParameter,
} from "../src/index.js";
import type { WebSocketLike } from "../src/index.js";
import { nodeWorker, Verifier } from "./verifier.js";

const PROMPT = "def quicksort(items):\n    ";
let verifier: Verifier;
let client: Client; // with the draft model that the verifier offers
let sockets: WebSocketLike[] = [];

before(async () => {
  verifier = await Verifier.start();
  client = new Client(verifier.http, { makeWorker: nodeWorker, webSocket: open });
  await client.prepare();
});

after(async () => {
  client.close();
  await verifier.stop();
});

function open(url: string, protocols: string[]): WebSocketLike {
  const socket = new WebSocket(url, protocols) as unknown as WebSocketLike;
  sockets.push(socket);
  return socket;
}

async function read(stream: Stream): Promise<Piece[]> {
  const pieces: Piece[] = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
}

/** What is on the screen after all pieces. */
function screen(pieces: readonly Piece[]): string {
  return pieces.reduce(
    (text, piece) => (piece.kind === "revised" ? text.slice(0, piece.offset) : text) + piece.text,
    "",
  );
}

test("the draft model is the one that the verifier offers", () => {
  assert.equal(client.draftError, null);
  assert.equal(client.drafter?.name, "onnx-web-int8");
});

for (const temperature of [0, 0.8]) {
  test(`the text is the Python device's, temperature ${temperature}`, async () => {
    const expected = await verifier.answerOfPython(PROMPT, 60, temperature, 7);
    const stream = client.generate(PROMPT, { maxTokens: 60, temperature, seed: 7 });
    const pieces = await read(stream);
    const result = await stream.result();
    assert.deepEqual(result.tokenIds, expected);
    assert.equal(screen(pieces), result.text);
    assert.deepEqual(pieces.flatMap(({ tokenIds }) => tokenIds), expected);
    assert.equal(result.verified, true);
    assert.ok(result.metrics.bytesUp > 0 && result.metrics.bytesDown > 0);
  });
}

test("drafts of the device are accepted", async () => {
  client.arm = "device-lockstep";
  const { metrics } = await client.generate(PROMPT, { maxTokens: 60, temperature: 0.8, seed: 7 }).result();
  client.arm = "auto";
  assert.ok(metrics.acceptedDraftTokens > 10, `${metrics.acceptedDraftTokens} accepted`);
  assert.equal(metrics.drafterError, null);
});

test("no arm changes the text, and padding neither", async () => {
  const expected = await client.generate(PROMPT, { maxTokens: 24, temperature: 0.8, seed: 3 }).result();
  for (const arm of ["cloud", "co-located-ngram", "device-lockstep", "device-async"] as const) {
    const other = new Client(verifier.http, { draft: "ngram", arm, pad: arm === "cloud" });
    const result = await other.generate(PROMPT, { maxTokens: 24, temperature: 0.8, seed: 3 }).result();
    assert.deepEqual(result.tokenIds, expected.tokenIds, arm);
    other.close();
  }
});

test("a cut in mid-answer resumes, and nothing is told twice", async () => {
  const expected = await client.generate(PROMPT, { maxTokens: 60, temperature: 0.8, seed: 11 }).result();
  sockets = [];
  client.simulatedRoundTripS = 0.04;
  const stream = client.generate(PROMPT, { maxTokens: 60, temperature: 0.8, seed: 11 });
  const pieces: Piece[] = [];
  for await (const piece of stream) {
    pieces.push(piece);
    if (sockets.length === 1 && (stream.figures?.tokens ?? 0) > 8) sockets[0].close(1000);
  }
  client.simulatedRoundTripS = 0;
  const result = await stream.result();
  assert.deepEqual(result.tokenIds, expected.tokenIds);
  assert.equal(screen(pieces), expected.text);
  assert.ok(result.metrics.reconnects >= 1 && sockets.length >= 2);
});

test("offline the device goes on alone, and is verified when the link is back", async () => {
  const expected = await client.generate(PROMPT, { maxTokens: 60, temperature: 0.8, seed: 12 }).result();
  let reachable = true;
  const unreliable = new Client(verifier.http, {
    draft: client.drafter ?? "auto",
    offline: "draft",
    offlineAfterS: 0.2,
    webSocket: (url, protocols) => open(reachable ? url : "ws://127.0.0.1:1/", protocols),
  });
  sockets = [];
  unreliable.simulatedRoundTripS = 0.1;
  const stream = unreliable.generate(PROMPT, { maxTokens: 60, temperature: 0.8, seed: 12 });
  const pieces: Piece[] = [];
  for await (const piece of stream) {
    pieces.push(piece);
    if (reachable && sockets.length === 1 && (stream.figures?.tokens ?? 0) >= 4) {
      reachable = false;
      sockets[0].close(1000);
    }
    if (piece.origin === "unverified") reachable = true;
  }
  const result = await stream.result();
  assert.deepEqual(result.tokenIds, expected.tokenIds);
  assert.equal(screen(pieces), expected.text);
  assert.equal(pieces.map(({ verifiedText }) => verifiedText).join(""), expected.text);
  assert.ok(result.metrics.unverifiedTokens > 0);
  assert.equal(result.metrics.confirmedTokens + result.metrics.withdrawnTokens, result.metrics.unverifiedTokens);
  assert.equal(result.verified, true);
  unreliable.close();
});

test("device only: the draft model writes alone, nothing is sent", async () => {
  sockets = [];
  client.arm = "device-only";
  const stream = client.generate(PROMPT, { maxTokens: 12, temperature: 0, seed: 1 });
  const pieces = await read(stream);
  client.arm = "auto";
  const result = await stream.result();
  assert.ok(pieces.every(({ origin }) => origin === "unverified"));
  assert.equal(result.verified, false);
  assert.equal(screen(pieces), result.text);
  assert.equal(sockets.length, 0);
});

test("a cancelled answer is saved and goes on elsewhere", async () => {
  const options = { maxTokens: 40, temperature: 0.8, seed: 2n ** 63n + 11n };
  const expected = await client.generate(PROMPT, options).result();
  const stream = client.generate(PROMPT, options);
  for await (const piece of stream) if (piece.tokenIds.length > 0) stream.cancel();
  const cancelled = await stream.result();
  assert.equal(cancelled.finishReason, "abort");
  const saved = (stream.generation as Generation).toJson();
  const resumed = client.resume(saved);
  assert.deepEqual((await resumed.result()).tokenIds, expected.tokenIds);
});

test("saved generations go on in the other language", async () => {
  const folder = mkdtempSync(join(tmpdir(), "generation-"));
  const [here, there] = [join(folder, "here.json"), join(folder, "there.json")];
  const params = { maxTokens: 30, temperature: 0.00001, topP: 0.9, stop: ["größer 😀"], seed: 2n ** 63n + 11n };
  const expected = await client.generate(PROMPT, params).result();
  const stream = client.generate(PROMPT, params);
  for await (const piece of stream) if (piece.tokenIds.length > 0) stream.cancel();
  writeFileSync(here, (stream.generation as Generation).toJson());
  assert.deepEqual(await verifier.generateInPython(["--resume", here]), expected.tokenIds);
  const options = ["--top-p", "0.9", "--logit-bias", '{"5": 1}', "--save", there];
  const ids = await verifier.answerOfPython(PROMPT, 9, 1e-5, 2 ** 53 - 1, options);
  const loaded = Generation.fromJson(readFileSync(there, "utf-8"));
  assert.deepEqual(loaded.output, ids);
  assert.deepEqual(Generation.fromJson(loaded.toJson()), loaded);
  assert.throws(() => Generation.fromJson(loaded.toJson().replace('"attempt":1', '"attempt":2')), FileFormatError);
  rmSync(folder, { recursive: true });
});

test("what is wrong is said with a type", async () => {
  assert.throws(() => client.generate("x", { temprature: 1 } as object), UnsupportedParameter);
  await assert.rejects(client.generate("x", { maxTokens: 500, timeoutS: 0.001 }).result(), DeadlineExceeded);
  const served = await client.describe();
  assert.equal(served.deterministic, true);
  const long = new Array<number>(served.maxModelLen + 1).fill(5);
  await assert.rejects(client.generate(long).result(), { kind: "prompt_too_long" });
  const stranger = new Client("http://127.0.0.1:1", { draft: "ngram" });
  await assert.rejects(stranger.generate("x").result(), { kind: "unavailable" });
  stranger.close();
});
