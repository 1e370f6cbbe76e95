import assert from "node:assert/strict";
import { test } from "node:test";

import type { DraftRun } from "../src/drafts.js";
import { ProtocolViolation } from "../src/errors.js";
import type { Open } from "../src/messages.js";
import type { Hint, Mode, Pace } from "../src/modes.js";
import { type SamplingOptions, samplingParams } from "../src/parameters.js";
import { fromHex, hex } from "../src/sha256.js";
import { type CloudMessage, CloudFrameReader, DeviceFrameWriter } from "../src/wire.js";
import { vectors } from "./vectors.js";

interface OpenForm {
  kind: "open";
  model: string;
  tokenizerHash: string;
  generationId: string;
  attempt: number;
  prompt: number[];
  params: SamplingOptions;
  output: number[];
  fingerprint: string;
  allowOtherFingerprint: boolean;
  mode: Mode;
  hint: Hint;
  pace: Pace | null;
  prefix: { digest: string; length: number } | null;
  ticket: string;
}
type UpForm =
  | OpenForm
  | { kind: "acknowledge"; length: number }
  | { kind: "ping"; nonce: number }
  | { kind: "mode"; mode: Mode }
  | { kind: "hint"; hint: Hint }
  | { kind: "draft"; run: DraftRun; acknowledged: number | null };
interface Frames {
  up: { padded: boolean; frames: [UpForm, string][] }[];
  down: [string, unknown[]][][];
}

const frames = vectors<Frames>("frames");

test("what the device writes is, byte for byte, what Python writes", () => {
  for (const { padded, frames: stream } of frames.up) {
    const writer = new DeviceFrameWriter(padded);
    for (const [form, expected] of stream) assert.equal(hex(written(writer, form)), expected, JSON.stringify(form));
  }
});

test("what the cloud writes is read as Python reads it", () => {
  let messages = 0;
  for (const stream of frames.down) {
    const reader = new CloudFrameReader();
    for (const [bytes, expected] of stream) {
      assert.deepEqual(reader.read(fromHex(bytes)).map(formOf), expected);
      messages += expected.length;
    }
  }
  assert.ok(messages > 1000);
});

test("what does not parse or does not follow is a violation", () => {
  assert.throws(() => new CloudFrameReader().read(Uint8Array.of(255, 255, 255)), ProtocolViolation);
  assert.throws(() => new CloudFrameReader().read(fromHex("3805")), ProtocolViolation); // a commit before opened
  const opened = fromHex("42020801");
  const reader = new CloudFrameReader();
  reader.read(opened);
  assert.throws(() => reader.read(opened), ProtocolViolation);
  assert.throws(() => reader.read(fromHex("3805")), ProtocolViolation); // no position
});

function written(writer: DeviceFrameWriter, form: UpForm): Uint8Array {
  switch (form.kind) {
    case "open":
      return writer.open(openOf(form));
    case "acknowledge":
      return writer.acknowledge(form.length);
    case "ping":
      return writer.ping(form.nonce);
    case "mode":
      return writer.mode(form.mode);
    case "hint":
      return writer.hint(form.hint);
    case "draft":
      return writer.draft(form.run, form.acknowledged);
  }
}

function openOf(form: OpenForm): Open {
  return {
    ...form,
    generationId: fromHex(form.generationId),
    params: samplingParams(form.params),
    prefix: form.prefix === null ? null : { digest: fromHex(form.prefix.digest), length: form.prefix.length },
    ticket: fromHex(form.ticket),
  };
}

function formOf(message: CloudMessage): unknown {
  if (message.kind !== "ticket") return message;
  return { kind: "ticket", ticket: { value: hex(message.ticket.value), length: message.ticket.length } };
}
