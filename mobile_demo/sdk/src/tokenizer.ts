/**
 * Tokenizers: text to ids by `@huggingface/tokenizers`; ids to text, and the canonical hash, by our own rules, which are
 * the same in every language and stream (`tokenizer.py`).
 */

import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";

import { InvalidRequest, ModelLoadError } from "./errors.js";
import { hasLoneSurrogate } from "./parameters.js";
import { hex, Sha256 } from "./sha256.js";

const HASH_HEADER = "pilotfish-tokenizer-v1\n";
const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;
const UTF8 = new TextEncoder();

interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special?: boolean;
}

interface DecoderStep {
  readonly type: string;
  readonly decoders?: readonly DecoderStep[];
  readonly pattern?: { readonly String?: string };
  readonly content?: string;
  readonly replacement?: string;
  readonly prepend_scheme?: string;
  readonly start?: number;
  readonly stop?: number;
}

interface PreTokenizer {
  readonly type: string;
  readonly use_regex?: boolean;
  readonly add_prefix_space?: boolean;
  readonly pattern?: { readonly Regex?: string };
  readonly pretokenizers?: readonly PreTokenizer[];
}

interface TokenizerFile {
  readonly pre_tokenizer?: PreTokenizer | null;
  readonly added_tokens?: readonly AddedToken[];
  readonly decoder?: DecoderStep | null;
  readonly model?: { readonly vocab?: Readonly<Record<string, number>> | readonly (readonly [string, number])[] };
}

export class Tokenizer {
  /** The highest id + 1, added tokens included. */
  readonly vocabSize: number;
  readonly eosTokenIds: readonly number[];
  private readonly bytes = new Map<number, Uint8Array>();
  private readonly special = new Set<number>();
  private readonly rule: DecodingRule;
  private readonly inner: HuggingFaceTokenizer;
  private known: string | null = null;

  /** From the text of a tokenizer.json. Throws ModelLoadError. */
  constructor(
    readonly json: string,
    eosTokenIds: readonly number[] = [],
    source = "tokenizer",
  ) {
    let file: TokenizerFile;
    try {
      file = JSON.parse(json) as TokenizerFile;
      this.inner = new HuggingFaceTokenizer({ ...file, pre_tokenizer: withUnicodeSpaces(file.pre_tokenizer ?? null) }, {});
    } catch (error) {
      throw new ModelLoadError(`${source} is not a usable tokenizer.json: ${String(error)}`);
    }
    this.rule = decodingRule(file.decoder ?? null, source);
    const vocab = file.model?.vocab ?? {};
    const entries = Array.isArray(vocab)
      ? (vocab as readonly (readonly [string, number])[]).map(([name], id) => [name, id] as const)
      : Object.entries(vocab as Readonly<Record<string, number>>);
    let highest = -1;
    const inModel = new Set<number>();
    for (const [name, id] of entries) {
      inModel.add(id);
      this.bytes.set(id, tokenBytes(this.rule, name, true));
      highest = Math.max(highest, id);
    }
    for (const { id, content, special } of file.added_tokens ?? []) {
      if (special) this.special.add(id);
      this.bytes.set(id, special ? UTF8.encode(content) : tokenBytes(this.rule, content, inModel.has(id)));
      highest = Math.max(highest, id);
    }
    if (highest < 0) throw new ModelLoadError(`${source} has an empty vocabulary`);
    this.vocabSize = highest + 1;
    this.eosTokenIds = [...eosTokenIds];
  }

  /** Ids of `text`; the tokenizer may put its own first. Throws InvalidRequest for text that is not Unicode. */
  encode(text: string, { addSpecialTokens = true } = {}): number[] {
    if (hasLoneSurrogate(text)) throw new InvalidRequest("the text is not valid Unicode");
    return [...this.inner.encode(text, { add_special_tokens: addSpecialTokens }).ids];
  }

  /** Text of `ids`. `continues`: they follow others, so the space before the first word is kept. */
  decode(ids: readonly number[], options: DecoderOptions = {}): string {
    const decoder = this.decoder(options);
    return ids.map((id) => decoder.push(id)).join("") + decoder.flush();
  }

  decoder(options: DecoderOptions = {}): IncrementalDecoder {
    return new IncrementalDecoder(this.bytes, this.special, this.rule, options);
  }

  /** SHA-256, lower-case hex, of what the ids mean. Equal hashes: ids can be exchanged. */
  get hash(): string {
    if (this.known === null) {
      const hash = new Sha256().update(UTF8.encode(HASH_HEADER));
      const header = new Uint8Array(9);
      const view = new DataView(header.buffer);
      for (const id of [...this.bytes.keys()].sort((one, other) => one - other)) {
        const data = this.bytes.get(id) ?? new Uint8Array();
        view.setUint32(0, id, true);
        view.setUint8(4, this.special.has(id) ? 1 : 0);
        view.setUint32(5, data.length, true);
        hash.update(header).update(data);
      }
      this.known = hex(hash.digest());
    }
    return this.known;
  }
}

export interface DecoderOptions {
  readonly skipSpecial?: boolean;
  readonly continues?: boolean;
}

/** Turns ids into text as they come. Text leaves only in whole characters. */
export class IncrementalDecoder {
  private readonly utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  private readonly skipped: ReadonlySet<number>;
  private stripToken: boolean;
  private stripSpaces: number;

  constructor(
    private readonly bytes: ReadonlyMap<number, Uint8Array>,
    special: ReadonlySet<number>,
    rule: DecodingRule,
    { skipSpecial = true, continues = false }: DecoderOptions,
  ) {
    this.skipped = skipSpecial ? special : new Set();
    this.stripToken = rule.stripsFirstToken && !continues;
    this.stripSpaces = continues ? 0 : rule.leadingSpaces;
  }

  /** The text that `token` completes; empty inside a character, for skipped and for unknown ids. */
  push(token: number): string {
    let data = this.bytes.get(token);
    if (data === undefined || this.skipped.has(token)) return "";
    if (this.stripToken) {
      this.stripToken = false;
      data = data.filter((byte) => byte !== 0x20);
    }
    return this.stripped(this.utf8.decode(data, { stream: true }));
  }

  /** No more ids: what is left of an unfinished character, as U+FFFD. */
  flush(): string {
    return this.stripped(this.utf8.decode());
  }

  private stripped(text: string): string {
    let start = 0;
    while (this.stripSpaces > 0 && start < text.length) {
      if (text[start] !== " ") {
        this.stripSpaces = 0;
      } else {
        start += 1;
        this.stripSpaces -= 1;
      }
    }
    return text.slice(start);
  }
}

// GPT-2's, which the ByteLevel pre-tokenizer has built in.
const GPT2_SPLIT = String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;

/**
 * The same pre-tokenizer with what `\s` means where vocabularies are made: Unicode's White_Space. JavaScript's `\s` has a
 * byte order mark more and a next-line character less, and prompts must become the same ids on every device.
 */
function withUnicodeSpaces(part: PreTokenizer | null): object | null {
  if (part === null) return null;
  if (part.pretokenizers !== undefined) return { ...part, pretokenizers: part.pretokenizers.map(withUnicodeSpaces) };
  if (part.type === "Split" && part.pattern?.Regex !== undefined) {
    return { ...part, pattern: { Regex: unicodeSpaces(part.pattern.Regex) } };
  }
  if (part.type === "ByteLevel" && part.use_regex !== false && part.add_prefix_space === false) {
    const split = { type: "Split", pattern: { Regex: unicodeSpaces(GPT2_SPLIT) }, behavior: "Isolated", invert: false };
    return { type: "Sequence", pretokenizers: [split, { ...part, use_regex: false }] };
  }
  return part;
}

function unicodeSpaces(pattern: string): string {
  return pattern.replace(/\\([\s\S])/g, (escape: string, letter: string) => {
    if (letter === "s") return "\\p{White_Space}";
    return letter === "S" ? "\\P{White_Space}" : escape;
  });
}

/** How a token's name becomes bytes, read from the `decoder` of tokenizer.json. */
interface DecodingRule {
  byteLevel: boolean;
  byteFallback: boolean;
  space: string | null; // the character that stands for a space
  leadingSpaces: number; // how many are dropped at the start of a text
  stripsFirstToken: boolean; // Metaspace: the first token loses its spaces
}

function decodingRule(decoder: DecoderStep | null, source: string): DecodingRule {
  if (decoder === null) {
    throw new ModelLoadError(`${source} has no decoder; a byte-level or SentencePiece-like one is needed`);
  }
  const rule: DecodingRule = {
    byteLevel: false,
    byteFallback: false,
    space: null,
    leadingSpaces: 0,
    stripsFirstToken: false,
  };
  for (const step of decoder.type === "Sequence" ? (decoder.decoders ?? []) : [decoder]) takeStep(rule, step, source);
  if (!rule.byteLevel && rule.space === null && !rule.byteFallback) {
    throw new ModelLoadError(`${source} has a decoder that is neither byte-level nor SentencePiece-like`);
  }
  return rule;
}

function takeStep(rule: DecodingRule, step: DecoderStep, source: string): void {
  const space = step.pattern?.String;
  if (step.type === "ByteLevel") rule.byteLevel = true;
  else if (step.type === "ByteFallback") rule.byteFallback = true;
  else if (step.type === "Replace" && space !== undefined && [...space].length === 1 && step.content === " ") {
    rule.space = space;
  } else if (step.type === "Metaspace" && step.replacement !== undefined) {
    rule.space = step.replacement;
    rule.stripsFirstToken = (step.prepend_scheme ?? "always") !== "never";
  } else if (step.type === "Strip" && step.content === " " && step.start !== undefined && step.stop === 0) {
    rule.leadingSpaces = step.start;
  } else if (step.type !== "Fuse") {
    throw new ModelLoadError(`${source} has a decoder step that is not supported: ${JSON.stringify(step)}`);
  }
}

/** Bytes of an ordinary token; `inModel`: in the model's vocabulary, not only added. */
function tokenBytes(rule: DecodingRule, name: string, inModel: boolean): Uint8Array {
  if (rule.byteLevel) {
    const bytes = inModel ? Array.from(name, (character) => BYTES.get(character)) : [undefined];
    return bytes.includes(undefined) ? UTF8.encode(name) : Uint8Array.from(bytes as number[]);
  }
  const byte = rule.byteFallback ? BYTE_TOKEN.exec(name) : null;
  if (byte !== null) return Uint8Array.of(parseInt(byte[1], 16));
  return UTF8.encode(rule.space === null ? name : name.replaceAll(rule.space, " "));
}

/** GPT-2's map from printable characters back to bytes. */
const BYTES: ReadonlyMap<string, number> = (() => {
  const table = new Map<string, number>();
  let moved = 0;
  for (let byte = 0; byte < 256; byte += 1) {
    const kept = (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae;
    table.set(String.fromCharCode(kept ? byte : 256 + moved), byte);
    if (!kept) moved += 1;
  }
  return table;
})();
