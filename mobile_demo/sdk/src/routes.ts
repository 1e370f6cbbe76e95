/** Which route key a call carries: what shares a prompt meets the same replica (`routes.py`). */

import { hex } from "./sha256.js";

const MAX_KNOWN = 256; // prompts
const BEGINNING = 256; // tokens of a prompt that tell it from others

/** What one client was told, by the beginning of its prompts; the oldest is forgotten. */
export class Routes {
  private readonly own = randomKey();
  private readonly told = new Map<string, readonly string[]>();

  /** The verifier named the routes of a prompt, the usual one first. */
  learn(prompt: readonly number[], routes: readonly string[]): void {
    if (routes.length === 0) return;
    const key = keyOf(prompt);
    this.told.delete(key);
    this.told.set(key, routes);
    for (const oldest of this.told.keys()) {
      if (this.told.size <= MAX_KNOWN) break;
      this.told.delete(oldest);
    }
  }

  /** Where a call goes after so many failed ones. Each time elsewhere: the last one's replica may be dead. */
  of(prompt: readonly number[], failures: number): string {
    const told = this.told.get(keyOf(prompt)) ?? [];
    if (failures < told.length) return told[failures];
    return failures === 0 ? this.own : randomKey();
  }
}

function keyOf(prompt: readonly number[]): string {
  return prompt.slice(0, BEGINNING).join();
}

function randomKey(): string {
  return hex(crypto.getRandomValues(new Uint8Array(8)));
}
