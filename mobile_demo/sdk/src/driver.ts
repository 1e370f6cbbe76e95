/** Runs one generation: the device core between a WebSocket, a drafter and the app (`driver.py`). */

import { Delivery } from "./delivery.js";
import type { Action, AskWhether, Connect, Deliver, DeviceConfig, End } from "./device_actions.js";
import { DeviceCore } from "./device_core.js";
import type { PolicyMemory } from "./draft_policy.js";
import { DraftRunner } from "./draft_runner.js";
import type { Drafter } from "./drafter.js";
import { type Commit, commitEnd, type Finish } from "./drafts.js";
import {
  FingerprintMismatch,
  InvalidRequest,
  LocalError,
  PilotfishError,
  PromptTooLong,
  ProtocolViolation,
  Unavailable,
} from "./errors.js";
import { Figures, type LiveFigures } from "./figures.js";
import { ALONE, type Generation } from "./generation.js";
import type { Open, Opened } from "./messages.js";
import type { Hint } from "./modes.js";
import type { OnReconnect } from "./offline.js";
import type { PieceQueue } from "./piece_queue.js";
import type { SentPrompts } from "./prompts.js";
import type { Metrics, Result, TimelineEvent } from "./result.js";
import type { Routes } from "./routes.js";
import { StopChecker } from "./stops.js";
import type { Tokenizer } from "./tokenizer.js";
import type { DeviceStream, Transport } from "./transport.js";
import { checkVersion } from "./verifier_http.js";
import { CloudFrameReader, DeviceFrameWriter, MAX_FRAME_BYTES } from "./wire.js";

const DEADLINE_GRACE_S = 1; // of the call beyond the answer's deadline, whose passing the client says better itself

/** Unverified text that the app was shown, for it to say what becomes of it. */
export interface Unconfirmed {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly position: number;
}

export type Ask = (unconfirmed: Unconfirmed) => "verify" | "keep" | Promise<"verify" | "keep">;

/** What drives an answer to its end: with a cloud, or alone. */
export interface Driver {
  readonly generation: Generation;
  readonly pieces: PieceQueue;
  readonly draftText: string;
  readonly unverifiedText: string;
  readonly away: boolean;
  figures(): LiveFigures;
  run(): void;
  cancel(): void;
  fail(error: PilotfishError): void;
  hint(hint: Hint): void;
  /** The link is known to be gone, whatever its socket says. */
  cut(): void;
}

export interface DriverOptions {
  readonly generation: Generation;
  readonly transport: Transport;
  readonly tokenizer: Tokenizer;
  readonly drafter: Drafter | null;
  readonly config: DeviceConfig;
  readonly ask: Ask | null;
  readonly allowOtherFingerprint: boolean;
  readonly memory: PolicyMemory;
  readonly hint: Hint;
  readonly prompts: SentPrompts;
  readonly routes: Routes;
  readonly pads: boolean;
  /** When the answer must be complete, in seconds of `now`. */
  readonly deadline: number | null;
  readonly onEvent: ((event: TimelineEvent) => void) | null;
}

/** Seconds of a monotonic clock. */
export function now(): number {
  return performance.now() / 1000;
}

/** An open stream, and the state that its frames leave out. */
interface Attempt {
  readonly writer: DeviceFrameWriter;
  readonly reader: CloudFrameReader;
  opening: Open;
  fingerprint: string;
  stream: DeviceStream | null;
}

export class GenerationDriver implements Driver {
  readonly generation: Generation;
  readonly pieces: PieceQueue;
  private readonly delivery: Delivery;
  private readonly core: DeviceCore;
  private readonly measured: Figures;
  private readonly runner: DraftRunner | null;
  private attempt: Attempt | null = null;
  private attempts = 0;
  private failures = 0;
  private route: string | null = null; // that the verifier named with its last error
  private keptAny = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private timerAt: number | null = null;
  private ending: End | null = null;
  private over = false;
  private askedAbout = "";
  private askedNumber = 0;
  private answer: "verify" | "keep" | null = null;
  private arm = "";
  private draftBegan = 0;

  constructor(private readonly options: DriverOptions) {
    const { generation, tokenizer, drafter } = options;
    this.generation = generation;
    this.delivery = new Delivery(generation, tokenizer);
    this.pieces = this.delivery.pieces;
    this.measured = new Figures(generation, drafter?.name ?? "none");
    this.runner =
      drafter === null
        ? null
        : new DraftRunner(drafter, generation, tokenizer.vocabSize, (tokens, error) => this.drafted(tokens, error));
    this.core = new DeviceCore({
      prompt: generation.prompt,
      output: generation.output,
      maxTokens: generation.params.maxTokens,
      config: options.config,
      drafting: drafter !== null,
      attempt: generation.attempt,
      memory: options.memory,
      hint: options.hint,
      ticket: generation.ticket,
      unverified: options.config.offline === null ? [] : generation.unverified,
      finishRule: () => new StopChecker(generation.params, tokenizer, tokenizer.eosTokenIds),
    });
  }

  /** The draft beyond what was shown; a character that it begins or ends within is left out. */
  get draftText(): string {
    return this.options.tokenizer.decode(this.core.unshown, { continues: true }).replace(/^\ufffd+|\ufffd+$/g, "");
  }

  get unverifiedText(): string {
    return this.delivery.text.unverified;
  }

  get away(): boolean {
    return this.core.away;
  }

  figures(): LiveFigures {
    const { counts } = this.core;
    const at = this.core.triesAgainAt;
    return {
      state: this.core.state,
      tokens: this.generation.output.length,
      tokensPerS: this.measured.rate(now()),
      acceptedShare: counts.sent > 0 ? counts.accepted / counts.sent : null,
      draftTokens: this.core.tail.length,
      sentDraftTokens: counts.sent,
      acceptedDraftTokens: counts.accepted,
      inFlight: this.core.inFlight,
      drafted: counts.drafted,
      rollbacks: counts.rollbacks,
      reconnects: counts.reconnects,
      ...this.measured.bytes(this.attempt?.stream ?? null),
      drafter: this.measured.drafterName,
      drafterError: this.measured.drafterError,
      retryInS: at === null ? null : Math.max(at - now(), 0),
      policy: this.core.policy.explain(),
    };
  }

  run(): void {
    this.measured.start(now());
    this.step(() => this.core.start(now()));
  }

  cancel(): void {
    this.step(() => this.core.cancel());
  }

  hint(hint: Hint): void {
    this.step(() => this.core.hinted(hint));
  }

  fail(error: PilotfishError): void {
    this.step(() => this.core.fail(error));
  }

  cut(): void {
    this.step(() => this.lost(new Unavailable("this device is offline")));
  }

  // -- events ---------------------------------------------------------------------------------------------------------

  /** Carry out what something comes to, and go on from there; what fails ends the generation. */
  private step(cause: () => Action[]): void {
    if (this.over) return;
    try {
      const wasAway = this.core.away;
      this.act(cause());
      const shown = [...this.core.unverified.tokens]; // for who saves the generation
      this.generation.shown = shown.length > 0 ? { position: this.core.length, tokens: shown } : null;
      if (this.core.state === "waiting" && this.attempt !== null) {
        this.failures += 1; // a stream that broke, or one that was given up
        this.leave(); // what it may still say is too late
      }
      if (this.core.away && !wasAway) this.tell({ kind: "away", at: now() });
      this.act(this.core.lookAhead());
      if (this.ending !== null) {
        this.close(this.outcomeOf(this.ending));
        return;
      }
      this.tellPolicy();
      const task = this.runner === null ? null : this.core.draftTask(now());
      if (task !== null) {
        this.draftBegan = now();
        this.runner?.begin(task);
      }
      this.armTimer();
    } catch (error) {
      this.close(error instanceof PilotfishError ? error : new PilotfishError(`the client failed: ${String(error)}`));
    }
  }

  private drafted(tokens: readonly number[] | null, error: string): void {
    this.step(() => {
      if (tokens === null) {
        this.measured.drafterError = error;
        return this.core.drafterFailed();
      }
      const at = now();
      this.tell({ kind: "drafted", at, tokens: tokens.length, tookS: at - this.draftBegan });
      return this.core.drafted(tokens, at);
    });
  }

  private read(attempt: Attempt, bytes: Uint8Array): Action[] {
    const actions: Action[] = [];
    const at = now();
    try {
      for (const message of attempt.reader.read(bytes)) {
        switch (message.kind) {
          case "opened":
            this.noteOpened(attempt, message.opened);
            actions.push(...this.core.opened(message.opened, at));
            break;
          case "commit":
            actions.push(...this.commit(attempt, message.commit, bytes.length));
            break;
          case "ticket":
            actions.push(...this.core.proved(message.ticket));
            this.generation.ticket = this.core.ticket;
            break;
          case "pong":
            actions.push(...this.core.heard(message.nonce, at));
            this.tell({ kind: "round-trip", at, seconds: this.core.policy.memory.roundTrip.now ?? 0 });
            break;
          case "advice":
            actions.push(...this.core.advised(message.advice, at));
            break;
          case "prefix-unknown":
            this.sendPrompt(attempt);
        }
      }
    } catch (error) {
      if (!(error instanceof ProtocolViolation)) throw error;
      return this.core.fail(error);
    }
    return actions;
  }

  private commit(attempt: Attempt, commit: Commit, bytes: number): Action[] {
    const { core } = this;
    // Ids that have no text here can neither be shown nor given to a drafter.
    const strange = commit.tokens.find((token) => token >= this.options.tokenizer.vocabSize);
    if (strange !== undefined) {
      throw new ProtocolViolation(
        `the verifier committed token id ${strange}, outside the vocabulary of ${this.options.tokenizer.vocabSize}`,
      );
    }
    if (commit.position <= core.length && core.length < commitEnd(commit)) {
      this.generation.decidedUnder(attempt.fingerprint);
    }
    const before = core.tail.length;
    const lengthBefore = core.length;
    const actions = core.take(commit, now());
    const agreed = Math.min(before, core.length - lengthBefore);
    this.tell({
      kind: "committed",
      at: now(),
      position: commit.position,
      tokens: commit.tokens.length,
      accepted: commit.accepted,
      rolledBack: core.ended ? 0 : Math.max(before - agreed - core.tail.length, 0),
      bytes,
    });
    return actions;
  }

  /** The verifier does not know what it was named: send the ids. */
  private sendPrompt(attempt: Attempt): void {
    if (attempt.opening.prefix === null) {
      throw new ProtocolViolation("the verifier asked for a prompt prefix that was sent as ids");
    }
    this.options.prompts.forget(this.generation.prompt);
    attempt.opening = { ...attempt.opening, prompt: this.generation.prompt, prefix: null };
    attempt.stream?.send(this.openingFrame(attempt));
  }

  private noteOpened(attempt: Attempt, message: Opened): void {
    checkVersion(message.protocolVersion);
    this.options.prompts.sent(this.generation.prompt);
    this.options.routes.learn(this.generation.prompt, message.routes);
    attempt.fingerprint = message.fingerprint;
    this.generation.model = message.model;
    this.measured.cachedTokens = message.cachedTokens;
    const { fingerprint, cachedTokens } = message;
    this.tell({ kind: "opened", at: now(), fingerprint, cachedTokens });
  }

  private lost(error: PilotfishError): Action[] {
    let known = error;
    if (error instanceof FingerprintMismatch && this.options.transport.addresses.length > 1) {
      known = new Unavailable(error.message); // another address may compute as the first one did
    }
    this.route = error.route;
    const actions = this.core.lost(known, now());
    const again = this.core.triesAgainAt;
    this.tell({ kind: "lost", at: now(), message: error.message, retryInS: again === null ? null : again - now() });
    return actions;
  }

  // -- actions --------------------------------------------------------------------------------------------------------

  private act(actions: readonly Action[]): void {
    const finish = actions.find((action) => action.kind === "end")?.finish ?? null;
    const last = actions.findLast((action) => action.kind === "deliver");
    for (const action of actions) {
      const stream = this.attempt?.stream ?? null;
      switch (action.kind) {
        case "connect":
          this.connect(action);
          break;
        case "send-draft": {
          if (this.attempt === null || stream === null) break;
          const frame = this.attempt.writer.draft(action.run, action.acknowledged);
          stream.send(frame);
          const { start, tokens } = action.run;
          this.tell({ kind: "sent", at: now(), start, tokens: tokens.length, bytes: frame.length });
          break;
        }
        case "send-acknowledge":
          if (this.attempt !== null) stream?.send(this.attempt.writer.acknowledge(action.length));
          break;
        case "send-ping":
          if (this.attempt !== null) stream?.send(this.attempt.writer.ping(action.nonce));
          break;
        case "send-mode":
          if (this.attempt !== null) stream?.send(this.attempt.writer.mode(action.mode));
          break;
        case "send-hint":
          if (this.attempt !== null) stream?.send(this.attempt.writer.hint(action.hint));
          break;
        case "deliver":
          this.deliver(action, action === last ? finish : null);
          break;
        case "show-unverified":
          this.delivery.show(action, this.core.unverified.finish);
          break;
        case "ask-whether":
          this.ask(action);
          break;
        case "keep":
          this.act(this.keep(action.tokens));
          break;
        case "end":
          this.ending = action;
      }
    }
  }

  private deliver(deliver: Deliver, finish: Finish | null): void {
    this.measured.delivered(deliver.tokens.length, now());
    this.delivery.deliver(deliver, finish);
  }

  private connect(connect: Connect): void {
    this.leave();
    const { generation, options, core } = this;
    generation.attempt = connect.attempt;
    const prefix = options.prompts.known(generation.prompt);
    const opening: Open = {
      model: generation.model,
      tokenizerHash: generation.tokenizerHash,
      generationId: generation.id,
      attempt: connect.attempt,
      prompt: prefix === null ? generation.prompt : generation.prompt.slice(prefix.length),
      prefix,
      params: generation.params,
      output: generation.output.slice(0, connect.length - generation.prompt.length),
      fingerprint: this.decidedBy,
      allowOtherFingerprint: options.allowOtherFingerprint,
      mode: connect.mode,
      hint: core.policy.hint,
      pace: core.policy.pace,
      ticket: connect.ticket ?? new Uint8Array(),
    };
    const attempt: Attempt = {
      writer: new DeviceFrameWriter(options.pads),
      reader: new CloudFrameReader(),
      opening,
      fingerprint: "",
      stream: null,
    };
    const frame = this.openingFrame(attempt);
    const timeoutS = options.deadline === null ? null : Math.max(options.deadline - now(), 0) + DEADLINE_GRACE_S;
    const route = this.route ?? options.routes.of(generation.prompt, this.failures);
    this.route = null;
    this.attempt = attempt;
    attempt.stream = options.transport.open(this.attempts, timeoutS, route, {
      frame: (bytes) => this.step(() => (attempt === this.attempt ? this.read(attempt, bytes) : [])),
      lost: (error) => this.step(() => (attempt === this.attempt ? this.lost(error) : [])),
    });
    this.attempts += 1;
    this.tell({ kind: "connecting", at: now(), attempt: connect.attempt, length: connect.length });
    attempt.stream.send(frame);
  }

  /** Throws PromptTooLong for one that does not fit a frame. */
  private openingFrame(attempt: Attempt): Uint8Array<ArrayBuffer> {
    let frame: Uint8Array<ArrayBuffer>;
    try {
      frame = attempt.writer.open(attempt.opening);
    } catch (error) {
      throw new InvalidRequest(`the generation cannot be sent: ${String(error)}`);
    }
    if (frame.length > MAX_FRAME_BYTES) {
      const { prompt, output } = attempt.opening;
      throw new PromptTooLong(
        `a prompt of ${prompt.length} tokens and an output of ${output.length} take ${frame.length} bytes to send; ` +
          `at most ${MAX_FRAME_BYTES} can be sent`,
      );
    }
    return frame;
  }

  /** Give up the current stream, if any; what still comes from it is ignored. */
  private leave(): void {
    const stream = this.attempt?.stream ?? null;
    this.attempt = null;
    if (stream === null) return;
    stream.leave();
    this.measured.left(stream);
  }

  // -- what the app was shown while the link was away -------------------------------------------------------------------

  /** An app that is thinking about the same text already is not asked twice: its answer is to the last question. */
  private ask(question: AskWhether): void {
    const ask = this.options.ask;
    if (ask === null) throw new LocalError("there is nobody to ask what is to become of the unverified text");
    const about = question.tokens.join();
    this.askedNumber = question.number;
    const position = this.core.length;
    if (about === this.askedAbout) {
      if (this.answer !== null) this.answered(about, this.answer); // it came while there was no stream to use it on
      return;
    }
    this.askedAbout = about;
    this.answer = null;
    const unconfirmed = { text: this.delivery.text.unverified, tokenIds: question.tokens, position };
    Promise.resolve()
      .then(() => ask(unconfirmed))
      .then(
        (choice) => this.answered(about, choice),
        (error: unknown) => this.fail(new LocalError(`onReconnect failed: ${String(error)}`)),
      );
  }

  private answered(about: string, choice: "verify" | "keep"): void {
    if (about !== this.askedAbout) return;
    if (choice !== "verify" && choice !== "keep") {
      this.fail(new LocalError("onReconnect answered something else than 'verify' or 'keep'"));
      return;
    }
    this.answer = choice;
    queueMicrotask(() => this.step(() => this.core.answered(this.askedNumber, choice as OnReconnect, now())));
  }

  /** Note whose these tokens are, before they are output. */
  private keep(tokens: readonly number[]): Action[] {
    this.generation.decidedUnder(ALONE + this.measured.drafterName);
    this.generation.ticket = null;
    this.keptAny = true;
    this.delivery.keep(tokens, this.core.unverified.finish);
    const actions = this.core.kept(now());
    this.measured.delivered(tokens.length, now());
    return actions;
  }

  /** The fingerprint that a resume asks for: until a token was decided, any replica may decide the first. */
  private get decidedBy(): string {
    if (this.generation.output.length === 0) return "";
    if (!this.keptAny) return this.generation.fingerprint;
    return this.generation.fingerprints.find((name) => !name.startsWith(ALONE)) ?? "";
  }

  // -- time and the end -------------------------------------------------------------------------------------------------

  private armTimer(): void {
    const deadline = this.core.nextDeadline();
    if (deadline === this.timerAt) return;
    clearTimeout(this.timer);
    this.timerAt = deadline;
    if (deadline === null) return;
    this.timer = setTimeout(
      () => {
        this.timerAt = null; // a timer may come early, and then the same deadline must be armed again
        this.step(() => this.core.expired(now()));
      },
      Math.max(Math.ceil((deadline - now()) * 1000), 0),
    );
  }

  private outcomeOf(end: End): Result | PilotfishError {
    if (end.finish === null) return end.error ?? new PilotfishError("ended without a reason");
    const { generation, delivery } = this;
    delivery.end(end.finish);
    generation.finish = end.finish.reason === "abort" ? null : end.finish; // a cancelled one can go on
    return {
      text: delivery.text.answer.whole,
      tokenIds: [...generation.output],
      finishReason: end.finish.reason,
      stop: end.finish.stop,
      metrics: this.metrics(),
      verified: generation.verified,
      unverifiedText: delivery.text.unverified,
    };
  }

  private metrics(): Metrics {
    return this.measured.metrics(this.core.counts, this.core.policy.explain(), this.attempt?.stream ?? null);
  }

  private close(end: Result | PilotfishError): void {
    this.over = true;
    clearTimeout(this.timer);
    this.pieces.close(end);
    this.leave();
    this.runner?.close();
    this.tell({ kind: "ended", at: now(), reason: end instanceof PilotfishError ? end.kind : end.finishReason });
  }

  private tellPolicy(): void {
    const { arm, reason } = this.core.policy;
    if (`${arm} ${reason}` === this.arm) return;
    this.arm = `${arm} ${reason}`;
    this.tell({ kind: "policy", at: now(), arm, reason });
  }

  private tell(event: TimelineEvent): void {
    this.options.onEvent?.(event);
  }
}
