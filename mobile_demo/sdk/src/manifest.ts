/** What `manifest.json` of an exported draft model says (`drafters/manifest.py`). */

import { ModelLoadError } from "./errors.js";

const FORMAT = "pilotfish-draft";
const VERSION = 1;
const RUNTIME = "onnxruntime-web";

export interface Manifest {
  readonly quant: string;
  readonly tokenizerHash: string;
  /** The tokenizer's; logits from there on are padding. */
  readonly vocabSize: number;
  readonly contextLength: number;
  readonly eosTokenIds: readonly number[];
  readonly kv: { readonly layers: number; readonly heads: number; readonly headSize: number };
}

/** Throws ModelLoadError for one that is damaged, or of another runtime or version. */
export function parseManifest(text: string, source: string): Manifest {
  let value: Record<string, unknown>;
  try {
    value = JSON.parse(text) as Record<string, unknown>;
  } catch (error) {
    throw new ModelLoadError(`the manifest of ${source} is not JSON: ${String(error)}`);
  }
  if (value.format !== FORMAT || value.version !== VERSION) {
    throw new ModelLoadError(`the manifest of ${source} is not of format ${FORMAT} version ${VERSION}`);
  }
  if (value.runtime !== RUNTIME) {
    throw new ModelLoadError(`${source} was exported for ${String(value.runtime)}, not for ${RUNTIME}`);
  }
  const kv = value.kv as Record<string, unknown> | undefined;
  const ends = value.eos_token_ids;
  return {
    quant: String(value.quant),
    tokenizerHash: String(value.tokenizer_hash),
    vocabSize: size("vocab_size", value.vocab_size, source),
    contextLength: size("context_length", value.context_length, source),
    eosTokenIds: Array.isArray(ends) ? ends.map(Number) : [],
    kv: {
      layers: size("kv.layers", kv?.layers, source),
      heads: size("kv.heads", kv?.heads, source),
      headSize: size("kv.head_size", kv?.head_size, source),
    },
  };
}

function size(name: string, value: unknown, source: string): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < 1 || value >= 2 ** 31) {
    throw new ModelLoadError(`the manifest of ${source} is damaged: ${name} is ${String(value)}`);
  }
  return value;
}
