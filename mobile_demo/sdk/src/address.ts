/** Where a verifier listens: its HTTP port, which has the WebSocket door, too. */

import { InvalidParameter, Unauthenticated } from "./errors.js";

/** `http` without a slash at its end; `ws` likewise. */
export interface Address {
  readonly http: string;
  readonly ws: string;
  readonly secure: boolean;
  readonly local: boolean;
}

/**
 * One address, a comma-separated list or a list: `https://host[:port]`, `http://`, `wss://`, `ws://`, or "" for where the
 * page came from. Throws InvalidParameter.
 */
export function parseAddresses(server: string | readonly string[]): readonly Address[] {
  const parts = typeof server === "string" ? server.split(",") : server;
  const addresses = parts.map((part) => parseAddress(part.trim()));
  if (addresses.length === 0) throw InvalidParameter.of("server", server, "at least one address");
  return addresses;
}

function parseAddress(text: string): Address {
  const here = (globalThis as { location?: { origin: string } }).location?.origin;
  const expected = "https://host[:port], http://, wss:// or ws://";
  const whole = text === "" ? (here ?? "") : text;
  const match = /^(https?|wss?):\/\/[^/\s]+/.exec(whole);
  if (match === null || !URL.canParse(whole)) throw InvalidParameter.of("server", text, expected);
  const url = new URL(whole);
  const secure = url.protocol === "https:" || url.protocol === "wss:";
  const path = url.pathname.replace(/\/+$/, "");
  return {
    http: `${secure ? "https" : "http"}://${url.host}${path}`,
    ws: `${secure ? "wss" : "ws"}://${url.host}${path}`,
    secure,
    local: ["localhost", "127.0.0.1", "[::1]"].includes(url.hostname),
  };
}

/** Throws Unauthenticated where a key would cross a network unencrypted. */
export function checkKeyMayGo(addresses: readonly Address[], apiKey: string, insecure: boolean): void {
  const open = addresses.find((address) => !address.secure && !address.local);
  if (apiKey !== "" && !insecure && open !== undefined) {
    throw new Unauthenticated(`an API key is not sent to ${open.http} unencrypted; use https, or insecure: true`);
  }
}
