/**
 * What speculation is worth: expected tokens and times of a pipeline of drafts, from few estimates (`goodput.py`, which
 * explains the model). To a device a step takes the same time whatever its rows, so it has all drafts that have come
 * verified.
 */

const MAX_PLAIN_STEPS = 64;
const MIN_GAP_S = 1e-5;

/** What is known of one generation. Times in seconds. */
export interface Pipeline {
  readonly acceptance: number;
  readonly response: number;
  readonly gap: number;
  readonly window: number;
}

/** Tokens a second, and the seconds that the target computes for a token. */
export interface Expectation {
  readonly rate: number;
  readonly busy: number;
}

/** Mean number of accepted tokens of `drafts`. */
export function expectedAccepted(acceptance: number, drafts: number): number {
  if (acceptance >= 1) return drafts;
  return (acceptance * (1 - acceptance ** drafts)) / (1 - acceptance);
}

/** What to expect when the cloud holds each step after a renewal for up to `hold` seconds. */
export function expect(pipeline: Pipeline, step: number, hold = 0): Expectation {
  const a = pipeline.acceptance;
  const gap = Math.max(pipeline.gap, MIN_GAP_S);
  let tokens = 0;
  let time = hold;
  let alive = 1;
  let at = hold;
  for (let decided = 0; decided < MAX_PLAIN_STEPS; decided += 1) {
    const arrived = at < pipeline.response ? 0 : 1 + Math.floor((at - pipeline.response) / gap + 1e-9);
    const drafts = Math.min(arrived - decided, pipeline.window);
    if (drafts > 0) {
      tokens += alive * (1 + expectedAccepted(a, drafts));
      time += alive * step;
      const goingOn = alive * a ** (drafts + 1); // all accepted, and the bonus token is the next one drafted
      const [tokensOn, timeOn] = streak(a, gap, pipeline.window, step);
      tokens += goingOn * tokensOn;
      time += goingOn * timeOn;
      break;
    }
    tokens += alive;
    time += alive * step;
    alive *= a;
    at += step;
  }
  return { rate: tokens / time, busy: (time - hold) / tokens };
}

function streak(a: number, gap: number, window: number, step: number): [tokens: number, time: number] {
  const drafts = Math.max(1, Math.min(window, Math.floor(step / gap + 1e-9)));
  const steps = 1 / (1 - Math.min(a ** (drafts + 1), 0.999));
  return [steps * (1 + expectedAccepted(a, drafts)), steps * step];
}

/** The highest rate with a hold of at most `cap` seconds. */
export function bestHold(pipeline: Pipeline, step: number, cap: number): Expectation {
  let best = expect(pipeline, step);
  for (let tokens = 1; tokens <= pipeline.window; tokens += 1) {
    const seconds = pipeline.response + (tokens - 1) * pipeline.gap;
    if (seconds > cap) break;
    const held = expect(pipeline, step, seconds);
    if (held.rate > best.rate) best = held;
  }
  return best;
}

/** The draft length at which stop-and-wait is fastest, at least 1. */
export function bestLockstep(pipeline: Pipeline, step: number): number {
  let best = 1;
  let bestRate = -Infinity;
  for (let drafts = 1; drafts <= Math.max(pipeline.window, 1); drafts += 1) {
    const time = step + pipeline.response + (drafts - 1) * pipeline.gap;
    const rate = (1 + expectedAccepted(pipeline.acceptance, drafts)) / time;
    if (rate > bestRate) {
      best = drafts;
      bestRate = rate;
    }
  }
  return best;
}
