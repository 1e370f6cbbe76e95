/** The drafting worker in a thread of Node: a browser's global scope for it. */

import { parentPort } from "node:worker_threads";

interface Scope {
  postMessage(message: unknown): void;
  onmessage: ((event: { data: unknown }) => void) | null;
}

const scope = globalThis as unknown as Scope;
scope.postMessage = (message) => parentPort?.postMessage(message);
await import("../src/drafter_worker.js");
parentPort?.on("message", (data: unknown) => scope.onmessage?.({ data }));
