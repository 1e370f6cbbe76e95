import assert from "node:assert/strict";
import { test } from "node:test";

import { checkKeyMayGo, parseAddresses } from "../src/address.js";
import { InvalidParameter, Overloaded, PilotfishError, ProtocolViolation, Unauthenticated, Unavailable } from "../src/errors.js";
import { Delay, DeviceStream, errorOfClose, Transport, type WebSocketLike } from "../src/transport.js";

class Socket implements WebSocketLike {
  binaryType = "blob";
  readonly sent: Uint8Array[] = [];
  closed: number | undefined;
  onopen: WebSocketLike["onopen"] = null;
  onmessage: WebSocketLike["onmessage"] = null;
  onclose: WebSocketLike["onclose"] = null;
  onerror: WebSocketLike["onerror"] = null;

  send(data: Uint8Array<ArrayBuffer>): void {
    this.sent.push(data);
  }

  close(code?: number): void {
    this.closed = code;
  }
}

function opened(delay = new Delay()): { socket: Socket; stream: DeviceStream; frames: number[]; lost: PilotfishError[] } {
  const socket = new Socket();
  const frames: number[] = [];
  const lost: PilotfishError[] = [];
  const stream = new DeviceStream(socket, delay, {
    frame: (bytes) => frames.push(bytes[0]),
    lost: (error) => lost.push(error),
  });
  return { socket, stream, frames, lost };
}

test("closings say what the verifier meant", () => {
  const full = errorOfClose(4008, '{"code":"overloaded","message":"full","retry_after_s":1.5}');
  assert.ok(full instanceof Overloaded);
  assert.equal(full.retryAfterS, 1.5);
  assert.ok(errorOfClose(4014, "cut off {") instanceof Unavailable);
  assert.ok(errorOfClose(4016, "") instanceof Unauthenticated);
  assert.ok(errorOfClose(1006, "") instanceof Unavailable);
  assert.ok(errorOfClose(1000, "") instanceof Unavailable);
  assert.ok(errorOfClose(1009, "") instanceof ProtocolViolation);
  assert.equal(errorOfClose(4008, '{"code":"overloaded","message":"a\\u0000\\nb","retry_after_s":-1}').message, "a b");
});

test("what is said before the close goes first, with where to try again", () => {
  const { socket, lost } = opened();
  socket.onmessage?.({ data: '{"error":{"code":"unavailable","message":"drains","routes":["a~1"],"retry_after_s":0}}' });
  socket.onclose?.({ code: 4014, reason: '{"code":"unavailable","message":"dr..."}' });
  assert.equal(lost.length, 1);
  assert.equal(lost[0].message, "drains");
  assert.equal(lost[0].route, "a~1");
});

test("frames wait for the socket, and nothing is reported once it was left", () => {
  const { socket, stream, frames, lost } = opened();
  stream.send(Uint8Array.of(1, 2));
  assert.equal(socket.sent.length, 0);
  socket.onopen?.({} as never);
  stream.send(Uint8Array.of(3));
  assert.deepEqual(socket.sent.map(([first]) => first), [1, 3]);
  assert.equal(stream.bytesUp, 3);
  socket.onmessage?.({ data: Uint8Array.of(9).buffer });
  stream.leave();
  socket.onmessage?.({ data: Uint8Array.of(8).buffer });
  socket.onclose?.({ code: 1000, reason: "" });
  assert.deepEqual(frames, [9]);
  assert.deepEqual(lost, []);
  assert.equal(socket.closed, 1000);
});

test("a simulated round trip keeps the order, even when it becomes shorter", async () => {
  const delay = new Delay();
  const { socket, frames, lost } = opened(delay);
  const done = new Promise<void>((resolve) => setTimeout(resolve, 80));
  for (let number = 0; number < 40; number += 1) {
    delay.roundTripS = (40 - number) / 1000;
    socket.onmessage?.({ data: Uint8Array.of(number).buffer });
  }
  delay.roundTripS = 0;
  socket.onclose?.({ code: 1006, reason: "" });
  assert.equal(lost.length, 0); // it waits for what came before
  await done;
  assert.deepEqual(frames, Array.from({ length: 40 }, (_, number) => number));
  assert.equal(lost.length, 1);
});

test("key, deadline and route go where a browser can put them", () => {
  const calls: [string, string[]][] = [];
  const transport = new Transport(parseAddresses("http://a:1,https://b/base/"), "käy?", (url, protocols) => {
    calls.push([url, protocols]);
    return new Socket();
  });
  const events = { frame: () => undefined, lost: () => undefined };
  transport.open(0, 1.5, "r~1", events);
  transport.open(1, null, "", events);
  assert.deepEqual(calls, [
    ["ws://a:1/pilotfish/v1/generate?route=r~1", ["pilotfish.v1", "pilotfish.key.a8OkeT8", "pilotfish.deadline.1500"]],
    ["wss://b/base/pilotfish/v1/generate", ["pilotfish.v1", "pilotfish.key.a8OkeT8"]],
  ]);
});

test("addresses that are none are refused, and keys do not cross a network in the clear", () => {
  for (const wrong of ["", "verifier:8000", "grpc://a:1", "http://", []]) {
    assert.throws(() => parseAddresses(wrong), InvalidParameter);
  }
  assert.throws(() => checkKeyMayGo(parseAddresses("http://192.0.2.1"), "key", false), Unauthenticated);
  checkKeyMayGo(parseAddresses("http://192.0.2.1"), "key", true);
  checkKeyMayGo(parseAddresses("http://localhost:8000,wss://a"), "key", false);
});
