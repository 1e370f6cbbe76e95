/**
 * The noise both sides share: standard Gumbel variates from Philox4x32-10, without state (`noise.py` is the definition).
 *
 *     key     = (seed low 32 bits, seed high 32 bits)
 *     counter = (token >> 2, position low 32, position high 32, domain)
 *     word    = lane (token & 3) of the block
 *     u       = (word + 0.5) / 2**32        never 0 or 1
 *     G       = -log(-log(u))
 *
 * Words are exact. The two logarithms may differ in the last bit from another machine's: that could change a draft, once
 * in some 10^14 tokens, and never the text. All arithmetic is in 32-bit integers; only seeds are BigInt, once.
 */

export const GUMBEL_MIN = -Math.log(-Math.log(0.5 / 2 ** 32)); // -3.1
export const GUMBEL_MAX = -Math.log(-Math.log((2 ** 32 - 0.5) / 2 ** 32)); // 22.9

const SAMPLING_DOMAIN = 0;
const SEED_DOMAIN = 1;
const ROUNDS = 10;
const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;
const M0_LOW = M0 & 0xffff;
const M0_HIGH = M0 >>> 16;
const M1_LOW = M1 & 0xffff;
const M1_HIGH = M1 >>> 16;

/** The four words of the block that was computed last. */
export type Block = Uint32Array;

/** One block of Philox4x32-10 into `block`; all arguments are 32-bit words. */
export function philox(
  block: Block,
  counter0: number,
  counter1: number,
  counter2: number,
  counter3: number,
  key0: number,
  key1: number,
): void {
  let c0 = counter0 | 0;
  let c1 = counter1 | 0;
  let c2 = counter2 | 0;
  let c3 = counter3 | 0;
  let k0 = key0 | 0;
  let k1 = key1 | 0;
  for (let round = 0; round < ROUNDS; round += 1) {
    // Upper halves of c0 * M0 and c2 * M1, from products of 16 bits, none of which leaves 32.
    let low = c0 & 0xffff;
    let high = c0 >>> 16;
    let middle = (Math.imul(high, M0_LOW) + (Math.imul(low, M0_LOW) >>> 16)) | 0;
    let other = (Math.imul(low, M0_HIGH) + (middle & 0xffff)) | 0;
    const upper0 = (Math.imul(high, M0_HIGH) + (middle >>> 16) + (other >>> 16)) | 0;
    const lower0 = Math.imul(c0, M0);
    low = c2 & 0xffff;
    high = c2 >>> 16;
    middle = (Math.imul(high, M1_LOW) + (Math.imul(low, M1_LOW) >>> 16)) | 0;
    other = (Math.imul(low, M1_HIGH) + (middle & 0xffff)) | 0;
    const upper1 = (Math.imul(high, M1_HIGH) + (middle >>> 16) + (other >>> 16)) | 0;
    const lower1 = Math.imul(c2, M1);
    c0 = upper1 ^ c1 ^ k0;
    c1 = lower1;
    c2 = upper0 ^ c3 ^ k1;
    c3 = lower0;
    k0 = (k0 + W0) | 0;
    k1 = (k1 + W1) | 0;
  }
  block[0] = c0;
  block[1] = c1;
  block[2] = c2;
  block[3] = c3;
}

/** The standard Gumbel variate of a 32-bit word. */
export function gumbelOfWord(word: number): number {
  return -Math.log(-Math.log((word + 0.5) * 2 ** -32));
}

/**
 * A word below which no variate reaches `gumbel`: comparing words is far cheaper than two logarithms each.
 * 0 .. 2^32; errs low by at least one, never high.
 */
export function leastWord(gumbel: number): number {
  if (gumbel <= GUMBEL_MIN) return 0;
  return Math.max(0, Math.floor(Math.exp(-Math.exp(-gumbel)) * 2 ** 32) - 2);
}

/** Words at one position under one seed, made a block at a time; tokens asked for in ascending order share blocks. */
export class Noise {
  private readonly key0: number;
  private readonly key1: number;
  private readonly low: number;
  private readonly high: number;
  private readonly block: Block = new Uint32Array(4);
  private at = -1;

  constructor(seed: bigint, position: number) {
    this.key0 = Number(seed & 0xffffffffn);
    this.key1 = Number((seed >> 32n) & 0xffffffffn);
    this.low = position % 2 ** 32;
    this.high = Math.floor(position / 2 ** 32);
  }

  /** The word of `token`. */
  word(token: number): number {
    const block = token >>> 2;
    if (block !== this.at) {
      philox(this.block, block, this.low, this.high, SAMPLING_DOMAIN, this.key0, this.key1);
      this.at = block;
    }
    return this.block[token & 3];
  }

  /** `G(seed, position, token)`. */
  gumbel(token: number): number {
    return gumbelOfWord(this.word(token));
  }
}

/** The seed of choice `index` of a request with n > 1; choice 0 has the request's own seed. */
export function deriveSeed(seed: bigint, index: number): bigint {
  if (index === 0) return seed;
  const block: Block = new Uint32Array(4);
  const high = Math.floor(index / 2 ** 32);
  philox(block, index % 2 ** 32, high, 0, SEED_DOMAIN, Number(seed & 0xffffffffn), Number(seed >> 32n));
  return BigInt(block[0]) | (BigInt(block[1]) << 32n);
}
