/** `Client`: the SDK's one heavy object, with a drafter, a tokenizer and what was learned of link and cloud. */

import { checkKeyMayGo, parseAddresses } from "./address.js";
import { DEVICE_CONFIG, type DeviceConfig } from "./device_actions.js";
import { PolicyMemory } from "./draft_policy.js";
import type { Drafter } from "./drafter.js";
import { type Ask, type Driver, GenerationDriver, now } from "./driver.js";
import { FingerprintMismatch, InvalidParameter, InvalidRequest } from "./errors.js";
import { type FileCache, usualFileCache } from "./file_cache.js";
import { Generation } from "./generation.js";
import { LocalDriver } from "./local_driver.js";
import { type Arm, ARMS, deviceDrafts, type Hint, NO_HINT, type Objective, OBJECTIVES } from "./modes.js";
import { type SamplingOptions, samplingParams } from "./parameters.js";
import { type DraftChoice, Preparation } from "./preparation.js";
import { SentPrompts } from "./prompts.js";
import type { TimelineEvent } from "./result.js";
import { Routes } from "./routes.js";
import { Stream } from "./stream.js";
import type { Tokenizer } from "./tokenizer.js";
import { type OpenWebSocket, Transport } from "./transport.js";
import { type ServedModel, servedModel } from "./verifier_http.js";
import type { WorkerLike } from "./worker_drafter.js";
import type { DownloadProgress } from "./worker_messages.js";

export interface ClientOptions {
  /** "auto": what the verifier offers, prompt lookup until it is here; "ngram"; null: nothing; or a Drafter. */
  draft?: DraftChoice;
  /** Where the built `drafter_worker.js` is, for "auto". */
  workerUrl?: string | URL;
  /** Instead of `workerUrl`: how the worker is made. */
  makeWorker?: () => WorkerLike;
  /** The folder of ONNX Runtime's files; left out: beside its script. */
  wasmUrl?: string;
  /** Of the draft model; more than one needs an isolated page. */
  threads?: number;
  tokenizer?: Tokenizer;
  /** Name of the target; "": the verifier's only or first one. */
  model?: string;
  arm?: Arm;
  objective?: Objective;
  hint?: Partial<Hint>;
  /** "never" is a hard switch, for private text: nothing is ever sent. */
  cloud?: "auto" | "never";
  /** "draft": when the link has been silent for `offlineAfterS`, the draft model goes on alone, unverified. */
  offline?: "wait" | "draft";
  /** What becomes of unverified text when the link is back. */
  onReconnect?: "verify" | "keep" | Ask;
  offlineAfterS?: number;
  window?: number;
  /** For comparisons and tests. */
  config?: Partial<DeviceConfig>;
  apiKey?: string;
  /** The API key may cross a network unencrypted. */
  insecure?: boolean;
  /** Frames in size classes, both ways. */
  pad?: boolean;
  allowOtherFingerprint?: boolean;
  cache?: FileCache;
  onDownload?: (progress: DownloadProgress) => void;
  onEvent?: (event: TimelineEvent) => void;
  /** How a WebSocket is opened; React Native's can be given headers. */
  webSocket?: OpenWebSocket;
}

/** Of one answer; what is left out is the client's. */
export interface RunOptions {
  timeoutS?: number;
  offline?: "wait" | "draft";
  onReconnect?: "verify" | "keep" | Ask;
  signal?: AbortSignal;
  onEvent?: (event: TimelineEvent) => void;
}

export type GenerateOptions = SamplingOptions & RunOptions;

const RUN_NAMES: readonly string[] = ["timeoutS", "offline", "onReconnect", "signal", "onEvent"];
const OFFLINE_AFTER_S = 2;

export class Client {
  private readonly transport: Transport;
  private readonly cache: FileCache;
  private readonly prepared: Preparation;
  private readonly memory = new PolicyMemory();
  private readonly prompts = new SentPrompts();
  private readonly routes = new Routes();
  private readonly streams = new Set<Stream>();
  private readonly alone: boolean;
  private config: DeviceConfig;
  private said: Hint;
  private closed = false;
  private readonly wentOffline = (): void => {
    for (const stream of this.streams) stream.cut();
  };

  /** `server`: see `parseAddresses`; null with `cloud: "never"`. Throws InvalidParameter, Unauthenticated. */
  constructor(
    server: string | readonly string[] | null,
    private readonly options: ClientOptions = {},
  ) {
    const { draft = "auto", arm = "auto", objective = "latency", window = DEVICE_CONFIG.window } = options;
    checkChoice("arm", arm, ARMS);
    checkChoice("objective", objective, OBJECTIVES);
    checkChoice("cloud", options.cloud ?? "auto", ["auto", "never"]);
    if (!Number.isInteger(window) || window < 1 || window > 1024) {
      throw InvalidParameter.of("window", window, "an integer in [1, 1024]");
    }
    const afterS = options.offlineAfterS ?? OFFLINE_AFTER_S;
    if (!(afterS > 0 && afterS < Infinity)) throw InvalidParameter.of("offlineAfterS", afterS, "a positive number");
    this.alone = options.cloud === "never" || arm === "device-only";
    if (options.cloud === "never" && arm !== "auto" && arm !== "device-only") {
      throw InvalidParameter.of("arm", arm, "device-only, or none: with cloud: 'never' nothing is sent");
    }
    const writes = typeof draft === "object" ? draft !== null : draft === "auto" && options.cloud !== "never";
    if (this.alone && !writes) {
      throw InvalidParameter.of("draft", draft, "a draft model: without the cloud it writes the answer");
    }
    this.checkArm(arm);
    this.checkOffline(options);
    this.config = { ...DEVICE_CONFIG, ...options.config, window, arm, objective };
    this.said = { ...NO_HINT, ...options.hint };
    this.cache = options.cache ?? usualFileCache();
    const addresses = server === null ? [] : parseAddresses(server);
    if (server === null && options.cloud !== "never") throw InvalidParameter.of("server", server, "an address");
    checkKeyMayGo(addresses, options.apiKey ?? "", options.insecure ?? false);
    this.transport = new Transport(addresses, options.apiKey, options.webSocket);
    this.prepared = new Preparation({
      draft,
      tokenizer: options.tokenizer ?? null,
      model: options.model ?? "",
      transport: this.transport,
      cache: this.cache,
      wasmUrl: options.wasmUrl,
      threads: options.threads,
      makeWorker: options.makeWorker ?? workerMaker(options.workerUrl),
      onDownload: options.onDownload,
    });
    (globalThis as Partial<EventTarget>).addEventListener?.("offline", this.wentOffline);
  }

  /**
   * Load the tokenizer and the drafter now instead of with the first generation, and wait for a draft model that is
   * being fetched. Rejects with ModelLoadError, TokenizerMismatch, and what the verifier answers.
   */
  async prepare(): Promise<void> {
    this.checkOpen();
    await this.prepared.run();
    await this.prepared.complete();
  }

  /** The tokenizer in use; null before `prepare`. */
  get tokenizer(): Tokenizer | null {
    return this.prepared.tokenizer;
  }

  /** What drafts at the moment, and how fast it did when it was warmed up; null before `prepare`. */
  get drafter(): Drafter | null {
    return this.prepared.drafter;
  }

  /** Why the draft model that the verifier offers is not in use, where it failed. */
  get draftError(): Error | null {
    return this.prepared.failure;
  }

  /**
   * Begin an answer to text or token ids. Without a seed a random one is drawn and reported. Throws InvalidParameter and
   * UnsupportedParameter; what goes wrong later comes out of the stream.
   */
  generate(prompt: string | readonly number[], options: GenerateOptions = {}): Stream {
    const sampling = Object.entries(options).filter(([name]) => !RUN_NAMES.includes(name));
    const params = samplingParams(Object.fromEntries(sampling) as SamplingOptions);
    if (typeof prompt !== "string") checkIds(prompt);
    return this.stream(options, () => {
      const tokenizer = this.prepared.tokenizer;
      if (tokenizer === null) throw new InvalidRequest("the client is not prepared");
      const tokens = typeof prompt === "string" ? tokenizer.encode(prompt) : [...prompt];
      if (tokens.length === 0) throw InvalidParameter.of("prompt", prompt, "at least one token");
      const model = this.options.model ?? "";
      return new Generation({ prompt: tokens, params, model, tokenizerHash: tokenizer.hash });
    });
  }

  /** Go on with a generation, or the text of a saved one. Throws InvalidRequest for one that has finished. */
  resume(generation: Generation | string, options: RunOptions = {}): Stream {
    const unknown = Object.keys(options).filter((name) => !RUN_NAMES.includes(name));
    if (unknown.length > 0) throw InvalidParameter.of("options", unknown, RUN_NAMES.join(", "));
    const held = typeof generation === "string" ? Generation.fromJson(generation) : generation;
    if (held.finished) throw new InvalidRequest("the generation has finished; there is nothing to resume");
    const alone = this.alone || this.config.arm === "device-only";
    if (held.own && !alone && this.options.allowOtherFingerprint !== true) {
      throw new FingerprintMismatch(
        `the answer was begun by ${held.fingerprint}, without a verifier, and no verifier writes as that does; ` +
          "allowOtherFingerprint lets it go on all the same",
      );
    }
    if ((options.offline ?? this.options.offline) !== "draft") held.shown = null; // nothing unverified is asked for
    held.countAttemptsFromClock();
    return this.stream(options, () => held);
  }

  /** What the verifier serves. Rejects with what it answers. */
  async describe(): Promise<ServedModel> {
    this.checkOpen();
    if (this.options.cloud === "never") throw new InvalidRequest("there is no verifier to ask: cloud: 'never'");
    return servedModel(this.transport, this.options.model ?? "", this.cache);
  }

  /** What the app has said about the device. To be set at any time: it holds for what runs and what comes. */
  get hint(): Hint {
    return this.said;
  }

  set hint(hint: Partial<Hint>) {
    this.said = { ...NO_HINT, ...hint };
    for (const stream of this.streams) stream.hinted(this.said);
  }

  /** Who drafts in the answers to come. */
  get arm(): Arm {
    return this.config.arm;
  }

  set arm(arm: Arm) {
    checkChoice("arm", arm, ARMS);
    this.checkArm(arm);
    this.config = { ...this.config, arm };
  }

  get objective(): Objective {
    return this.config.objective;
  }

  set objective(objective: Objective) {
    checkChoice("objective", objective, OBJECTIVES);
    this.config = { ...this.config, objective };
  }

  /** Seconds by which frames are delayed, there and back together: for demonstrations. */
  get simulatedRoundTripS(): number {
    return this.transport.delay.roundTripS;
  }

  set simulatedRoundTripS(seconds: number) {
    if (!(seconds >= 0 && seconds <= 10)) throw InvalidParameter.of("simulatedRoundTripS", seconds, "0 to 10 seconds");
    this.transport.delay.roundTripS = seconds;
  }

  /** Cancel what runs, and free the drafter (one that was given stays the caller's). */
  close(): void {
    this.closed = true;
    (globalThis as Partial<EventTarget>).removeEventListener?.("offline", this.wentOffline);
    for (const stream of this.streams) stream.cancel();
    this.prepared.free();
  }

  private stream(options: RunOptions, generation: () => Generation): Stream {
    this.checkOpen();
    this.checkOffline(options);
    const { timeoutS = null, signal } = options;
    if (timeoutS !== null && !(timeoutS > 0 && timeoutS < Infinity)) {
      throw InvalidParameter.of("timeoutS", timeoutS, "a positive number of seconds");
    }
    const deadline = timeoutS === null ? null : now() + timeoutS;
    const begin = this.prepared.run().then(async () => {
      if (this.alone || this.config.arm === "device-only") await this.prepared.complete();
      return this.driver(generation(), options, deadline);
    });
    const stream = new Stream(begin, timeoutS, (ended) => this.streams.delete(ended));
    this.streams.add(stream);
    if (signal?.aborted) stream.cancel();
    signal?.addEventListener("abort", () => stream.cancel(), { once: true });
    return stream;
  }

  private driver(generation: Generation, options: RunOptions, deadline: number | null): Driver {
    const { drafter, tokenizer } = this.prepared;
    if (tokenizer === null) throw new InvalidRequest("the client is not prepared");
    const onEvent = options.onEvent ?? this.options.onEvent ?? null;
    if (this.alone || this.config.arm === "device-only") {
      if (drafter === null || !drafter.writes) {
        throw new InvalidRequest("there is no draft model to write the answer without the cloud");
      }
      return new LocalDriver(generation, drafter, tokenizer, onEvent);
    }
    const when = options.onReconnect ?? this.options.onReconnect ?? "verify";
    const drafts = (options.offline ?? this.options.offline) === "draft" && drafter !== null && drafter.writes;
    const onReconnect = typeof when === "function" ? "ask" : when;
    const afterS = this.options.offlineAfterS ?? OFFLINE_AFTER_S;
    return new GenerationDriver({
      generation,
      transport: this.transport,
      tokenizer,
      drafter,
      config: { ...this.config, offline: drafts ? { onReconnect, afterS } : null },
      ask: typeof when === "function" ? when : null,
      allowOtherFingerprint: this.options.allowOtherFingerprint ?? false,
      memory: this.memory,
      hint: this.said,
      prompts: this.prompts,
      routes: this.routes,
      pads: this.options.pad ?? false,
      deadline,
      onEvent,
    });
  }

  private checkArm(arm: Arm): void {
    const { draft = "auto" } = this.options;
    if (deviceDrafts(arm) && draft === null) {
      throw InvalidParameter.of("draft", draft, `something to draft with, for the arm ${arm}`);
    }
  }

  private checkOffline({ offline, onReconnect }: Pick<RunOptions, "offline" | "onReconnect">): void {
    if (offline !== undefined) checkChoice("offline", offline, ["wait", "draft"]);
    if (onReconnect !== undefined && typeof onReconnect !== "function") {
      checkChoice("onReconnect", onReconnect, ["verify", "keep"]);
    }
    const { draft = "auto" } = this.options;
    if (offline === "draft" && (draft === null || draft === "ngram")) {
      throw InvalidParameter.of("draft", draft, "a draft model: it writes while the link is away (offline: 'draft')");
    }
  }

  private checkOpen(): void {
    if (this.closed) throw new InvalidRequest("the client is closed");
  }
}

function workerMaker(url: string | URL | undefined): (() => WorkerLike) | null {
  if (url === undefined) return null;
  return () => new Worker(url, { type: "module" }) as unknown as WorkerLike;
}

function checkChoice(name: string, value: string, choices: readonly string[]): void {
  if (!choices.includes(value)) throw InvalidParameter.of(name, value, choices.join(" or "));
}

function checkIds(prompt: readonly number[]): void {
  for (const token of prompt) {
    if (!Number.isInteger(token) || token < 0 || token >= 2 ** 31) {
      throw InvalidParameter.of("prompt", token, "text, or a list of token ids");
    }
  }
}
