import assert from "node:assert/strict";
import { test } from "node:test";

import { type Action, DEVICE_CONFIG, type DeviceConfig } from "../src/device_actions.js";
import { DeviceCore } from "../src/device_core.js";
import { PolicyMemory } from "../src/draft_policy.js";
import type { Commit, Finish } from "../src/drafts.js";
import { errorOfKind } from "../src/errors.js";
import type { Opened } from "../src/messages.js";
import type { Advice, Hint } from "../src/modes.js";
import type { OnReconnect } from "../src/offline.js";
import { fromHex, hex } from "../src/sha256.js";
import { vectors } from "./vectors.js";

const END = 49;

type State = [state: string, length: number, tail: number[], deadline: number | null, away: boolean];
type Choice = [arm: string, reason: string, window: number, gain: number | null, gather: number, burst: number];
type Event = [name: string, given: unknown[], now: number, answer: unknown, state: State, choice: Choice];

interface Script {
  number: number;
  keepsMemory: boolean;
  prompt: number[];
  maxTokens: number;
  drafting: boolean;
  unverified: number[];
  hint: Hint;
  config: Partial<DeviceConfig>;
  random: number[];
  events: Event[];
}

class EndRule {
  constructor(private left: number) {}

  push(token: number): Finish | null {
    this.left -= 1;
    if (token === END) return { reason: "stop", stop: END };
    return this.left <= 0 ? { reason: "length", stop: null } : null;
  }
}

test("recorded scripts of the Python core come to the same actions, states and choices", () => {
  const scripts = vectors<Script[]>("scripts");
  assert.ok(scripts.length >= 200);
  let memory = new PolicyMemory();
  let events = 0;
  for (const script of scripts) {
    if (!script.keepsMemory) memory = new PolicyMemory();
    replay(script, memory);
    events += script.events.length;
  }
  assert.ok(events > 10_000);
});

function replay(script: Script, memory: PolicyMemory): void {
  const random = script.random[Symbol.iterator]();
  const core = new DeviceCore({
    prompt: script.prompt,
    output: [],
    maxTokens: script.maxTokens,
    config: { ...DEVICE_CONFIG, ...script.config },
    drafting: script.drafting,
    random: () => random.next().value ?? NaN,
    memory,
    hint: script.hint,
    unverified: script.unverified,
    finishRule: () => new EndRule(script.maxTokens),
  });
  for (const [number, [name, given, now, answer, state, choice]] of script.events.entries()) {
    const where = `script ${script.number}, event ${number}: ${name} ${JSON.stringify(given)}`;
    if (name === "draft_task") {
      const task = core.draftTask(now);
      assert.deepEqual(task === null ? null : [task.keep, task.extend, task.count], answer, where);
    } else {
      assert.deepEqual(happen(core, name, given, now).map(formOf), answer, where);
    }
    const [kind, length, tail, deadline, away] = state;
    assert.deepEqual([core.state, core.length, core.tail, core.away], [kind, length, tail, away], where);
    close(core.nextDeadline(), deadline, where);
    const [arm, reason, window, gain, gather, burst] = choice;
    const { policy } = core;
    assert.deepEqual([policy.arm, policy.reason, policy.window, policy.burst(2)], [arm, reason, window, burst], where);
    close(policy.gain, gain, where);
    close(policy.gatherS(3), gather, where);
  }
  assert.ok(random.next().done, "all numbers were drawn");
}

function happen(core: DeviceCore, name: string, [first, second]: unknown[], now: number): Action[] {
  switch (name) {
    case "start":
      return core.start(now);
    case "opened":
      return core.opened(first as Opened, now);
    case "take":
      return core.take(first as Commit, now);
    case "look_ahead":
      return core.lookAhead();
    case "proved": {
      const { value, length } = first as { value: string; length: number };
      return core.proved({ value: fromHex(value), length });
    }
    case "drafted":
      return core.drafted(first as number[], now);
    case "drafter_failed":
      return core.drafterFailed();
    case "advised":
      return core.advised(first as Advice, now);
    case "hinted":
      return core.hinted(first as Hint);
    case "heard":
      return core.heard(first as number, now);
    case "lost": {
      const { kind, retryAfterS } = first as { kind: string; retryAfterS: number | null };
      return core.lost(errorOfKind(kind, "lost", retryAfterS), now);
    }
    case "answered":
      return core.answered(first as number, second as OnReconnect, now);
    case "kept":
      return core.kept(now);
    case "cancel":
      return core.cancel();
    case "expired":
      return core.expired(now);
    default:
      throw new Error(`an event named ${name}`);
  }
}

/** As the scripts have it: tickets in hex, errors by kind. */
function formOf(action: Action): unknown {
  if (action.kind === "connect") return { ...action, ticket: action.ticket === null ? null : hex(action.ticket) };
  if (action.kind === "end") return { ...action, error: action.error?.kind ?? null };
  return action;
}

function close(value: number | null, expected: number | null, where: string): void {
  if (value === null || expected === null) assert.equal(value, expected, where);
  else assert.ok(Math.abs(value - expected) <= 1e-9 * Math.max(1, Math.abs(expected)), `${where}: ${value}, ${expected}`);
}
