/** Runs one generation on the device alone: the draft model's own text, which no target has seen (`local_driver.py`). */

import { AnswerText } from "./answer_text.js";
import { textPiece } from "./delivery.js";
import { DraftCounts } from "./device_actions.js";
import { DraftRunner } from "./draft_runner.js";
import type { Drafter } from "./drafter.js";
import { type Driver, now } from "./driver.js";
import type { Finish } from "./drafts.js";
import { LocalError, PilotfishError } from "./errors.js";
import { Figures, type LiveFigures } from "./figures.js";
import { ALONE, type Generation } from "./generation.js";
import { PieceQueue } from "./piece_queue.js";
import type { PolicyState, TimelineEvent } from "./result.js";
import { StopChecker } from "./stops.js";
import type { Tokenizer } from "./tokenizer.js";

const CHUNK = 4; // tokens at a time: soon enough for who reads along, and for a cancel
const POLICY: PolicyState = {
  arm: "device-only",
  reason: "fixed",
  objective: "latency",
  paused: false,
  window: 0,
  flushMs: 0,
  acceptance: 0,
  compared: 0,
  gains: {},
  gain: null,
  roundTripMs: null,
  jitterMs: null,
  draftMs: null,
  stepMs: null,
  cloudDraft: "none",
  advice: null,
};

export class LocalDriver implements Driver {
  readonly pieces = new PieceQueue();
  readonly draftText = "";
  readonly unverifiedText = "";
  readonly away = false;
  private readonly measured: Figures;
  private readonly text: AnswerText;
  private readonly rule: StopChecker;
  private readonly runner: DraftRunner;
  private readonly room: number;
  private kept = 0; // tokens that the drafter holds and that stand
  private draftMs: number | null = null;
  private began = 0;
  private over = false;

  constructor(
    readonly generation: Generation,
    private readonly drafter: Drafter,
    tokenizer: Tokenizer,
    private readonly onEvent: ((event: TimelineEvent) => void) | null = null,
  ) {
    this.measured = new Figures(generation, drafter.name);
    this.text = new AnswerText(generation.params, tokenizer, generation.output);
    const limit = drafter.maxLength ?? Infinity;
    this.room = Math.min(limit - generation.prompt.length, generation.params.maxTokens);
    this.rule = new StopChecker(generation.params, tokenizer, tokenizer.eosTokenIds, this.room);
    this.runner = new DraftRunner(drafter, generation, tokenizer.vocabSize, (tokens, error) =>
      this.drafted(tokens, error),
    );
  }

  figures(): LiveFigures {
    const tokens = this.generation.output.length;
    return {
      state: this.over ? "finished" : "alone",
      tokens,
      tokensPerS: this.measured.rate(now()),
      acceptedShare: null,
      draftTokens: 0,
      sentDraftTokens: 0,
      acceptedDraftTokens: 0,
      inFlight: 0,
      drafted: tokens,
      rollbacks: 0,
      reconnects: 0,
      bytesUp: 0,
      bytesDown: 0,
      drafter: this.drafter.name,
      drafterError: null,
      retryInS: null,
      policy: { ...POLICY, draftMs: this.draftMs },
    };
  }

  run(): void {
    this.measured.start(now());
    if (this.room <= 0) {
      const { length } = this.generation.prompt;
      this.close(new LocalError(`the prompt has ${length} tokens; the draft model's context is ${this.drafter.maxLength}`));
      return;
    }
    let finish: Finish | null = null;
    for (const token of this.generation.output) finish = this.rule.push(token);
    if (finish === null) this.next();
    else this.finish(finish);
  }

  cancel(): void {
    if (!this.over) this.finish({ reason: "abort", stop: null });
  }

  fail(error: PilotfishError): void {
    if (!this.over) this.close(error);
  }

  hint(): void {
    // there is nothing to choose here
  }

  cut(): void {
    // nor a link
  }

  private next(): void {
    const whole = [...this.generation.prompt, ...this.generation.output];
    const count = Math.min(CHUNK, Math.max(this.room - this.generation.output.length, 1));
    this.began = now();
    this.runner.begin({ keep: this.kept, extend: whole.slice(this.kept), count });
    this.kept = whole.length;
  }

  private drafted(tokens: readonly number[] | null, error: string): void {
    if (this.over) return;
    if (tokens === null || tokens.length === 0) {
      const why = tokens === null ? `failed: ${error}` : "has nothing to propose; a draft model is needed here";
      this.close(new LocalError(`the drafter ${this.drafter.name} ${why}`));
      return;
    }
    const at = now();
    this.draftMs = ((at - this.began) / tokens.length) * 1000;
    this.onEvent?.({ kind: "drafted", at, tokens: tokens.length, tookS: at - this.began });
    this.kept += tokens.length;
    const taken: number[] = [];
    let finish: Finish | null = null;
    for (const token of tokens) {
      taken.push(token);
      finish = this.rule.push(token);
      if (finish !== null) break;
    }
    this.generation.decidedUnder(ALONE + this.drafter.name);
    this.generation.output.push(...taken);
    this.measured.delivered(taken.length, at);
    const hidden = finish !== null && taken[taken.length - 1] === finish.stop;
    this.pieces.put(textPiece(this.text.push(hidden ? taken.slice(0, -1) : taken), taken, "unverified"));
    if (finish === null) this.next();
    else this.finish(finish);
  }

  private finish(finish: Finish): void {
    this.generation.finish = finish.reason === "abort" ? null : finish;
    const rest = this.text.end(finish);
    if (rest !== "") this.pieces.put(textPiece(rest, [], "unverified"));
    this.close({
      text: this.text.whole,
      tokenIds: [...this.generation.output],
      finishReason: finish.reason,
      stop: finish.stop,
      metrics: this.measured.metrics(new DraftCounts(), { ...POLICY, draftMs: this.draftMs }, null),
      verified: this.generation.verified,
      unverifiedText: "",
    });
  }

  private close(end: Parameters<PieceQueue["close"]>[0]): void {
    this.over = true;
    this.pieces.close(end);
    this.runner.close();
    this.onEvent?.({ kind: "ended", at: now(), reason: end instanceof PilotfishError ? end.kind : end.finishReason });
  }
}
