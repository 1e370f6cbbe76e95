/** Vectors that Python made (`python -m pilotfish_core.vectors build/vectors ...`): see `make mobile-sdk-test`. */

import { readFileSync } from "node:fs";

import type { SamplingOptions } from "../src/parameters.js";

const FOLDER = new URL("../../vectors/", import.meta.url); // from build/sdk/test

/** Throws when they were not made. */
export function vectors<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`${name}.json`, FOLDER), "utf-8")) as T;
}

/** A folder of the project. */
export function projectFile(path: string): string {
  return readFileSync(new URL(`../../../../${path}`, import.meta.url), "utf-8");
}

/** Parameters by Python's names. */
export interface PythonParams {
  temperature?: number;
  top_k?: number;
  top_p?: number;
  min_p?: number;
  repetition_penalty?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  logit_bias?: [number, number][];
}

export function samplingOptions(params: PythonParams, seed: string): SamplingOptions {
  return {
    temperature: params.temperature,
    topK: params.top_k,
    topP: params.top_p,
    minP: params.min_p,
    repetitionPenalty: params.repetition_penalty,
    presencePenalty: params.presence_penalty,
    frequencyPenalty: params.frequency_penalty,
    logitBias: params.logit_bias,
    seed,
  };
}
