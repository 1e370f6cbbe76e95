/** WebSockets to the verifier: one for each attempt at a generation, closings turned back into typed errors. */

import type { Address } from "./address.js";
import {
  DeadlineExceeded,
  EngineFailure,
  errorOfKind,
  InvalidRequest,
  isKnownKind,
  Overloaded,
  PermissionDenied,
  PilotfishError,
  ProtocolViolation,
  ResumeRefused,
  Unauthenticated,
  Unavailable,
  UnknownModel,
} from "./errors.js";
import { ROUTE_KEY } from "./messages.js";

const PATH = "/pilotfish/v1/generate";
const SUBPROTOCOL = "pilotfish.v1";
const FIRST_STATUS = 4000; // close codes from there on are gRPC's statuses
const MAX_HINT_S = 1e6;

/** What is used of a WebSocket. React Native's is one; others can be given. */
export interface WebSocketLike {
  binaryType: string;
  send(data: Uint8Array<ArrayBuffer>): void;
  close(code?: number): void;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onerror: ((event: never) => void) | null;
}

export type OpenWebSocket = (url: string, protocols: string[]) => WebSocketLike;

/** What a stream reports. `lost` comes last, once, unless the stream was left. */
export interface StreamEvents {
  frame(bytes: Uint8Array): void;
  lost(error: PilotfishError): void;
}

/** Delays what passes by half of a round trip that is only simulated; in order. */
export class Delay {
  /** Seconds of the whole round trip. */
  roundTripS = 0;

  /** A lane in one direction. */
  lane(): (call: () => void) => void {
    const waiting: (() => void)[] = [];
    let last = 0;
    return (call) => {
      const now = performance.now();
      const at = Math.max(now + (this.roundTripS * 1000) / 2, last);
      if (at <= now && waiting.length === 0) {
        call();
        return;
      }
      last = at;
      waiting.push(call);
      setTimeout(() => waiting.shift()?.(), Math.ceil(at - now)); // timers may come in another order
    };
  }
}

/** One open stream. `send` never waits. */
export class DeviceStream {
  bytesUp = 0;
  bytesDown = 0;
  private readonly up: (call: () => void) => void;
  private readonly down: (call: () => void) => void;
  private socket: WebSocketLike | null;
  private early: Uint8Array<ArrayBuffer>[] | null = [];
  private told: PilotfishError | null = null; // by a text message before the close

  constructor(socket: WebSocketLike, delay: Delay, events: StreamEvents) {
    this.up = delay.lane();
    this.down = delay.lane();
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      for (const frame of this.early ?? []) this.pass(frame);
      this.early = null;
    };
    socket.onmessage = ({ data }) =>
      this.down(() => {
        if (this.socket === null) return;
        if (data instanceof ArrayBuffer) {
          this.bytesDown += data.byteLength;
          events.frame(new Uint8Array(data));
        } else {
          this.told = errorOfText(String(data));
        }
      });
    socket.onclose = ({ code, reason }) =>
      this.down(() => {
        if (this.socket === null) return;
        this.socket = null;
        events.lost(this.told ?? errorOfClose(code, reason));
      });
    socket.onerror = () => undefined; // a close follows
  }

  send(frame: Uint8Array<ArrayBuffer>): void {
    this.bytesUp += frame.length;
    if (this.early !== null) this.early.push(frame);
    else this.pass(frame);
  }

  /** End it now; nothing more is reported. */
  leave(): void {
    const socket = this.socket;
    this.socket = null;
    socket?.close(1000);
  }

  private pass(frame: Uint8Array<ArrayBuffer>): void {
    this.up(() => this.socket?.send(frame));
  }
}

/** Opens streams; successive numbers go round the addresses. */
export class Transport {
  readonly delay = new Delay();

  constructor(
    readonly addresses: readonly Address[],
    private readonly apiKey = "",
    private readonly openWebSocket: OpenWebSocket = browserWebSocket,
  ) {}

  open(number: number, timeoutS: number | null, route: string, events: StreamEvents): DeviceStream {
    const address = this.addresses[number % this.addresses.length];
    const protocols = [SUBPROTOCOL];
    if (this.apiKey !== "") protocols.push(`pilotfish.key.${base64Url(this.apiKey)}`);
    if (timeoutS !== null) protocols.push(`pilotfish.deadline.${Math.max(1, Math.ceil(timeoutS * 1000))}`);
    const query = route === "" ? "" : `?route=${encodeURIComponent(route)}`;
    return new DeviceStream(this.openWebSocket(`${address.ws}${PATH}${query}`, protocols), this.delay, events);
  }

  /** For HTTP requests. */
  get headers(): Record<string, string> {
    return this.apiKey === "" ? {} : { authorization: `Bearer ${this.apiKey}` };
  }
}

function base64Url(text: string): string {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

interface WireError {
  readonly code?: unknown;
  readonly type?: unknown;
  readonly message?: unknown;
  readonly retry_after_s?: unknown;
  readonly route?: unknown;
  readonly routes?: unknown;
}

/** The typed error behind what the door said: `{"code", "message", "retry_after_s"}`; null for what it cannot have said. */
export function errorOfJson(value: unknown): PilotfishError | null {
  if (typeof value !== "object" || value === null) return null;
  const { code, type, message, retry_after_s: after, route, routes } = value as WireError;
  const kind = [code, type].find((name) => typeof name === "string" && isKnownKind(name));
  if (typeof kind !== "string") return null;
  const proper = typeof after === "number" && after >= 0 && after <= MAX_HINT_S;
  const error = errorOfKind(kind, typeof message === "string" ? oneLine(message) : kind, proper ? after : null);
  const key = Array.isArray(routes) ? (routes[0] as unknown) : route;
  if (typeof key === "string" && ROUTE_KEY.test(key)) error.route = key;
  return error;
}

function errorOfText(text: string): PilotfishError {
  try {
    const told = errorOfJson((JSON.parse(text) as { error?: unknown }).error);
    if (told !== null) return told;
  } catch {
    // no JSON: said below
  }
  return new ProtocolViolation("the verifier sent a text message that is no error");
}

/** The error that a close stands for. */
export function errorOfClose(code: number, reason: string): PilotfishError {
  if (code >= FIRST_STATUS && code < FIRST_STATUS + 17) {
    try {
      const told = errorOfJson(JSON.parse(reason));
      if (told !== null) return told;
    } catch {
      // cut off on the way: the status says enough
    }
    return errorOfStatus(code - FIRST_STATUS, oneLine(reason) || `status ${code - FIRST_STATUS}`);
  }
  if (code === 1000) return new Unavailable("the verifier ended the stream without a finish");
  if (code === 1002 || code === 1007 || code === 1009) {
    return new ProtocolViolation(`the verifier closed the stream with code ${code}: ${oneLine(reason)}`);
  }
  return new Unavailable(`the connection to the verifier failed (${code})${reason === "" ? "" : `: ${oneLine(reason)}`}`);
}

/** By gRPC's numbers. */
function errorOfStatus(status: number, message: string): PilotfishError {
  switch (status) {
    case 3:
      return new InvalidRequest(message);
    case 4:
      return new DeadlineExceeded(message);
    case 5:
      return new UnknownModel(message);
    case 7:
      return new PermissionDenied(message);
    case 8:
      return new Overloaded(message);
    case 9:
      return new ResumeRefused(message);
    case 12:
      return new ProtocolViolation(message);
    case 13:
      return new EngineFailure(message);
    case 16:
      return new Unauthenticated(message);
    case 1:
    case 2:
    case 14:
      return new Unavailable(message);
    default:
      return new PilotfishError(message);
  }
}

/** Text of others, fit to be shown. */
export function oneLine(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\s]+/gu, " ").trim().slice(0, 300);
}

function browserWebSocket(url: string, protocols: string[]): WebSocketLike {
  return new WebSocket(url, protocols) as unknown as WebSocketLike; // whose events have far more than is used
}
