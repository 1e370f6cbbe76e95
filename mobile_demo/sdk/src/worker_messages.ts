/** What the page and the worker that drafts say to each other. */

import type { OnnxOptions } from "./onnx_graph.js";
import type { Manifest } from "./manifest.js";
import type { SamplingParams } from "./parameters.js";
import type { DraftOffer } from "./verifier_http.js";

/** How a draft model's download goes; `received` and `total` in bytes over all its files. */
export interface DownloadProgress {
  readonly name: string;
  readonly received: number;
  readonly total: number;
}

export type ToWorker =
  | {
      readonly kind: "load";
      readonly offer: DraftOffer;
      readonly headers: Readonly<Record<string, string>>;
      readonly onnx: OnnxOptions;
    }
  | { readonly kind: "open"; readonly context: number; readonly params: SamplingParams; readonly promptLength: number }
  | {
      readonly kind: "draft";
      readonly context: number;
      readonly task: number;
      readonly keep: number;
      readonly extend: readonly number[];
      readonly count: number;
    }
  | { readonly kind: "close"; readonly context: number };

export type FromWorker =
  | { readonly kind: "progress"; readonly progress: DownloadProgress }
  | { readonly kind: "loaded"; readonly manifest: Manifest; readonly tokensPerS: number }
  | { readonly kind: "refused"; readonly errorKind: string; readonly message: string }
  | { readonly kind: "drafted"; readonly task: number; readonly tokens: readonly number[] }
  | { readonly kind: "failed"; readonly task: number; readonly message: string };
