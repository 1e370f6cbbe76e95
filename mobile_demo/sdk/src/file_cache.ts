/** Files that were fetched, by their SHA-256: the Cache API where there is one, else nothing is kept. */

import { hex, Sha256 } from "./sha256.js";

const CACHE = "pilotfish-files-1";
const BASE = "https://pilotfish.invalid/"; // never fetched: a name in the cache

/** Where files are kept between visits. */
export interface FileCache {
  get(name: string): Promise<Uint8Array<ArrayBuffer> | null>;
  put(name: string, data: Uint8Array<ArrayBuffer>): Promise<void>;
}

/** The browser's; a full or forbidden cache only costs fetching again. */
export class BrowserFileCache implements FileCache {
  async get(name: string): Promise<Uint8Array<ArrayBuffer> | null> {
    try {
      const found = await (await caches.open(CACHE)).match(BASE + name);
      return found === undefined ? null : new Uint8Array(await found.arrayBuffer());
    } catch {
      return null;
    }
  }

  async put(name: string, data: Uint8Array<ArrayBuffer>): Promise<void> {
    try {
      await (await caches.open(CACHE)).put(BASE + name, new Response(data));
    } catch {
      // see above
    }
  }
}

/** For the life of the program. */
export class MemoryFileCache implements FileCache {
  private readonly files = new Map<string, Uint8Array<ArrayBuffer>>();

  get(name: string): Promise<Uint8Array<ArrayBuffer> | null> {
    return Promise.resolve(this.files.get(name) ?? null);
  }

  put(name: string, data: Uint8Array<ArrayBuffer>): Promise<void> {
    this.files.set(name, data);
    return Promise.resolve();
  }
}

/** The browser's where it has one, which needs https or this machine. */
export function usualFileCache(): FileCache {
  return "caches" in globalThis ? new BrowserFileCache() : new MemoryFileCache();
}

/** SHA-256 in hex, by the platform where it can. */
export async function digestOf(data: Uint8Array<ArrayBuffer>): Promise<string> {
  const subtle = (globalThis.crypto as { subtle?: SubtleCrypto } | undefined)?.subtle;
  if (subtle !== undefined) return hex(new Uint8Array(await subtle.digest("SHA-256", data)));
  return hex(new Sha256().update(data).digest());
}
