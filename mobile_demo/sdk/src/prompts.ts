/** Prompts by hash: a prefix that the cloud has seen before need not be sent again (`prompts.py`). */

import { Sha256, hex, sha256 } from "./sha256.js";

const PROMPT_BLOCK = 16; // ids
const MIN_PREFIX_BLOCKS = 2; // below that the hash takes as many bytes as the ids
const ROOT = sha256(new TextEncoder().encode("pilotfish prompt prefix 1"));

/** The first `length` ids of a prompt by their digest. */
export interface PromptPrefix {
  readonly digest: Uint8Array<ArrayBuffer>;
  readonly length: number;
}

/** All prefixes of `tokens` that have a name, the shortest first. */
export function prefixes(tokens: readonly number[]): PromptPrefix[] {
  const named: PromptPrefix[] = [];
  const block = new DataView(new ArrayBuffer(4 * PROMPT_BLOCK));
  let parent = ROOT;
  for (let end = PROMPT_BLOCK; end <= tokens.length; end += PROMPT_BLOCK) {
    for (let index = 0; index < PROMPT_BLOCK; index += 1) {
      block.setUint32(4 * index, tokens[end - PROMPT_BLOCK + index], true);
    }
    parent = new Sha256().update(parent).update(new Uint8Array(block.buffer)).digest();
    named.push({ digest: parent, length: end });
  }
  return named;
}

/** The device's memory of prompts that a verifier was sent. Bounded: the least recently used are forgotten. */
export class SentPrompts {
  private readonly digests = new Set<string>(); // in the order of use

  constructor(private readonly maxBlocks = 16384) {}

  /** The verifier has taken `tokens` as a prompt. */
  sent(tokens: readonly number[]): void {
    for (const { digest } of prefixes(tokens).reverse()) {
      const key = hex(digest);
      this.digests.delete(key);
      this.digests.add(key);
    }
    for (const oldest of this.digests) {
      if (this.digests.size <= this.maxBlocks) break;
      this.digests.delete(oldest);
    }
  }

  /** The longest prefix that the verifier may know, if it is worth naming. */
  known(tokens: readonly number[]): PromptPrefix | null {
    let found: PromptPrefix | null = null;
    for (const prefix of prefixes(tokens)) {
      if (!this.digests.has(hex(prefix.digest))) break;
      found = prefix;
    }
    return found !== null && found.length >= MIN_PREFIX_BLOCKS * PROMPT_BLOCK ? found : null;
  }

  /** The verifier does not know what `tokens` begin with after all. */
  forget(tokens: readonly number[]): void {
    for (const { digest } of prefixes(tokens)) this.digests.delete(hex(digest));
  }
}
