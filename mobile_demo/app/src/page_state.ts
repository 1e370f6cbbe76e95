/** Which state the page is in, said in words, in its buttons, and as `data-state` for style sheets and tests. */

import { element, say } from "./page.js";

/** `alone`: ready, but the cloud cannot be reached; `away`: writing without the link, to be verified. */
export type State = "starting" | "ready" | "alone" | "writing" | "away" | "done" | "stopped" | "failed";
export type Tone = "plain" | "warn" | "error";

const BUSY: readonly State[] = ["writing", "away"];

export class PageState {
  #state: State = "starting";

  get value(): State {
    return this.#state;
  }

  get busy(): boolean {
    return BUSY.includes(this.#state);
  }

  set(state: State, words: string, tone: Tone = "plain"): void {
    this.#state = state;
    say("status", words);
    element("status", HTMLElement).dataset["tone"] = tone;
    const write = element("write", HTMLButtonElement);
    const stop = element("stop", HTMLButtonElement);
    const focused = document.activeElement === (this.busy ? write : stop);
    write.disabled = state === "starting";
    write.hidden = this.busy;
    stop.hidden = !this.busy;
    if (focused) (this.busy ? stop : write).focus(); // who uses the keyboard is not sent back to the top
    document.body.dataset["state"] = state;
  }
}

/** The link as the head of the page shows it. `roundTripMs` null: not known. */
export function showLink(state: "waiting" | "connected" | "away", roundTripMs: number | null = null): void {
  element("link", HTMLElement).dataset["state"] = state;
  const far = roundTripMs === null ? "" : ` · ${roundTripMs.toFixed(0)} ms`;
  say("link-words", { waiting: "looking for the cloud", connected: `connected${far}`, away: "no link" }[state]);
}
