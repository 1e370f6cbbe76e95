/** Sampling parameters as users of vLLM, Hugging Face and OpenAI know them, validated once (`parameters.py`). */

import { InvalidParameter, UnsupportedParameter } from "./errors.js";

const MAX_SEED = 2n ** 64n - 1n;
const MAX_LOGPROBS = 20;
const MAX_STOP_STRINGS = 16;
const MAX_STOP_STRING_CHARS = 256;
const MAX_LOGIT_BIAS = 1024;
const MAX_STOP_TOKEN_IDS = 256;
const MAX_TOKEN_ID = 2 ** 32 - 1;
const MIN_TEMPERATURE = 1e-12;
const MIN_REPETITION_PENALTY = 0.01;
const MAX_INT = 2 ** 31 - 1;

/** How tokens are chosen and when an answer ends; made by `samplingParams`. */
export interface SamplingParams {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly logitBias: readonly (readonly [id: number, bias: number])[];
  readonly seed: bigint;
  readonly maxTokens: number;
  readonly minTokens: number;
  readonly ignoreEos: boolean;
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly logprobs: number | null;
}

/** What a caller may give; what is left out has the usual value. Without a seed a random one is drawn and reported. */
export interface SamplingOptions {
  /** 0: arg-max; else at most 100. Default 1. */
  temperature?: number | undefined;
  /** 0 or -1: off. */
  topK?: number | undefined;
  topP?: number | undefined;
  minP?: number | undefined;
  repetitionPenalty?: number | undefined;
  presencePenalty?: number | undefined;
  frequencyPenalty?: number | undefined;
  logitBias?: Readonly<Record<number, number>> | readonly (readonly [number, number])[] | undefined;
  /** An unsigned integer of 64 bits; text where a number could not hold it. */
  seed?: number | bigint | string | null | undefined;
  maxTokens?: number | undefined;
  minTokens?: number | undefined;
  ignoreEos?: boolean | undefined;
  stop?: string | readonly string[] | undefined;
  stopTokenIds?: readonly number[] | undefined;
  logprobs?: number | null | undefined;
}

const DEFAULTS = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: [] as readonly (readonly [number, number])[],
  seed: null as number | bigint | string | null,
  maxTokens: 256,
  minTokens: 0,
  ignoreEos: false,
  stop: [] as string | readonly string[],
  stopTokenIds: [] as readonly number[],
  logprobs: null as number | null,
};

/** The names of all parameters. */
export const SAMPLING_NAMES: readonly string[] = Object.keys(DEFAULTS);

/** A random seed for a generation that was given none; it is reported so that the text can be had again. */
export function newSeed(): bigint {
  const words = crypto.getRandomValues(new Uint32Array(2));
  return (BigInt(words[1] & 0x7fffffff) << 32n) | BigInt(words[0]);
}

/** Validate. Throws InvalidParameter for any value out of range, UnsupportedParameter for an unknown name. */
export function samplingParams(options: SamplingOptions = {}): SamplingParams {
  const unknown = Object.keys(options).filter((name) => !SAMPLING_NAMES.includes(name));
  if (unknown.length > 0) {
    throw new UnsupportedParameter(
      `unsupported sampling parameter${unknown.length > 1 ? "s" : ""}: ${unknown.sort().join(", ")}; ` +
        `supported are ${[...SAMPLING_NAMES].sort().join(", ")}`,
    );
  }
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value != null)) as SamplingOptions;
  const values = { ...DEFAULTS, ...given } as typeof DEFAULTS;
  if (values.topK === -1) values.topK = 0;
  checkNumber("temperature", values.temperature, MIN_TEMPERATURE, 100, { orZero: true });
  checkInteger("topK", values.topK, 0, MAX_INT);
  checkNumber("topP", values.topP, 0, 1, { openLow: true });
  checkNumber("minP", values.minP, 0, 1);
  checkNumber("repetitionPenalty", values.repetitionPenalty, MIN_REPETITION_PENALTY, 100);
  checkNumber("presencePenalty", values.presencePenalty, -2, 2);
  checkNumber("frequencyPenalty", values.frequencyPenalty, -2, 2);
  checkInteger("maxTokens", values.maxTokens, 1, MAX_INT);
  checkInteger("minTokens", values.minTokens, 0, values.maxTokens);
  if (typeof values.ignoreEos !== "boolean") {
    throw InvalidParameter.of("ignoreEos", values.ignoreEos, "true or false");
  }
  if (values.logprobs !== null) checkInteger("logprobs", values.logprobs, 0, MAX_LOGPROBS);
  return {
    ...values,
    seed: seedOf(values.seed),
    stop: stopStrings(values.stop),
    stopTokenIds: stopTokenIds(values.stopTokenIds),
    logitBias: biasPairs(values.logitBias),
  };
}

/** Whether the token history changes the logits. */
export function hasPenalties(params: SamplingParams): boolean {
  return params.repetitionPenalty !== 1 || params.presencePenalty !== 0 || params.frequencyPenalty !== 0;
}

function checkNumber(
  name: string,
  value: unknown,
  low: number,
  high: number,
  { openLow = false, orZero = false } = {},
): void {
  const inside =
    typeof value === "number" &&
    ((low < value && value <= high) || (value === low && !openLow) || (value === 0 && orZero));
  if (!inside) {
    const expected = `${orZero ? "0 or " : ""}a number in ${openLow ? "(" : "["}${low}, ${high}]`;
    throw InvalidParameter.of(name, value, expected);
  }
}

function checkInteger(name: string, value: unknown, low: number, high: number): void {
  if (typeof value !== "number" || !Number.isInteger(value) || value < low || value > high) {
    throw InvalidParameter.of(name, value, `an integer in [${low}, ${high}]`);
  }
}

function seedOf(value: number | bigint | string | null): bigint {
  if (value === null) return newSeed();
  let seed: bigint | null = null;
  if (typeof value === "bigint") seed = value;
  else if (typeof value === "number" && Number.isSafeInteger(value)) seed = BigInt(value);
  else if (typeof value === "string" && /^[0-9]{1,20}$/.test(value)) seed = BigInt(value);
  if (seed === null || seed < 0n || seed > MAX_SEED) {
    throw InvalidParameter.of("seed", value, `an integer in [0, ${MAX_SEED}]`);
  }
  return seed;
}

function stopStrings(value: unknown): readonly string[] {
  const strings: readonly unknown[] = list("stop", typeof value === "string" ? [value] : value);
  if (strings.length > MAX_STOP_STRINGS) {
    throw InvalidParameter.of("stop", value, `at most ${MAX_STOP_STRINGS} strings`);
  }
  return strings.map((text) => {
    if (typeof text !== "string" || text.length === 0 || [...text].length > MAX_STOP_STRING_CHARS) {
      throw InvalidParameter.of("stop", text, `strings of 1 to ${MAX_STOP_STRING_CHARS} characters`);
    }
    if (hasLoneSurrogate(text)) throw InvalidParameter.of("stop", text, "text that can be encoded as UTF-8");
    return text;
  });
}

/** Whether text is no Unicode text. */
export function hasLoneSurrogate(text: string): boolean {
  return /\p{Surrogate}/u.test(text);
}

function stopTokenIds(value: unknown): readonly number[] {
  const ids = list("stopTokenIds", value);
  if (ids.length > MAX_STOP_TOKEN_IDS) {
    throw InvalidParameter.of("stopTokenIds", `${ids.length} ids`, `at most ${MAX_STOP_TOKEN_IDS}`);
  }
  return ids.map((id) => {
    if (!isTokenId(id)) throw InvalidParameter.of("stopTokenIds", id, `token ids in [0, ${MAX_TOKEN_ID}]`);
    return id;
  });
}

function biasPairs(value: unknown): readonly (readonly [number, number])[] {
  const mapping = typeof value === "object" && value !== null && !Array.isArray(value);
  const pairs: readonly unknown[] = mapping
    ? Object.entries(value).map(([id, bias]) => [Number(id), bias])
    : list("logitBias", value);
  if (pairs.length > MAX_LOGIT_BIAS) {
    throw InvalidParameter.of("logitBias", `${pairs.length} entries`, `at most ${MAX_LOGIT_BIAS}`);
  }
  return pairs.map((pair) => {
    if (!Array.isArray(pair) || pair.length !== 2) {
      throw InvalidParameter.of("logitBias", pair, "a mapping of token id to bias");
    }
    const [id, bias] = pair as [unknown, unknown];
    if (!isTokenId(id)) throw InvalidParameter.of("logitBias", id, `token ids in [0, ${MAX_TOKEN_ID}] as keys`);
    if (typeof bias !== "number" || !(bias >= -100 && bias <= 100)) {
      throw InvalidParameter.of("logitBias", bias, "a bias in [-100, 100]");
    }
    return [id, bias] as const;
  });
}

function list(name: string, value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) throw InvalidParameter.of(name, value, "a list");
  return value as readonly unknown[];
}

function isTokenId(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= MAX_TOKEN_ID;
}
