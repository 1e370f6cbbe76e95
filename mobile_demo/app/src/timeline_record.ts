/** What happened in one answer, as the timeline draws it: how far was drafted and how far decided, over time. */

import type { TimelineEvent } from "../../sdk/src/index.js";

/** At `at` seconds from the beginning: the drafted head and the committed length, in tokens of output. */
export interface Moment {
  readonly at: number;
  readonly head: number;
  readonly committed: number;
  /** Draft tokens that were thrown away at this moment. */
  readonly rolledBack: number;
}

/** A time without a link; `end` null: it still is. */
export interface Absence {
  readonly begin: number;
  end: number | null;
}

/** Moments beyond this many are thinned: each second one in the older half goes, rollbacks last. */
const MOST_MOMENTS = 1500;

export class TimelineRecord {
  moments: Moment[] = [];
  readonly absences: Absence[] = [];
  drafted = 0;
  commits = 0;
  rollbacks = 0;
  rolledBack = 0;
  ended: number | null = null;
  readonly #began: number;
  #promptLength: number | null;
  #committed = 0;
  #head = 0;

  /** `began`: on the clock of the events, seconds. `promptLength`: positions before the output, once known. */
  constructor(began: number, promptLength: number | null = null) {
    this.#began = began;
    this.#promptLength = promptLength;
  }

  get committed(): number {
    return this.#committed;
  }

  get head(): number {
    return this.#head;
  }

  /** Seconds from the beginning to `now` on the events' clock, or to the end. */
  lasted(now: number): number {
    return this.ended ?? Math.max(now - this.#began, 0);
  }

  add(event: TimelineEvent): void {
    const at = Math.max(event.at - this.#began, 0);
    switch (event.kind) {
      case "connecting":
        this.#promptLength ??= event.length;
        break;
      case "opened":
        this.#back(at);
        break;
      case "lost":
      case "away":
        if (this.absences.at(-1)?.end !== null) this.absences.push({ begin: at, end: null });
        break;
      case "drafted":
        this.drafted += event.tokens;
        this.#head += event.tokens;
        this.#note(at, 0);
        break;
      case "committed":
        this.#back(at);
        this.commits += 1;
        this.#committed = event.position + event.tokens - (this.#promptLength ?? event.position);
        if (event.rolledBack > 0) {
          this.rollbacks += 1;
          this.rolledBack += event.rolledBack;
          this.#note(at, event.rolledBack); // where the head was, before it falls
          this.#head = this.#committed;
        }
        this.#head = Math.max(this.#head, this.#committed);
        this.#note(at, 0);
        break;
      case "ended":
        this.ended = at;
        this.#head = this.#committed;
        this.#note(at, 0);
        this.#back(at);
        break;
      case "sent":
      case "policy":
      case "round-trip":
        break;
    }
  }

  /** For who cannot see it. */
  summary(now: number): string {
    if (this.moments.length === 0) return "Nothing has been drafted or committed yet.";
    const away = this.absences.length === 0 ? "" : ` The link was away ${times(this.absences.length)}.`;
    return (
      `In ${this.lasted(now).toFixed(1)} seconds: ${this.drafted} tokens drafted, ${this.#committed} committed in ` +
      `${this.commits} steps, ${this.rolledBack} drafts thrown away in ${this.rollbacks} rollbacks.${away}`
    );
  }

  #back(at: number): void {
    const last = this.absences.at(-1);
    if (last?.end === null) last.end = at;
  }

  #note(at: number, rolledBack: number): void {
    this.moments.push({ at, head: this.#head, committed: this.#committed, rolledBack });
    if (this.moments.length > MOST_MOMENTS) {
      const half = MOST_MOMENTS / 2;
      this.moments = this.moments.filter((moment, index) => index >= half || moment.rolledBack > 0 || index % 2 === 0);
    }
  }
}

function times(count: number): string {
  return count === 1 ? "once" : `${count} times`;
}
