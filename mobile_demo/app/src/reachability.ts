/** Whether the verifier can be reached while nothing is written; an answer that runs knows by itself. */

const PATH = "/livez";
const EVERY_MS = 5000;
const PATIENCE_MS = 4000;

export class Reachability {
  /** Called when it changes. */
  changed: (reachable: boolean) => void = () => undefined;
  #reachable: boolean | null = null;
  #timer = 0;

  constructor() {
    for (const kind of ["online", "offline"]) window.addEventListener(kind, () => void this.ask());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") void this.ask();
    });
  }

  /** Ask now, and then every few seconds while the page is seen. */
  async ask(): Promise<boolean> {
    window.clearTimeout(this.#timer);
    const reachable = await answers();
    this.#timer = window.setTimeout(() => {
      if (document.visibilityState === "visible") void this.ask();
    }, EVERY_MS);
    if (reachable !== this.#reachable) {
      this.#reachable = reachable;
      this.changed(reachable);
    }
    return reachable;
  }
}

async function answers(): Promise<boolean> {
  try {
    const answer = await fetch(PATH, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    return answer.ok;
  } catch {
    return false;
  }
}
