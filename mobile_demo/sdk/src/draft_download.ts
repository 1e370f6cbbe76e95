/** The files of a draft model: from the cache, else fetched, and in either case what was announced. */

import { LocalError, ModelLoadError } from "./errors.js";
import { digestOf, type FileCache } from "./file_cache.js";
import { type DraftOffer, errorOfResponse, fetched } from "./verifier_http.js";
import type { DownloadProgress } from "./worker_messages.js";

const CONNECT_MS = 30_000;
const MAX_BYTES = 2 ** 31; // of one draft: a browser has no room for more

/** Throws ModelLoadError for files that are not what was announced, and what the verifier answers. */
export async function draftFiles(
  offer: DraftOffer,
  headers: Readonly<Record<string, string>>,
  cache: FileCache,
  report: (progress: DownloadProgress) => void,
): Promise<Map<string, Uint8Array<ArrayBuffer>>> {
  if (offer.size > MAX_BYTES) throw new LocalError(`the draft model ${offer.name} has ${offer.size} bytes`);
  const files = new Map<string, Uint8Array<ArrayBuffer>>();
  let done = 0;
  const tell = (received: number): void => report({ name: offer.name, received: done + received, total: offer.size });
  for (const file of offer.files) {
    const key = `sha256/${file.sha256}`;
    let data = await cache.get(key);
    if (data === null || (await digestOf(data)) !== file.sha256) {
      data = await download(`${offer.url}/${file.name}`, headers, file.size, tell);
      if ((await digestOf(data)) !== file.sha256) {
        throw new ModelLoadError(`${file.name} of the draft model ${offer.name} is not the file that was announced`);
      }
      await cache.put(key, data);
    }
    done += file.size;
    tell(0);
    files.set(file.name, data);
  }
  return files;
}

async function download(
  url: string,
  headers: Readonly<Record<string, string>>,
  size: number,
  tell: (received: number) => void,
): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetched(url, headers, CONNECT_MS);
  if (!response.ok) throw await errorOfResponse(response);
  const data = new Uint8Array(size);
  let received = 0;
  const take = (chunk: Uint8Array): void => {
    if (received + chunk.length > size) throw new ModelLoadError(`${url} has more than the ${size} bytes announced`);
    data.set(chunk, received);
    received += chunk.length;
    tell(received);
  };
  if (response.body === null) take(new Uint8Array(await response.arrayBuffer()));
  else {
    const reader = response.body.getReader(); // which Safari can iterate only so
    for (let part = await reader.read(); !part.done; part = await reader.read()) take(part.value);
  }
  if (received !== size) throw new ModelLoadError(`${url} has ${received} of the ${size} bytes announced`);
  return data;
}
