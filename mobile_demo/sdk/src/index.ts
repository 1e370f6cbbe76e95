/** The TypeScript SDK of Pilotfish: drafts on this device, verified by the cloud, never another text. */

export { Client, type ClientOptions, type GenerateOptions, type RunOptions } from "./client.js";
export type { DraftContext, Drafter } from "./drafter.js";
export type { Ask, Unconfirmed } from "./driver.js";
export type { DraftRun, Finish, FinishReason, Origin, TokenLogprobs } from "./drafts.js";
export * from "./errors.js";
export type { LiveFigures } from "./figures.js";
export { BrowserFileCache, type FileCache, MemoryFileCache } from "./file_cache.js";
export { Generation } from "./generation.js";
export { type Arm, ARMS, type Hint, type Objective, OBJECTIVES } from "./modes.js";
export { NgramDrafter } from "./ngram.js";
export { type SamplingOptions, type SamplingParams, samplingParams } from "./parameters.js";
export type { DraftChoice } from "./preparation.js";
export type {
  Confirmed,
  Metrics,
  Piece,
  PolicyState,
  Result,
  Revised,
  TextPiece,
  TimelineEvent,
} from "./result.js";
export { Stream } from "./stream.js";
export { Tokenizer } from "./tokenizer.js";
export type { OpenWebSocket, WebSocketLike } from "./transport.js";
export type { DraftOffer, ServedModel } from "./verifier_http.js";
export { WorkerDrafter, type WorkerDrafterOptions, type WorkerLike } from "./worker_drafter.js";
export type { DownloadProgress } from "./worker_messages.js";
