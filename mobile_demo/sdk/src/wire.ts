/**
 * Messages to frames and frames to messages, as bytes (`wire.py`). A stream is ordered, so a draft run that continues and
 * a commit that follows need not say where they are: the writer leaves it out, the reader puts it back. One of each for
 * every stream.
 */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";

import { type Commit, commitEnd, type DraftRun, type Finish, type FinishReason, type Origin } from "./drafts.js";
import { ProtocolViolation } from "./errors.js";
import type { Open, Opened, Ticket } from "./messages.js";
import type { Advice, Hint, Mode } from "./modes.js";
import { padded } from "./padding.js";
import * as pb from "./proto/verifier_pb.js";
import { adviceFromWire, hintToWire, modeToWire, openedFromWire, openToWire } from "./wire_messages.js";

/** Longer frames are not sent. */
export const MAX_FRAME_BYTES = 1 << 20;

export type CloudMessage =
  | { readonly kind: "opened"; readonly opened: Opened }
  | { readonly kind: "commit"; readonly commit: Commit }
  | { readonly kind: "ticket"; readonly ticket: Ticket }
  | { readonly kind: "pong"; readonly nonce: number }
  | { readonly kind: "advice"; readonly advice: Advice }
  | { readonly kind: "prefix-unknown" };

const ORIGINS: Readonly<Record<number, Origin>> = {
  [pb.Origin.RECOVERED]: "recovered",
  [pb.Origin.BONUS]: "bonus",
  [pb.Origin.CLOUD]: "cloud",
};
const FINISHES: Readonly<Record<number, FinishReason>> = {
  [pb.FinishReason.STOP]: "stop",
  [pb.FinishReason.LENGTH]: "length",
  [pb.FinishReason.ABORT]: "abort",
};

/** Turns the device's messages into frames, for one stream; `pads`: to size classes. */
export class DeviceFrameWriter {
  private branch = -1;
  private end = -1;
  private base = -1; // start of the last branch; at first the length that open said

  constructor(private readonly pads = false) {}

  /** The first frame; once more, with all ids, when the cloud does not know the prompt's prefix. */
  open(message: Open): Uint8Array<ArrayBuffer> {
    this.base = message.prompt.length + (message.prefix?.length ?? 0) + message.output.length;
    return this.frame({ control: { case: "open", value: openToWire(message) } });
  }

  /** A run, with an acknowledgement riding along; that of a new branch's start is left out, the start says it. */
  draft(run: DraftRun, acknowledged: number | null = null): Uint8Array<ArrayBuffer> {
    const frame: FrameFields = run.tokens.length === 1 ? { token: run.tokens[0] } : { tokens: [...run.tokens] };
    const opens = run.branch > this.branch;
    if (run.branch === this.branch + 1 && this.base >= 0 && this.base <= run.start) {
      frame.advance = run.start - this.base;
    } else if (run.branch !== this.branch || run.start !== this.end) {
      frame.branch = run.branch;
      frame.start = run.start;
    }
    if (opens) this.base = run.start;
    this.branch = run.branch;
    this.end = run.start + run.tokens.length;
    if (acknowledged !== null && !(opens && acknowledged === run.start)) frame.acknowledged = acknowledged;
    return this.frame(frame);
  }

  acknowledge(length: number): Uint8Array<ArrayBuffer> {
    return this.frame({ acknowledged: length });
  }

  ping(nonce: number): Uint8Array<ArrayBuffer> {
    return this.frame({ control: { case: "ping", value: create(pb.PingSchema, { nonce }) } });
  }

  mode(mode: Mode): Uint8Array<ArrayBuffer> {
    return this.frame({ control: { case: "mode", value: modeToWire(mode) } });
  }

  hint(hint: Hint): Uint8Array<ArrayBuffer> {
    return this.frame({ control: { case: "hint", value: hintToWire(hint) } });
  }

  private frame(fields: FrameFields): Uint8Array<ArrayBuffer> {
    const bytes = toBinary(pb.DeviceFrameSchema, create(pb.DeviceFrameSchema, fields));
    return this.pads ? padded(bytes) : bytes;
  }
}

interface FrameFields {
  token?: number;
  tokens?: number[];
  branch?: number;
  start?: number;
  advance?: number;
  acknowledged?: number;
  control?: pb.DeviceFrame["control"];
}

/** Reads the cloud's frames, for one stream. */
export class CloudFrameReader {
  private opened = false;
  private end = -1;

  /** The messages in one frame. Throws ProtocolViolation for what does not parse or does not follow. */
  read(bytes: Uint8Array): CloudMessage[] {
    let frame: pb.CloudFrame;
    try {
      frame = fromBinary(pb.CloudFrameSchema, bytes, { readUnknownFields: false });
    } catch {
      throw new ProtocolViolation("the verifier sent a message that is no frame");
    }
    const messages: CloudMessage[] = [];
    const { control } = frame;
    if (control.case === "opened") {
      if (this.opened) throw new ProtocolViolation("the verifier opened the stream twice");
      this.opened = true;
      messages.push({ kind: "opened", opened: openedFromWire(control.value) });
    } else if (control.case === "pong") {
      messages.push({ kind: "pong", nonce: control.value.nonce });
    } else if (control.case === "advice") {
      messages.push({ kind: "advice", advice: adviceFromWire(control.value) });
    } else if (control.case === "prefixUnknown") {
      messages.push({ kind: "prefix-unknown" });
    }
    const tokens = tokensOf(frame);
    if (tokens.length > 0 || frame.finish !== undefined) {
      if (!this.opened) throw new ProtocolViolation("the verifier committed before it opened the stream");
      messages.push({ kind: "commit", commit: this.commit(frame, tokens) });
    }
    if (frame.ticket.length > 0) {
      if (this.end < 0) throw new ProtocolViolation("the verifier gave a ticket for nothing");
      messages.push({ kind: "ticket", ticket: { value: frame.ticket, length: this.end } });
    }
    return messages;
  }

  private commit(frame: pb.CloudFrame, tokens: readonly number[]): Commit {
    if (frame.position !== undefined) this.end = frame.position;
    else if (this.end < 0) throw new ProtocolViolation("the first commit must name its position");
    const accepted = frame.accepted ?? Math.max(tokens.length - 1, 0);
    if (accepted > tokens.length) throw new ProtocolViolation(`${accepted} of ${tokens.length} tokens accepted`);
    const { logprobs } = frame;
    if (logprobs.length > 0 && logprobs.length !== tokens.length) {
      throw new ProtocolViolation(`${logprobs.length} logprobs for ${tokens.length} tokens`);
    }
    const commit: Commit = {
      position: this.end,
      tokens,
      accepted,
      origin: ORIGINS[frame.origin] ?? "cloud",
      finish: frame.finish === undefined ? null : finishFromWire(frame.finish),
      logprobs:
        logprobs.length === 0
          ? null
          : logprobs.map(({ chosen, topTokens, topLogprobs }) => ({
              chosen,
              top: topTokens.slice(0, topLogprobs.length).map((id, index) => [id, topLogprobs[index]] as const),
            })),
    };
    this.end = commitEnd(commit);
    return commit;
  }
}

function tokensOf(frame: pb.CloudFrame): readonly number[] {
  if (frame.token === undefined) return frame.tokens;
  if (frame.tokens.length > 0) throw new ProtocolViolation("a frame carries token or tokens, not both");
  return [frame.token];
}

function finishFromWire(message: pb.Finish): Finish {
  const stop = message.stop.case === undefined ? null : message.stop.value;
  return { reason: FINISHES[message.reason] ?? "stop", stop };
}
