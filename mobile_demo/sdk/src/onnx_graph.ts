/** The browser's graph in ONNX Runtime's WebAssembly. */

import * as ort from "onnxruntime-web/wasm";

import { ModelLoadError } from "./errors.js";
import type { FlatGraph } from "./flat_model.js";
import type { Manifest } from "./manifest.js";

const NAMES = ["input_ids", "logits", "new", "past", "position_ids"];

export interface OnnxOptions {
  /** The folder of ONNX Runtime's own files, with a slash at its end; left out: beside its script. */
  readonly wasmUrl?: string | undefined;
  /** More than one needs a page that is isolated (COOP, COEP). */
  readonly threads?: number | undefined;
}

export class OnnxGraph implements FlatGraph {
  private constructor(
    private readonly session: ort.InferenceSession,
    private readonly slot: readonly number[],
  ) {}

  /** `files` by name: model.onnx and what it names. Throws ModelLoadError. */
  static async load(
    files: ReadonlyMap<string, Uint8Array<ArrayBuffer>>,
    manifest: Manifest,
    options: OnnxOptions = {},
  ): Promise<OnnxGraph> {
    if (options.wasmUrl !== undefined) ort.env.wasm.wasmPaths = options.wasmUrl;
    ort.env.wasm.numThreads = options.threads ?? 1;
    const model = files.get("model.onnx");
    if (model === undefined) throw new ModelLoadError("the draft model has no model.onnx");
    const externalData = [...files]
      .filter(([name]) => name.startsWith("model.onnx."))
      .map(([path, data]) => ({ path, data }));
    let session: ort.InferenceSession;
    try {
      session = await ort.InferenceSession.create(model, {
        executionProviders: ["wasm"],
        graphOptimizationLevel: "all",
        externalData,
      });
    } catch (error) {
      throw new ModelLoadError(`ONNX Runtime refuses the draft model: ${String(error)}`);
    }
    const names = [...session.inputNames, ...session.outputNames].sort();
    if (names.join() !== NAMES.join()) {
      throw new ModelLoadError(`the draft model has inputs and outputs ${names.join(", ")}: not a browser's graph`);
    }
    const { layers, heads, headSize } = manifest.kv;
    return new OnnxGraph(session, [layers, 2, heads, headSize]);
  }

  async run(
    tokens: readonly number[],
    begin: number,
    past: Float32Array,
  ): Promise<{ logits: Float32Array; fresh: Float32Array }> {
    const positions = Int32Array.from(tokens, (_, index) => begin + index);
    const outputs = await this.session.run({
      input_ids: new ort.Tensor("int32", Int32Array.from(tokens), [1, tokens.length]),
      position_ids: new ort.Tensor("int32", positions, [1, tokens.length]),
      past: new ort.Tensor("float32", past, [begin, ...this.slot]),
    });
    return { logits: outputs.logits.data as Float32Array, fresh: outputs.new.data as Float32Array };
  }

  async release(): Promise<void> {
    await this.session.release();
  }
}
