/** A draft model in a Web Worker: the page never waits for it, and draws its frames. */

import type { DraftContext, Drafter } from "./drafter.js";
import { errorOfKind, LocalError, type PilotfishError } from "./errors.js";
import type { Manifest } from "./manifest.js";
import type { OnnxOptions } from "./onnx_graph.js";
import type { SamplingParams } from "./parameters.js";
import type { DraftOffer } from "./verifier_http.js";
import type { DownloadProgress, FromWorker, ToWorker } from "./worker_messages.js";

/** What is used of a Worker; others than the browser's can be given. */
export interface WorkerLike {
  postMessage(message: ToWorker): void;
  terminate(): void;
  onmessage: ((event: { data: FromWorker }) => void) | null;
  onerror: ((event: { message?: string }) => void) | null;
}

export interface WorkerDrafterOptions extends OnnxOptions {
  /** With which the files may be had. */
  readonly headers?: Readonly<Record<string, string>>;
  readonly onDownload?: ((progress: DownloadProgress) => void) | undefined;
}

interface Waiting {
  readonly resolve: (tokens: readonly number[]) => void;
  readonly reject: (error: Error) => void;
}

export class WorkerDrafter implements Drafter {
  readonly writes = true;
  readonly name: string;
  readonly tokenizerHash: string;
  readonly maxLength: number;
  private readonly waiting = new Map<number, Waiting>();
  private contexts = 0;
  private tasks = 0;

  private constructor(
    private readonly worker: WorkerLike,
    readonly manifest: Manifest,
    /** Of a token alone, measured after warming up. */
    readonly tokensPerS: number,
  ) {
    this.name = `onnx-web-${manifest.quant}`;
    this.tokenizerHash = manifest.tokenizerHash;
    this.maxLength = manifest.contextLength;
    worker.onmessage = ({ data }) => this.happened(data);
    worker.onerror = ({ message }) => this.broke(message ?? "the drafting worker failed");
  }

  /** Fetch, check, load and warm up. Throws ModelLoadError, and what the verifier answers. */
  static load(worker: WorkerLike, offer: DraftOffer, options: WorkerDrafterOptions = {}): Promise<WorkerDrafter> {
    const { headers = {}, onDownload, wasmUrl, threads } = options;
    return new Promise<WorkerDrafter>((resolve, reject) => {
      const refuse = (error: PilotfishError): void => {
        worker.terminate();
        reject(error);
      };
      worker.onerror = ({ message }) => refuse(new LocalError(`the drafting worker failed: ${message ?? "no reason"}`));
      worker.onmessage = ({ data }) => {
        if (data.kind === "progress") onDownload?.(data.progress);
        else if (data.kind === "loaded") resolve(new WorkerDrafter(worker, data.manifest, data.tokensPerS));
        else if (data.kind === "refused") refuse(errorOfKind(data.errorKind, data.message));
      };
      worker.postMessage({ kind: "load", offer, headers, onnx: { wasmUrl, threads } });
    });
  }

  open(params: SamplingParams, promptLength: number): DraftContext {
    this.contexts += 1;
    const context = this.contexts;
    this.worker.postMessage({ kind: "open", context, params, promptLength });
    return {
      draft: (keep, extend, count) => this.draft(context, keep, extend, count),
      close: () => this.worker.postMessage({ kind: "close", context }),
    };
  }

  close(): void {
    this.worker.terminate();
    this.broke("the drafter was closed");
  }

  private draft(
    context: number,
    keep: number,
    extend: readonly number[],
    count: number,
  ): Promise<readonly number[]> {
    this.tasks += 1;
    const task = this.tasks;
    return new Promise((resolve, reject) => {
      this.waiting.set(task, { resolve, reject });
      this.worker.postMessage({ kind: "draft", context, task, keep, extend, count });
    });
  }

  private happened(message: FromWorker): void {
    if (message.kind !== "drafted" && message.kind !== "failed") return;
    const waiting = this.waiting.get(message.task);
    this.waiting.delete(message.task);
    if (message.kind === "drafted") waiting?.resolve(message.tokens);
    else waiting?.reject(new LocalError(message.message));
  }

  private broke(message: string): void {
    for (const { reject } of this.waiting.values()) reject(new LocalError(message));
    this.waiting.clear();
  }
}
