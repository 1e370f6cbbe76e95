/**
 * One answer, held by the device: prompt, parameters, seed and committed tokens; everything a resume needs. Saved in the
 * format of the Python SDK, so that what began on a phone can go on elsewhere (`generation.py`).
 */

import { agreeing, FINISH_REASONS, type Finish } from "./drafts.js";
import { FileFormatError, InvalidParameter, InvalidRequest } from "./errors.js";
import { canonicalJson, isList, type Json, NumberText, parseJson } from "./json_text.js";
import { GENERATION_ID_BYTES, type Ticket } from "./messages.js";
import { type SamplingParams, samplingParams } from "./parameters.js";
import { fromHex, hex, sha256 } from "./sha256.js";

/** What the fingerprint of a draft model's own text begins with. */
export const ALONE = "device-only:";
const FORMAT = "pilotfish-generation";
const FORMAT_VERSION = 1;
const ATTEMPTS_BEGIN_S = 1_735_689_600; // attempts of a resume begin at the quarter seconds since 2025
const ATTEMPTS_PER_S = 4;
const MAX_ATTEMPT = 2 ** 32 - 1;
const MAX_CLOCK_ATTEMPT = 2 ** 32 - 2 ** 16;

export interface GenerationFields {
  readonly prompt: readonly number[];
  readonly params: SamplingParams;
  readonly model?: string;
  readonly tokenizerHash?: string;
}

export class Generation {
  readonly prompt: readonly number[];
  readonly params: SamplingParams;
  readonly tokenizerHash: string;
  id: Uint8Array<ArrayBuffer> = crypto.getRandomValues(new Uint8Array(GENERATION_ID_BYTES));
  model: string;
  attempt = 0;
  /** Committed tokens; only grows. */
  readonly output: number[] = [];
  /** The numerics that decided its first token. */
  fingerprint = "";
  /** Those under which it went on where the device allowed that. */
  readonly otherFingerprints: string[] = [];
  finish: Finish | null = null;
  /** Tokens that the app was shown while the link was away, the first at `position`, undecided when it was noted. */
  shown: { readonly position: number; readonly tokens: readonly number[] } | null = null;
  /** The verifier's last proof of the output. */
  ticket: Ticket | null = null;

  constructor(fields: GenerationFields) {
    this.prompt = fields.prompt;
    this.params = fields.params;
    this.model = fields.model ?? "";
    this.tokenizerHash = fields.tokenizerHash ?? "";
  }

  /** Of what was shown, what is still behind the output; nothing where the output went elsewhere. */
  get unverified(): readonly number[] {
    if (this.shown === null) return [];
    const { position, tokens } = this.shown;
    const decided = this.output.slice(position - this.prompt.length);
    return agreeing(decided, tokens) === decided.length ? tokens.slice(decided.length) : [];
  }

  /** Whether the cloud has ended it (a cancelled one can be resumed). */
  get finished(): boolean {
    return this.finish !== null && this.finish.reason !== "abort";
  }

  /** All that decided tokens of it, the first one first. */
  get fingerprints(): readonly string[] {
    return this.fingerprint === "" ? [] : [this.fingerprint, ...this.otherFingerprints];
  }

  /** Whether a verifier decided all of its tokens. */
  get verified(): boolean {
    return !this.fingerprints.some((name) => name.startsWith(ALONE));
  }

  /** Whether all of its tokens, and there are some, are the device's own. */
  get own(): boolean {
    return this.output.length > 0 && this.fingerprints.every((name) => name.startsWith(ALONE));
  }

  /** Remember the numerics of tokens that are about to be put into the output. */
  decidedUnder(fingerprint: string): void {
    if (this.output.length === 0) this.fingerprint = fingerprint;
    else if (!this.fingerprints.includes(fingerprint)) this.otherFingerprints.push(fingerprint);
  }

  /** Make the next attempt's number higher than any that a run after the last save may have used. */
  countAttemptsFromClock(): void {
    const clock = Math.floor((Date.now() / 1000 - ATTEMPTS_BEGIN_S) * ATTEMPTS_PER_S);
    this.attempt = Math.max(this.attempt, Math.min(clock, MAX_CLOCK_ATTEMPT));
  }

  /** The text of a saved generation. */
  toJson(): string {
    const body: Json = {
      id: hex(this.id),
      attempt: NumberText.integer(this.attempt),
      model: this.model,
      tokenizer_hash: this.tokenizerHash,
      fingerprint: this.fingerprint,
      other_fingerprints: [...this.otherFingerprints],
      prompt: this.prompt.map(NumberText.integer),
      output: this.output.map(NumberText.integer),
      params: paramsToJson(this.params),
      finish: this.finish === null ? null : [this.finish.reason, stopToJson(this.finish.stop)],
      unverified: this.unverified.map(NumberText.integer),
      ticket: this.ticket === null ? null : [hex(this.ticket.value), NumberText.integer(this.ticket.length)],
    };
    return canonicalJson({
      format: FORMAT,
      version: NumberText.integer(FORMAT_VERSION),
      sha256: digest(body),
      generation: body,
    });
  }

  /** Read a saved generation, of this SDK or of Python's. Throws FileFormatError. */
  static fromJson(text: string): Generation {
    let document: Json;
    try {
      document = parseJson(text);
    } catch (error) {
      throw new FileFormatError(`the text is no saved generation: ${String(error)}`);
    }
    const { format, version, generation, sha256: sum } = record("the file", document);
    if (format !== FORMAT) throw new FileFormatError("the text is no saved generation");
    if (!(version instanceof NumberText) || version.text !== String(FORMAT_VERSION)) {
      throw new FileFormatError(`the saved generation has another format version; this SDK reads ${FORMAT_VERSION}`);
    }
    if (generation === undefined || sum !== digest(generation)) {
      throw new FileFormatError("the saved generation is damaged: its contents do not match their checksum");
    }
    try {
      return fromBody(record("generation", generation));
    } catch (error) {
      if (error instanceof FileFormatError || !(error instanceof InvalidRequest)) throw error;
      throw new FileFormatError(`the saved generation is damaged: ${error.message}`);
    }
  }
}

function fromBody(body: Readonly<Record<string, Json>>): Generation {
  const generation = new Generation({
    prompt: tokens("prompt", body.prompt),
    params: paramsFromJson(record("params", body.params)),
    model: string("model", body.model),
    tokenizerHash: string("tokenizer_hash", body.tokenizer_hash),
  });
  const id = string("id", body.id);
  if (!/^([0-9a-f]{2})*$/.test(id)) throw InvalidParameter.of("id", id, "hexadecimal digits");
  generation.id = fromHex(id);
  generation.attempt = integer("attempt", body.attempt);
  if (generation.attempt > MAX_ATTEMPT) throw InvalidParameter.of("attempt", generation.attempt, `<= ${MAX_ATTEMPT}`);
  generation.output.push(...tokens("output", body.output));
  generation.fingerprint = string("fingerprint", body.fingerprint);
  for (const name of list("other_fingerprints", body.other_fingerprints ?? [])) {
    generation.otherFingerprints.push(string("other_fingerprints", name));
  }
  const unverified = tokens("unverified", body.unverified ?? []);
  const position = generation.prompt.length + generation.output.length;
  if (unverified.length > 0) generation.shown = { position, tokens: unverified };
  if ((body.finish ?? null) !== null) {
    const [reason, stop] = list("finish", body.finish);
    const known = FINISH_REASONS.find((name) => name === reason);
    if (known === undefined) throw InvalidParameter.of("finish", reason, FINISH_REASONS.join(" or "));
    generation.finish = { reason: known, stop: stop instanceof NumberText ? Number(stop.text) : stopText(stop) };
  }
  if ((body.ticket ?? null) !== null) {
    const [proof, length] = list("ticket", body.ticket);
    generation.ticket = { value: fromHex(string("ticket", proof)), length: integer("ticket", length) };
  }
  return generation;
}

function digest(body: Json): string {
  return hex(sha256(new TextEncoder().encode(canonicalJson(body))));
}

function stopToJson(stop: number | string | null): Json {
  return typeof stop === "number" ? NumberText.integer(stop) : stop;
}

function stopText(stop: Json | undefined): string | null {
  return typeof stop === "string" ? stop : null;
}

function paramsToJson(params: SamplingParams): Json {
  return {
    temperature: NumberText.float(params.temperature),
    top_k: NumberText.integer(params.topK),
    top_p: NumberText.float(params.topP),
    min_p: NumberText.float(params.minP),
    repetition_penalty: NumberText.float(params.repetitionPenalty),
    presence_penalty: NumberText.float(params.presencePenalty),
    frequency_penalty: NumberText.float(params.frequencyPenalty),
    logit_bias: params.logitBias.map(([id, bias]) => [NumberText.integer(id), NumberText.float(bias)]),
    seed: NumberText.integer(params.seed),
    max_tokens: NumberText.integer(params.maxTokens),
    min_tokens: NumberText.integer(params.minTokens),
    ignore_eos: params.ignoreEos,
    stop: params.stop,
    stop_token_ids: params.stopTokenIds.map(NumberText.integer),
    logprobs: params.logprobs === null ? null : NumberText.integer(params.logprobs),
  };
}

function paramsFromJson(body: Readonly<Record<string, Json>>): SamplingParams {
  const number = (name: string): number => {
    const value = body[name];
    if (!(value instanceof NumberText)) throw InvalidParameter.of(name, value, "a number");
    return Number(value.text);
  };
  const seed = body.seed;
  if (!(seed instanceof NumberText)) throw InvalidParameter.of("seed", seed, "an integer");
  return samplingParams({
    temperature: number("temperature"),
    topK: number("top_k"),
    topP: number("top_p"),
    minP: number("min_p"),
    repetitionPenalty: number("repetition_penalty"),
    presencePenalty: number("presence_penalty"),
    frequencyPenalty: number("frequency_penalty"),
    logitBias: list("logit_bias", body.logit_bias).map((pair) => {
      const [id, bias] = list("logit_bias", pair);
      if (!(bias instanceof NumberText)) throw InvalidParameter.of("logit_bias", bias, "a number");
      return [integer("logit_bias", id), Number(bias.text)] as const;
    }),
    seed: seed.text,
    maxTokens: number("max_tokens"),
    minTokens: number("min_tokens"),
    ignoreEos: body.ignore_eos === true,
    stop: list("stop", body.stop).map((text) => string("stop", text)),
    stopTokenIds: tokens("stop_token_ids", body.stop_token_ids),
    logprobs: body.logprobs instanceof NumberText ? Number(body.logprobs.text) : null,
  });
}

function record(name: string, value: Json | undefined): Readonly<Record<string, Json>> {
  const proper = typeof value === "object" && value !== null && !isList(value) && !(value instanceof NumberText);
  if (!proper) throw new FileFormatError(`the saved generation is damaged: ${name} is no object`);
  return value as Readonly<Record<string, Json>>;
}

function list(name: string, value: Json | undefined): readonly Json[] {
  if (value === undefined || !isList(value)) throw InvalidParameter.of(name, value, "a list");
  return value;
}

function string(name: string, value: Json | undefined): string {
  if (typeof value !== "string") throw InvalidParameter.of(name, value, "a string");
  return value;
}

function integer(name: string, value: Json | undefined): number {
  const number = value instanceof NumberText ? Number(value.text) : -1;
  if (!Number.isSafeInteger(number) || number < 0) throw InvalidParameter.of(name, value, "a non-negative integer");
  return number;
}

function tokens(name: string, value: Json | undefined): number[] {
  return list(name, value).map((token) => integer(name, token));
}
