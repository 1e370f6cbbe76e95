/** What the verifier says over HTTP: which models it serves, their tokenizers, and the draft models on offer. */

import { type DescMessage, fromJson, type JsonValue, type MessageShape } from "@bufbuild/protobuf";

import type { Address } from "./address.js";
import {
  errorOfKind,
  type PilotfishError,
  ProtocolViolation,
  TokenizerMismatch,
  Unavailable,
  UnknownModel,
} from "./errors.js";
import type { FileCache } from "./file_cache.js";
import { PROTOCOL_VERSION } from "./messages.js";
import { type DescribeResponse, DescribeResponseSchema, type DraftOffer as WireOffer } from "./proto/verifier_pb.js";
import { hex, sha256 } from "./sha256.js";
import { Tokenizer } from "./tokenizer.js";
import { errorOfJson, oneLine, type Transport } from "./transport.js";

const TIMEOUT_MS = 10_000;
const FETCH_TIMEOUT_MS = 120_000;
const MAX_TOKENIZER_BYTES = 64 * 1024 * 1024;
const NAME = /^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$/;
const MAX_FILES = 200;
const RUNTIME = "onnxruntime-web";

/** A target. `maxModelLen`: prompt and output, in tokens; `tokenizerHash` in hexadecimal. */
export interface ServedModel {
  readonly name: string;
  readonly tokenizerHash: string;
  readonly vocabularySize: number;
  readonly maxModelLen: number;
  readonly fingerprint: string;
  readonly deterministic: boolean;
  readonly dtype: string;
  /** Of this runtime, the best first as the operator sees it. */
  readonly drafts: readonly DraftOffer[];
}

export interface OfferedFile {
  readonly name: string;
  readonly size: number;
  readonly sha256: string;
}

/** A draft model on offer. `url` is the folder of its files; `match` are figures that its exporter measured. */
export interface DraftOffer {
  readonly name: string;
  readonly quant: string;
  readonly contextLength: number;
  readonly match: Readonly<Record<string, number>>;
  readonly files: readonly OfferedFile[];
  readonly size: number;
  readonly url: string;
}

/**
 * The model of that name, or the first one for an empty name. What was said the last time is remembered, for when the
 * verifier cannot be reached. Throws UnknownModel, and what the verifier says.
 */
export async function servedModel(transport: Transport, model: string, cache: FileCache): Promise<ServedModel> {
  const key = `describe/${encodeURIComponent(transport.addresses.map(({ http }) => http).join())}`;
  let described: { address: Address; value: JsonValue };
  try {
    described = await askedOf(transport, async (address) => ({
      address,
      value: (await (await request(transport, address, "/pilotfish/v1/describe", TIMEOUT_MS)).json()) as JsonValue,
    }));
    await cache.put(key, new TextEncoder().encode(JSON.stringify(described.value)));
  } catch (error) {
    const last = error instanceof Unavailable ? await cache.get(key) : null;
    if (last === null) throw error;
    described = { address: transport.addresses[0], value: JSON.parse(new TextDecoder().decode(last)) as JsonValue };
  }
  const response: DescribeResponse = parsed(DescribeResponseSchema, described.value);
  checkVersion(response.protocolVersion);
  const entry = response.models.find(({ name }) => model === "" || model === name);
  if (entry === undefined) {
    const served = oneLine(response.models.map(({ name }) => JSON.stringify(name)).join(", "));
    throw new UnknownModel(`the verifier does not serve model ${JSON.stringify(model)}; it serves ${served}`);
  }
  const base = response.httpUrl === "" ? described.address.http : response.httpUrl.replace(/\/+$/, "");
  return {
    name: entry.name,
    tokenizerHash: hex(entry.tokenizerHash),
    vocabularySize: entry.vocabularySize,
    maxModelLen: entry.maxModelLen,
    fingerprint: entry.fingerprint,
    deterministic: entry.deterministic,
    dtype: entry.dtype,
    drafts: entry.draftOffers.filter(({ runtime }) => runtime === RUNTIME).map((offer) => offerOf(offer, base)),
  };
}

/** The tokenizer of a served model, from the cache where it is there. */
export async function servedTokenizer(transport: Transport, served: ServedModel, cache: FileCache): Promise<Tokenizer> {
  const key = `tokenizer/${served.tokenizerHash}`;
  const kept = await cache.get(key);
  if (kept !== null) {
    const tokenizer = tokenizerOf(new TextDecoder().decode(kept));
    if (tokenizer.hash === served.tokenizerHash) return tokenizer;
  }
  const path = `/pilotfish/v1/tokenizer?model=${encodeURIComponent(served.name)}`;
  const text = await askedOf(transport, async (address) =>
    (await request(transport, address, path, FETCH_TIMEOUT_MS)).text(),
  );
  if (text.length > MAX_TOKENIZER_BYTES) {
    throw new ProtocolViolation(`the verifier's tokenizer is over ${MAX_TOKENIZER_BYTES} bytes`);
  }
  const tokenizer = tokenizerOf(text);
  if (tokenizer.hash !== served.tokenizerHash) {
    throw new TokenizerMismatch("the tokenizer that the verifier sent is not the one that it announced");
  }
  await cache.put(key, new TextEncoder().encode(text));
  return tokenizer;
}

function tokenizerOf(text: string): Tokenizer {
  const { tokenizer, endTokenIds } = JSON.parse(text) as { tokenizer: unknown; endTokenIds?: unknown };
  const json = typeof tokenizer === "string" ? tokenizer : JSON.stringify(tokenizer);
  const ends = Array.isArray(endTokenIds) ? endTokenIds.filter((id): id is number => Number.isInteger(id)) : [];
  return new Tokenizer(json, ends, "the verifier's tokenizer");
}

/** A name for a draft model by everything it consists of. */
export function offerDigest(offer: DraftOffer): string {
  const listed = offer.files.map(({ name, size, sha256: sum }) => `${name} ${size} ${sum}`).sort();
  return hex(sha256(new TextEncoder().encode(listed.join("\n"))));
}

/** Throws ProtocolViolation for a verifier of another protocol version. */
export function checkVersion(version: number): void {
  if (version !== PROTOCOL_VERSION) {
    throw new ProtocolViolation(`the verifier speaks protocol version ${version}, this device ${PROTOCOL_VERSION}`);
  }
}

function offerOf(offer: WireOffer, base: string): DraftOffer {
  if (!NAME.test(offer.name) || offer.files.length === 0 || offer.files.length > MAX_FILES) {
    throw new ProtocolViolation("the verifier offers a draft model without a proper name or with no proper files");
  }
  const files = offer.files.map((file) => {
    const plain = file.name.split("/").every((part) => NAME.test(part));
    if (!plain || file.sha256.length !== 32) {
      throw new ProtocolViolation(`the verifier's draft model ${offer.name} has a file without a plain name and SHA-256`);
    }
    return { name: file.name, size: Number(file.size), sha256: hex(file.sha256) };
  });
  if (!files.some(({ name }) => name === "manifest.json")) {
    throw new ProtocolViolation(`the verifier's draft model ${offer.name} has no manifest.json`);
  }
  return {
    name: offer.name,
    quant: offer.quant,
    contextLength: offer.contextLength,
    match: offer.match,
    files,
    size: files.reduce((sum, { size }) => sum + size, 0),
    url: `${base}/v1/drafts/${offer.name}`,
  };
}

function parsed<Description extends DescMessage>(schema: Description, value: JsonValue): MessageShape<Description> {
  try {
    return fromJson(schema, value, { ignoreUnknownFields: true });
  } catch {
    throw new ProtocolViolation("what listens there is not a Pilotfish verifier");
  }
}

/** From the first address that answers. */
async function askedOf<T>(transport: Transport, ask: (address: Address) => Promise<T>): Promise<T> {
  let failure: unknown = new Unavailable("no address given");
  for (const address of transport.addresses) {
    try {
      return await ask(address);
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}

async function request(transport: Transport, address: Address, path: string, timeoutMs: number): Promise<Response> {
  const response = await fetched(`${address.http}${path}`, transport.headers, timeoutMs);
  if (!response.ok) throw await errorOfResponse(response);
  return response;
}

/** `fetch` whose failures are typed. */
export async function fetched(
  url: string,
  headers: Readonly<Record<string, string>>,
  timeoutMs: number,
): Promise<Response> {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), timeoutMs);
  try {
    return await fetch(url, { headers: { ...headers }, signal: stop.signal });
  } catch (error) {
    throw new Unavailable(`${new URL(url).origin} cannot be reached: ${String(error)}`);
  } finally {
    clearTimeout(timer);
  }
}

const KIND_OF_STATUS: Readonly<Record<number, string>> = {
  400: "invalid_request",
  401: "unauthenticated",
  403: "permission_denied",
  404: "unknown_model",
  429: "overloaded",
};

/** The typed error behind an HTTP answer. */
export async function errorOfResponse(response: Response): Promise<PilotfishError> {
  try {
    const told = errorOfJson(((await response.json()) as { error?: unknown }).error);
    if (told !== null) return told;
  } catch {
    // no JSON: the status has to do
  }
  const kind = KIND_OF_STATUS[response.status] ?? (response.status >= 500 ? "unavailable" : "invalid_request");
  return errorOfKind(kind, `the verifier answered ${response.status} to ${new URL(response.url).pathname}`);
}
