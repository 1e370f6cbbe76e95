/**
 * The Web Worker that holds a draft model: it fetches, checks and loads it, warms it up, and drafts for all generations
 * of a page, one task after the other. An entry point of its own for bundlers; the page's end is `WorkerDrafter`.
 */

import { draftFiles } from "./draft_download.js";
import { ModelLoadError, PilotfishError } from "./errors.js";
import { usualFileCache } from "./file_cache.js";
import { FlatContext } from "./flat_model.js";
import { type Manifest, parseManifest } from "./manifest.js";
import { OnnxGraph } from "./onnx_graph.js";
import { samplingParams } from "./parameters.js";
import type { FromWorker, ToWorker } from "./worker_messages.js";

const WARM_UP_TOKENS = 48; // machine code comes only after the first dozens of runs

/** What is used of a worker's global scope. */
interface WorkerScope {
  postMessage(message: FromWorker): void;
  onmessage: ((event: { data: ToWorker }) => void) | null;
}

const scope = globalThis as unknown as WorkerScope;
const contexts = new Map<number, FlatContext>();
let model: { graph: OnnxGraph; manifest: Manifest } | null = null;
let queue: Promise<void> = Promise.resolve();

scope.onmessage = ({ data }) => {
  queue = queue.then(() => handle(data));
};

async function handle(message: ToWorker): Promise<void> {
  switch (message.kind) {
    case "load":
      await load(message).catch((error: unknown) => {
        const errorKind = error instanceof PilotfishError ? error.kind : "model_load_error";
        scope.postMessage({ kind: "refused", errorKind, message: String((error as Error).message) });
      });
      break;
    case "open":
      if (model !== null) {
        const { graph, manifest } = model;
        contexts.set(message.context, new FlatContext(graph, manifest, message.params, message.promptLength));
      }
      break;
    case "draft":
      try {
        const context = contexts.get(message.context);
        if (context === undefined) throw new ModelLoadError("there is no such context");
        const tokens = await context.draft(message.keep, message.extend, message.count);
        scope.postMessage({ kind: "drafted", task: message.task, tokens });
      } catch (error) {
        scope.postMessage({ kind: "failed", task: message.task, message: String(error) });
      }
      break;
    case "close":
      contexts.get(message.context)?.close();
      contexts.delete(message.context);
  }
}

async function load({ offer, headers, onnx }: Extract<ToWorker, { kind: "load" }>): Promise<void> {
  const files = await draftFiles(offer, headers, usualFileCache(), (progress) =>
    scope.postMessage({ kind: "progress", progress }),
  );
  const manifest = parseManifest(new TextDecoder().decode(files.get("manifest.json")), offer.name);
  const graph = await OnnxGraph.load(files, manifest, onnx);
  const tokensPerS = await warmUp(graph, manifest);
  model = { graph, manifest };
  scope.postMessage({ kind: "loaded", manifest, tokensPerS });
}

/** Draft something; returns the speed of the second half. */
async function warmUp(graph: OnnxGraph, manifest: Manifest): Promise<number> {
  const context = new FlatContext(graph, manifest, samplingParams({ temperature: 1, seed: 1 }), 1);
  const half = Math.min(WARM_UP_TOKENS, manifest.contextLength - 2) >> 1;
  await context.draft(0, [0], half);
  const began = performance.now();
  const drafted = await context.draft(1 + half, [], half);
  context.close();
  return (drafted.length * 1000) / (performance.now() - began);
}
