/**
 * The device's half of the protocol for one generation: draft ahead, commit, roll back, resume. No I/O, no clock.
 *
 * The driver feeds events (each with `now`, in seconds of any monotonic clock) and carries out the actions returned, in
 * order. When `draftTask` returns a task the driver runs it in the drafter and brings the result to `drafted`; at most
 * one task is out at a time. This is `device_core.py`, rule for rule: recorded scripts of that one are replayed here.
 *
 *     idle -start-> connecting -opened-> streaming -finish-> finished
 *                       ^  ^                 |
 *                       |  '-expired- waiting <-lost-   (failed when it cannot be retried, cancelled by the caller)
 *
 * A resume by a ticket claims what that covers, which may be less than the device holds: until the cloud has decided the
 * rest again the stream is repeating. With `DeviceConfig.offline` the device goes on alone once the link has been silent
 * for a while; when a stream is opened again, what was shown goes up as drafts (verify), becomes output (keep), or the
 * app is asked while what the cloud commits is held back (asking).
 */

import { type Action, type DeviceConfig, DraftCounts, type DraftTask, type Keep } from "./device_actions.js";
import { DraftPolicy, PolicyMemory } from "./draft_policy.js";
import { DraftTail } from "./draft_tail.js";
import { agreeing, type Commit, commitEnd, originOf } from "./drafts.js";
import { type PilotfishError, ProtocolViolation, Unavailable } from "./errors.js";
import type { Opened, Ticket } from "./messages.js";
import { type Advice, type Hint, type Mode, PLAIN_MODE, sameHint, sameMode } from "./modes.js";
import { type FinishRule, type OnReconnect, Unverified } from "./offline.js";
import { retryDelay } from "./retry.js";

const MAX_REPEATED = 64; // tokens to have decided again; a ticket that is older than that is of another time
const PREFILL = 8; // tokens to take in before a draft from which on the time is not the draft's

export type DeviceState =
  | "idle"
  | "connecting"
  | "repeating" // what is known comes again
  | "asking" // the app, what is to become of what it was shown
  | "streaming"
  | "waiting" // to try again
  | "finished"
  | "failed"
  | "cancelled";

export interface DeviceCoreOptions {
  readonly prompt: readonly number[];
  /** The caller's committed output tokens; the core only ever adds to them. */
  readonly output: number[];
  /** Bounds the whole output. */
  readonly maxTokens: number;
  readonly config: DeviceConfig;
  readonly drafting: boolean;
  readonly attempt?: number;
  /** Numbers in [0, 1) for backoff. */
  readonly random?: () => number;
  readonly memory?: PolicyMemory;
  readonly hint?: Hint | null;
  readonly ticket?: Ticket | null;
  /** The device's own judgement of where an answer ends, for what it writes while offline. */
  readonly finishRule?: (() => FinishRule) | null;
  /** What the app was shown behind the output the last time, and is shown anew. */
  readonly unverified?: readonly number[];
}

interface Taken {
  readonly count: number;
  readonly agreed: number;
  readonly refuted: boolean;
  readonly now: number;
}

export class DeviceCore {
  state: DeviceState = "idle";
  readonly counts = new DraftCounts();
  readonly output: number[];
  readonly policy: DraftPolicy;
  readonly unverified: Unverified;
  attempt: number;
  /** The last one, for all or nearly all of the output. */
  ticket: Ticket | null;
  /** Whether the device goes on alone. */
  away = false;
  private readonly prompt: readonly number[];
  private readonly maxTokens: number;
  private readonly config: DeviceConfig;
  private readonly random: () => number;
  private readonly drafts: DraftTail;
  private readonly restored: readonly number[];
  private drafting: boolean;
  private claimed = 0; // committed length that the cloud was told at the stream's begin
  private opening: Opened | null = null; // while repeating or asking
  private said: Mode = PLAIN_MODE; // the mode that the cloud knows
  private turn = false; // in lockstep: whether a commit has come that was not answered yet
  private granted: number; // draft tokens that the cloud takes
  private maxLength: number | null = null; // the target's context, known once opened
  private flushAt: number | null = null;
  private looking = false; // whether commits were taken since it looked ahead
  private taken: Taken[] = []; // of those, what the policy has not been told yet
  private task: { task: DraftTask; epoch: number; began: number } | null = null;
  private drafterDry = false; // it had nothing to propose; asked again after the next commit
  private acknowledged = 0;
  private acknowledgeEvery: number;
  private failures = 0;
  private everOpened = false;
  private retryAt: number | null = null;
  private heardAt = 0;
  private ping: { nonce: number; at: number } | null = null;
  private measuredAt = 0;
  private nonce = 0;
  private aliveAt = 0; // when the link was last known to be there
  private question = 0; // number of the last one asked
  private settled = 0; // up to there it is settled that what was shown is verified
  private held: Commit[] = []; // while asking

  constructor(options: DeviceCoreOptions) {
    const { config } = options;
    this.prompt = options.prompt;
    this.output = options.output;
    this.maxTokens = options.maxTokens;
    this.config = config;
    this.drafting = options.drafting;
    this.attempt = options.attempt ?? 0;
    this.random = options.random ?? Math.random;
    this.ticket = options.ticket ?? null;
    this.policy = new DraftPolicy(config, options.memory ?? new PolicyMemory(), options.drafting, options.hint);
    this.granted = config.window;
    this.drafts = new DraftTail(this.length);
    this.acknowledgeEvery = config.acknowledgeEvery;
    this.unverified = new Unverified(options.finishRule ?? null);
    this.restored = options.unverified ?? [];
  }

  /** Committed length: prompt + output. */
  get length(): number {
    return this.prompt.length + this.output.length;
  }

  /** The draft beyond the committed prefix. */
  get tail(): readonly number[] {
    return this.drafts.tokens;
  }

  /** The draft beyond what the app was shown. */
  get unshown(): readonly number[] {
    return this.drafts.tokens.slice(this.unverified.tokens.length);
  }

  /** Draft tokens sent and not decided yet. */
  get inFlight(): number {
    return this.drafts.inFlight;
  }

  get ended(): boolean {
    return this.state === "finished" || this.state === "failed" || this.state === "cancelled";
  }

  /** When it tries again, while waiting. */
  get triesAgainAt(): number | null {
    return this.state === "waiting" ? this.retryAt : null;
  }

  /** Begin, or continue a loaded generation. */
  start(now: number): Action[] {
    if (this.state !== "idle") throw new Error(`a generation was started that is ${this.state}`);
    this.aliveAt = now;
    const position = this.shownTo;
    this.unverified.begin(this.output);
    const fresh = this.unverified.show(this.restored);
    this.counts.unverified += fresh.length;
    const again: Action[] = fresh.length > 0 ? [{ kind: "show-unverified", position, tokens: fresh }] : [];
    return [...again, ...this.connect(now)];
  }

  /** The cloud granted the stream: draft what is already drafted as its first branch. */
  opened(message: Opened, now: number): Action[] {
    if (this.state === "waiting") return []; // it was given up, and goes on too late
    if (this.state !== "connecting") {
      return this.end(new ProtocolViolation("the verifier opened a stream that was not asked for"));
    }
    this.away = false;
    this.heardAt = this.aliveAt = now;
    this.everOpened = true;
    this.drafts.cut(this.draftLimit());
    if (this.config.offline !== null && this.unverified.tokens.length > 0 && this.shownTo > this.settled) {
      if (this.config.offline.onReconnect === "keep") return [this.keep()];
      if (this.config.offline.onReconnect === "ask") return this.ask(message);
      this.settled = this.shownTo;
    }
    return this.grantedBy(message, now);
  }

  private grantedBy(message: Opened, now: number): Action[] {
    if (this.claimed < this.length) {
      this.state = "repeating";
      this.opening = message;
      this.heardAt = now;
      this.acknowledged = this.claimed;
      return [];
    }
    return this.begin(message, now);
  }

  private begin(message: Opened, now: number): Action[] {
    this.state = "streaming";
    this.opening = null;
    this.heardAt = now;
    this.granted = Math.min(this.config.window, message.maxDraftTokens);
    this.maxLength = message.maxModelLen;
    this.acknowledged = this.length;
    this.drafts.newStream();
    this.judge();
    this.measuredAt = now - this.config.measureEveryS;
    this.policy.reconnected();
    this.policy.offered(message.cloudDraft);
    // An acknowledgement must come before the cloud pauses for the lack of it.
    const half = Math.floor(message.maxUnacknowledged / 2);
    this.acknowledgeEvery = Math.max(1, Math.min(this.config.acknowledgeEvery, half));
    this.refill();
    this.drafts.cut(this.draftLimit());
    this.turn = false; // the first token comes from the prefill, without a draft
    return [...this.steer(), ...this.flush()];
  }

  /** The cloud committed tokens: `take` them and `lookAhead`. */
  committed(commit: Commit, now: number): Action[] {
    return [...this.take(commit, now), ...this.lookAhead()];
  }

  /**
   * The cloud committed tokens: what the app gets. To be followed by `lookAhead`. What is known already is dropped; a
   * gap loses the stream, which resumes.
   */
  take(commit: Commit, now: number): Action[] {
    if (this.state === "asking") return this.hold(commit, now);
    if (this.state !== "repeating" && this.state !== "streaming") return [];
    this.heardAt = this.aliveAt = now;
    if (commit.position > this.length) {
      return this.lost(new Unavailable(`commits are missing: got ${commit.position}, hold ${this.length}`), now);
    }
    const known = Math.min(this.length - commit.position, commit.tokens.length);
    const begin = commit.position - this.prompt.length;
    const held = this.output.slice(begin, begin + known);
    if (begin < 0 || agreeing(commit.tokens.slice(0, known), held) !== known) {
      return this.end(new ProtocolViolation("the verifier changed tokens that it had committed"));
    }
    if (commitEnd(commit) > this.prompt.length + this.maxTokens) return this.tooMany();
    const actions: Action[] = [];
    if (this.opening !== null) {
      if (commitEnd(commit) < this.length) return this.repeated(commit);
      actions.push(...this.begin(this.opening, now), { kind: "send-acknowledge", length: this.length });
    }
    const fresh = commit.tokens.slice(known);
    const { confirmed, withdrawn } = this.unverified.commit(fresh, commit.finish !== null);
    if (fresh.length > 0 || withdrawn > 0) {
      this.failures = 0;
      this.count(commit, known);
      this.counts.confirmed += confirmed;
      this.counts.withdrawn += withdrawn;
      this.advance(fresh, now);
      actions.push({
        kind: "deliver",
        tokens: fresh,
        origins: fresh.map((_, index) => originOf(commit, known + index)),
        logprobs: commit.logprobs === null ? null : commit.logprobs.slice(known),
        confirmed,
        withdrawn,
        undecided: this.unverified.tokens.length,
        position: this.length - fresh.length,
      });
    }
    if (commit.finish !== null) {
      this.state = "finished";
      this.forgetDraft();
      actions.push({ kind: "end", finish: commit.finish, error: null });
      return actions;
    }
    this.looking = true;
    return actions;
  }

  /** What follows from the commits taken since the last time for the policy, and for the cloud to know. */
  lookAhead(): Action[] {
    this.judge();
    const looking = this.looking;
    this.looking = false;
    if (this.state !== "streaming" || !looking) return [];
    const actions = this.steer();
    if (this.said.pacing === "lockstep") {
      this.turn = true;
      // There is nothing to draft: the cloud must not wait for it.
      if (this.draftLimit() <= this.drafts.tokens.length) actions.push(...this.answer());
    } else if (this.flushAt === null && this.drafts.unsent > 0 && !this.policy.paused) {
      actions.push(...this.flush()); // drafted while paused
    }
    if (this.length - this.acknowledged >= this.acknowledgeEvery) {
      this.acknowledged = this.length;
      actions.push({ kind: "send-acknowledge", length: this.length });
    }
    return actions;
  }

  /** The cloud gave a ticket; the newest one is kept. */
  proved(ticket: Ticket): Action[] {
    if (this.state === "asking") return []; // for tokens that are held back
    if (ticket.length > this.length) {
      return this.end(new ProtocolViolation("the verifier gave a ticket for tokens that it had not committed"));
    }
    if (this.ticket === null || ticket.length > this.ticket.length) this.ticket = ticket;
    return [];
  }

  /** What the drafter should do next; null when it should rest. The caller must bring the result. */
  draftTask(now: number): DraftTask | null {
    if (!this.drafting || this.task !== null || this.drafterDry || this.ended) return null;
    if (this.state === "idle" || this.state === "asking") return null;
    if (this.away && this.unverified.finish !== null) return null;
    let count = this.draftLimit() - Math.max(this.drafts.tokens.length, this.unverified.tokens.length);
    if (this.away) {
      count = Math.min(this.config.draftChunk, count);
    } else if (this.said.pacing === "lockstep") {
      count = this.turn ? count : 0;
    } else {
      const inFlight = this.drafts.inFlight + this.drafts.unsent;
      count = Math.min(Math.max(this.config.draftChunk, this.policy.burst(inFlight)), count);
    }
    if (count <= 0) return null;
    const keep = this.drafts.synced;
    const task: DraftTask = { keep, extend: this.context(keep), count };
    this.task = { task, epoch: this.drafts.epoch, began: now };
    this.drafts.synced = startOf(task);
    return task;
  }

  /** The drafter's result for the task that is out; none means that it has nothing to propose. */
  drafted(tokens: readonly number[], now: number): Action[] {
    if (this.task === null) throw new Error("a draft was brought that was not asked for");
    const { task, epoch, began } = this.task;
    this.task = null;
    this.counts.drafted += tokens.length;
    if (task.extend.length <= PREFILL) this.policy.drafted(tokens.length, now - began);
    if (this.ended) return [];
    let fresh = tokens;
    if (epoch !== this.drafts.epoch) {
      fresh = this.salvage(task, tokens);
    } else {
      this.drafts.synced = startOf(task) + fresh.length;
      this.drafterDry = fresh.length === 0;
    }
    this.drafts.tokens.push(...fresh);
    if (this.away) return this.show();
    this.drafts.cut(this.draftLimit());
    if (this.said.pacing === "lockstep") return this.state === "streaming" && this.turn ? this.answer() : [];
    if (this.state !== "streaming" || this.drafts.unsent === 0 || this.policy.paused) return [];
    if (this.drafterDry || this.drafts.tokens.length >= this.draftLimit()) return this.flush();
    if (this.flushAt === null) this.flushAt = now + this.policy.gatherS(this.drafts.inFlight);
    return now >= this.flushAt ? this.flush() : [];
  }

  /** The drafter cannot go on; the cloud decodes alone from here. */
  drafterFailed(): Action[] {
    this.task = null;
    this.drafting = false;
    this.forgetDraft();
    this.policy.drafterFailed();
    return this.steer();
  }

  /** The cloud said what it knows and the device cannot. */
  advised(advice: Advice, now: number): Action[] {
    this.heardAt = this.aliveAt = now;
    this.policy.advised(advice);
    return this.steer();
  }

  /** The app said how the device is. */
  hinted(hint: Hint): Action[] {
    if (this.ended || sameHint(hint, this.policy.hint)) return [];
    this.policy.hinted(hint);
    return this.state === "streaming" ? [{ kind: "send-hint", hint }, ...this.steer()] : [];
  }

  /** A pong arrived. */
  heard(nonce: number, now: number): Action[] {
    this.heardAt = this.aliveAt = now;
    if (this.ping !== null && this.ping.nonce === nonce) {
      this.policy.memory.roundTrip.observe(now - this.ping.at, now);
      this.ping = null;
    }
    return [];
  }

  /** The stream ended without a finish. Waits and reconnects where that can help, else ends with the error. */
  lost(error: PilotfishError, now: number): Action[] {
    const connected = ["connecting", "repeating", "asking", "streaming"].includes(this.state);
    if (!connected) return [];
    if (!error.retryable) return this.end(error);
    if (this.allHeld) return []; // the answer is here; only the app's word is missing
    this.failures += 1;
    // Who says when to come again is there: the address is right, and only a replica or two are not.
    const invited = error instanceof Unavailable && error.retryAfterS !== null;
    const first = !(this.everOpened || invited);
    let delay = retryDelay(this.config.retry, this.failures, this.random, error.retryAfterS, first);
    if (delay === null) {
      if (this.config.offline === null) return this.end(error);
      delay = this.config.retry.capS * this.random(); // the app has its text, and the link may return
    }
    this.state = "waiting";
    this.opening = null;
    this.held = [];
    this.counts.reconnects += 1;
    this.retryAt = now + delay;
    this.ping = null;
    this.flushAt = null;
    return [];
  }

  /** The caller ends the generation; what is committed stays. */
  cancel(): Action[] {
    if (this.ended) return [];
    this.state = "cancelled";
    this.forgetDraft();
    return [{ kind: "end", finish: { reason: "abort", stop: null }, error: null }];
  }

  /** The driver cannot go on (its deadline passed, the peer's frames make no sense). */
  fail(error: PilotfishError): Action[] {
    return this.ended ? [] : this.end(error);
  }

  /** The app's answer to a question; of one that was not the last, or came too late, nothing follows. */
  answered(number: number, choice: OnReconnect, now: number): Action[] {
    if (this.state !== "asking" || number !== this.question || this.opening === null) return [];
    if (choice === "keep") return [this.keep()];
    this.settled = this.shownTo;
    const held = this.held;
    this.held = [];
    this.state = "connecting";
    const actions = this.grantedBy(this.opening, now);
    for (const commit of held) actions.push(...this.take(commit, now));
    return actions;
  }

  /** What was shown is to be output, and whose it is has been noted: the answer ends so, or goes on behind it. */
  kept(now: number): Action[] {
    const tokens = [...this.unverified.tokens];
    const finish = this.unverified.finish;
    this.unverified.clear();
    this.counts.kept += tokens.length;
    this.refillFrom(tokens);
    this.drafts.commit(tokens);
    this.output.push(...tokens);
    this.held = [];
    this.opening = null;
    this.ticket = null; // nobody can prove these
    this.settled = this.length;
    if (finish !== null) {
      this.state = "finished";
      this.forgetDraft();
      return [{ kind: "end", finish, error: null }];
    }
    return this.connect(now);
  }

  /** When to call `expired` if nothing else happens before. */
  nextDeadline(): number | null {
    if (this.ended || this.state === "idle" || this.allHeld) return null;
    let nearest = Infinity;
    if (this.awayAt !== null) nearest = this.awayAt;
    if (this.flushAt !== null) nearest = Math.min(nearest, this.flushAt);
    if (this.state !== "waiting") {
      nearest = Math.min(nearest, this.ping === null ? this.pingAt : this.silentAt(this.ping.at));
    } else if (this.retryAt !== null) {
      nearest = Math.min(nearest, this.retryAt);
    }
    return nearest;
  }

  /** A deadline may have passed: try again, ask whether the link lives, or give the stream up. */
  expired(now: number): Action[] {
    const deadline = this.nextDeadline();
    if (deadline === null || now < deadline) return [];
    const actions: Action[] = [];
    if (this.awayAt !== null && now >= this.awayAt) actions.push(...this.goAlone(now));
    if (this.isWaiting()) {
      if (this.retryAt !== null && now >= this.retryAt) actions.push(...this.connect(now));
      return actions;
    }
    if (this.flushAt !== null && now >= this.flushAt) actions.push(...this.flush());
    if (this.ping !== null) {
      if (now >= this.silentAt(this.ping.at)) {
        const silence = (now - this.heardAt).toFixed(0);
        actions.push(...this.lost(new Unavailable(`nothing heard from the verifier for ${silence} s`), now));
      }
    } else if (now >= this.pingAt) {
      this.nonce += 1;
      this.measuredAt = now;
      this.ping = { nonce: this.nonce, at: now };
      actions.push({ kind: "send-ping", nonce: this.nonce });
    }
    return actions;
  }

  private isWaiting(): boolean {
    return this.state === "waiting";
  }

  /** When the stream is given up: whatever is heard after a ping is a sign of life, be it the pong or not. */
  private silentAt(pingedAt: number): number {
    const offline = this.config.offline;
    const timeout = offline === null ? this.config.pingTimeoutS : Math.min(this.config.pingTimeoutS, offline.afterS);
    return Math.max(pingedAt, this.heardAt) + timeout;
  }

  /** When to send the next ping: after a silence, and now and then to measure the round trip. */
  private get pingAt(): number {
    const offline = this.config.offline;
    const silent = this.heardAt + (offline === null ? this.config.pingAfterS : offline.afterS / 2);
    if (this.state !== "streaming" || !this.drafting) return silent;
    return Math.min(silent, this.measuredAt + this.config.measureEveryS);
  }

  // -- alone ----------------------------------------------------------------------------------------------------------

  /** When the link will have been silent for so long that the device goes on alone. */
  private get awayAt(): number | null {
    const offline = this.config.offline;
    return offline === null || this.away || !this.drafting ? null : this.aliveAt + offline.afterS;
  }

  /** Position up to which the app was shown anything. */
  private get shownTo(): number {
    return this.length + this.unverified.tokens.length;
  }

  /** The link is silent: what was drafted is shown, and so is what follows. */
  private goAlone(now: number): Action[] {
    const silence = (now - this.aliveAt).toFixed(0);
    const error = new Unavailable(`nothing heard from the verifier for ${silence} s`);
    const lost = this.state === "connecting" ? [] : this.lost(error, now);
    this.away = true;
    this.flushAt = null;
    this.drafterDry = false;
    this.unverified.begin(this.output);
    this.refill();
    return [...lost, ...this.show()];
  }

  /** Show what is drafted and was not shown; what lies beyond the answer's end is dropped. */
  private show(): Action[] {
    const position = this.shownTo;
    const fresh = this.unverified.show(this.drafts.tokens.slice(this.unverified.tokens.length));
    this.counts.unverified += fresh.length;
    const actions: Action[] = fresh.length > 0 ? [{ kind: "show-unverified", position, tokens: fresh }] : [];
    if (this.unverified.finish !== null) {
      this.drafts.cut(this.unverified.tokens.length);
      if (this.config.offline?.onReconnect === "keep") actions.push(this.keep());
    }
    return actions;
  }

  private keep(): Keep {
    return { kind: "keep", tokens: [...this.unverified.tokens] };
  }

  private ask(message: Opened): Action[] {
    this.state = "asking";
    this.opening = message;
    this.question += 1;
    return [{ kind: "ask-whether", number: this.question, tokens: [...this.unverified.tokens] }];
  }

  /** The cloud does not wait for the app's answer, but it pauses where nothing is acknowledged. */
  private hold(commit: Commit, now: number): Action[] {
    this.heardAt = this.aliveAt = now;
    this.held.push(commit);
    const most = this.prompt.length + this.maxTokens;
    return this.held.length > this.maxTokens + 1 || commitEnd(commit) > most ? this.tooMany() : [];
  }

  private tooMany(): Action[] {
    const message = `the verifier committed more than the ${this.maxTokens} tokens asked for`;
    return this.end(new ProtocolViolation(message));
  }

  /** Whether the cloud has ended the answer while the app thinks. */
  private get allHeld(): boolean {
    return this.state === "asking" && (this.held.at(-1)?.finish ?? null) !== null;
  }

  /** What was shown is the draft, as far as it may be sent: nothing of it is drafted again. */
  private refill(): void {
    if (this.drafting) this.refillFrom(this.unverified.tokens.slice(0, this.draftLimit()));
  }

  private refillFrom(tokens: readonly number[]): void {
    const missing = tokens.slice(this.drafts.tokens.length);
    if (missing.length > 0) this.drafts.refill(missing);
  }

  // -- how ------------------------------------------------------------------------------------------------------------

  private connect(now: number): Action[] {
    this.state = "connecting";
    this.retryAt = null;
    this.heardAt = now; // it may wait in the cloud's queue: only a missing pong says that nobody is there
    this.attempt += 1;
    this.said = this.policy.mode;
    this.claimed = this.length;
    let proof = this.ticket;
    if (proof !== null && (this.output.length === 0 || this.length - proof.length > MAX_REPEATED)) proof = null;
    if (proof !== null && proof.length < this.length) {
      this.said = PLAIN_MODE; // nothing is drafted before the cloud has caught up
      this.claimed = proof.length;
    }
    const ticket = proof === null ? null : proof.value;
    return [{ kind: "connect", attempt: this.attempt, length: this.claimed, mode: this.said, ticket }];
  }

  /** The cloud has decided again what is known, and is not there yet. */
  private repeated(commit: Commit): Action[] {
    if (commit.finish !== null) {
      return this.end(new ProtocolViolation("the verifier ended before tokens that it had committed"));
    }
    const end = commitEnd(commit);
    const every = this.opening === null ? Infinity : Math.floor(this.opening.maxUnacknowledged / 2);
    if (end - this.acknowledged < every) return [];
    this.acknowledged = end;
    return [{ kind: "send-acknowledge", length: end }];
  }

  /** Say so when the policy wants another mode than the cloud knows. */
  private steer(): Action[] {
    const mode = this.policy.mode;
    if (this.state !== "streaming" || sameMode(mode, this.said)) return [];
    this.said = mode;
    this.turn = false;
    return [{ kind: "send-mode", mode }];
  }

  /** In lockstep: the draft, or that there is none; which the cloud needs not hear while it has some of an earlier one. */
  private answer(): Action[] {
    this.turn = false;
    return this.drafts.tokens.length > 0 && this.drafts.unsent === 0 ? [] : this.sendRun();
  }

  private end(error: PilotfishError): Action[] {
    this.state = "failed";
    this.forgetDraft();
    return [{ kind: "end", finish: null, error }];
  }

  /** How long the tail may be: the window, and no token that could not be committed before the last one. */
  private draftLimit(): number {
    let room = this.maxTokens - this.output.length;
    if (this.maxLength !== null) room = Math.min(room, this.maxLength - this.length);
    if (this.away) return Math.max(room, 0);
    const window = this.unverified.tokens.length > 0 ? this.config.window : this.policy.window; // drafted already
    return Math.max(Math.min(window, this.granted, room - 1), 0);
  }

  /** Tokens of prompt + output + tail from position `start` on. */
  private context(start: number): number[] {
    const skipped = Math.max(start - this.length, 0);
    return [
      ...this.prompt.slice(start),
      ...this.output.slice(Math.max(start - this.prompt.length, 0)),
      ...this.drafts.tokens.slice(skipped),
    ];
  }

  /** Move the committed prefix: keep the tail where it agrees, drop it where the target went elsewhere. */
  private advance(fresh: readonly number[], now: number): void {
    const drafted = this.drafts.tokens.length;
    const { agreed, refuted } = this.drafts.commit(fresh);
    this.taken.push({ count: fresh.length, agreed, refuted, now });
    if (agreed < fresh.length) {
      if (agreed < drafted) this.counts.rollbacks += 1;
      this.flushAt = null;
    }
    this.output.push(...fresh);
    this.drafterDry = false;
    this.refill();
  }

  /** Tell the policy what the commits taken say of its drafts. */
  private judge(): void {
    const taken = this.taken;
    this.taken = [];
    for (const { count, agreed, refuted, now } of taken) this.policy.committed(count, agreed, refuted, now);
  }

  private forgetDraft(): void {
    this.drafts.forget();
    this.flushAt = null;
  }

  /**
   * Of a stale result, what the target has since agreed with keeps the drafter's state, and what goes on from there is
   * still a draft. Returns those tokens beyond the committed length.
   */
  private salvage(task: DraftTask, tokens: readonly number[]): readonly number[] {
    const start = startOf(task);
    if (this.drafts.synced !== start || this.drafts.tokens.length > 0) return [];
    const decided = start >= this.prompt.length ? this.output.slice(start - this.prompt.length) : [];
    const agreed = agreeing(tokens, decided);
    if (agreed < decided.length) {
      this.drafts.synced = start + agreed;
      return [];
    }
    this.drafts.synced = start + tokens.length;
    return tokens.slice(agreed);
  }

  /** Send what has not been sent of the tail. */
  private flush(): Action[] {
    this.flushAt = null;
    return this.policy.paused || this.drafts.unsent === 0 ? [] : this.sendRun();
  }

  private sendRun(): Action[] {
    this.flushAt = null;
    const { run, opens } = this.drafts.nextRun();
    this.counts.sent += run.tokens.length;
    let acknowledged: number | null = null;
    if (opens && this.acknowledged < this.length) acknowledged = this.acknowledged = this.length;
    return [{ kind: "send-draft", run, acknowledged }];
  }

  private count(commit: Commit, known: number): void {
    this.counts.commits += 1;
    for (let index = known; index < commit.tokens.length; index += 1) {
      const origin = originOf(commit, index);
      if (origin === "accepted" || origin === "bonus" || origin === "recovered") this.counts[origin] += 1;
      else this.counts.cloud += 1;
    }
  }
}

function startOf(task: DraftTask): number {
  return task.keep + task.extend.length;
}
